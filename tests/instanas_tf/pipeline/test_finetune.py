"""Which variant ships, and which expert an image is given."""

import numpy as np
import pytest

from instanas_tf import spaces
from instanas_tf.pipeline import finetune


def variants(*pairs):
    """(recalibrated validation accuracy, predicted latency) of A, B, C."""
    return [
        {
            "name": name,
            "validation_accuracy": {"recalibrated": accuracy, "greedy": 1.0},
            "predicted_latency_ms": latency,
        }
        for name, (accuracy, latency) in zip("ABC", pairs, strict=False)
    ]


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([(0.9, 2.0), (0.5, 1.0)], "A"),
        ([(0.9, 2.0), (0.896, 1.0)], "B"),
        ([(0.9, 2.0), (0.894, 1.0)], "A"),
        ([(0.9, 2.0), (0.9, 1.0), (0.9, 3.0)], "B"),
        ([(0.1, 2.0)], "A"),
    ],
)
def test_select(pairs, expected):
    assert finetune.select(variants(*pairs)) == expected


def test_assign():
    space = spaces.get("tiny")
    experts = np.stack([space.single_op_policy(name) for name in space.op_names])
    for index, expert in enumerate(experts):
        logits = np.where(expert > 0.5, 2.0, -2.0).astype(np.float32)[None]
        assert finetune.assign(logits, experts, space).tolist() == [index]
