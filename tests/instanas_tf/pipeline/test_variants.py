"""The experts and variants of a finished run, read back and checked."""

import json

import keras
import numpy as np
import pytest

from instanas_tf import spaces
from instanas_tf.errors import InputError
from instanas_tf.models.expert import static_network
from instanas_tf.models.routers import FeatureRouter, ImageRouter
from instanas_tf.pipeline import callbacks, variants
from instanas_tf.pipeline.workdir import WorkDir
from instanas_tf.search import expert_set
from tests.fixtures_ring import change_json

SPACE = spaces.get("tiny", num_classes=3)
# Three experts that agree in the first cell.
POLICIES = expert_set.with_shared_cells(
    [SPACE.single_op_policy(name) for name in SPACE.op_names], SPACE.single_op_policy("ir3_e3"), 1
)
EXPERTS = [
    {
        "name": f"expert_{index:02d}",
        "policy": SPACE.policy_names(policy),
        "validation_accuracy": 0.5 + 0.1 * index,
        "predicted_latency_ms": 1.0 + index,
        "measured_latency_ms": 1.1 + index,
    }
    for index, policy in enumerate(POLICIES)
]
ENTRY = {
    "name": "A",
    "kind": "image",
    "controller": "image_small",
    "target": 0.7,
    "price": 0.1,
    "biases": [0.05, 0.1, 0.2],
    "budget_ms": 2.0,
    "validation_accuracy": 0.7,
    "validation_latency_ms": 1.9,
    "experts": [0, 1, 2],
    "shares": [0.5, 0.3, 0.2],
    "candidates": [],
    "routing": {
        "kind": "image",
        "features": False,
        "first": None,
        "following": [-1, -1, -1],
        "thresholds": [0.0, 0.0, 0.0],
        "weights": [1.0, 1.0, 1.0],
    },
}
CASCADE = {
    **ENTRY,
    "name": "B",
    "kind": "cascade",
    "controller": "",
    "biases": [],
    "shares": [1.0, 0.4],
    "experts": [0, 2],
    "routing": {
        "kind": "cascade",
        "features": True,
        "first": 0,
        "following": [1, -1],
        "thresholds": [0.5, 0.0],
        "weights": [0.5, 1.0],
    },
}
CONTENT = {
    "format": "instanas_tf/experts",
    "version": 2,
    "space": SPACE.to_json(),
    "mean": [120.0] * 3,
    "std": [60.0] * 3,
    "labels": ["a", "b", "c"],
    "controller": "small",
    "epochs": [2],
    "unique_policies": 5,
    "varying_bits": 3,
    "shared_cells": 1,
    "feature_shape": [8, 8, 8],
    "asked": {"target_ms": 0.0},
    "controllers_ms": {"image_small": 0.1, "features": 0.1},
    "experts": EXPERTS,
    "selected": "A",
    "variants": [ENTRY, CASCADE],
}
IMAGES = np.random.default_rng(0).uniform(0, 255, (2, 8, 8, 3)).astype(np.float32)


@pytest.fixture
def written(tmp_path):
    """A work directory with all that is read of it but weights."""
    workdir = WorkDir(tmp_path)
    workdir.experts.write_text(json.dumps(CONTENT))
    return workdir


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The same with the weights of three experts that share their stem and first cell."""
    workdir = WorkDir(tmp_path_factory.mktemp("finished"))
    workdir.experts.write_text(json.dumps(CONTENT))
    keras.utils.set_random_seed(0)
    networks = [static_network(SPACE, policy, (120.0,) * 3, (60.0,) * 3) for policy in POLICIES]
    first = {layer.name: layer for layer in networks[0].layers}
    for index, network in enumerate(networks):
        for layer in network.layers:
            if layer.name in ("stem", "cell_00_ir3_e3"):
                layer.set_weights(first[layer.name].get_weights())
        callbacks.save_weights(network, workdir.weights(variants.expert_name(index)))
    return workdir, networks


def test_read_back(written):
    first, second = variants.load(written)
    assert (first.name, first.kind, second.name, second.kind) == ("A", "image", "B", "cascade")
    assert variants.pick(written).name == "A" and variants.pick(written, "B").entry == CASCADE
    assert first.labels == ["a", "b", "c"] and first.space == SPACE
    assert second.indices == [0, 2]
    assert second.expert_names == ["expert_00", "expert_02"]
    np.testing.assert_array_equal(second.policies, POLICIES[[0, 2]])
    assert second.rules == CASCADE["routing"]
    assert (first.split_after, second.split_after) == (None, 1)
    assert first.front() is None and second.router() is None


def test_networks_are_those_that_were_written(finished):
    workdir, networks = finished
    first, second = variants.load(workdir)
    for index, network in enumerate(networks):
        expected = network(IMAGES, training=False)
        np.testing.assert_allclose(first.expert(index)(IMAGES), expected, atol=1e-6)
        np.testing.assert_allclose(first.tail(index)(IMAGES), expected, atol=1e-6)


def test_front_and_tail_are_the_whole(finished):
    workdir, networks = finished
    _, second = variants.load(workdir)
    features = second.front()(IMAGES)
    for index in second.indices:
        expected = networks[index](IMAGES, training=False)
        np.testing.assert_allclose(second.tail(index)(features), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "kind"), [("image_small", ImageRouter), ("features", FeatureRouter)]
)
def test_routers_are_read_by_name(written, name, kind):
    made = variants.routers.build(name, CONTENT, (8, 8, 8))
    callbacks.save_weights(made, written.weights(f"router_{name}"))
    change_json(written.experts, put(name, "variants", 0, "controller"))
    found = variants.pick(written).router()
    assert isinstance(found, kind)
    for ours, theirs in zip(found.get_weights(), made.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_static_networks_by_their_entries(finished):
    workdir, networks = finished
    by_name = variants.static({"name": "expert_01"}, CONTENT, workdir)
    np.testing.assert_allclose(by_name(IMAGES), networks[1](IMAGES), atol=1e-6)
    alone = static_network(SPACE, POLICIES[2], (120.0,) * 3, (60.0,) * 3)
    callbacks.save_weights(alone, workdir.weights("alone_abc"))
    found = variants.static({"name": "alone_abc", "expert": 2}, CONTENT, workdir)
    np.testing.assert_allclose(found(IMAGES), alone(IMAGES), atol=1e-6)
    half = spaces.get("tiny", 0.5, 3)
    reference = half.single_op_policy(half.reference_op)
    narrow = static_network(half, reference, (120.0,) * 3, (60.0,) * 3)
    callbacks.save_weights(narrow, workdir.weights("mobilenet_v2_0.5"))
    found = variants.static({"name": "mobilenet_v2_0.5", "width": 0.5}, CONTENT, workdir)
    np.testing.assert_allclose(found(IMAGES), narrow(IMAGES), atol=1e-6)


def test_no_experts_yet(tmp_path):
    with pytest.raises(InputError, match="holds no experts yet; train first"):
        variants.load(WorkDir(tmp_path))


def test_no_such_variant(written):
    with pytest.raises(InputError, match=r"--variant=Z is not one of \['A', 'B'\]"):
        variants.pick(written, "Z")


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"{}", b'{"format": "instanas_tf/experts"}', b"\xff"]
)
def test_damaged(tmp_path, content):
    workdir = WorkDir(tmp_path)
    workdir.experts.write_bytes(content)
    with pytest.raises(InputError, match="experts.json"):
        variants.pick(workdir)


def remove(*path):
    def change(content):
        for key in path[:-1]:
            content = content[key]
        del content[path[-1]]

    return change


def put(value, *path):
    def change(content):
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = value

    return change


DAMAGES = {
    "another version": put(1, "version"),
    "no variants": put([], "variants"),
    "variants is text": put("A", "variants"),
    "an op that does not exist": put([["x"]] * 3, "experts", 0, "policy"),
    "a second expert's op": put([["x"]] * 3, "experts", 1, "policy"),
    "an expert of another name": put("expert_07", "experts", 1, "name"),
    "no experts": put([], "experts"),
    "controller": put("big", "controller"),
    "selected": put("Z", "selected"),
    "more cells shared than there are": put(4, "shared_cells"),
    "two variants of one name": put("B", "variants", 0, "name"),
    "an unknown kind": put("oracle", "variants", 0, "kind"),
    "an expert that is not there": put([0, 1, 3], "variants", 0, "experts"),
    "experts out of order": put([1, 0, 2], "variants", 0, "experts"),
    "a variant without experts": put([], "variants", 0, "experts"),
    "a threshold above 1": put([1.5, 0.0], "variants", 1, "routing", "thresholds"),
    "back to a smaller expert": put([-1, 0], "variants", 1, "routing", "following"),
    "rules for fewer experts": put([0, 1, 2], "variants", 1, "experts"),
    "a first expert that is not there": put(2, "variants", 1, "routing", "first"),
    "nobody names the first": put(None, "variants", 1, "routing", "first"),
    "a latency beyond all numbers": put(10**400, "experts", 0, "measured_latency_ms"),
    "features is a number": put(1, "variants", 1, "routing", "features"),
    **{f"without {key}": remove(key) for key in sorted(set(CONTENT) - {"format", "feature_shape"})},
    **{f"variant without {key}": remove("variants", 0, key) for key in ENTRY},
    **{f"routing without {key}": remove("variants", 0, "routing", key) for key in ENTRY["routing"]},
    **{f"expert without {key}": remove("experts", 1, key) for key in EXPERTS[0]},
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found_when_it_is_read(written, damage):
    change_json(written.experts, DAMAGES[damage])
    with pytest.raises(InputError, match="experts.json|--variant=Z"):
        variants.pick(written)


def test_what_stage_4_left_needs_no_variants(tmp_path):
    content = json.loads(json.dumps(CONTENT))
    for name in ("variants", "selected", "shared_cells", "feature_shape"):
        del content[name]
    for item in content["experts"]:
        del item["measured_latency_ms"]
    workdir = WorkDir(tmp_path)
    workdir.trained.parent.mkdir()
    workdir.trained.write_text(json.dumps(content))
    assert variants.read_trained(workdir) == content
    del content["epochs"]
    workdir.trained.write_text(json.dumps(content))
    with pytest.raises(InputError, match="trained.json is damaged"):
        variants.read_trained(workdir)


@pytest.mark.parametrize(
    "damage",
    [
        put([], "policies"),
        put([], "epochs"),
        put([[["x"]] * 3], "policies"),
        put("many", "unique_policies"),
        remove("varying_bits"),
    ],
)
def test_chosen_experts_are_checked(tmp_path, damage):
    content = {"epochs": [2], "unique_policies": 5, "varying_bits": 3}
    content["policies"] = [item["policy"] for item in EXPERTS]
    path = tmp_path / "chosen.json"
    path.write_text(json.dumps(content))
    assert variants.read_chosen(path, SPACE) == content
    change_json(path, damage)
    with pytest.raises(InputError, match="chosen.json is damaged .* choose the experts again"):
        variants.read_chosen(path, SPACE)
