"""The supernet: routed equals masked, each image by itself, the published size."""

import numpy as np
import pytest
import tensorflow as tf

from instanas_tf import spaces
from instanas_tf.models.expert import build_expert
from instanas_tf.models.routing import run_routed
from instanas_tf.models.supernet import Supernet
from instanas_tf.models.training import cross_entropy
from instanas_tf.spaces.size import supernet_params

LABELS = np.array([0, 1, 2, 0, 1, 2])


def count(weights):
    return sum(int(np.prod(weight.shape)) for weight in weights)


def test_the_tiny_supernet_has_the_size_that_arithmetic_says(supernet):
    assert count(supernet.trainable_weights) == supernet_params(supernet.space)


@pytest.mark.slow
def test_the_published_supernet_has_the_published_size():
    supernet = Supernet(spaces.get("mobilenet_v2_32"))
    assert count(supernet.trainable_weights) == 9_572_970


def place(weight):
    """A weight's path without the model's own name."""
    return weight.path.partition("/")[2]


def run_step(supernet, images, policies, training):
    """Logits, gradients of all weights by name, and all moving statistics after it."""

    with tf.GradientTape() as tape:
        logits = supernet((images, policies), training=training)
        loss = cross_entropy(LABELS, logits)
    gradients = tape.gradient(loss, supernet.trainable_weights)
    paths = [place(weight) for weight in supernet.trainable_weights]
    gradients = {path: g.numpy() for path, g in zip(paths, gradients, strict=True)}
    statistics = {place(weight): weight.numpy() for weight in supernet.non_trainable_weights}
    return logits.numpy(), gradients, statistics


@pytest.fixture(scope="module")
def steps(make_supernet, images, policies):
    """Results of `run_step`, and the statistics before it, for each (routed, training)."""
    found = {}
    for routed in (True, False):
        for training in (False, True):
            supernet = make_supernet(routed)
            before = {place(w): w.numpy() for w in supernet.non_trainable_weights}
            found[routed, training] = (*run_step(supernet, images, policies, training), before)
    return found


@pytest.mark.parametrize("training", [False, True])
def test_routed_equals_masked(steps, training):
    routed, masked = steps[True, training], steps[False, training]
    np.testing.assert_allclose(routed[0], masked[0], rtol=1e-3, atol=1e-4)
    # 9 + 9 + 6 in each of 3 cells, 3 in stem and head, 2 in the classifier.
    assert len(routed[1]) == 80
    for path, gradient in masked[1].items():
        # Sums of 32-bit products in another order: a thousandth of the largest entry.
        tolerance = 1e-3 * max(np.abs(gradient).max(), 1e-2)
        np.testing.assert_allclose(routed[1][path], gradient, atol=tolerance, err_msg=path)
    for path, statistic in masked[2].items():
        np.testing.assert_allclose(routed[2][path], statistic, atol=1e-4, err_msg=path)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("routed", [True, False])
def test_an_op_that_nobody_chose_is_left_alone(steps, routed, training):
    _, gradients, after, before = steps[routed, training]
    unused = [path for path in gradients if "cell_02/basic" in path]
    assert len(unused) == 6  # Two convolutions, each with kernel, gamma and beta.
    assert not any(gradients[path].any() for path in unused)
    moved = {path for path in before if not np.array_equal(before[path], after[path])}
    used = {path for path in before if "cell_02/basic" not in path}
    assert len(before) - len(used) == 4
    # In training everything else moves, in inference nothing does.
    assert moved == (used if training else set())


@pytest.mark.parametrize("routed", [True, False])
def test_weights_of_an_op_that_nobody_chose_do_not_matter(
    make_supernet, scramble, images, policies, routed
):
    supernet = make_supernet(routed)
    before = supernet((images, policies)).numpy()
    scramble(supernet.cells[2].candidates[2], seed=9)
    np.testing.assert_array_equal(supernet((images, policies)), before)
    scramble(supernet.cells[2].candidates[1], seed=9)
    assert not np.allclose(supernet((images, policies)), before)


def test_each_image_is_answered_by_itself(supernet, images, policies):
    together = supernet((images, policies)).numpy()
    for i in range(len(images)):
        alone = supernet((images[i : i + 1], policies[i : i + 1]))
        np.testing.assert_allclose(alone, together[i : i + 1], rtol=1e-4, atol=1e-5)


def test_the_policy_matters_and_the_empty_cell_falls_back(supernet, images, policies):
    logits = supernet((images, policies)).numpy()
    flipped = policies.copy()
    flipped[3, 0, 0] = 1.0 - flipped[3, 0, 0]
    changed = np.abs(supernet((images, flipped)).numpy() - logits).max(axis=1) > 1e-4
    assert changed.tolist() == [False, False, False, True, False, False]
    explicit = supernet.space.effective(policies)
    assert not np.array_equal(explicit, policies)
    np.testing.assert_array_equal(supernet((images, explicit)), logits)


def changed(policies, position):
    """Other policies, which differ for the images 0, 3 and 4 at one cell."""
    second = policies.copy()
    second[[0, 3, 4], position, 0] = 1.0 - second[[0, 3, 4], position, 0]
    return second


OTHERS = {
    "equal": lambda policies: policies.copy(),
    "first_cell": lambda policies: changed(policies, 0),
    "last_cell": lambda policies: changed(policies, 2),
    # Apart in the first cell, alike in the second, apart in the third.
    "first_and_last_cell": lambda policies: changed(changed(policies, 0), 2),
    "all_bits": lambda policies: 1.0 - policies,
    "empty": np.zeros_like,
    "other_images": lambda policies: policies[::-1],
}


@pytest.mark.parametrize("routed", [True, False])
@pytest.mark.parametrize("other", OTHERS)
def test_both_equals_two_calls(make_supernet, images, policies, other, routed):
    supernet, second = make_supernet(routed), OTHERS[other](policies)
    for one, two in ((policies, second), (second, policies)):
        found = supernet.both(images, one, two)
        for logits, policy in zip(found, (one, two), strict=True):
            expected = supernet((images, policy), training=False)
            np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


def test_both_traces_with_any_batch_size(supernet, images, policies):
    signature = [tf.TensorSpec([None, *x.shape[1:]]) for x in (images, policies, policies)]
    both = tf.function(supernet.both, input_signature=signature)
    second = changed(policies, 1)
    for count in (6, 1):
        arguments = images[:count], policies[:count], second[:count]
        for one, other in zip(both(*arguments), supernet.both(*arguments), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def rows_of_both(supernet, monkeypatch, images, first, second):
    """How many images each op of each cell ran on, [L, K]."""
    rows = []

    def count(op, inputs, chosen, training):
        rows.append(int(np.sum(chosen)))
        return run_routed(op, inputs, chosen, training)

    for cell in supernet.cells:
        monkeypatch.setattr(cell, "run", count)
    supernet.both(images, first, second)
    return np.reshape(rows, (supernet.space.num_cells, supernet.space.num_ops))


@pytest.mark.parametrize(
    ("other", "apart_from"),
    # The first cell from which on an image's two policies are run apart; 3 is never.
    [("equal", [3] * 6), ("first_cell", [0, 3, 3, 0, 0, 3]), ("last_cell", [2, 3, 3, 2, 2, 3])],
)
def test_both_runs_what_two_policies_share_once(
    make_supernet, monkeypatch, images, policies, other, apart_from
):
    supernet, second = make_supernet(), OTHERS[other](policies)
    apart = np.arange(3)[None, :] >= np.array(apart_from)[:, None]
    once = supernet.space.effective(policies)
    again = supernet.space.effective(second) * apart[:, :, None]
    found = rows_of_both(supernet, monkeypatch, images, policies, second)
    np.testing.assert_array_equal(found, (once + again).sum(axis=0))


def test_both_shares_an_empty_cell_with_the_op_that_stands_in(
    make_supernet, monkeypatch, images, policies
):
    supernet = make_supernet()
    explicit = supernet.space.effective(policies)
    found = rows_of_both(supernet, monkeypatch, images, policies, explicit)
    np.testing.assert_array_equal(found, explicit.sum(axis=0))


def test_merging_averages_or_sums():
    # Stem and head aside: with all kernels 0 each op gives its beta, so a cell's output is
    # plain arithmetic. Betas of the three ops are 1, 2 and 4 in both cells.
    inputs = np.full((4, 2, 2, 8), 10.0, np.float32)
    bits = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 1], [0, 0, 0]], np.float32)
    expected = {
        # Each inverted residual brings the input once, `basic` never, the empty cell is it.
        ("sum", 0): [11, 23, 16, 10],
        ("shortcut", 0): [11, 13, 16, 10],
        ("sum", 1): [1, 3, 6],
        ("shortcut", 1): [1, 1.5, 3],
    }
    for merge in ("sum", "shortcut"):
        supernet = Supernet(spaces.get("tiny", merge=merge))
        for position in (0, 1):
            cell = supernet.cells[position]
            for op, beta in zip(cell.candidates, (1.0, 2.0, 4.0), strict=True):
                op.chain[-1].conv.kernel.assign(op.chain[-1].conv.kernel * 0.0)
                op.chain[-1].norm.beta.assign(op.chain[-1].norm.beta * 0.0 + beta)
            wanted = expected[merge, position]
            outputs = cell(inputs[: len(wanted)], bits[: len(wanted)])
            assert outputs.shape[1:] == ((2, 2, 8) if position == 0 else (1, 1, 16))
            np.testing.assert_allclose(outputs[:, 0, 0, 0], wanted, rtol=1e-5)
            for row, value in zip(bits, wanted, strict=False):
                static = cell.run_static(inputs, row)
                np.testing.assert_allclose(static[0, 0, 0, 0], value, rtol=1e-5)


# The first two share two cells, as an empty cell 1 runs op 1; the last shares one with them.
# The two in the middle are alike.
STATIC = np.array(
    [
        [[1, 1, 0], [0, 0, 0], [1, 0, 0]],
        [[1, 1, 0], [0, 1, 0], [0, 0, 0]],
        [[0, 0, 0], [1, 1, 1], [0, 1, 1]],
        [[0, 0, 0], [1, 1, 1], [0, 1, 1]],
        [[1, 1, 0], [0, 1, 1], [1, 0, 0]],
    ],
    np.float32,
)


@pytest.mark.parametrize("routed", [True, False])
def test_together_equals_a_call_for_each_policy(make_supernet, images, routed):
    supernet = make_supernet(routed)
    found = supernet.together(images, STATIC)
    assert len(found) == 5
    for logits, policy in zip(found, STATIC, strict=True):
        expected = supernet((images, np.tile(policy, (6, 1, 1))), training=False).numpy()
        assert np.ptp(expected) > 0.1
        np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)


def test_together_equals_the_experts(supernet, images):
    for logits, policy in zip(supernet.together(images, STATIC), STATIC, strict=True):
        expert = build_expert(supernet, policy)
        np.testing.assert_allclose(logits, expert(images), rtol=1e-5, atol=1e-5)


def test_together_trains_each_policy_by_the_whole_batch(make_supernet, images):
    supernet = make_supernet()
    experts = [build_expert(supernet, policy) for policy in STATIC]
    before = supernet.stem.norm.moving_mean.numpy()
    found = supernet.together(images, STATIC, training=True)
    for logits, expert in zip(found, experts, strict=True):
        np.testing.assert_allclose(logits, expert(images, training=True), rtol=1e-3, atol=1e-3)
    # The stem is shared by all, so its statistics move once.
    assert not np.allclose(supernet.stem.norm.moving_mean, before)
    expected = experts[0].get_layer("stem").norm.moving_mean
    np.testing.assert_allclose(supernet.stem.norm.moving_mean, expected, rtol=1e-5)


@pytest.mark.parametrize("training", [False, True])
def test_gradients_of_together_are_those_of_the_calls(make_supernet, images, training):
    supernet = make_supernet()
    weights = supernet.trainable_weights
    with tf.GradientTape() as tape:
        logits = supernet.together(images, STATIC, training=training)
        loss = sum(cross_entropy(LABELS, one) for one in logits)
    found = tape.gradient(loss, weights)
    with tf.GradientTape() as tape:
        tiled = [np.tile(policy, (6, 1, 1)) for policy in STATIC]
        logits = [supernet((images, policy), training=training) for policy in tiled]
        loss = sum(cross_entropy(LABELS, one) for one in logits)
    expected = [np.asarray(gradient) for gradient in tape.gradient(loss, weights)]
    for weight, gradient, wanted in zip(weights, found, expected, strict=True):
        if gradient is None:  # Op 2 of cell 0 is the only one that no policy has on.
            assert "cell_00/basic" in place(weight)
            assert not wanted.any()
            continue
        assert np.any(gradient)
        tolerance = 1e-3 * max(np.abs(wanted).max(), 1e-2)
        np.testing.assert_allclose(gradient, wanted, atol=tolerance, err_msg=weight.path)
    assert sum(gradient is None for gradient in found) == 6


def test_together_runs_what_policies_share_once(make_supernet, monkeypatch, images):
    supernet, runs = make_supernet(), []

    def counted(call, at):
        def count(*arguments, **options):
            runs.append(at)
            return call(*arguments, **options)

        return count

    for position, cell in enumerate(supernet.cells):
        for number, op in enumerate(cell.candidates):
            monkeypatch.setattr(op, "call", counted(op.call, (position, number)))
    supernet.together(images, STATIC)
    # Cell 0: {0, 1} once and {} once. Cell 1: {1} and {1, 2} behind the first, {0, 1, 2} behind
    # the second. Cell 2: {0} and {} behind {1}, {0} behind {1, 2}, {1, 2} once for two policies.
    expected = {(0, 0): 1, (0, 1): 1, (1, 0): 1, (1, 1): 3, (1, 2): 2}
    expected |= {(2, 0): 2, (2, 1): 1, (2, 2): 1}
    assert {at: runs.count(at) for at in runs} == expected


def test_together_traces_with_any_batch_size(supernet, images):
    signature = [tf.TensorSpec([None, *images.shape[1:]])]
    together = tf.function(lambda x: supernet.together(x, STATIC), input_signature=signature)
    for count in (6, 1):
        for one, other in zip(
            together(images[:count]), supernet.together(images[:count], STATIC), strict=True
        ):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "policies", [STATIC[0], STATIC[:0], STATIC[:, :2], STATIC * 0.5, STATIC * np.nan]
)
def test_together_refuses_policies_that_do_not_fit(supernet, images, policies):
    message = r"`policies` must be 0/1 of shape \(E, 3, 3\), E at least 1. Received: shape"
    with pytest.raises(ValueError, match=message):
        supernet.together(images, policies)


def test_saving(check_saving, supernet, images, policies, tmp_path):
    def fresh():
        return Supernet(supernet.space, supernet.mean, supernet.std)

    check_saving(supernet, fresh, (images, policies), tmp_path)


def test_a_supernet_is_made_from_a_space_or_from_its_json(tiny):
    assert Supernet(tiny.to_json()).space == tiny
