"""Images in a NumPy archive with the names that Keras gives its data sets."""

from __future__ import annotations

import pathlib
import struct
import tokenize
import zipfile
import zlib

import numpy as np
from ml_collections import ConfigDict

from instanas_tf.errors import InputError
from instanas_tf.pipeline import augment
from instanas_tf.pipeline.pools import Pool, Source, array_pool, fits, source_of

SPLITS = ("train", "validation", "test")
_NAMES = frozenset({"labels", *(f"{kind}_{split}" for kind in "xy" for split in SPLITS)})
# What NumPy raises on damaged archives, MemoryError where a damaged header asks for too much.
_UNREADABLE = (
    *(OSError, ValueError, EOFError, KeyError, TypeError, SyntaxError, OverflowError, MemoryError),
    *(RuntimeError, IndexError, AttributeError),
    *(zipfile.BadZipFile, zlib.error, struct.error, tokenize.TokenError),
)


def open_npz(settings: ConfigDict) -> Source:
    """Opens the archive `config.data.data_dir`, which is always held in memory.

    It has the arrays `x_train` (uint8 [n, H, W], [n, H, W, 1] or [n, H, W, 3]) and `y_train`
    (integers [n] or [n, 1]), and may have such of `test` and `validation`, and `labels` (the
    names of the classes, text [N]).

    Raises:
        InputError: the file is missing or damaged, or does not hold such arrays.
    """
    path = pathlib.Path(settings.data_dir).expanduser()
    if not settings.data_dir or not path.is_file():
        raise InputError(
            "config.data.data_dir must be a NumPy archive (.npz) that exists. "
            f"Received: {settings.data_dir!r}"
        )
    arrays = _arrays(path)
    classes = _class_names(path, arrays)
    pools = {
        name: _pool(path, name, arrays, len(classes), settings)
        for name in SPLITS
        if f"x_{name}" in arrays
    }
    return source_of(classes, pools)


def _arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays that count, by name; x and y of a split are there together."""
    arrays = {}
    try:
        with path.open("rb") as stream:
            if not zipfile.is_zipfile(stream):
                raise InputError(
                    f"{path} must be a whole NumPy archive, as numpy.savez writes it; it is "
                    "another kind of file, or cut off. Replace it"
                )
            stream.seek(0)
            with np.load(stream, allow_pickle=False) as archive:
                names = set(archive.files)
                for name in _NAMES & names:
                    arrays[name] = np.asarray(archive[name])
    except _UNREADABLE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"{path} cannot be read: {reason}; write it anew with numpy.savez, without arrays of "
            "objects"
        ) from error
    for split in SPLITS:
        pair = {f"x_{split}", f"y_{split}"}
        if len(pair & names) == 1 or (split == "train" and not pair & names):
            missing = min(pair - names)
            raise InputError(
                f"{path} must have an array {missing}. Received: "
                f"{', '.join(sorted(names)) or 'no arrays'}; add it"
            )
    return arrays


def _class_names(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> tuple[str, ...]:
    """Names of the classes; without `labels`, the numbers that training images have."""
    numbers = arrays["y_train"]
    _check_numbers(path, "train", numbers)
    if "labels" not in arrays:
        if numbers.min() < 0 or not 1 <= numbers.max() < len(numbers):
            raise InputError(
                f"y_train in {path} must number at least two classes from 0 on. Received: "
                f"{numbers.min()}..{numbers.max()} for {len(numbers)} images; mend it"
            )
        return tuple(str(number) for number in range(int(numbers.max()) + 1))
    names = arrays["labels"]
    if names.dtype.kind != "U" or names.ndim != 1 or len(names) < 2:
        raise InputError(
            f"labels in {path} must be text, a name for each of at least two classes. "
            f"Received: {names.dtype} {names.shape}; mend it or leave it out"
        )
    return tuple(names.tolist())


def _check_numbers(path: pathlib.Path, name: str, labels: np.ndarray) -> None:
    """Refuses labels that are no list of whole numbers."""
    if labels.dtype.kind not in "iu" or not (labels.ndim == 1 or labels.shape[1:] == (1,)):
        raise InputError(
            f"y_{name} in {path} must be integers of shape (n,) or (n, 1). "
            f"Received: {labels.dtype} {labels.shape}; write it anew"
        )
    if not len(labels):
        raise InputError(f"y_{name} in {path} must hold labels. Received: none; write it anew")


def _pool(
    path: pathlib.Path,
    name: str,
    arrays: dict[str, np.ndarray],
    classes: int,
    settings: ConfigDict,
) -> Pool:
    """A split of the archive, as RGB squares."""
    images, labels = arrays[f"x_{name}"], arrays[f"y_{name}"]
    _check_numbers(path, name, labels)
    fitting = images.ndim == 3 or (images.ndim == 4 and images.shape[3] in (1, 3))
    if images.dtype != np.uint8 or not fitting or 0 in images.shape[1:]:
        raise InputError(
            f"x_{name} in {path} must be uint8 of shape (n, H, W), (n, H, W, 1) or (n, H, W, 3). "
            f"Received: {images.dtype} {images.shape}; write it anew"
        )
    if len(images) != len(labels):
        raise InputError(
            f"x_{name} and y_{name} in {path} must be equally long. "
            f"Received: {len(images)} and {len(labels)}; write them anew"
        )
    if labels.min() < 0 or labels.max() >= classes:
        raise InputError(
            f"y_{name} in {path} must lie in 0..{classes - 1}. "
            f"Received: {labels.min()}..{labels.max()}; mend it, or name all classes in labels"
        )
    if not fits(len(images), settings):
        raise InputError(
            f"x_{name} in {path} must stay within config.data.memory_limit_mib. Received: "
            f"{len(images)} images of {settings.image_size} px, and a limit of "
            f"{settings.memory_limit_mib} MiB; raise it, or write the images to a folder"
        )
    squares = augment.to_rgb_squares(images, settings.image_size)
    return array_pool(squares, labels.reshape(-1).astype(np.int64))
