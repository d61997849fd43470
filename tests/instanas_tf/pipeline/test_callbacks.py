"""What happens at the end of an epoch, and files of weights."""

import errno
import os

import keras
import numpy as np
import pytest

from instanas_tf.errors import InputError, ModelError
from instanas_tf.pipeline import callbacks


def test_metrics_log_replaces_what_is_run_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = callbacks.MetricsLog(path, "search", 0)
    for epoch in range(3):
        log.on_epoch_end(epoch, {"loss": np.float32(epoch)})
    callbacks.MetricsLog(path, "other", 0).on_epoch_end(0, {"loss": 7.0})
    callbacks.MetricsLog(path, "search", 1).on_epoch_end(1, {"loss": 10.0})
    rows = [(row["stage"], row["epoch"], row["loss"]) for row in callbacks.read_metrics(path)]
    assert sorted(rows) == [("other", 1, 7.0), ("search", 1, 0.0), ("search", 2, 10.0)]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_metrics_log_writes_strict_json(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with pytest.raises(ValueError, match="not JSON compliant"):
        callbacks.MetricsLog(path, "search", 0).on_epoch_end(0, {"loss": float("inf")})
    assert list(tmp_path.iterdir()) == []


def test_read_metrics(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert callbacks.read_metrics(path) == []
    path.write_text('{"stage": "a", "epoch": 1, "x": 2}\n')
    assert callbacks.read_metrics(path) == [{"stage": "a", "epoch": 1, "x": 2}]


@pytest.mark.parametrize("line", [b"{", b"[]", b"3", b'{"stage": "a"}', b'{"epoch": 1}', b"\xff"])
def test_damaged_metrics(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"stage": "a", "epoch": 1}\n' + line + b"\n")
    with pytest.raises(InputError, match="metrics.jsonl, line 2 is damaged"):
        callbacks.read_metrics(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_stop_when_a_loss_is_no_number(value):
    callbacks.StopWhenDiverged().on_epoch_end(4, {"loss": 1.0})
    with pytest.raises(ModelError, match=r"loss is (nan|-?inf) after epoch 5; lower the learning"):
        callbacks.StopWhenDiverged().on_epoch_end(4, {"accuracy": 0.5, "loss": value})


def small(units=2):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(units)])
    model.compile(optimizer="sgd", loss="mse")
    return model


def set_all(model, value):
    model.set_weights([np.full_like(weight, value) for weight in model.get_weights()])


def test_keep_controller(tmp_path):
    model = small()
    keep = callbacks.KeepController(model, lambda epoch: tmp_path / f"{epoch}.weights.h5")
    for epoch in range(2):
        set_all(model, epoch + 1.0)
        keep.on_epoch_end(epoch)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.weights.h5", "2.weights.h5"]
    callbacks.load_weights(model, tmp_path / "1.weights.h5")
    assert model.get_weights()[0][0, 0] == 1.0


def test_weights_on_a_full_disk(tmp_path, monkeypatch):
    path = tmp_path / "a.weights.h5"
    callbacks.save_weights(small(), path)
    before = path.read_bytes()

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(ModelError, match="cannot write .*a.weights.h5: No space left"):
        callbacks.save_weights(small(), path)
    assert path.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.weights.h5"]


@pytest.mark.parametrize("how", ["missing", "empty", "garbage", "cut", "other"])
def test_weights_that_cannot_be_read(tmp_path, how):
    path = tmp_path / "a.weights.h5"
    callbacks.save_weights(small(5 if how == "other" else 2), path)
    content = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how != "other":
        path.write_bytes({"empty": b"", "garbage": b"garbage", "cut": content[:-999]}[how])
    reason = "does not exist" if how == "missing" else "is damaged or of another model"
    with pytest.raises(InputError, match=f"a.weights.h5 {reason} .*in another --workdir"):
        callbacks.load_weights(small(), path)


def test_any_cut_of_a_weights_file_is_an_input_error(tmp_path):
    path = tmp_path / "a.weights.h5"
    callbacks.save_weights(small(), path)
    content, model = path.read_bytes(), small()
    for length in range(0, len(content), max(1, len(content) // 60)):
        path.write_bytes(content[:length])
        with pytest.raises(InputError):
            callbacks.load_weights(model, path)
