"""Which policies are candidates, what they are worth, and which of them become experts."""

import json
import types

import numpy as np
import pytest

from instanas_tf.errors import InputError
from instanas_tf.models.expert import build_expert, recalibrate
from instanas_tf.models.supernet import Supernet
from instanas_tf.pipeline import choice, data, fitting, pools
from instanas_tf.pipeline import config as config_module
from instanas_tf.pipeline.workdir import WorkDir
from instanas_tf.search import expert_set

# One op in each of the three cells; A is the most wanted.
A = np.array([[0, 1, 0], [0, 1, 0], [0, 0, 1]], np.float32)
B = np.array([[0, 0, 1], [1, 0, 0], [0, 1, 0]], np.float32)


def made_config(**experts):
    config = config_module.default_config()
    config.experts.update({"explore": 0, "required": ("least", "most"), **experts})
    return config


def visited(*pairs):
    """Policies with how often each was wanted."""
    policies, counts = zip(*pairs, strict=True)
    return expert_set.PolicyCounts(np.stack(policies), np.array(counts))


def index_of(pool, policy):
    (found,) = np.flatnonzero((pool == policy).all(axis=(1, 2)))
    return int(found)


def test_candidates_come_once_the_required_ones_first(tiny):
    least, most = expert_set.named_anchors(tiny, ("least", "most"))
    found = visited((A, 5), (B, 3), (least, 2))
    pool, counts, required = choice.candidates(found, made_config(), tiny)
    np.testing.assert_array_equal(pool[:4], [least, most, A, B])
    assert required == [0, 1]
    assert counts[:4].tolist() == [2, 0, 5, 3] and not counts[4:].any()
    assert len(np.unique(pool, axis=0)) == len(pool)
    names = {name for name, policy in expert_set.anchors(tiny) if policy in pool}
    assert names == {name for name, _ in expert_set.anchors(tiny)}
    assert len(pool) == 2 + len(names)


def test_only_the_most_wanted_are_candidates(tiny):
    pool, counts, _ = choice.candidates(visited((A, 5), (B, 3)), made_config(candidates=1), tiny)
    assert counts[index_of(pool, A)] == 5 and counts.sum() == 5
    assert not (pool == B).all(axis=(1, 2)).any()


def test_without_required_ones_the_most_wanted_is_the_first(tiny):
    pool, counts, required = choice.candidates(visited((A, 5)), made_config(required=()), tiny)
    np.testing.assert_array_equal(pool[0], A)
    assert required == [] and counts[0] == 5


def test_neighbours_are_wanted_by_nobody_and_depend_on_the_seed(tiny):
    config = made_config(explore=20)
    plain = choice.candidates(visited((A, 5)), made_config(), tiny)[0]
    pool, counts, _ = choice.candidates(visited((A, 5)), config, tiny)
    np.testing.assert_array_equal(pool[: len(plain)], plain)
    assert len(plain) < len(pool) <= len(plain) + 20
    assert counts.sum() == 5
    again = choice.candidates(visited((A, 5)), config, tiny)[0]
    np.testing.assert_array_equal(again, pool)
    config.seed = 1
    assert not np.array_equal(choice.candidates(visited((A, 5)), config, tiny)[0], pool)


def test_with_shared_cells_what_became_the_same_is_added_up(tiny):
    # Of A only the last cell is left, and so of this one.
    like_a = np.concatenate([B[:2], A[2:]])
    found = visited((A, 5), (like_a, 4), (B, 3))
    pool, counts, required = choice.candidates(found, made_config(shared_cells=2), tiny)
    (cheap,) = expert_set.named_anchors(tiny, ("cheap",))
    assert (pool[:, :2] == cheap[:2]).all()
    assert len(np.unique(pool, axis=0)) == len(pool)
    assert counts[index_of(pool, np.concatenate([cheap[:2], A[2:]]))] == 9
    assert counts.sum() == 12
    assert required == [0, 1]


def test_half_of_the_weight_is_the_searchs_and_half_the_pareto_fronts():
    accuracy, latency = np.array([0.5, 0.6, 0.9, 0.55]), np.array([1.0, 2.0, 3.0, 4.0])
    found = choice.wanted(np.array([3, 1, 0, 0]), accuracy, latency)
    np.testing.assert_allclose(found, [0.75 + 1 / 3, 0.25 + 1 / 3, 1 / 3, 0.0])
    # A search that wanted none of them leaves the front; of equal latency one is on it.
    found = choice.wanted(np.zeros(4), accuracy, np.array([1.0, 1.0, 3.0, 4.0]))
    np.testing.assert_allclose(found, [0.0, 0.5, 0.5, 0.0])


def split_of(count):
    """Images at random, labelled at random with one of three classes."""
    generator = np.random.default_rng(count)
    pixels = generator.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    labels = generator.integers(0, 3, count)
    return data.Split(pools.array_pool(pixels, labels), np.arange(count))


@pytest.fixture(scope="module")
def supernet(tiny):
    import keras

    keras.utils.set_random_seed(0)
    return Supernet(tiny)


def test_judged_is_what_a_recalibrated_expert_gets(supernet):
    split = split_of(48)
    images, labels = data.to_arrays(split)
    expected = []
    for policy in (A, B):
        network = build_expert(supernet, policy)
        recalibrate(network, [images.astype(np.float32)])
        answers = np.argmax(network(images.astype(np.float32), training=False), axis=-1)
        expected.append(np.mean(answers == labels))
    found = choice.judge(supernet, np.stack([A, B]), split)
    np.testing.assert_allclose(found, expected, atol=1.01 / 48)  # A near tie may fall either way.


def test_judging_leaves_out_what_fills_no_batch(supernet, monkeypatch):
    monkeypatch.setattr(fitting, "EVAL_BATCH", 16)
    split = split_of(40)
    parts = [data.Split(split.pool, np.arange(start, start + 16)) for start in (0, 16)]
    expected = np.mean([choice.judge(supernet, A[None], part) for part in parts], axis=0)
    np.testing.assert_allclose(choice.judge(supernet, A[None], split), expected)


@pytest.fixture
def chosen(tiny_table, tmp_path, monkeypatch):
    """Chooses for a run whose search visited A and B; the dearer, the more accurate."""
    asked = []

    def seen(epochs, *rest):
        asked.append(epochs)
        return visited((A, 5), (B, 3))

    def judge(_, policies, split):
        del split
        latency = tiny_table.static_ms(policies)
        return latency / latency.max()

    monkeypatch.setattr(choice, "visited", seen)
    monkeypatch.setattr(choice, "judge", judge)
    workdir = WorkDir(tmp_path)
    row = {"stage": "search", "val_latency_ratio": 0.5, "val_accuracy": 0.5, "epoch": 2}
    workdir.metrics.write_text(json.dumps(row) + "\n")
    images = types.SimpleNamespace(validation=None)

    def choose(function=choice.choose, **experts):
        config = made_config(**experts)
        config.search.epochs = 3
        return function(config, images, tiny_table, None, workdir)

    return types.SimpleNamespace(choose=choose, asked=asked, workdir=workdir)


@pytest.mark.parametrize("count", [2, 4])
def test_experts_of_the_whole_history(chosen, tiny_table, count):
    space = tiny_table.space
    found = chosen.choose(count=count)
    assert chosen.asked == [[1, 2, 3]] and found["epochs"] == [2]
    policies = np.stack([space.policy_from_names(names) for names in found["policies"]])
    assert len(np.unique(policies, axis=0)) == count
    latencies = tiny_table.static_ms(policies).tolist()
    assert latencies == sorted(latencies)
    for required in expert_set.named_anchors(space, ("least", "most")):
        index_of(policies, required)
    assert found["unique_policies"] == 2
    assert found["varying_bits"] == int(np.sum(A != B))


def test_experts_of_the_picked_epochs(chosen, tiny_table):
    found = chosen.choose(count=4, choice="picked")
    assert chosen.asked == [[2]]
    expected = sorted((A, B), key=tiny_table.static_ms)
    assert found["policies"] == [tiny_table.space.policy_names(policy) for policy in expected]


def test_more_experts_than_policies(chosen):
    with pytest.raises(InputError, match="config.experts.count must be at most .*Received: 99"):
        chosen.choose(count=99)


def test_what_was_chosen_once_stays(chosen):
    first = chosen.choose(choice.choose_once, count=3)
    assert json.loads(chosen.workdir.chosen.read_text()) == first
    again = chosen.choose(choice.choose_once, count=2)  # As rounding might have it.
    assert again == first and len(chosen.asked) == 1
    chosen.workdir.chosen.write_text("{}")
    with pytest.raises(InputError, match="chosen.json is damaged .* choose the experts again"):
        chosen.choose(choice.choose_once)
