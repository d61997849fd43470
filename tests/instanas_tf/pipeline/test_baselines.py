"""Which networks stand beside the results."""

import types

import numpy as np
import pytest

from instanas_tf import spaces
from instanas_tf.pipeline import baselines
from instanas_tf.pipeline import config as config_module
from instanas_tf.pipeline.workdir import WorkDir

SPACE = spaces.get("tiny", merge="shortcut")


@pytest.fixture
def seeds():
    """Keywords that `train_alone` got, if any."""
    return []


@pytest.fixture
def trained_alone(monkeypatch, seeds):
    """Records the networks that would be trained alone."""
    calls = []

    def train_alone(name, space, policy, *rest, **keywords):
        calls.append((name, space, np.asarray(policy)))
        seeds.append(keywords)
        return name

    monkeypatch.setattr(baselines, "train_alone", train_alone)
    return calls


def finished(root, name):
    """Leaves the result of a network that was trained alone."""
    path = WorkDir(root).weights(name)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"")


def test_references(trained_alone, tmp_path):
    config = config_module.default_config()
    config.space.name, config.space.width = "tiny", 2.0
    config.evaluate.baseline_widths = (1.0, 0.5)
    images, said = types.SimpleNamespace(num_classes=7), []
    workdir = WorkDir(tmp_path)
    found = baselines.references(config, images, workdir, said.append)
    assert [item.name for item in found] == ["mobilenet_v2_2.0", "mobilenet_v2_1.0"]
    assert [space.cells[-1].out_channels for _, space, _ in trained_alone] == [32, 16]
    assert [line.split()[1] for line in said] == ["mobilenet_v2_2.0", "mobilenet_v2_1.0"]
    for _, space, policy in trained_alone:
        assert space.num_classes == 7
        np.testing.assert_array_equal(policy, space.single_op_policy("ir3_e6"))
    # What is trained is loaded, and not said to be trained.
    said.clear()
    finished(tmp_path, "mobilenet_v2_2.0")
    assert len(baselines.references(config, images, workdir, said.append)) == 2
    assert [line.split()[1] for line in said] == ["mobilenet_v2_1.0"]


def four_experts():
    policies = [np.ones((3, 3), np.float32)]
    policies += [SPACE.single_op_policy(name) for name in SPACE.op_names]
    experts = [{"policy": SPACE.policy_names(policy)} for policy in policies]
    return {"space": SPACE.to_json(), "experts": experts}, policies


@pytest.mark.parametrize(
    ("count", "expected"),
    [(0, [0, 1, 2, 3]), (1, [0]), (2, [0, 3]), (3, [0, 2, 3]), (9, [0, 1, 2, 3])],
)
def test_experts_alone_lie_evenly_between_the_cheapest_and_the_dearest(
    trained_alone, tmp_path, count, expected
):
    content, policies = four_experts()
    config, said = config_module.default_config(), []
    config.evaluate.alone = count
    found = baselines.alone(config, None, WorkDir(tmp_path), content, said.append)
    assert list(found) == expected
    assert [line.split()[1] for line in said] == [f"expert_{index:02d}" for index in expected]
    assert [item.name for item in found.values()] == [name for name, *_ in trained_alone]
    for index, (name, _, policy) in zip(expected, trained_alone, strict=True):
        assert name.startswith("alone_")
        np.testing.assert_array_equal(policy, policies[index])
    # What is trained is loaded, and not said to be trained.
    finished(tmp_path, found[0].name)
    said.clear()
    baselines.alone(config, None, WorkDir(tmp_path), content, said.append)
    assert len(said) == len(expected) - 1


def test_the_twin_is_the_cheapest_expert_from_another_seed(trained_alone, seeds, tmp_path):
    content, policies = four_experts()
    config, said = config_module.default_config(), []
    config.evaluate.alone = 1
    alone = baselines.alone(config, None, WorkDir(tmp_path), content, said.append)[0]
    twin = baselines.seed_twin(config, None, WorkDir(tmp_path), content, said.append)
    assert twin.name.removeprefix("twin_") == alone.name.removeprefix("alone_")
    np.testing.assert_array_equal(trained_alone[1][2], policies[0])
    assert seeds == [{}, {"seed": 7}]
    assert said[1] == "training expert_00 alone from another seed, as a control"
