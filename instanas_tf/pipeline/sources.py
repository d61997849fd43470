"""Where labelled images come from: scikit-learn's digits, a folder, or what other files open.

A source reads its images as 8-bit RGB squares and keeps the splits it is given; cutting further
splits is left to `data.py`, what is done to the pixels is said in `augment.py`.
"""

from __future__ import annotations

import concurrent.futures
import difflib
import os
import pathlib

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from instanas_tf.errors import InputError
from instanas_tf.pipeline import augment, npz_source
from instanas_tf.pipeline.pools import Examples, Pool, Source, array_pool, fits, source_of

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp"})
SPLIT_FOLDERS = ("train", "validation", "val", "test")


def open_source(settings: ConfigDict) -> Source:
    """Opens the data set that `config.data` names.

    Raises:
        InputError: it does not exist, cannot be read or is no set of labelled images.
    """
    if settings.name in _SOURCES:
        return _SOURCES[settings.name](settings)
    try:  # The one source that needs TensorFlow.
        from instanas_tf.pipeline import tfds_source
    except ImportError as error:
        near = difflib.get_close_matches(settings.name, _SOURCES, n=1)
        hint = f"did you mean {near[0]}, or" if near else "use digits, folder or npz, or"
        raise InputError(
            f"config.data.name={settings.name!r} needs tensorflow and tensorflow-datasets, which "
            f"cannot be imported ({error}); {hint} install them"
        ) from error
    return tfds_source.open_tfds(settings, tuple(_SOURCES))


def _open_digits(settings: ConfigDict) -> Source:
    """The 1,797 handwritten digits of scikit-learn, 8x8 pixels of 17 grey levels."""
    from sklearn import datasets

    digits = datasets.load_digits()
    grey = np.round(digits.images * 255 / 16).astype(np.float32)
    images = augment.to_rgb_squares(grey, settings.image_size)
    classes = tuple(str(name) for name in digits.target_names)
    return Source(classes, array_pool(images, digits.target.astype(np.int64)))


def _open_folder(settings: ConfigDict) -> Source:
    """A folder of class folders, or of `train`, `test`, `validation` (or `val`) with these.

    Class folders are searched for images at any depth.
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
    return source_of(classes, _folder_pools(files, settings))


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

    Mixed, because the first files of a split should be a fair sample of it.
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
        paths = [path for (path, _), usable in zip(entries, readable, strict=True) if usable]
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


def _file_pool(paths: list[pathlib.Path], labels: np.ndarray, size: int) -> Pool:
    """A pool of files that are decoded, on all cores, whenever they are read."""

    def decode(index: int) -> np.ndarray:
        return augment.decode_file(paths[index], size)

    def read(indices: np.ndarray) -> Examples:
        images = np.empty((len(indices), size, size, 3), np.uint8)
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as workers:
            for number, image in enumerate(workers.map(decode, indices.tolist())):
                images[number] = image
        return images, labels[indices]

    return Pool(len(labels), labels, read)


_SOURCES = {"digits": _open_digits, "folder": _open_folder, "npz": npz_source.open_npz}
