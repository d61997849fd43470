"""The picture of a run is drawn."""

import errno
import os

import matplotlib.axes
import matplotlib.image
import numpy as np
import pytest

from instanas_tf.errors import ModelError
from instanas_tf.pipeline import report

POINT = {"accuracy": 0.8, "latency_ms": 1.0}
RESULTS = {
    "dataset": "digits",
    "variants": [
        {
            "name": "A",
            "accuracy": 0.9,
            "accuracy_standard_error": 0.01,
            "mean_latency_ms": 1.5,
        }
    ],
    "baselines": [{"name": "mobilenet_v2_1", **POINT}, {"name": "mobilenet_v2_0.5", **POINT}],
    "controls": {
        "majority_policy": {"A": POINT},
        "shuffled_policies": {"A": {"accuracy": 0.7, "mean_latency_ms": 1.5}},
        "best_static_expert": {"A": POINT},
        "static_trained_alone": {"A": POINT},
    },
}


def test_picture_is_not_blank(tmp_path):
    path = tmp_path / "results.png"
    report.picture(RESULTS, path)
    pixels = matplotlib.image.imread(path)[..., :3]
    assert pixels.shape[:2] == (600, 900)
    colours = np.unique((pixels * 255).astype(int).reshape(-1, 3), axis=0)
    assert len(colours) > 20
    # The variants' stars are `tab:red`, and nothing else is.
    red = np.all(np.abs(pixels - np.array([214, 39, 40]) / 255) < 0.02, axis=-1)
    assert red.sum() > 20
    assert [path.name for path in tmp_path.iterdir()] == ["results.png"]


def pixels_of(tmp_path, results, colour):
    path = tmp_path / "results.png"
    report.picture(results, path)
    pixels = matplotlib.image.imread(path)[..., :3]
    return np.all(np.abs(pixels - np.array(colour) / 255) < 0.02, axis=-1).sum()


def test_the_static_envelope_is_drawn_where_there_is_one(tmp_path):
    purple = (148, 103, 189)  # `tab:purple`, which nothing else is.
    line = {"latency_ms": [0.5, 1.0, 1.5], "accuracy": [0.7, 0.8, 0.8]}
    assert pixels_of(tmp_path, RESULTS, purple) == 0
    assert pixels_of(tmp_path, {**RESULTS, "static_envelope": line}, purple) > 20


@pytest.mark.parametrize(
    ("kind", "expected"),
    [({}, "A"), ({"kind": None}, "A"), ({"kind": "cascade"}, "A (cascade)")],
)
def test_a_variant_is_labelled_with_its_kind(tmp_path, monkeypatch, kind, expected):
    texts, annotate = [], matplotlib.axes.Axes.annotate

    def recorded(axes, text, *args, **kwargs):
        texts.append(text)
        return annotate(axes, text, *args, **kwargs)

    monkeypatch.setattr(matplotlib.axes.Axes, "annotate", recorded)
    results = {**RESULTS, "variants": [{**RESULTS["variants"][0], **kind}]}
    report.picture(results, tmp_path / "results.png")
    assert texts == ["1", "0.5", expected]


def test_picture_on_a_full_disk(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(ModelError, match="cannot write .*results.png"):
        report.picture(RESULTS, tmp_path / "results.png")
    assert list(tmp_path.iterdir()) == []
