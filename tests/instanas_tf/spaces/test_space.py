"""The data of a space, and the rule for the empty cell."""

import dataclasses
import json

import numpy as np
import pytest

from instanas_tf import spaces
from instanas_tf.spaces.space import CellSpec, OpSpec, SearchSpace

OPS = (OpSpec("a", "inverted_residual", 3, 2), OpSpec("b", "basic"))


def make_space(**changes):
    """Two cells: the first changes the shape, the second keeps it."""
    arguments = {
        "name": "two",
        "image_size": 4,
        "stem_channels": 2,
        "stem_stride": 1,
        "cells": (CellSpec(2, 3, 2, 4), CellSpec(3, 3, 1, 2)),
        "ops": OPS,
        "default_op": "b",
        "head_channels": 5,
        "num_classes": 2,
        "reference_op": "a",
    }
    return SearchSpace(**{**arguments, **changes})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "dense"}, "`kind` must be one of .* Received: kind='dense'"),
        ({"kernel": 2}, "Received: kernel=2, expansion=1"),
        ({"kernel": -1}, "Received: kernel=-1, expansion=1"),
        ({"expansion": 0}, "Received: kernel=3, expansion=0"),
    ],
)
def test_an_op_refuses_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        OpSpec(**{"name": "a", "kind": "basic", **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((3, 3, 0, 4), "`stride` must be 1 or 2. Received: stride=0"),
        ((3, 3, 3, 4), "Received: stride=3"),
        ((0, 3, 1, 4), "must be positive"),
        ((3, 0, 1, 4), "must be positive"),
        ((3, 3, 1, 0), "must be positive"),
    ],
)
def test_a_cell_refuses_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        CellSpec(*arguments)


@pytest.mark.parametrize(
    ("cell", "out_size", "keeps_shape"),
    [
        (CellSpec(3, 3, 1, 4), 4, True),
        (CellSpec(3, 4, 1, 4), 4, False),
        (CellSpec(3, 3, 2, 4), 2, False),
        (CellSpec(3, 3, 2, 7), 4, False),
        (CellSpec(3, 3, 2, 1), 1, False),
    ],
)
def test_a_cell_knows_its_output(cell, out_size, keeps_shape):
    assert (cell.out_size, cell.keeps_shape) == (out_size, keeps_shape)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"merge": "mean"}, "`merge` must be one of .* Received: merge='mean'"),
        ({"num_classes": 1}, "Received: num_classes=1"),
        ({"cells": ()}, "at least one cell and one op"),
        ({"ops": ()}, "at least one cell and one op"),
        ({"ops": (OPS[0], OPS[0])}, "must differ"),
        ({"default_op": "c"}, "Received: 'c'"),
        ({"reference_op": "c"}, "Received: 'c'"),
        ({"cells": (CellSpec(2, 3, 2, 4), CellSpec(4, 4, 1, 2))}, "do not fit together"),
        ({"cells": (CellSpec(2, 3, 2, 4), CellSpec(3, 3, 1, 4))}, "do not fit together"),
        ({"stem_channels": 3}, "must take the stem's channels"),
    ],
)
def test_a_space_refuses_bad_arguments(changes, message):
    with pytest.raises(ValueError, match=message):
        make_space(**changes)


def test_a_space_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        make_space().num_classes = 3


# (bits as given, bits that run); cell 0 must run, cell 1 may be skipped.
EFFECTIVE = [
    ([[0, 0], [0, 0]], [[0, 1], [0, 0]]),
    ([[1, 0], [0, 0]], [[1, 0], [0, 0]]),
    ([[0, 1], [0, 0]], [[0, 1], [0, 0]]),
    ([[1, 1], [1, 1]], [[1, 1], [1, 1]]),
    ([[0, 0], [1, 0]], [[0, 1], [1, 0]]),
    # Cell 0 is empty with probability 0.5 * 0.75 = 0.375, so b runs with 0.25 + 0.375.
    ([[0.5, 0.25], [0.5, 0.25]], [[0.5, 0.625], [0.5, 0.25]]),
]


@pytest.mark.parametrize(("policy", "expected"), EFFECTIVE)
def test_an_empty_cell_falls_back_or_is_skipped(policy, expected):
    running = make_space().effective(np.array(policy, np.float32))
    assert running.dtype == np.float32
    np.testing.assert_array_equal(running, np.array(expected, np.float32))


def test_effective_takes_batches_of_tensors():
    import tensorflow as tf

    policies, expected = zip(*EFFECTIVE, strict=True)
    running = make_space().effective(tf.constant(policies, tf.float32))
    np.testing.assert_array_equal(running, np.array(expected, np.float32))


@pytest.mark.parametrize("name", ["mobilenet_v2_32", "mobilenet_v2_64", "mobilenet_v2_224"])
def test_the_first_cell_of_each_stage_falls_back_to_basic(name):
    running = spaces.get(name).effective(np.zeros((17, 5), np.float32))
    expected = np.zeros((17, 5))
    expected[[0, 1, 3, 6, 10, 13, 16], 4] = 1
    np.testing.assert_array_equal(running, expected)


def test_effective_of_probabilities_is_the_expectation_over_all_policies(tiny, tiny_policies):
    probabilities = np.arange(1, 10).reshape(3, 3) / 10.0
    chances = np.where(tiny_policies > 0, probabilities, 1 - probabilities).prod(axis=(1, 2))
    expected = np.tensordot(chances, tiny.effective(tiny_policies.astype(float)), axes=1)
    np.testing.assert_allclose(tiny.effective(probabilities), expected, rtol=1e-12)


def test_single_op_policy_is_that_op_everywhere():
    space = make_space()
    np.testing.assert_array_equal(space.single_op_policy("b"), [[0, 1], [0, 1]])
    with pytest.raises(ValueError, match="`op_name` must be one of .* Received: 'c'"):
        space.single_op_policy("c")


def test_policies_go_to_names_and_back(tiny, tiny_policies):
    space = make_space()
    assert space.policy_names(np.array([[0, 0], [1, 1]])) == [[], ["a", "b"]]
    np.testing.assert_array_equal(space.policy_from_names([["b", "a"], []]), [[1, 1], [0, 0]])
    for policy in tiny_policies[::37]:
        names = json.loads(json.dumps(tiny.policy_names(policy)))
        np.testing.assert_array_equal(tiny.policy_from_names(names), policy)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([["a"]], "Expected 2 cells. Received: 1"),
        ([["a"], ["c"]], r"Received: \['c'\]"),
    ],
)
def test_names_that_do_not_fit_are_refused(names, message):
    with pytest.raises(ValueError, match=message):
        make_space().policy_from_names(names)


@pytest.mark.parametrize("name", ["mobilenet_v2_224", "mobilenet_v2_16", "tiny"])
def test_a_space_goes_to_json_and_back(name):
    space = spaces.get(name, width=0.75, num_classes=7, merge="shortcut")
    again = SearchSpace.from_json(json.loads(json.dumps(space.to_json())))
    assert again == space
    assert again.hash == space.hash


def test_the_hash_tells_spaces_apart():
    hashes = [
        spaces.get("tiny").hash,
        spaces.get("mobilenet_v2_16").hash,
        spaces.get("tiny", width=2.0).hash,
        spaces.get("tiny", merge="shortcut").hash,
        spaces.get("tiny", num_classes=11).hash,
    ]
    assert len(set(hashes)) == len(hashes)
    assert spaces.get("tiny").hash == hashes[0]
