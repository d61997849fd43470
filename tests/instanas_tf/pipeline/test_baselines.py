"""Which networks stand beside the results."""

import types

import numpy as np
import pytest

from instanas_tf import spaces
from instanas_tf.latency import LatencyTable
from instanas_tf.pipeline import baselines
from instanas_tf.pipeline import config as config_module
from instanas_tf.pipeline.variants import Variant
from instanas_tf.pipeline.workdir import WorkDir

SPACE = spaces.get("tiny", merge="shortcut")


@pytest.fixture
def trained_alone(monkeypatch):
    """Records the networks that would be trained alone."""
    calls = []

    def train_alone(name, space, policy, *rest):
        calls.append((name, space, np.asarray(policy)))
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


def variant(name, predicted_ms, policies):
    experts = [
        {"name": f"expert_{index:02d}", "policy": SPACE.policy_names(policy)}
        for index, policy in enumerate(policies)
    ]
    entry = {"name": name, "predicted_latency_ms": predicted_ms, "experts": experts}
    return Variant(entry, {"space": SPACE.to_json()}, None)


def test_a_variants_twin_costs_what_the_variant_costs(trained_alone, tmp_path):
    table = LatencyTable(SPACE, ((1.0, 2.0, 3.0),) * 3, 0.5, 0.5, 0.5, "small")
    policies = [SPACE.single_op_policy(name) for name in SPACE.op_names]
    assert table.static_ms(np.stack(policies)).tolist() == [4.0, 7.0, 10.0]
    found = [
        variant("A", 9.0, policies),
        variant("B", 7.0, policies),
        variant("C", 1.0, policies),
    ]
    config, said, workdir = config_module.default_config(), [], WorkDir(tmp_path)
    twins = baselines.twins(config, None, workdir, found, table, said.append)
    assert twins["A"] == twins["B"] != twins["C"]
    assert len(trained_alone) == 2
    np.testing.assert_array_equal(trained_alone[0][2], policies[1])
    np.testing.assert_array_equal(trained_alone[1][2], policies[0])
    assert all(name.startswith("alone_") for name, _, _ in trained_alone)
    assert said == [
        "training expert_01 of variant A alone",
        "training expert_00 of variant C alone",
    ]
    finished(tmp_path, twins["C"].name)
    said.clear()
    baselines.twins(config, None, workdir, found, table, said.append)
    assert said == ["training expert_01 of variant A alone"]
