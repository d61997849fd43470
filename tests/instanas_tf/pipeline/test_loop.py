"""The loop: what is set and seen when, and that a resumed training is an undisturbed one."""

import keras
import numpy as np
import pytest
from keras import ops

from instanas_tf.models.training import Objective, TrainedModel
from instanas_tf.pipeline import loop
from instanas_tf.pipeline.checkpoints import Checkpoints
from instanas_tf.pipeline.cluster import Cluster


class Walk(TrainedModel):
    """A number that goes by the learning rate towards the images, and a little at random."""

    def __init__(self, draws=True):
        super().__init__(("loss", "rate", "knob", "drawn"))
        self.w = self.add_weight(shape=(), initializer="zeros", name="w")
        self.knob = self.add_weight(shape=(), initializer="zeros", trainable=False, name="knob")
        self.weight_optimizer = keras.optimizers.SGD(0.5, momentum=0.9)
        self.weight_optimizer.build([self.w])
        if draws:
            self.seed_generator = keras.random.SeedGenerator(99)

    def objectives(self):
        return (Objective(self._loss, [self.w], self.weight_optimizer),)

    def _loss(self, images, labels):
        drawn = ops.zeros(())
        if hasattr(self, "seed_generator"):
            drawn = keras.random.uniform((), seed=self.seed_generator)
        loss = ops.mean((self.w - images[:, 0, 0, 0]) ** 2) + drawn * self.w
        rate = self.weight_optimizer.learning_rate + 0.0
        return loss, {"loss": loss, "rate": rate, "knob": self.knob + 0.0, "drawn": drawn}

    def validate(self, images, labels):
        return {"mean": images[:, 0, 0, 0] + 0.0 * self.w, "label": ops.cast(labels, "float32")}


class Killed(Exception):
    pass


class Seen(keras.callbacks.Callback):
    """What callbacks are told."""

    def __init__(self):
        super().__init__()
        self.epochs, self.steps = [], []

    def on_train_batch_end(self, batch, logs=None):
        self.steps.append(batch)

    def on_epoch_end(self, epoch, logs=None):
        self.epochs.append((epoch, dict(logs)))


def batches(epoch, first_step, killed_at=None):
    """Five batches of two images an epoch, whose pixel is 10 epoch + step."""
    for step in range(first_step, 5):
        if (epoch, step) == killed_at:
            raise Killed
        images = np.full((2, 1, 1, 3), 10.0 * epoch + step, np.float32)
        yield images, np.zeros(2, np.int32)


def validation():
    """Images 0, 1, 2 and 3, 4 with labels 1, the second batch smaller than the first."""
    pixels = np.arange(5, dtype=np.float32)[:, None, None, None]
    yield pixels[:3], np.ones(3, np.int32)
    yield pixels[3:], np.ones(2, np.int32)


def trained(folder, killed_at=None, save_secs=1e9, model=None, seed=7, **options):
    """A training of three epochs, or what was done of it when it was killed."""
    model = model or Walk()
    seen, starts = Seen(), []
    course = loop.Course(
        epochs=3,
        steps=5,
        batches=lambda epoch, first: batches(epoch, first, killed_at),
        validation=validation,
        schedule=[
            (model.weight_optimizer.learning_rate, lambda progress: 0.2 * (1 - progress)),
            (model.knob, lambda progress: progress),
        ],
        seed=seed,
        save_secs=save_secs,
    )

    def callbacks(epoch):
        starts.append(epoch)
        return [seen]

    checkpoints = Checkpoints(model.state, folder)
    try:
        loop.train(model, course, checkpoints, callbacks, **{"verbose": 0, **options})
    except Killed:
        assert killed_at is not None
    return model, seen, starts


def test_schedules_are_set_before_each_step(tmp_path):
    _, seen, starts = trained(tmp_path)
    assert starts == [0]
    for epoch, logs in seen.epochs:
        # Means of (5 epoch + 0, 1, 2, 3, 4) / 15.
        progress = (5 * epoch + 2) / 15
        assert logs["knob"] == pytest.approx(progress)
        assert logs["rate"] == pytest.approx(0.2 * (1 - progress))
    assert seen.steps == [0, 1, 2, 3, 4] * 3


def test_callbacks_see_means_over_the_epoch_and_over_all_validation_images(tmp_path):
    _, seen, _ = trained(tmp_path, model=Walk(draws=False))
    assert [epoch for epoch, _ in seen.epochs] == [0, 1, 2]
    w, speed, expected = 0.0, 0.0, []
    for epoch in range(3):
        losses = []
        for step in range(5):
            error = w - (10 * epoch + step)
            losses.append(error**2)
            speed = 0.9 * speed - 0.2 * (1 - (5 * epoch + step) / 15) * 2 * error
            w += speed
        expected.append(np.mean(losses))
    assert [logs["loss"] for _, logs in seen.epochs] == pytest.approx(expected, rel=1e-4)
    for _, logs in seen.epochs:
        assert (logs["val_mean"], logs["val_label"]) == (2.0, 1.0)
        assert all(type(value) is float for value in logs.values())


def test_random_numbers_are_a_function_of_seed_and_epoch(tmp_path):
    found = {}
    for name, seed in (("a", 7), ("b", 7), ("c", 8)):
        _, seen, _ = trained(tmp_path / name, seed=seed)
        found[name] = [logs["drawn"] for _, logs in seen.epochs]
    assert found["a"] == found["b"]
    assert len({*found["a"], *found["c"]}) == 6
    used = Walk()
    for _ in range(3):
        keras.random.uniform((), seed=used.seed_generator)
    _, seen, _ = trained(tmp_path / "d", model=used)
    assert [logs["drawn"] for _, logs in seen.epochs] == found["a"]


def equal(first, second):
    """Whether two models have the same state to the last bit."""
    pairs = zip(first.state, second.state, strict=True)
    return all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in pairs)


@pytest.mark.parametrize("killed_at", [(0, 3), (1, 0), (1, 1), (1, 4), (2, 2)])
@pytest.mark.parametrize("save_secs", [-1.0, 1e9])
def test_a_resumed_training_is_an_undisturbed_one(tmp_path, killed_at, save_secs):
    whole, all_seen, _ = trained(tmp_path / "whole")
    parts = tmp_path / "parts"
    _, before, _ = trained(parts, killed_at, save_secs)
    epoch, step = killed_at
    assert [number for number, _ in before.epochs] == list(range(epoch))
    # Saved after every step but the last of an epoch, or after epochs alone.
    found = Checkpoints(Walk().state, parts).restore()
    assert (found.epoch, found.step) == ((epoch, step) if save_secs < 0 else (epoch, 0))
    model, after, starts = trained(parts, save_secs=save_secs)
    assert starts == [epoch]
    assert len(after.steps) == 15 - 5 * epoch - found.step
    assert before.epochs + after.epochs == all_seen.epochs
    assert equal(model, whole)
    assert len(Checkpoints([], parts).paths()) == 2


def test_a_finished_training_is_restored_and_not_run(tmp_path):
    whole, _, _ = trained(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    again, seen, starts = trained(tmp_path)
    assert equal(again, whole)
    assert (seen.epochs, seen.steps, starts) == ([], [], [])
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


class Second(Cluster):
    """The second of two processes, without the first."""

    def everybodys(self, value):
        return [value, value]


def test_the_chief_alone_writes(tmp_path):
    model, seen, _ = trained(tmp_path, save_secs=-1.0, cluster=Second(worker=1, workers=2))
    assert len(seen.epochs) == 3
    assert list(tmp_path.iterdir()) == []
    chief, _, _ = trained(tmp_path, cluster=Second(worker=0, workers=2))
    assert equal(model, chief)
    assert len(Checkpoints([], tmp_path).paths()) == 2


@pytest.mark.parametrize(("verbose", "lines"), [(0, 0), (2, 3)])
def test_what_is_printed(tmp_path, capsys, verbose, lines):
    trained(tmp_path, verbose=verbose)
    out = capsys.readouterr().out
    assert out.count("val_mean: 2.0") == lines
    assert [f"Epoch {n}/3" in out for n in (1, 2, 3)] == [lines > 0] * 3
