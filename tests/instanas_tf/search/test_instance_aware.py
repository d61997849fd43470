"""The search: each recipe finds the known optimum of a small problem, and what it updates."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from instanas_tf.models.controller import Controller
from instanas_tf.models.supernet import Supernet
from instanas_tf.models.training import sgd
from instanas_tf.search.instance_aware import (
    CONTROLLER_METRICS,
    SUPERNET_METRICS,
    InstaNAS,
    SearchSettings,
)
from instanas_tf.search.policies import greedy
from instanas_tf.search.rewards import latency_reward

POLICIES = np.array(list(itertools.product([0, 1], repeat=4)), np.float32).reshape(-1, 2, 2)


def is_right(policy, bright):
    first = policy[0].any()
    return bool(policy[1, 1]) and not first if bright else bool(first)


def best(value):
    """For dark and for bright images, the right policy of the highest value, and only one."""
    found = []
    for bright in (0, 1):
        right = [policy for policy in POLICIES if is_right(policy, bright)]
        values = np.array([value(policy) for policy in right])
        assert np.sum(values == values.max()) == 1
        found.append(right[values.argmax()].tolist())
    return found


def train(model, data, steps):
    """Runs compiled steps; returns the logs, averaged over the last 20."""
    step = tf.function(model.step)
    images, labels = (tf.constant(part) for part in data)
    logs = [step(images, labels) for _ in range(steps)][-20:]
    return {name: float(np.mean([row[name] for row in logs])) for name in logs[0]}


def chosen(model, images):
    """Greedy policies of the first dark image and of the first bright one."""
    return greedy(model.controller(images[[0, -1]])).numpy().tolist()


def test_the_rule_of_the_toy_problem(make_toy, toy_images):
    images, _ = toy_images
    supernet = make_toy().supernet
    for policy in POLICIES:
        logits = supernet((images[[0, -1]], np.stack([policy, policy]))).numpy()
        found = [bool(logits[kind, kind] > logits[kind, 1 - kind]) for kind in (0, 1)]
        assert found == [is_right(policy, 0), is_right(policy, 1)]


# Both tests were seen to pass with each of 40 seeds; for one seed they always do the same.


def test_priced_finds_the_cheapest_right_policy(make_toy, toy_images, toy_table):
    model = make_toy(recipe="priced", price_rate=0.1)
    model.alpha.assign(0.99)
    # 1 + 2 ms for dark images, 4 + 2 ms for bright ones, and the reference takes 9 ms.
    target = (3.0 + 6.0) / 2 / 9.0
    model.target.assign(target)
    logs = train(model, toy_images, 600)
    assert best(lambda policy: -toy_table.static_ms(policy)) == [[[0, 1], [0, 0]], [[0, 0], [0, 1]]]
    assert chosen(model, toy_images[0]) == [[[0, 1], [0, 0]], [[0, 0], [0, 1]]]
    assert logs["latency_ratio"] == pytest.approx(target)
    assert logs["greedy_accuracy"] == 1.0
    assert logs["price"] > 0.0


def test_published_finds_the_right_policy_in_the_middle_of_the_window(
    make_toy, toy_images, toy_table
):
    model = make_toy(recipe="published", entropy_weight=0.8)
    # Middle 5 ms. Dark: 1 + 2 and 2 ms of stem, head and controller, though 1 alone is right
    # and cheaper. Bright: 4 + 2 ms, for there is no other way but 6 + 2.
    model.window_ms.assign([2.0, 8.0])
    logs = train(model, toy_images, 400)
    optimum = [[[0, 1], [1, 0]], [[0, 0], [0, 1]]]
    assert best(lambda p: latency_reward(toy_table.latency_ms(p), 2.0, 8.0).numpy()) == optimum
    assert chosen(model, toy_images[0]) == optimum
    assert logs["greedy_accuracy"] == 1.0
    # (5 + 6) / 2 / 9.
    assert logs["latency_ratio"] == pytest.approx(11 / 18)


def set_odds(model, dark, bright):
    """Makes the controller certain of a policy for each kind of image."""
    odds = 40.0 * np.array([dark, bright], np.float32).reshape(2, 4) - 20.0
    model.controller.log_odds.kernel.assign(odds)


DARK, BRIGHT = [[0, 1], [0, 0]], [[0, 0], [0, 1]]


def test_validation_uses_greedy_policies(make_toy, toy_images):
    images, labels = toy_images
    model = make_toy()
    set_odds(model, DARK, DARK)
    found = model.validate(images, labels)
    assert found["accuracy"].numpy().tolist() == [1.0] * 16 + [0.0] * 16
    assert found["latency_ratio"].numpy() == pytest.approx([3 / 9] * 32)
    set_odds(model, DARK, BRIGHT)
    found = model.validate(images, labels)
    assert found["accuracy"].numpy().tolist() == [1.0] * 32
    assert found["latency_ratio"].numpy() == pytest.approx([3 / 9] * 16 + [6 / 9] * 16)
    np.testing.assert_array_equal(np.argmax(model.predict_logits(images), axis=1), labels)
    assert model.supernet.seen[-1][1] is False


@pytest.mark.parametrize("recipe", ["priced", "published"])
def test_metrics_of_a_controller_that_is_certain(make_toy, toy_images, recipe):
    images, labels = toy_images
    model = make_toy(recipe=recipe, reward_wrong=-2.0, price_rate=0.5)
    model.alpha.assign(1.0)
    model.target.assign(0.1)
    model.price.assign(4.0)
    model.window_ms.assign([1.0, 5.0])
    set_odds(model, DARK, DARK)
    loss, values = model.controller_loss(tf.constant(images), labels)
    # Sampled and greedy policies are the same, so only the price of 3/9 of the reference counts.
    # Dark images are right: in the middle of the window, 1 + 2 ms. Bright ones are wrong.
    assert float(loss) == pytest.approx(4.0 * 3 / 9 if recipe == "priced" else 0.0, abs=1e-4)
    assert float(values["reward"]) == pytest.approx((30 - 2) / 2)
    assert float(values["sampled_accuracy"]) == float(values["greedy_accuracy"]) == 0.5
    assert float(values["latency_ratio"]) == pytest.approx(3 / 9)
    price = 4.0 + 0.5 * (3 / 9 - 0.1) if recipe == "priced" else 4.0
    assert float(values["price"]) == float(model.price) == pytest.approx(price)
    assert model.supernet.seen[-1][1] is False


def test_diversity_and_entropy_are_terms_of_the_loss(make_toy, toy_images):
    images, labels = (tf.constant(part) for part in toy_images)
    plain, _ = make_toy(seed=4).controller_loss(images, labels)
    for changes, expected in (
        # All probabilities are 0.5: 4 bits of log 2 nats, so the diversity is (1 - 1.2) 4 log 2.
        ({"diversity_weight": 2.0, "diversity_ratio": 1.2}, 2.0 * 0.2 * 2.772589),
        ({"entropy_weight": 2.0}, -2.0 * 2.772589),
        ({"entropy_weight": 2.0, "entropy": "half"}, -2.772589),
    ):
        loss, _ = make_toy(seed=4, **changes).controller_loss(images, labels)
        assert float(loss - plain) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_shuffle_share_says_how_often_policies_are_those_of_other_images(
    make_toy, toy_images, share
):
    images, labels = toy_images
    model = make_toy(shuffle_share=share)
    model.alpha.assign(1.0)
    set_odds(model, DARK, BRIGHT)
    own = np.array([DARK] * 16 + [BRIGHT] * 16)
    for _ in range(5):
        model.supernet_loss(images, labels)
        policy, training = model.supernet.seen[-1]
        assert training is True
        # A shuffle leaves all kinds in place with probability 16! 16! / 32! = 2e-9.
        assert np.array_equal(policy, own) == (share == 0.0)
        assert np.sum(policy, axis=0).tolist() == [[0, 16], [0, 16]]


@pytest.mark.parametrize(("epoch", "moved"), [(0, [True, False]), (1, [False, True])])
def test_by_epochs_one_network_is_updated_at_a_time(make_toy, toy_images, epoch, moved):
    model = make_toy(alternate="epoch")
    parts = model.controller.log_odds.kernel, model.supernet.sharpness
    before = [part.numpy() for part in parts]
    logs = model.step(*toy_images, model.active(epoch, 0))
    after = [part.numpy() for part in parts]
    assert [not np.array_equal(a, b) for a, b in zip(before, after, strict=True)] == moved
    # A network that rests leaves no values in the logs either.
    assert set(logs) == set((CONTROLLER_METRICS, SUPERNET_METRICS)[epoch])
    assert model.active(epoch + 2, 0) == model.active(epoch, 0)


def test_by_steps_both_networks_are_updated(make_toy, toy_images):
    model = make_toy(alternate="step")
    assert model.active(0, 0) == model.active(1, 0) == (0, 1)
    logs = model.step(*toy_images, model.active(1, 0))
    assert model.controller.log_odds.kernel.numpy().any()
    assert model.supernet.sharpness.numpy() != 0.0
    assert set(logs) == {*CONTROLLER_METRICS, *SUPERNET_METRICS}


@pytest.mark.parametrize(
    "changes", [{"recipe": "random"}, {"alternate": "never"}, {"entropy": "double"}]
)
def test_unknown_settings_are_refused(changes):
    name, value = next(iter(changes.items()))
    with pytest.raises(ValueError, match=f"`{name}` must be one of .* Received: '{value}'"):
        SearchSettings(**changes)


@pytest.fixture(scope="module")
def make_real(tiny, tiny_table):
    """Makes an InstaNAS of real networks on the tiny space; the same one each time."""

    def make():
        keras.utils.set_random_seed(0)
        supernet, controller = Supernet(tiny), Controller(tiny, logit_stddev=0.5)
        adam = keras.optimizers.Adam(0.01)
        adam.build(controller.trainable_variables)
        weights = sgd(0.05, 1e-4, supernet.trainable_variables)
        settings = SearchSettings(alternate="epoch")
        return InstaNAS(supernet, controller, tiny_table, settings, adam, weights, 5.0, 0)

    return make


def snapshot(network):
    return [weight.numpy() for weight in network.weights]


def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def two_turns(model, data):
    """A step of each turn; after each, what the controller and the supernet are."""
    found = [(snapshot(model.controller), snapshot(model.supernet))]
    for epoch in (0, 1):
        model.step(*data, model.active(epoch, 0))
        found.append((snapshot(model.controller), snapshot(model.supernet)))
    return found


def test_an_update_of_one_network_leaves_the_other_and_its_statistics_alone(make_real):
    generator = np.random.default_rng(0)
    images = generator.uniform(0, 255, (4, 8, 8, 3)).astype(np.float32)
    data = tf.constant(images), tf.constant([0, 1, 2, 0])
    start, controlled, trained = two_turns(make_real(), data)
    assert not same(start[0], controlled[0]) and same(start[1], controlled[1])
    assert same(controlled[0], trained[0]) and not same(controlled[1], trained[1])
    # The same seeds, the same weights.
    again = two_turns(make_real(), data)[-1]
    assert same(trained[0], again[0]) and same(trained[1], again[1])


def test_the_seed_decides_what_is_sampled(make_toy, toy_images):
    found = []
    for seed in (1, 1, 2):
        model = make_toy(seed=seed)
        for _ in range(2):
            model.step(*toy_images)
        found.append(snapshot(model.controller) + snapshot(model.supernet))
    assert same(found[0], found[1])
    assert not same(found[0], found[2])


@pytest.mark.slow
def test_fit_runs_the_search_on_real_networks(make_real):
    model = make_real()
    model.compile()
    images = np.random.default_rng(0).uniform(0, 255, (6, 8, 8, 3)).astype(np.float32)
    data = tf.data.Dataset.from_tensors((images, [0, 1, 2, 0, 1, 2])).repeat(2)
    history = model.fit(data, shuffle=False, verbose=0).history
    assert set(history) == {*CONTROLLER_METRICS, *SUPERNET_METRICS}
    assert np.isfinite([values[0] for values in history.values()]).all()
