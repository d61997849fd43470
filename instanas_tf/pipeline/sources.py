"""Where labelled images come from: scikit-learn's digits, a folder, or tensorflow-datasets.

A source reads its images as 8-bit RGB squares and keeps the splits it is given; cutting further
splits is left to `data.py`, what is done to the pixels is said in `augment.py`.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import difflib
import functools
import operator
import os
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging
from ml_collections import ConfigDict

from instanas_tf.errors import InputError
from instanas_tf.pipeline import augment

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp"})
SPLIT_FOLDERS = ("train", "validation", "val", "test")


@dataclasses.dataclass(frozen=True)
class Pool:
    """Labelled images in a fixed order.

    Attributes:
        count: number of images.
        labels: int64 [count], or None where only reading all images would tell them.
        read: ascending indices -> unbatched (uint8 [S, S, 3], int64 label), in a fixed order.
            Without `labels` the indices should form few runs without gaps.
        in_memory: whether the decoded images are held.
    """

    count: int
    labels: np.ndarray | None
    read: Callable[[np.ndarray], tf.data.Dataset]
    in_memory: bool = False


@dataclasses.dataclass(frozen=True)
class Source:
    """What a data set brings: its classes, and the splits it has of its own."""

    classes: tuple[str, ...]
    train: Pool
    validation: Pool | None = None
    test: Pool | None = None


def open_source(settings: ConfigDict) -> Source:
    """Opens the data set that `config.data` names.

    Raises:
        InputError: it does not exist, cannot be read or is no set of labelled images.
    """
    return _SOURCES.get(settings.name, _open_tfds)(settings)


def fits(count: int, settings: ConfigDict) -> bool:
    """Whether `count` decoded images stay within `memory_limit_mib`."""
    return count * 3 * settings.image_size**2 <= settings.memory_limit_mib * 2**20


def array_pool(images: np.ndarray, labels: np.ndarray) -> Pool:
    """A pool of images [n, S, S, 3] that lie in memory."""

    def read(indices: np.ndarray) -> tf.data.Dataset:
        with tf.device("CPU"):  # Else a whole data set would move to the accelerator.
            return tf.data.Dataset.from_tensor_slices((images[indices], labels[indices]))

    return Pool(len(labels), labels, read, in_memory=True)


def batches_of(
    examples: tf.data.Dataset, origin: str = "the data set"
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Reads examples in pieces, uint8 [n, S, S, 3] and int64 [n]; `origin` is for errors.

    Raises:
        InputError: the files behind the data set are damaged.
    """
    try:
        yield from examples.batch(256).prefetch(1).as_numpy_iterator()
    except tf.errors.OpError as error:
        raise InputError(
            f"{origin} is damaged or incomplete: {_one_line(error)}; replace the file, or delete "
            "the prepared folder and run again with --config.data.download=True"
        ) from error


def collect(
    examples: tf.data.Dataset, count: int, origin: str = "the data set"
) -> tuple[np.ndarray, np.ndarray]:
    """Reads `count` examples into uint8 [count, S, S, 3] and int64 [count].

    Raises:
        InputError: the files behind the data set are damaged or hold another number of examples.
    """
    size = examples.element_spec[0].shape[0]
    images = np.empty((count, size, size, 3), np.uint8)
    labels = np.empty(count, np.int64)
    done = 0
    counted = examples.apply(tf.data.experimental.assert_cardinality(count))
    for some, their_labels in batches_of(counted, origin):
        images[done : done + len(some)] = some
        labels[done : done + len(some)] = their_labels
        done += len(some)
    return images, labels


def _one_line(error: BaseException) -> str:
    """The first line of an error, without TensorFlow's names of ops."""
    text = re.sub(r"\{\{.*?\}\} | \[Op:.*", "", str(error)).strip()
    return text.splitlines()[0] if text else type(error).__name__


def _open_digits(settings: ConfigDict) -> Source:
    """The 1,797 handwritten digits of scikit-learn, 8x8 pixels of 17 grey levels."""
    from sklearn import datasets

    digits = datasets.load_digits()
    grey = np.round(digits.images[..., np.newaxis] * 255 / 16).astype(np.float32)
    images = np.repeat(augment.resize_square(grey, settings.image_size).numpy(), 3, axis=-1)
    classes = tuple(str(name) for name in digits.target_names)
    return Source(classes, array_pool(images, digits.target.astype(np.int64)))


def _open_folder(settings: ConfigDict) -> Source:
    """A folder of class folders, or of `train`, `test`, `validation` (or `val`) with these.

    Class folders are searched for images at any depth. Without `test`, `validation` is the test
    split, so that no choice is ever made on it.
    """
    root = pathlib.Path(settings.data_dir).expanduser()
    if not settings.data_dir or not root.is_dir():
        raise InputError(
            "config.data.data_dir must be a folder of images that exists. "
            f"Received: {settings.data_dir!r}"
        )
    folders = _split_folders(root)
    classes = _class_names(folders["train"])
    files = {name: _list_files(folder, classes) for name, folder in folders.items()}
    pools = _folder_pools(files, settings)
    if "test" not in pools and "validation" in pools:
        pools["test"] = pools.pop("validation")
    return Source(classes, **pools)


def _subfolders(folder: pathlib.Path) -> list[str]:
    """Names of the folders in a folder, hidden ones left out."""
    return sorted(path.name for path in folder.glob("[!.]*") if path.is_dir())


def _split_folders(root: pathlib.Path) -> dict[str, pathlib.Path]:
    """Folder of each split; only `train` where the class folders lie in `root` itself."""
    names = set(_subfolders(root)) & set(SPLIT_FOLDERS)
    if "train" not in names or (names == {"train"} and len(_subfolders(root)) > 1):
        return {"train": root}
    if {"validation", "val"} <= names:
        raise InputError(f"{root} must hold `validation` or `val`. Received: both; remove one")
    return {"validation" if name == "val" else name: root / name for name in sorted(names)}


def _class_names(folder: pathlib.Path) -> tuple[str, ...]:
    """Names of the class folders, sorted."""
    names = _subfolders(folder)
    if len(names) < 2:
        raise InputError(
            f"{folder} must hold a folder of images for each of at least two classes. "
            f"Received: {len(names)} ({', '.join(names) or 'no folders'})"
        )
    return tuple(names)


def _list_files(folder: pathlib.Path, classes: tuple[str, ...]) -> list[tuple[pathlib.Path, int]]:
    """(file, label) of all images of a split, mixed once, always in the same way.

    Mixed, because the first files of a split should be a fair sample of it and a shuffle buffer
    smaller than a class should see all classes.
    """
    different = sorted(set(_subfolders(folder)) ^ set(classes))
    if different:
        raise InputError(
            f"{folder} must have the same class folders as train. Received: {different[0]} in one"
        )
    found = []
    for label, name in enumerate(classes):
        files = [
            path
            for path in sorted((folder / name).rglob("*"))
            if path.suffix.lower() in IMAGE_SUFFIXES
            and not any(part.startswith(".") for part in path.relative_to(folder).parts)
            and path.is_file()
        ]
        if not files:
            kinds = ", ".join(sorted(IMAGE_SUFFIXES))
            raise InputError(f"{folder / name} must hold images ({kinds}). Received: none")
        found += [(path, label) for path in files]
    return [found[index] for index in np.random.default_rng(0).permutation(len(found))]


def _folder_pools(
    files: dict[str, list[tuple[pathlib.Path, int]]], settings: ConfigDict
) -> dict[str, Pool]:
    """Decodes each file once; keeps the images of the splits that fit in memory."""
    pools, unreadable, total = {}, [], 0
    for name, entries in files.items():
        images, readable = _decode_all([path for path, _ in entries], settings)
        unreadable += [entries[index][0] for index in np.flatnonzero(~readable)]
        total += len(entries)
        paths = np.array([os.fsencode(path) for path, _ in entries])[readable]
        labels = np.array([label for _, label in entries], np.int64)[readable]
        if images is None:
            pools[name] = _file_pool(paths, labels, settings.image_size)
        else:
            pools[name] = array_pool(images if readable.all() else images[readable], labels)
    if len(unreadable) > settings.unreadable_limit * total:
        raise InputError(
            f"{len(unreadable)} of {total} image files ({len(unreadable) / total:.2%}) cannot be "
            f"read, the first is {unreadable[0]}; replace them or raise "
            f"config.data.unreadable_limit. Received: {settings.unreadable_limit}"
        )
    return pools


def _decode_all(
    paths: list[pathlib.Path], settings: ConfigDict
) -> tuple[np.ndarray | None, np.ndarray]:
    """Decodes files on all cores: (uint8 [n, S, S, 3], readable [n]); no images if too many."""
    size = settings.image_size
    shape = (len(paths), size, size, 3)
    images = np.zeros(shape, np.uint8) if fits(len(paths), settings) else None

    def decode(index: int) -> bool:
        try:
            image = augment.decode_file(paths[index], size)
        except InputError as error:
            logging.warning("Skipped: %s", error)
            return False
        if images is not None:
            images[index] = image
        return True

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as workers:
        readable = np.fromiter(workers.map(decode, range(len(paths))), bool, len(paths))
    return images, readable


def _file_pool(paths: np.ndarray, labels: np.ndarray, size: int) -> Pool:
    """A pool of files that are decoded whenever they are read."""

    def decode(path: bytes) -> np.ndarray:
        return augment.decode_file(pathlib.Path(os.fsdecode(path)), size)

    def load(path: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        image = tf.numpy_function(decode, [path], tf.uint8, stateful=False)
        return tf.ensure_shape(image, [size, size, 3]), label

    def read(indices: np.ndarray) -> tf.data.Dataset:
        files = tf.data.Dataset.from_tensor_slices((paths[indices], labels[indices]))
        return files.map(load, num_parallel_calls=tf.data.AUTOTUNE)

    return Pool(len(labels), labels, read)


def _open_tfds(settings: ConfigDict) -> Source:
    """A data set of tensorflow-datasets with an image and a label.

    Without a labelled `test`, `validation` is the test split, so that no choice is made on it.
    """
    builder = _tfds_builder(settings)
    _prepare(builder, settings)
    classes = _tfds_classes(builder)
    names = set(builder.info.splits)
    if "train" not in names:
        raise InputError(
            f"{settings.name} must have a split `train`. Received: {', '.join(sorted(names))}"
        )
    splits = {name: name for name in ("train", "validation", "test") if name in names}
    if "test" in splits and not _has_labels(builder, "test"):
        del splits["test"]
    if "test" not in splits and "validation" in splits:
        splits["test"] = splits.pop("validation")
    pools = {key: _tfds_pool(builder, name, settings) for key, name in splits.items()}
    return Source(classes, **pools)


def _tfds_builder(settings: ConfigDict) -> Any:
    """The builder of a data set; a misspelt name gets the nearest ones."""
    import tensorflow_datasets as tfds
    from google.protobuf import json_format

    try:
        return tfds.builder(settings.name, data_dir=settings.data_dir or None)
    except tfds.core.DatasetNotFoundError as error:
        near = difflib.get_close_matches(settings.name, [*_SOURCES, *tfds.list_builders()])
        hint = f"did you mean {' or '.join(near)}?" if near else "see tfds.list_builders()"
        raise InputError(
            "config.data.name must be digits, folder or a dataset of tensorflow-datasets. "
            f"Received: {settings.name!r}; {hint}"
        ) from error
    except (ValueError, AssertionError, ImportError, OSError, json_format.ParseError) as error:
        raise InputError(
            f"config.data.name={settings.name!r} cannot be opened with tensorflow-datasets: "
            f"{_one_line(error)}; check it and config.data.data_dir"
        ) from error


def _prepare(builder: Any, settings: ConfigDict) -> None:
    """Downloads what is not yet on disk, if that is allowed."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download import download_manager

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


def _tfds_classes(builder: Any) -> tuple[str, ...]:
    """Names of the classes of a set of labelled images; other sets are refused."""
    import tensorflow_datasets as tfds

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


def _read_tfds(builder: Any, split: Any) -> tf.data.Dataset:
    """Unbatched (image, label) as stored, always in the same order."""
    import tensorflow_datasets as tfds

    read_config = tfds.ReadConfig(try_autocache=False)
    return builder.as_dataset(split=split, as_supervised=True, read_config=read_config)


def _has_labels(builder: Any, split: str) -> bool:
    """Whether the labels of a split are public; if not, they are -1."""
    first = batches_of(_read_tfds(builder, split).take(1), f"{split} in {builder.data_dir}")
    return all(label >= 0 for _, label in first)


def _tfds_pool(builder: Any, name: str, settings: ConfigDict) -> Pool:
    """A split of tensorflow-datasets, in memory if it fits."""
    import tensorflow_datasets as tfds

    def read(indices: np.ndarray) -> tf.data.Dataset:
        runs = np.split(indices, np.flatnonzero(np.diff(indices) != 1) + 1)
        parts = [
            tfds.core.ReadInstruction(name, from_=int(run[0]), to=int(run[-1]) + 1, unit="abs")
            for run in runs
        ]
        stored = _read_tfds(builder, functools.reduce(operator.add, parts))
        return stored.map(
            lambda image, label: (augment.to_rgb_square(image, settings.image_size), label),
            num_parallel_calls=tf.data.AUTOTUNE,
        )

    count = builder.info.splits[name].num_examples
    if count and fits(count, settings):
        examples = read(np.arange(count))
        return array_pool(*collect(examples, count, f"{name} in {builder.data_dir}"))
    return Pool(count, None, read)


_SOURCES = {"digits": _open_digits, "folder": _open_folder}
