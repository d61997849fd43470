"""The variants of a finished run, read back."""

import json

import numpy as np
import pytest

from instanas_tf.errors import InputError
from instanas_tf.pipeline import variants
from instanas_tf.pipeline.workdir import WorkDir
from tests.fixtures_ring import change_json


def test_read_back(trained):
    workdir = WorkDir(trained)
    (variant,) = variants.load(workdir)
    content = json.loads(workdir.experts.read_text())
    assert variant.name == content["selected"] == variants.pick(workdir).name == "A"
    assert variant.policies.shape == (len(variant.expert_names), 3, 3)
    assert np.isin(variant.policies, (0, 1)).all()
    assert len(np.unique(variant.policies, axis=0)) == len(variant.policies)
    latencies = [expert["predicted_latency_ms"] for expert in variant.entry["experts"]]
    assert latencies == sorted(latencies)
    assert sum(expert["share"] for expert in variant.entry["experts"]) == pytest.approx(1.0)
    assert variant.labels == [str(digit) for digit in range(10)]


def test_networks_are_those_that_were_scored(trained):
    variant = variants.pick(WorkDir(trained))
    image = np.zeros((1, 8, 8, 3), np.float32)
    for index in range(len(variant.expert_names)):
        assert variant.expert(index)(image).shape == (1, 10)
    assert variant.controller()(image).shape == (1, 3, 3)


def test_no_experts_yet(tmp_path):
    with pytest.raises(InputError, match="holds no experts yet; train first"):
        variants.load(WorkDir(tmp_path))


def test_no_such_variant(trained):
    with pytest.raises(InputError, match=r"--variant=Z is not one of \['A'\]"):
        variants.pick(WorkDir(trained), "Z")


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
    "version": put(2, "version"),
    "no variants": put([], "variants"),
    "variants is text": put("A", "variants"),
    "an op that does not exist": put([["x"]] * 3, "variants", 0, "experts", 0, "policy"),
    "a second expert's op": put([["x"]] * 3, "variants", 0, "experts", 1, "policy"),
    "no experts": put([], "variants", 0, "experts"),
    "controller": put("big", "controller"),
    "selected": put("Z", "selected"),
    **{
        f"without {key}": remove(key)
        for key in ("space", "mean", "std", "labels", "controller", "selected", "variants")
    },
    **{
        f"variant without {key}": remove("variants", 0, key)
        for key in ("name", "experts", "predicted_latency_ms", "validation_accuracy")
    },
    **{
        f"expert without {key}": remove("variants", 0, "experts", 1, key)
        for key in ("name", "policy", "predicted_latency_ms")
    },
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found_when_it_is_read(trained_copy, damage):
    workdir = WorkDir(trained_copy)
    change_json(workdir.experts, DAMAGES[damage])
    with pytest.raises(InputError, match="experts.json|--variant=Z"):
        variants.pick(workdir)
