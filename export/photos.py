"""Photos that a user names: which files those are, and their pixels. NumPy and Pillow only."""

from __future__ import annotations

import os
import pathlib
import warnings
from collections.abc import Iterable

import numpy as np

from instanas_tf import photos
from instanas_tf.errors import InputError, ModelError

# Pillow only recognises these, or leaves the drawing to a program or system of its own.
_NO_PICTURES = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})


def read(path: str | pathlib.Path, height: int, width: int) -> np.ndarray:
    """Reads a photo exactly as training does (`instanas_tf.photos.read`), without warnings.

    Args:
        path: a file of any format, mode and size that Pillow reads.
        height: H of the network, in pixels.
        width: W of the network, in pixels.

    Returns:
        uint8 [H, W, 3], raw RGB pixels.

    Raises:
        InputError: it is no image, damaged, or too large; one line that names the file.
        ModelError: Pillow is not installed.
    """
    with warnings.catch_warnings():  # On large photos and odd EXIF, which do no harm.
        warnings.simplefilter("ignore")
        return photos.read(pathlib.Path(path), height, width)


def found(paths: Iterable[str | pathlib.Path]) -> list[pathlib.Path]:
    """The files that paths stand for.

    Args:
        paths: files, which are taken as they are, and folders, which are searched at any depth
            for files with an ending of an image. Hidden files and folders are left out, and
            links to folders are not followed.

    Returns:
        Files in the order of `paths`, those of a folder sorted.

    Raises:
        InputError: a path does not exist or is neither file nor folder, or a folder holds no
            image or cannot be read; names it.
        ModelError: a folder is given and Pillow is not installed.
    """
    files: list[pathlib.Path] = []
    for path in map(pathlib.Path, paths):
        try:
            if path.is_dir():
                files += _within(path)
                continue
            path.stat()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise InputError(f"{path} must be a photo or a folder. Received: {reason}") from error
        if not path.is_file():
            raise InputError(f"{path} must be a photo or a folder. Received: neither")
        files.append(path)
    return files


def _within(folder: pathlib.Path) -> list[pathlib.Path]:
    """All images below a folder, sorted."""
    suffixes, files = _suffixes(), []
    for root, folders, names in os.walk(folder, onerror=_refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [
            pathlib.Path(root, name)
            for name in names
            if not name.startswith(".") and pathlib.PurePath(name).suffix.lower() in suffixes
        ]
    files = [path for path in files if path.is_file()]
    if not files:
        raise InputError(
            f"{folder} must hold images, files that end in .png, .jpg or another ending that "
            "Pillow knows. Received: none"
        )
    return sorted(files)


def _suffixes() -> frozenset[str]:
    """Endings of the formats that Pillow reads by itself, lower case, with the dot."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ModelError("Pillow is not installed; pip install pillow") from error
    endings = Image.registered_extensions().items()
    return frozenset(
        ending for ending, kind in endings if kind in Image.OPEN and kind not in _NO_PICTURES
    )


def _refuse(error: OSError) -> None:
    raise error
