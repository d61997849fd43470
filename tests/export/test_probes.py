"""One probe for each different part, and whole networks that differ."""

import numpy as np
import pytest

from export import convert, probes
from instanas_tf import files, spaces
from instanas_tf.models.supernet import has_own_shortcut


def names(space):
    return {
        probes.op_name(cell, spec, has_own_shortcut(cell, spec, space.merge))
        for cell in space.cells
        for spec in space.ops
    }


@pytest.mark.parametrize(
    ("name", "merge", "cells", "different"),
    [
        ("tiny", "sum", 3, 9),
        ("tiny", "shortcut", 3, 9),
        # 17 cells of 12 shapes: in the four stages of three or four cells the later ones repeat.
        ("mobilenet_v2_32", "sum", 17, 12 * 5),
        ("mobilenet_v2_32", "shortcut", 17, 12 * 5),
    ],
)
def test_equal_ops_share_a_probe(name, merge, cells, different):
    space = spaces.get(name, merge=merge)
    assert len(space.cells) == cells
    shapes = {(c.in_channels, c.out_channels, c.stride, c.size) for c in space.cells}
    assert len(names(space)) == len(shapes) * len(space.ops) == different


def test_different_ops_have_different_probes():
    cells = {cell for name in ("tiny", "mobilenet_v2_16") for cell in spaces.get(name).cells}
    specs = set(spaces.get("mobilenet_v2_16").ops)
    found = {probes.op_name(c, s, add) for c in cells for s in specs for add in (True, False)}
    assert len(found) == len(cells) * len(specs) * 2


@pytest.mark.parametrize("name", ["tiny", "mobilenet_v2_32"])
def test_random_policies_differ_and_spread(name):
    space = spaces.get(name)
    policies = probes.random_policies(space, 20, seed=0)
    assert 6 <= len(policies) <= 20
    assert len({policy.tobytes() for policy in policies}) == len(policies)
    for policy in policies:
        np.testing.assert_array_equal(space.effective(policy), policy)
    shares = [policy.mean() for policy in policies]
    assert min(shares) < 0.25
    assert max(shares) > 0.45
    # The first ones, which the scale is fitted on, are no cheaper than the others.
    assert max(shares[:8]) > np.median(shares) > min(shares[:8])


def test_random_policies_depend_on_the_seed_alone():
    space = spaces.get("tiny")
    first, again, other = (probes.random_policies(space, 5, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert len(other) != len(first) or not np.array_equal(first, other)


def test_write_probes(tmp_path, monkeypatch):
    converted = []

    def to_tflite(model, shape):
        converted.append((type(model).__name__, tuple(shape)))
        return b"x"

    monkeypatch.setattr(convert, "to_tflite", to_tflite)
    space = spaces.get("tiny")
    found = probes.write_probes(space, "small", 3, tmp_path, calibration=6, validation=2, seed=0)
    entries = files.read_json(found.manifest, "")["models"]
    listed = [entry["name"] for entry in entries]
    assert len(listed) == len(set(listed)) == len(converted) == 9 + 3 + 8
    assert set(listed) == names(space) | {"stem", "head", "controller"} | set(
        found.calibration | found.validation
    )
    assert np.shape(found.ops) == (3, 3)
    assert {name for row in found.ops for name in row} == names(space)
    assert len(found.calibration) == 6
    assert len(found.validation) == 2
    assert not set(found.calibration) & set(found.validation)
    assert {path.name for path in tmp_path.iterdir()} == {
        "manifest.json",
        *(f"{name}.tflite" for name in listed),
    }
    assert ("DeployedFront", (1, 8, 8, 3)) in converted


@pytest.mark.parametrize("index", range(3))
def test_an_op_probe_keeps_the_shapes_of_its_cell(index):
    space = spaces.get("tiny")
    cell = space.cells[index]
    for spec in space.ops:
        probe = probes.op_probe(cell, spec, has_own_shortcut(cell, spec, space.merge))
        assert probe.input_shape == (None, cell.size, cell.size, cell.in_channels)
        assert probe.output_shape == (None, cell.out_size, cell.out_size, cell.out_channels)


def test_stem_and_head_fit_the_space():
    space = spaces.get("tiny", num_classes=7)
    assert probes.stem_probe(space).output_shape == (None, 8, 8, 8)
    assert probes.head_probe(space).input_shape == (None, 4, 4, 16)
    assert probes.head_probe(space).output_shape == (None, 7)
