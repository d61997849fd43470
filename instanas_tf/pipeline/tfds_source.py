"""Images of tensorflow-datasets: held in memory if they fit, else streamed.

The one file behind `data.py` that needs TensorFlow; it is imported when such a set is asked for.
"""

from __future__ import annotations

import difflib
import functools
import operator
import re
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from absl import logging
from google.protobuf import json_format
from ml_collections import ConfigDict
from tensorflow_datasets.core.download import download_manager

from instanas_tf.errors import InputError
from instanas_tf.pipeline.pools import Examples, Pool, Source, array_pool, collect, fits, source_of

SHUFFLE_SHARE = 0.25  # Of the memory limit, for the shuffle buffer of a streamed split.


def open_tfds(settings: ConfigDict, others: tuple[str, ...] = ()) -> Source:
    """Opens a data set of tensorflow-datasets with an image and a label.

    A test split without labels is left out.

    Args:
        settings: `config.data`.
        others: names of the other sources, for hints on misspelt names.

    Raises:
        InputError: it does not exist, cannot be read or is no set of labelled images.
    """
    _leave_the_accelerator()
    builder = _builder(settings, others)
    _prepare(builder, settings)
    classes = _classes(builder)
    names = set(builder.info.splits)
    if "train" not in names:
        raise InputError(
            f"{settings.name} must have a split `train`. Received: {', '.join(sorted(names))}"
        )
    splits = [name for name in ("train", "validation", "test") if name in names]
    if "test" in splits and not _has_labels(builder, "test"):
        splits.remove("test")
    return source_of(classes, {name: _pool(builder, name, settings) for name in splits})


def _leave_the_accelerator() -> None:
    """Lets TensorFlow, where it only reads, not take the memory that another backend needs."""
    if keras.backend.backend() == "tensorflow":
        return
    try:
        tf.config.set_visible_devices([], "GPU")
    except RuntimeError as error:  # It has been used before, so what it takes is taken.
        logging.warning("TensorFlow keeps its share of the accelerator: %s", error)


def _builder(settings: ConfigDict, others: tuple[str, ...]) -> Any:
    """The builder of a data set; a misspelt name gets the nearest ones."""
    try:
        return tfds.builder(settings.name, data_dir=settings.data_dir or None)
    except tfds.core.DatasetNotFoundError as error:
        near = difflib.get_close_matches(settings.name, [*others, *tfds.list_builders()])
        hint = f"did you mean {' or '.join(near)}?" if near else "see tfds.list_builders()"
        raise InputError(
            "config.data.name must be digits, folder, npz or a dataset of tensorflow-datasets. "
            f"Received: {settings.name!r}; {hint}"
        ) from error
    except (ValueError, AssertionError, ImportError, OSError, json_format.ParseError) as error:
        raise InputError(
            f"config.data.name={settings.name!r} cannot be opened with tensorflow-datasets: "
            f"{_one_line(error)}; check it and config.data.data_dir"
        ) from error


def _prepare(builder: Any, settings: ConfigDict) -> None:
    """Downloads what is not yet on disk, if that is allowed."""
    if builder.is_prepared():
        return
    if not settings.download:
        raise InputError(
            f"dataset {settings.name} is not prepared in {builder.data_dir}; pass "
            "--config.data.download=True, or the right folder with --config.data.data_dir"
        )
    failures = (OSError, ImportError, AssertionError, ValueError, tf.errors.OpError)
    failures += (tfds.download.DownloadError, download_manager.NonMatchingChecksumError)
    try:
        builder.download_and_prepare()
    except failures as error:
        raise InputError(
            f"dataset {settings.name} could not be downloaded and prepared in "
            f"{builder.data_dir}: {type(error).__name__}: {_one_line(error)}; see to the "
            "connection, or pass a folder where it is prepared with --config.data.data_dir"
        ) from error


def _classes(builder: Any) -> tuple[str, ...]:
    """Names of the classes of a set of labelled images; other sets are refused."""
    features, keys = builder.info.features, builder.info.supervised_keys or ()
    kinds = [type(features[key]) for key in keys if isinstance(key, str)]
    if kinds != [tfds.features.Image, tfds.features.ClassLabel]:
        raise InputError(
            "config.data.name must be a dataset with the supervised keys image and label, one "
            f"class to an image. Received: {builder.name} with supervised keys {keys or None}"
        )
    image = features[keys[0]]
    if image.np_dtype not in (np.uint8, np.uint16) or image.shape[-1] not in (1, 3, 4):
        raise InputError(
            "config.data.name must be a dataset of grey or RGB images of 8 or 16 bits. Received: "
            f"{builder.name} with {np.dtype(image.np_dtype).name} {image.shape}"
        )
    return tuple(features[keys[1]].names)


def _stored(builder: Any, split: Any) -> tf.data.Dataset:
    """Unbatched (image, label) as stored, always in the same order."""
    read_config = tfds.ReadConfig(try_autocache=False)
    return builder.as_dataset(split=split, as_supervised=True, read_config=read_config)


def _has_labels(builder: Any, split: str) -> bool:
    """Whether the labels of a split are public; if not, they are -1."""
    first = _batches(_stored(builder, split).take(1), 1, f"{split} in {builder.data_dir}")
    return all(label >= 0 for _, label in first)


def _pool(builder: Any, name: str, settings: ConfigDict) -> Pool:
    """A split of tensorflow-datasets, in memory if it fits."""

    def stream(
        indices: np.ndarray, batch_size: int, seed: int | None = None, skip: int = 0
    ) -> Iterator[Examples]:
        runs = np.split(indices, np.flatnonzero(np.diff(indices) != 1) + 1)
        parts = [
            tfds.core.ReadInstruction(name, from_=int(run[0]), to=int(run[-1]) + 1, unit="abs")
            for run in runs
        ]
        examples = _stored(builder, functools.reduce(operator.add, parts)).map(
            lambda image, label: (to_rgb_square(image, settings.image_size), label),
            num_parallel_calls=tf.data.AUTOTUNE,
        )
        if seed is not None:
            examples = _shuffled(examples, _buffer(len(indices), settings), seed)
        examples = examples.apply(tf.data.experimental.assert_cardinality(len(indices)))
        yield from _batches(examples.skip(skip), batch_size, f"{name} in {builder.data_dir}")

    count = builder.info.splits[name].num_examples
    pool = Pool(count, stream=stream)
    if count and fits(count, settings):
        return array_pool(*collect(pool, np.arange(count)))
    return pool


def _buffer(count: int, settings: ConfigDict) -> int:
    """Examples that are mixed at a time, for a share of the memory limit."""
    room = SHUFFLE_SHARE * settings.memory_limit_mib * 2**20
    return min(count, max(1, int(room / (3 * settings.image_size**2))))


def _shuffled(examples: tf.data.Dataset, buffer: int, seed: int) -> tf.data.Dataset:
    """Mixes examples by the seed alone."""

    def shuffle(_: tf.Tensor) -> tf.data.Dataset:
        # `shuffle` mixes its seed with the graph's. This sets the seed of the graph of `flat_map`
        # alone, lest `tf.random.set_seed` elsewhere should change the order; 0 would mean no seed.
        tf.random.set_seed(1)
        return examples.shuffle(buffer, seed=seed, reshuffle_each_iteration=False)

    return tf.data.Dataset.range(1).flat_map(shuffle)


def _batches(examples: tf.data.Dataset, batch_size: int, origin: str) -> Iterator[Examples]:
    """Reads examples in batches, the last one smaller; `origin` is for errors.

    Raises:
        InputError: the files behind the data set are damaged.
    """
    damaged = tf.errors.OpError  # A name of its own: at exit this may outlive the module's.
    try:
        yield from examples.batch(batch_size).prefetch(1).as_numpy_iterator()
    except damaged as error:
        raise InputError(
            f"{origin} is damaged or incomplete: {_one_line(error)}; replace the file, or delete "
            "the prepared folder and run again with --config.data.download=True"
        ) from error


def _one_line(error: BaseException) -> str:
    """The first line of an error, without TensorFlow's names of ops."""
    text = re.sub(r"\{\{.*?\}\} | \[Op:.*", "", str(error)).strip()
    return text.splitlines()[0] if text else type(error).__name__


def to_rgb_square(image: tf.Tensor, size: int) -> tf.Tensor:
    """Converts an image of 8 or 16 bits, [H, W, 1, 3 or 4], to uint8 [size, size, 3]."""
    if image.dtype == tf.uint16:
        image = tf.cast(image, tf.float32) / 257
    if image.shape[-1] == 4:
        opacity = tf.cast(image[..., 3:], tf.float32) / 255
        image = tf.cast(image[..., :3], tf.float32) * opacity + 255 * (1 - opacity)
    if image.dtype != tf.uint8 or tuple(image.shape[:2]) != (size, size):
        image = resize_square(image, size)
    image = image if image.shape[-1] == 3 else tf.repeat(image, 3, axis=-1)
    return tf.ensure_shape(image, [size, size, 3])


def resize_square(images: tf.Tensor, size: int) -> tf.Tensor:
    """Resizes the largest centred square: [..., H, W, C], 0..255, to uint8 [..., S, S, C]."""
    height, width = tf.shape(images)[-3], tf.shape(images)[-2]
    side = tf.minimum(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    images = images[..., top : top + side, left : left + side, :]
    images = tf.image.resize(images, [size, size], "bilinear", antialias=True)
    return tf.cast(tf.round(tf.clip_by_value(images, 0.0, 255.0)), tf.uint8)
