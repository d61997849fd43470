"""How every stage is trained: Keras's `fit`, with checkpoints, logs and a seed an epoch."""

from __future__ import annotations

import shutil
import sys
import zlib
from collections.abc import Callable, Sequence

import keras
import numpy as np
from ml_collections import ConfigDict

from instanas_tf.models.controller import Controller
from instanas_tf.models.supernet import Supernet
from instanas_tf.models.training import TrainedModel
from instanas_tf.pipeline import callbacks, data
from instanas_tf.pipeline.workdir import WorkDir
from instanas_tf.search import schedules
from instanas_tf.spaces import get
from instanas_tf.spaces.space import SearchSpace

EVAL_BATCH = 256


def make_space(config: ConfigDict, num_classes: int) -> SearchSpace:
    """The search space that a config describes."""
    return get(config.space.name, config.space.width, num_classes, config.space.merge)


def make_supernet(config: ConfigDict, images: data.ImageData) -> Supernet:
    """A fresh supernet; its weights depend on the config's seed."""
    keras.utils.set_random_seed(config.seed)
    return Supernet(
        make_space(config, images.num_classes),
        images.mean,
        images.std,
        routed=config.train.routed,
        bn_momentum=config.train.bn_momentum,
    )


def make_controller(config: ConfigDict, images: data.ImageData) -> Controller:
    """A fresh controller; its weights depend on the config's seed."""
    keras.utils.set_random_seed(config.seed + 1)
    return Controller(
        make_space(config, images.num_classes),
        config.controller.kind,
        images.mean,
        images.std,
        logit_stddev=config.controller.logit_stddev,
        bn_momentum=config.train.bn_momentum,
    )


def learning_rate(optimizer: keras.optimizers.Optimizer, schedule: schedules.Schedule):
    """A pair for `Scheduled` that steers an optimizer's learning rate."""
    return (optimizer.learning_rate.assign, schedule)


def fit(
    model: TrainedModel,
    stage: str,
    *,
    epochs: int,
    images: data.ImageData,
    config: ConfigDict,
    workdir: WorkDir,
    schedule: Sequence[tuple[Callable, Callable]],
    extra: Sequence[keras.callbacks.Callback] = (),
    batch_size: int = 0,
) -> None:
    """Trains a stage to its end, from its last checkpoint if there is one.

    Args:
        model: built, with its optimizers built; it has a `seed_generator` if it draws.
        stage: name in logs and checkpoints.
        epochs: of the whole stage.
        images: the dataset; training and validation split are used.
        config: of the run.
        workdir: of the run.
        schedule: pairs for `Scheduled`.
        extra: more callbacks, run before the state is saved.
        batch_size: images in a step; 0 takes that of `config.train`.

    Raises:
        InputError: the batch is larger than the training split, or checkpoints are damaged.
        ModelError: a checkpoint cannot be written, or a loss is not finite.
    """
    batch_size = batch_size or config.train.batch_size
    steps = data.steps_per_epoch(images.train, batch_size)
    resume = callbacks.Resume(model.state, workdir.resume(stage))
    first = resume.restore()
    if first >= epochs:
        return
    seed = zlib.crc32(f"{config.seed} {stage}".encode()) % 2**31
    around = [callbacks.Scheduled(schedule, epochs, steps), *extra]
    if hasattr(model, "seed_generator"):
        around.append(callbacks.EpochSeed(model.seed_generator, seed))
    around += [
        callbacks.StopWhenDiverged(),
        callbacks.MetricsLog(workdir.metrics, stage, first),
        keras.callbacks.TensorBoard(str(workdir.tensorboard / stage), write_graph=False),
        resume,
    ]
    model.compile(optimizer=model.objectives()[0].optimizer, jit_compile=False)
    model.fit(
        data.train_batches(
            images.train,
            batch_size=batch_size,
            epochs=epochs,
            first_epoch=first,
            seed=seed,
            augmentation=config.data.augmentation,
            mean=images.mean,
        ),
        initial_epoch=first,
        epochs=epochs,
        steps_per_epoch=steps,
        validation_data=data.eval_batches(images.validation, EVAL_BATCH),
        callbacks=around,
        shuffle=False,  # The order of each epoch is the data pipeline's.
        verbose=1 if sys.stdout.isatty() else 2,
    )


def finish(stage: str, workdir: WorkDir) -> None:
    """Drops the checkpoints of a stage whose result is written."""
    shutil.rmtree(workdir.resume(stage), ignore_errors=True)


def predict(model: keras.Model, split: data.Split) -> np.ndarray:
    """Outputs [n, ...] of a model for all images of a split, in order, inference mode."""
    batches = data.eval_batches(split, EVAL_BATCH).map(lambda images, _: images)
    return model.predict(batches, verbose=0)


def labels_of(split: data.Split) -> np.ndarray:
    """Labels [n] of a split, in order."""
    batches = data.eval_batches(split, EVAL_BATCH)
    return np.concatenate([labels.numpy() for _, labels in batches])
