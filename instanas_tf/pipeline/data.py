"""Images for training and evaluation: disjoint splits, and batches that can be resumed.

All is NumPy, for every Keras backend; only a set of tensorflow-datasets imports TensorFlow.

A data set keeps the splits that it brings; missing ones are cut off the training images, class
by class. The test split is never used for a choice, so a lone `validation` split is the test
split here, and a new validation split is cut off the training images.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
from ml_collections import ConfigDict

from instanas_tf.errors import InputError
from instanas_tf.pipeline import pools, sources, splits
from instanas_tf.pipeline.ahead import read_ahead
from instanas_tf.pipeline.augment import NUMBERS, augment
from instanas_tf.pipeline.splits import Split

STATISTICS_IMAGES = 10_000  # Training images at most that mean and deviation are taken of.
_RUNS = 16  # Pieces of a streamed set that such a sample consists of.
_WORKERS = 2  # Threads that prepare batches, where these do not come in a stream.
_SHUFFLE, _AUGMENT = 2, 3  # Purposes of random numbers; splitting has 0 and 1.
Batches = Iterator[tuple[np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class ImageData:
    """Four disjoint splits of a data set, and what is to be known of it.

    Attributes:
        name: `config.data.name`.
        labels: name of each class.
        image_size: S, the height and width of all images.
        train: images that weights are trained on.
        validation: images that choices are made on.
        controller: images that controllers of finished experts are trained on; perhaps none,
            and not of every class.
        test: images that only final results are computed on.
        mean: of each channel over training images, in raw pixels 0..255.
        std: likewise the standard deviation, at least 1 so that one can divide by it.
    """

    name: str
    labels: tuple[str, ...]
    image_size: int
    train: Split
    validation: Split
    controller: Split
    test: Split
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def num_classes(self) -> int:
        """Number of classes, N."""
        return len(self.labels)


def load(settings: ConfigDict, seed: int) -> ImageData:
    """Loads the data set that the settings name and splits it.

    What is cut off the training images is drawn with the seed. A test split that the data set
    brings does not depend on the seed, neither does the part of it that `test_images` takes.

    Args:
        settings: `config.data`.
        seed: same seed, same splits; 0 or more.

    Raises:
        InputError: the settings or the files cannot be used.
    """
    _check_settings(settings, seed)
    source = sources.open_source(settings)
    parts = {
        name: _held(split, settings) for name, split in splits.carve(source, settings, seed).items()
    }
    for name, split in parts.items():
        if split.count or name != "controller":
            _check_classes(name, split, source.classes)
    mean, std = _colour_statistics(parts["train"])
    return ImageData(
        settings.name, source.classes, settings.image_size, **parts, mean=mean, std=std
    )


def train_batches(
    split: Split,
    *,
    batch_size: int,
    epoch: int,
    seed: int,
    augmentation: ConfigDict,
    mean: tuple[float, float, float],
    first_step: int = 0,
    rows: tuple[int, int] | None = None,
) -> Batches:
    """Shuffled and augmented batches of one epoch, from `first_step` on; read ahead.

    A batch is a function of the seed, the epoch and its step alone: training that is resumed at
    a step sees the very batches that undisturbed training would have seen, and machines that
    take some rows each see together what one machine would have seen.

    Args:
        split: the images.
        batch_size: B, of all machines together; what remains of an epoch is dropped.
        epoch: 0 or more.
        seed: of shuffling and augmentation; 0 or more.
        augmentation: `config.data.augmentation`.
        mean: colour of padding and of blanked squares, in raw pixels.
        first_step: steps of the epoch that are already done.
        rows: (start, stop) of the rows of each batch that are wanted, b of them; all by default.

    Returns:
        Iterator of (float32 [b, S, S, 3] raw pixels 0..255, int32 [b]).

    Raises:
        InputError: a batch is larger than the split.
        ValueError: there is no such step or are no such rows.
    """
    steps = steps_per_epoch(split, batch_size)
    start, stop = rows or (0, batch_size)
    if not 0 <= first_step <= steps:
        raise ValueError(f"first_step must lie in 0..{steps}. Received: {first_step}")
    if not 0 <= start < stop <= batch_size:
        raise ValueError(
            f"rows must be (start, stop) with 0 <= start < stop <= {batch_size}. Received: {rows}"
        )
    shuffle = np.random.default_rng([seed, _SHUFFLE, epoch])
    if split.is_streamed:
        order = None
        stream = split.stream(batch_size, int(shuffle.integers(2**62)), first_step * batch_size)
    else:
        order, stream = shuffle.permutation(split.count), None

    def batch(step: int) -> tuple[np.ndarray, np.ndarray]:
        if stream is None:
            first = step * batch_size
            images, labels = split.read(order[first + start : first + stop])
        else:
            images, labels = (part[start:stop] for part in next(stream))
        numbers = np.random.default_rng([seed, _AUGMENT, epoch, step]).random((batch_size, NUMBERS))
        return augment(images, numbers[start:stop], augmentation, mean), labels.astype(np.int32)

    return _ahead(split, batch, range(first_step, steps))


def steps_per_epoch(split: Split, batch_size: int) -> int:
    """Number of whole batches in a split.

    Raises:
        InputError: there is none.
    """
    if not 1 <= batch_size <= split.count:
        raise InputError(
            f"the batch size must be between 1 and the {split.count} images of the split. "
            f"Received: {batch_size}; change config.train.batch_size or use more images"
        )
    return split.count // batch_size


def eval_batches(split: Split, batch_size: int) -> Batches:
    """All images in order, read ahead; the last batch is smaller.

    Returns:
        Iterator of (float32 [B, S, S, 3] raw pixels 0..255, int32 [B]).

    Raises:
        InputError: the batch size is below 1.
    """
    if batch_size < 1:
        raise InputError(f"the batch size must be at least 1. Received: {batch_size}")
    stream = split.stream(batch_size) if split.is_streamed else None

    def batch(first: int) -> tuple[np.ndarray, np.ndarray]:
        if stream is None:
            images, labels = split.read(np.arange(first, min(first + batch_size, split.count)))
        else:
            images, labels = next(stream)
        return images.astype(np.float32), labels.astype(np.int32)

    return _ahead(split, batch, range(0, split.count, batch_size))


def to_arrays(split: Split) -> pools.Examples:
    """All images in order: uint8 [n, S, S, 3] and int64 [n]."""
    return pools.collect(split.pool, split.indices)


def _ahead(
    split: Split, batch: Callable[[int], tuple[np.ndarray, np.ndarray]], numbers: range
) -> Batches:
    """The batches of some numbers, read ahead; those of a stream one after the other."""
    return read_ahead(batch, numbers, workers=1 if split.is_streamed else _WORKERS)


def _check_settings(settings: ConfigDict, seed: int) -> None:
    """Refuses numbers that mean nothing."""
    for name in ("train_images", "validation_images", "test_images", "memory_limit_mib"):
        if settings[name] < 0:
            raise InputError(f"config.data.{name} must be 0 or more. Received: {settings[name]}")
    for name in ("controller_fraction", "held_back_fraction"):
        if not 0 <= settings[name] < 1:
            raise InputError(
                f"config.data.{name} must be at least 0 and below 1. Received: {settings[name]}"
            )
    for name in ("validation_fraction", "test_fraction"):
        if not 0 < settings[name] < 1:
            raise InputError(
                f"config.data.{name} must be between 0 and 1, both excluded. "
                f"Received: {settings[name]}"
            )
    if settings.image_size < 1:
        raise InputError(
            f"config.data.image_size must be 1 or more. Received: {settings.image_size}"
        )
    if not 0 <= settings.unreadable_limit <= 1:
        raise InputError(
            "config.data.unreadable_limit must be between 0 and 1. "
            f"Received: {settings.unreadable_limit}"
        )
    for name in ("pad", "cutout"):
        if settings.augmentation[name] < 0:
            raise InputError(
                f"config.data.augmentation.{name} must be 0 or more. "
                f"Received: {settings.augmentation[name]}"
            )
    if seed < 0:
        raise InputError(f"config.seed must be 0 or more. Received: {seed}")


def _held(split: Split, settings: ConfigDict) -> Split:
    """Reads a split into memory if it fits, as a small part of a large set may."""
    if split.pool.in_memory or not split.count or not pools.fits(split.count, settings):
        return split
    return Split(pools.array_pool(*to_arrays(split)), np.arange(split.count))


def _check_classes(name: str, part: Split, classes: tuple[str, ...]) -> None:
    """Refuses empty splits, images without a class, and classes that no choice would rest on."""
    if not part.count:
        raise InputError(f"the {name} split must hold images. Received: none; use another data set")
    if part.pool.labels is not None:
        labels = [part.pool.labels[part.indices]]
    elif name == "validation":
        labels = (some for _, some in pools.pieces(part.pool, part.indices))
    else:
        return  # Reading a large training or test split to the end would take too long.
    missing = set(range(len(classes)))
    for some in labels:
        if some.min() < 0 or some.max() >= len(classes):
            raise InputError(
                f"labels of the {name} split must lie in 0..{len(classes) - 1}. "
                f"Received: {some.min()}..{some.max()}; use a data set with labels"
            )
        missing -= set(some.tolist())
        if not missing:
            return
    if name in ("train", "validation"):
        raise InputError(
            f"every class must have an image in the {name} split. Received: none of "
            f"{classes[min(missing)]} ({len(missing)} of {len(classes)} classes are missing); add "
            f"images, or see config.data.{name}_images and config.data.validation_fraction"
        )


def _colour_statistics(part: Split) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel over evenly spaced images of a part."""
    indices, count = part.indices, part.count
    if count > STATISTICS_IMAGES and part.pool.labels is None:
        length = STATISTICS_IMAGES // _RUNS
        indices = np.concatenate([run[:length] for run in np.array_split(indices, _RUNS)])
    elif count > STATISTICS_IMAGES:
        indices = indices[np.arange(STATISTICS_IMAGES) * count // STATISTICS_IMAGES]
    pixels, total, squares = 0, np.zeros(3), np.zeros(3)
    for images, _ in pools.pieces(part.pool, indices):
        colours = images.reshape(-1, 3).astype(np.float64)
        pixels += len(colours)
        total += colours.sum(axis=0)
        squares += (colours**2).sum(axis=0)
    mean = total / pixels
    std = np.sqrt(np.maximum(squares / pixels - mean**2, 1.0))
    return tuple(mean.tolist()), tuple(std.tolist())
