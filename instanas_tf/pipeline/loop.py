"""The loop over epochs and steps around a `TrainedModel`, on every backend.

An epoch is a function of (seed, epoch) and of the state at its start: schedules, random
numbers and batches depend on nothing else. So a run that goes on from a checkpoint, within
an epoch too, ends as one that was never stopped.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np

from instanas_tf.errors import InputError
from instanas_tf.models import compiled
from instanas_tf.models.training import TrainedModel
from instanas_tf.pipeline.checkpoints import Checkpoints, Progress
from instanas_tf.pipeline.cluster import ALONE, Cluster
from instanas_tf.search.schedules import Schedule

_DRAWS_AN_EPOCH = 1_000_000
Batches = Iterator[tuple[np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Course:
    """What a training consists of.

    Attributes:
        epochs: of the whole stage.
        steps: an epoch.
        batches: (epoch, first step) -> the batches of the rest of that epoch.
        validation: () -> all validation images with labels, in batches.
        schedule: (variable, schedule of the stage's progress 0 to 1); set before each step.
        seed: of the model's `seed_generator`, if it has one.
        save_secs: seconds after which the state is saved within an epoch.
    """

    epochs: int
    steps: int
    batches: Callable[[int, int], Batches]
    validation: Callable[[], Batches]
    schedule: Sequence[tuple[keras.Variable, Schedule]]
    seed: int
    save_secs: float


def train(
    model: TrainedModel,
    course: Course,
    checkpoints: Checkpoints,
    callbacks: Callable[[int], Sequence[keras.callbacks.Callback]],
    *,
    cluster: Cluster = ALONE,
    verbose: int = 2,
) -> None:
    """Trains to the end, from the last checkpoint if there is one.

    Args:
        model: built, with its optimizers built.
        course: what to do.
        checkpoints: of the model's state.
        callbacks: epochs done before -> callbacks; they see the ends of epochs.
        cluster: in whose scope the model was built; its chief saves checkpoints.
        verbose: as in Keras: 0 silent, 1 a bar, 2 one line an epoch.
    """
    cluster.wait()
    progress = checkpoints.restore()
    cluster.agree("the last checkpoint", f"{progress.epoch} {progress.step}")
    if not (0 <= progress.epoch <= course.epochs and 0 <= progress.step < course.steps):
        raise InputError(
            f"the checkpoint in {checkpoints.folder} is {progress.epoch} epochs and "
            f"{progress.step} steps into a training of {course.epochs} epochs of {course.steps} "
            "steps; delete that folder to start the stage again"
        )
    if progress.epoch == course.epochs:
        return
    if cluster.is_chief:
        checkpoints.prepare()
    knobs = [variable for variable, _ in course.schedule]
    stepper = compiled.stepper(model, knobs, cluster.strategy)
    validate = compiled.function(model.validate, model.variables)
    around = keras.callbacks.CallbackList(
        list(callbacks(progress.epoch)),
        add_progbar=verbose > 0,
        model=model,
        verbose=verbose,
        epochs=course.epochs,
        steps=course.steps,
    )
    saved = time.monotonic()
    around.on_train_begin()
    for epoch in range(progress.epoch, course.epochs):
        around.on_epoch_begin(epoch)
        if progress.step == 0:
            _seed(model, course.seed, epoch)
        stepper.read()
        for images, labels in course.batches(epoch, progress.step):
            _set(course, epoch, progress.step)
            around.on_train_batch_begin(progress.step)
            active = model.active(epoch, progress.step)
            _add(progress.sums, stepper(images, labels, active))
            progress.step += 1
            around.on_train_batch_end(progress.step - 1, _means(progress) if verbose == 1 else None)
            is_due = time.monotonic() - saved > course.save_secs
            if cluster.is_chief and is_due and progress.step < course.steps:
                stepper.write()
                checkpoints.save(_on_host(progress))
                saved = time.monotonic()
        stepper.write()
        found = {f"val_{name}": value for name, value in evaluate(validate, course).items()}
        around.on_epoch_end(epoch, _means(progress) | found)
        progress = Progress(epoch + 1)
        if cluster.is_chief:
            checkpoints.save(progress)
        saved = time.monotonic()
    around.on_train_end()


def evaluate(validate: Callable, course: Course) -> dict[str, float]:
    """Means over the validation images of what `validate(images, labels)` gives for each."""
    sums: dict[str, float] = {}
    count = 0
    for images, labels in course.validation():
        count += len(labels)
        for name, values in validate(images, labels).items():
            sums[name] = sums.get(name, 0.0) + float(np.sum(np.asarray(values, np.float64)))
    return {name: value / count for name, value in sums.items()}


def _seed(model: TrainedModel, seed: int, epoch: int) -> None:
    """Makes an epoch's random numbers a function of (seed, epoch) alone."""
    generator = getattr(model, "seed_generator", None)
    if generator is not None:
        generator.state.assign([seed, epoch * _DRAWS_AN_EPOCH])


def _set(course: Course, epoch: int, step: int) -> None:
    """Sets the variables that follow a schedule."""
    done = (epoch * course.steps + step) / (course.epochs * course.steps)
    for variable, schedule in course.schedule:
        variable.assign(schedule(done))


def _add(sums: dict[str, Any], values: dict[str, Any]) -> None:
    """Adds up on the device, so that no step waits for the host."""
    for name, value in values.items():
        sums[name] = sums[name] + value if name in sums else value


def _means(progress: Progress) -> dict[str, float]:
    return {name: float(value) / progress.step for name, value in progress.sums.items()}


def _on_host(progress: Progress) -> Progress:
    sums = {name: np.asarray(value) for name, value in progress.sums.items()}
    return dataclasses.replace(progress, sums=sums)
