"""How every stage is trained: the loop, with batches, checkpoints, logs and a seed."""

from __future__ import annotations

import contextlib
import shutil
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import keras
import numpy as np
from ml_collections import ConfigDict

from instanas_tf import files
from instanas_tf.errors import InputError
from instanas_tf.models import compiled
from instanas_tf.models.controller import Controller
from instanas_tf.models.supernet import Supernet
from instanas_tf.models.training import TrainedModel
from instanas_tf.pipeline import callbacks, checkpoints, data, evaluate, loop
from instanas_tf.pipeline.workdir import WorkDir
from instanas_tf.search import schedules
from instanas_tf.spaces import get
from instanas_tf.spaces.space import SearchSpace

EVAL_BATCH = 256


def make_space(config: ConfigDict, num_classes: int) -> SearchSpace:
    """The search space that a config describes."""
    return get(config.space.name, config.space.width, num_classes, config.space.merge)


def make_supernet(config: ConfigDict, images: data.ImageData) -> Supernet:
    """A fresh supernet in the config's precision; its weights depend on the config's seed."""
    keras.utils.set_random_seed(config.seed)
    with trained_in(config.train.precision):
        return Supernet(
            make_space(config, images.num_classes),
            images.mean,
            images.std,
            routed=config.train.routed and keras.backend.backend() == "tensorflow",
            bn_momentum=config.train.bn_momentum,
        )


@contextlib.contextmanager
def trained_in(precision: str) -> Iterator[None]:
    """Builds the models made within in a precision: `float32` or `mixed_bfloat16`.

    Source: Keras's guide on mixed precision. Weights, controllers, losses, normalisation
    statistics and everything that ships are float32 always.
    """
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


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


def check_batches(config: ConfigDict, images: data.ImageData, workdir: WorkDir) -> None:
    """Refuses batches that do not fit the training split or the run's replicas.

    Raises:
        InputError: naming the setting.
    """
    for name in ("train", "search", "finetune"):
        size = config[name].batch_size or config.train.batch_size
        if size > images.train.count:
            raise InputError(
                f"config.{name}.batch_size must be at most {images.train.count}, the images of "
                f"the training split. Received: {size}"
            )
        workdir.cluster.rows(size)


def check_splits(config: ConfigDict, images: data.ImageData) -> None:
    """Refuses splits that are too small for what is asked of controllers.

    Raises:
        InputError: naming the setting, and how many images are needed.
    """
    wanted = config.route.interval
    needed = evaluate.images_needed(wanted) if wanted else 0
    if images.validation.count < needed:
        raise InputError(
            f"config.route.interval={wanted} needs {needed} validation images. Received: "
            f"{images.validation.count}; raise config.data.validation_fraction, or the interval"
        )
    learned = {"image", "features", "start"} & set(config.route.kinds)
    if learned and images.controller.count < 2:
        raise InputError(
            f"config.route.kinds: {sorted(learned)[0]} is trained on images that the experts do "
            "not see; raise config.data.controller_fraction above 0, or leave it out"
        )


def fit(
    model: TrainedModel,
    stage: str,
    *,
    epochs: int,
    images: data.ImageData,
    config: ConfigDict,
    workdir: WorkDir,
    schedule: Sequence[tuple[keras.Variable, schedules.Schedule]],
    extra: Sequence[keras.callbacks.Callback] = (),
    batch_size: int = 0,
) -> None:
    """Trains a stage to its end, from its last checkpoint if there is one.

    Args:
        model: built, with its optimizers built, in the scope of the run's cluster; it has a
            `seed_generator` if it draws.
        stage: name in logs and checkpoints.
        epochs: of the whole stage.
        images: the dataset; training and validation split are used.
        config: of the run.
        workdir: of the run.
        schedule: (variable, schedule of the stage's progress), set before each step.
        extra: more callbacks, run before the state is saved.
        batch_size: images in a step; 0 takes that of `config.train`.

    Raises:
        InputError: the batch is larger than the training split or cannot be shared out, or
            checkpoints are damaged.
        ModelError: a checkpoint cannot be written, or a loss is not finite.
    """
    batch_size = batch_size or config.train.batch_size
    cluster = workdir.cluster
    rows = cluster.rows(batch_size)
    seed = zlib.crc32(f"{config.seed} {stage}".encode()) % 2**31
    steps = data.steps_per_epoch(images.train, batch_size)

    def batches(epoch: int, first_step: int) -> loop.Batches:
        return data.train_batches(
            images.train,
            batch_size=batch_size,
            epoch=epoch,
            first_step=first_step,
            seed=seed,
            augmentation=config.data.augmentation,
            mean=images.mean,
            rows=rows,
        )

    def callbacks_after(epoch: int) -> list[keras.callbacks.Callback]:
        if not cluster.is_chief:
            return [callbacks.StopWhenDiverged()]
        around = [*extra, callbacks.StopWhenDiverged()]
        around.append(callbacks.MetricsLog(workdir.metrics, stage, epoch))
        if keras.backend.backend() == "tensorflow":  # TensorBoard's logs are written by it.
            model.compile(optimizer=model.objectives()[0].optimizer)  # It logs the learning rate.
            folder = str(workdir.tensorboard / stage)
            around.append(keras.callbacks.TensorBoard(folder, write_graph=False))
        return around

    course = loop.Course(
        epochs=epochs,
        steps=steps,
        batches=batches,
        validation=lambda: data.eval_batches(images.validation, EVAL_BATCH),
        schedule=schedule,
        seed=seed,
        save_secs=config.train.checkpoint_secs,
    )
    verbose = 1 if sys.stdout.isatty() else 2
    loop.train(
        model,
        course,
        checkpoints.Checkpoints(model.state, workdir.resume(stage), _origin(images, steps)),
        callbacks_after,
        cluster=cluster,
        verbose=verbose if cluster.is_chief else 0,
    )


def finish(stage: str, workdir: WorkDir) -> None:
    """Drops the checkpoints of a stage whose result is written."""
    if workdir.cluster.is_chief:
        shutil.rmtree(workdir.resume(stage), ignore_errors=True)


def _origin(images: data.ImageData, steps: int) -> str:
    """What a checkpoint belongs to beside the config: the training images."""
    counts = [images.train.count, images.validation.count, images.num_classes, steps]
    return files.digest([counts, images.mean, images.std])


def leave_weights(model: keras.Model, stage: str, workdir: WorkDir) -> None:
    """Writes the result of a stage for everybody, and drops its checkpoints."""
    if workdir.cluster.is_chief:
        callbacks.save_weights(model, workdir.weights(stage))
        finish(stage, workdir)
    workdir.cluster.wait()


def outputs(
    call: Callable, variables: Sequence[keras.Variable], *arrays_of: Iterable
) -> np.ndarray:
    """What a compiled function gives for all batches, in order, [n, ...].

    Args:
        call: arrays [B, ...] -> [B, ...].
        variables: all that `call` reads.
        *arrays_of: for each argument of `call` its batches.
    """
    run = compiled.function(call, variables)
    batches = zip(*arrays_of, strict=True)
    return np.concatenate([np.asarray(run(*arrays)) for arrays in batches])


def images_of(split: data.Split) -> Iterator[np.ndarray]:
    """All images of a split, in order, in batches."""
    return (images for images, _ in data.eval_batches(split, EVAL_BATCH))


def predict(model: keras.Model, split: data.Split) -> np.ndarray:
    """Outputs [n, ...] of a model for all images of a split, in order, inference mode."""

    def infer(images):
        return model(images, training=False)

    return outputs(infer, model.variables, images_of(split))


def labels_of(split: data.Split) -> np.ndarray:
    """Labels [n] of a split, in order."""
    return np.concatenate([labels for _, labels in data.eval_batches(split, EVAL_BATCH)])
