"""Images for training and evaluation: disjoint splits, and batches that can be resumed.

A data set keeps the splits that it brings; missing ones are cut off the training images, class
by class. The test split is never used for a choice, so a lone `validation` split is the test
split here, and a new validation split is cut off the training images.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import tensorflow as tf
from ml_collections import ConfigDict
from sklearn.utils import resample

from instanas_tf.errors import InputError
from instanas_tf.pipeline import sources
from instanas_tf.pipeline.augment import augment

STATISTICS_IMAGES = 10_000  # Training images at most that mean and deviation are taken of.
_RUNS = 16  # Pieces of a streamed set that such a sample consists of.
_SHUFFLE_SHARE = 0.25  # Of the memory limit, for the shuffle buffer of a streamed split.


@dataclasses.dataclass(frozen=True)
class Split:
    """Labelled images in a fixed order.

    Attributes:
        examples: unbatched (uint8 [S, S, 3], int64 label), always in the same order.
        count: number of examples.
        shuffle_buffer: examples that are mixed at a time in training; 0 mixes all of them.
    """

    examples: tf.data.Dataset
    count: int
    shuffle_buffer: int = 0


@dataclasses.dataclass(frozen=True)
class ImageData:
    """Three disjoint splits of a data set, and what is to be known of it.

    Attributes:
        name: `config.data.name`.
        labels: name of each class.
        image_size: S, the height and width of all images.
        train: images that weights are trained on.
        validation: images that choices are made on.
        test: images that only final results are computed on.
        mean: of each channel over training images, in raw pixels 0..255.
        std: likewise the standard deviation, at least 1 so that one can divide by it.
    """

    name: str
    labels: tuple[str, ...]
    image_size: int
    train: Split
    validation: Split
    test: Split
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def num_classes(self) -> int:
        """Number of classes, N."""
        return len(self.labels)


@dataclasses.dataclass(frozen=True)
class _Part:
    """Some images of a pool, by their ascending indices."""

    pool: sources.Pool
    indices: np.ndarray


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
    parts = {name: _held(part, settings) for name, part in _carve(source, settings, seed).items()}
    for name, part in parts.items():
        _check_classes(name, part, source.classes)
    splits = {name: _to_split(part, settings) for name, part in parts.items()}
    mean, std = _colour_statistics(parts["train"])
    return ImageData(
        settings.name, source.classes, settings.image_size, **splits, mean=mean, std=std
    )


def train_batches(
    split: Split,
    *,
    batch_size: int,
    epochs: int,
    first_epoch: int,
    seed: int,
    augmentation: ConfigDict,
    mean: tuple[float, float, float],
) -> tf.data.Dataset:
    """Shuffled and augmented batches of the epochs `first_epoch` to `epochs - 1`.

    An epoch is a function of the seed and of its number alone: training that is resumed at an
    epoch sees the very batches that undisturbed training would have seen.

    Args:
        split: the images.
        batch_size: B; what remains of an epoch is dropped.
        epochs: of the whole training.
        first_epoch: epochs that are already done.
        seed: of shuffling and augmentation.
        augmentation: `config.data.augmentation`.
        mean: colour of padding and of blanked squares, in raw pixels.

    Returns:
        Dataset of (float32 [B, S, S, 3] raw pixels 0..255, int32 [B]).

    Raises:
        InputError: a batch is larger than the split.
    """
    steps = steps_per_epoch(split, batch_size)

    def change(
        key: tf.Tensor, position: tf.Tensor, image: tf.Tensor, label: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        own_key = tf.random.fold_in(key, position)
        return augment(image, own_key, augmentation, mean), tf.cast(label, tf.int32)

    batches = (
        tf.data.Dataset.range(first_epoch, epochs)
        .flat_map(lambda epoch: _shuffled_epoch(split, steps * batch_size, seed, epoch))
        .map(change, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        .batch(batch_size, drop_remainder=True)
    )
    total = steps * max(0, epochs - first_epoch)
    return batches.apply(tf.data.experimental.assert_cardinality(total)).prefetch(tf.data.AUTOTUNE)


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


def eval_batches(split: Split, batch_size: int) -> tf.data.Dataset:
    """All images in order: (float32 [B, S, S, 3] raw pixels, int32 [B]), the last batch smaller."""
    if batch_size < 1:
        raise InputError(f"the batch size must be at least 1. Received: {batch_size}")
    return (
        split.examples.batch(batch_size)
        .map(lambda images, labels: (tf.cast(images, tf.float32), tf.cast(labels, tf.int32)))
        .prefetch(tf.data.AUTOTUNE)
    )


def to_arrays(split: Split) -> tuple[np.ndarray, np.ndarray]:
    """All images in order: uint8 [n, S, S, 3] and int64 [n]."""
    return sources.collect(split.examples, split.count)


def _shuffled_epoch(split: Split, count: int, seed: int, epoch: tf.Tensor) -> tf.data.Dataset:
    """The first `count` examples of an epoch: (key of the epoch, position, image, label)."""
    # `shuffle` mixes its seed with the graph's. This sets the seed of the graph of `flat_map`
    # alone, lest `tf.random.set_seed` elsewhere should change the order; 0 would mean no seed.
    tf.random.set_seed(1)
    order = tf.random.stateless_uniform(
        [], _key(seed, 0, epoch), minval=None, maxval=None, dtype=tf.int64
    )
    key = _key(seed, 1, epoch)
    buffer = split.shuffle_buffer or split.count
    shuffled = split.examples.shuffle(buffer, seed=order, reshuffle_each_iteration=False)
    numbered = shuffled.take(count).enumerate()
    return numbered.map(lambda position, example: (key, position, *example))


def _key(seed: int, purpose: int, epoch: tf.Tensor) -> tf.Tensor:
    """A stateless seed, int64 [2], for one purpose in one epoch."""
    return tf.random.fold_in(tf.constant([seed, purpose], tf.int64), epoch)


def _check_settings(settings: ConfigDict, seed: int) -> None:
    """Refuses numbers that mean nothing."""
    for name in ("train_images", "validation_images", "test_images", "memory_limit_mib"):
        if settings[name] < 0:
            raise InputError(f"config.data.{name} must be 0 or more. Received: {settings[name]}")
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


def _carve(source: sources.Source, settings: ConfigDict, seed: int) -> dict[str, _Part]:
    """The three splits: those that the source brings, others cut off the training images."""
    parts = {
        name: _Part(pool, np.arange(pool.count))
        for name in ("train", "validation", "test")
        if (pool := getattr(source, name)) is not None
    }
    # One generator a purpose, so that one setting does not move what another one draws.
    for number, name in enumerate(("test", "validation")):
        if name not in parts:
            generator = np.random.default_rng([seed, 0, number])
            parts["train"], parts[name] = _cut(parts["train"], name, settings, generator)
    for number, name in enumerate(("train", "validation", "test")):
        wanted = settings[f"{name}_images"]
        drawn_with = 0 if name == "test" and source.test is not None else seed
        if wanted > len(parts[name].indices):
            raise InputError(
                f"config.data.{name}_images must be at most {len(parts[name].indices)}, the "
                f"images that are there. Received: {wanted}"
            )
        if wanted:
            generator = np.random.default_rng([drawn_with, 1, number])
            parts[name] = _draw(parts[name], wanted, generator)
    return {name: parts[name] for name in ("train", "validation", "test")}


def _cut(
    part: _Part, name: str, settings: ConfigDict, generator: np.random.Generator
) -> tuple[_Part, _Part]:
    """Cuts `validation_fraction` or `test_fraction` off: (what remains, what is cut off)."""
    fraction = settings[f"{name}_fraction"]
    count = round(fraction * len(part.indices))
    if not 0 < count < len(part.indices):
        raise InputError(
            f"config.data.{name}_fraction must leave images in both splits. Received: {fraction} "
            f"of {len(part.indices)} images"
        )
    cut_off = _draw(part, count, generator)
    rest = np.setdiff1d(part.indices, cut_off.indices, assume_unique=True)
    return _Part(part.pool, rest), cut_off


def _draw(part: _Part, count: int, generator: np.random.Generator) -> _Part:
    """Draws images, class by class in proportion; where labels are unknown, one long run.

    `resample` shares the images out as `train_test_split` does, and also takes numbers that the
    latter refuses: fewer images than classes, or all but a few.
    """
    if part.pool.labels is None:
        start = generator.integers(len(part.indices) - count + 1)
        return _Part(part.pool, part.indices[start : start + count])
    drawn = resample(
        part.indices,
        replace=False,
        n_samples=count,
        stratify=part.pool.labels[part.indices],
        random_state=int(generator.integers(2**31)),
    )
    return _Part(part.pool, np.sort(drawn))


def _held(part: _Part, settings: ConfigDict) -> _Part:
    """Reads a part into memory if it fits, as a small part of a large set may."""
    count = len(part.indices)
    if part.pool.in_memory or not count or not sources.fits(count, settings):
        return part
    pool = sources.array_pool(*sources.collect(part.pool.read(part.indices), count))
    return _Part(pool, np.arange(count))


def _to_split(part: _Part, settings: ConfigDict) -> Split:
    """The examples of a part; a streamed one gets a bounded shuffle buffer."""
    count = len(part.indices)
    buffer = 0
    if not part.pool.in_memory:
        room = _SHUFFLE_SHARE * settings.memory_limit_mib * 2**20
        buffer = min(count, max(1, int(room / (3 * settings.image_size**2))))
    return Split(part.pool.read(part.indices), count, buffer)


def _check_classes(name: str, part: _Part, classes: tuple[str, ...]) -> None:
    """Refuses empty splits, images without a class, and classes that no choice would rest on."""
    if not len(part.indices):
        raise InputError(f"the {name} split must hold images. Received: none; use another data set")
    if part.pool.labels is not None:
        labels = [part.pool.labels[part.indices]]
    elif name == "validation":
        labels = (some for _, some in sources.batches_of(part.pool.read(part.indices)))
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
    if name != "test":
        raise InputError(
            f"every class must have an image in the {name} split. Received: none of "
            f"{classes[min(missing)]} ({len(missing)} of {len(classes)} classes are missing); add "
            f"images, or see config.data.{name}_images and config.data.validation_fraction"
        )


def _colour_statistics(part: _Part) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel over evenly spaced images of a part."""
    indices, count = part.indices, len(part.indices)
    if count > STATISTICS_IMAGES and part.pool.labels is None:
        length = STATISTICS_IMAGES // _RUNS
        indices = np.concatenate([run[:length] for run in np.array_split(indices, _RUNS)])
    elif count > STATISTICS_IMAGES:
        indices = indices[np.arange(STATISTICS_IMAGES) * count // STATISTICS_IMAGES]
    pixels, total, squares = 0, np.zeros(3), np.zeros(3)
    for images, _ in sources.batches_of(part.pool.read(indices)):
        colours = images.reshape(-1, 3).astype(np.float64)
        pixels += len(colours)
        total += colours.sum(axis=0)
        squares += (colours**2).sum(axis=0)
    mean = total / pixels
    std = np.sqrt(np.maximum(squares / pixels - mean**2, 1.0))
    return tuple(mean.tolist()), tuple(std.tolist())
