"""What happens around the training steps."""

import errno
import logging
import os

import keras
import numpy as np
import pytest
import tensorflow as tf

from instanas_tf.errors import InputError, ModelError
from instanas_tf.pipeline import callbacks


def test_scheduled_sets_values_by_progress():
    seen, other = [], []
    pairs = [(seen.append, lambda progress: progress), (other.append, lambda p: p * p)]
    scheduled = callbacks.Scheduled(pairs, epochs=2, steps=2)
    for epoch in range(2):
        scheduled.on_epoch_begin(epoch)
        for batch in range(2):
            scheduled.on_train_batch_begin(batch)
    assert seen == [0.0, 0.25, 0.5, 0.75]
    assert other == [0.0, 0.0625, 0.25, 0.5625]


def test_scheduled_goes_on_in_a_later_epoch():
    seen = []
    scheduled = callbacks.Scheduled([(seen.append, float)], epochs=4, steps=5)
    scheduled.on_epoch_begin(3)
    scheduled.on_train_batch_begin(2)
    assert seen == [17 / 20]


def draws(seed, epoch, generator=None):
    generator = generator or keras.random.SeedGenerator(99)
    callbacks.EpochSeed(generator, seed).on_epoch_begin(epoch)
    return [np.asarray(keras.random.uniform((3,), seed=generator)).tolist() for _ in range(2)]


def test_epoch_seed():
    used = keras.random.SeedGenerator(5)
    for _ in range(7):
        keras.random.uniform((), seed=used)
    assert draws(1, 2) == draws(1, 2, used)
    first, second = draws(1, 2)
    assert first != second
    assert draws(1, 3) != draws(1, 2) != draws(2, 2)


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


def saved(folder, epochs):
    """A folder of checkpoints; after epoch n all weights are n."""
    model = small()
    resume = callbacks.Resume(model.variables, folder)
    for epoch in range(epochs):
        set_all(model, epoch + 1)
        resume.on_epoch_end(epoch)
    return folder


def restored(folder):
    model = small()
    set_all(model, 0.0)
    done = callbacks.Resume(model.variables, folder).restore()
    return done, float(model.get_weights()[0][0, 0])


def damage(folder, epoch, how):
    for path in folder.glob(f"ckpt-{epoch}.*"):
        content = path.read_bytes()
        if how == "gone":
            path.unlink()
        elif how == "empty":
            path.write_bytes(b"")
        elif how == "cut":
            path.write_bytes(content[: len(content) // 2])
        elif how == "data" and ".data-" in path.name:
            path.write_bytes(bytes(byte ^ 0xFF for byte in content))


def test_resume(tmp_path):
    assert restored(tmp_path / "none") == (0, 0.0)
    folder = saved(tmp_path / "some", 3)
    assert restored(folder) == (3, 3.0)
    assert sorted(path.stem for path in folder.glob("*.index")) == ["ckpt-2", "ckpt-3"]


class Cells(keras.Model):
    """Layers in lists, moving statistics, a scalar and an optimizer, as in our models."""

    def __init__(self):
        super().__init__()
        self.cells = [[keras.layers.BatchNormalization()], [keras.layers.Dense(2)]]
        self.price = self.add_weight(shape=(), initializer="zeros", trainable=False)
        for cell in self.cells:
            cell[0].build((None, 2))
        self.weight_optimizer = keras.optimizers.Adam()
        self.weight_optimizer.build(self.trainable_variables)
        self.built = True

    @property
    def state(self):
        return [*self.variables, *self.weight_optimizer.variables]


def filled(model, value):
    for variable in model.state:
        variable.assign(np.full(variable.shape, value))
    return model


def test_all_state_is_restored(tmp_path):
    callbacks.Resume(filled(Cells(), 3).state, tmp_path).on_epoch_end(0)
    model = filled(Cells(), 0)
    assert callbacks.Resume(model.state, tmp_path).restore() == 1
    lost = [variable.path for variable in model.state if np.any(np.asarray(variable) != 3)]
    assert lost == []


@pytest.mark.parametrize("how", ["gone", "empty", "cut", "data"])
def test_resume_from_the_checkpoint_before(tmp_path, caplog, how):
    folder = saved(tmp_path / "some", 3)
    damage(folder, 3, how)
    with caplog.at_level(logging.WARNING, "absl"):
        assert restored(folder) == (2, 2.0)
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert [text for text in warnings if "ckpt-3 cannot be read" in text]
    model = small()
    resume = callbacks.Resume(model.variables, folder)
    assert resume.restore() == 2
    set_all(model, 7.0)
    resume.on_epoch_end(2)
    assert restored(folder) == (3, 7.0)


@pytest.mark.parametrize("how", ["empty", "cut", "data"])
def test_resume_from_nothing_that_can_be_read(tmp_path, how):
    folder = saved(tmp_path / "some", 3)
    for epoch in (2, 3):
        damage(folder, epoch, how)
    with pytest.raises(InputError, match="no checkpoint in .*some can be read; delete that folder"):
        restored(folder)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"no proto"])
def test_a_damaged_list_of_checkpoints_does_not_start_again_in_silence(tmp_path, caplog, content):
    folder = saved(tmp_path / "some", 3)
    (folder / "checkpoint").write_bytes(content)
    try:
        with caplog.at_level(logging.WARNING):
            done, _ = restored(folder)
    except InputError:
        return
    assert done == 3 or caplog.records


def test_resume_of_another_model(tmp_path):
    folder = saved(tmp_path / "some", 1)
    with pytest.raises(InputError, match="no checkpoint"):
        callbacks.Resume(small(units=5).variables, folder).restore()


def test_a_checkpoint_that_cannot_be_written(tmp_path, monkeypatch):
    resume = callbacks.Resume(small().variables, tmp_path / "some")

    def full(**kwargs):
        raise tf.errors.ResourceExhaustedError(None, None, "No space left on device\nmore")

    monkeypatch.setattr(resume.manager, "save", full)
    with pytest.raises(ModelError, match=r"No space left on device\); free some space"):
        resume.on_epoch_end(0)


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
