"""The pixels of images: made RGB squares when read, changed at random in training.

Files become squares as `photos.py` says, and arrays alike: one that is no square loses the ends
of its longer side, and grey becomes three equal channels.
"""

from __future__ import annotations

import pathlib

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from instanas_tf import photos

NUMBERS = 5  # Random numbers that an image takes, whatever the settings.
Colour = tuple[float, float, float]


def augment(
    images: np.ndarray, numbers: np.ndarray, settings: ConfigDict, mean: Colour
) -> np.ndarray:
    """Shifts, mirrors and blanks images, in the order of the published code.

    Shifting is padding with the mean colour, which is zero after normalisation, and cropping a
    window of the former size. Blanking is cutout (DeVries and Taylor, arXiv 1708.04552): every
    pixel is equally likely to be the centre of the square, so that squares near a border are
    clipped. The square of an even side reaches one pixel further to the left and to the top.

    Args:
        images: uint8 [n, S, S, 3], raw pixels.
        numbers: [n, NUMBERS], uniform in [0, 1): for row and column of the cropped window, for
            mirroring, for row and column of the blanked square. An image depends on its own
            numbers alone, and no setting changes what another one does.
        settings: `config.data.augmentation`, with `pad`, `flip` and `cutout`.
        mean: colour of padded and blanked pixels, in raw pixels.

    Returns:
        float32 [n, S, S, 3], raw pixels 0..255.
    """
    size, side = images.shape[1], settings.cutout
    blank = np.empty(images.shape[1:], np.float32)
    blank[:] = mean
    shifts = np.floor(numbers[:, :2] * (2 * settings.pad + 1)).astype(int) - settings.pad
    mirrored = (numbers[:, 2] < 0.5) & settings.flip
    corners = np.floor(numbers[:, 3:] * size).astype(int) - side // 2
    changed = np.empty(images.shape, np.float32)
    # One image at a time: slices of it are several times as fast as gathering all pixels.
    for number, (down, right) in enumerate(shifts.tolist()):
        _place(images[number], changed[number], down, right, mirrored[number], blank)
    for image, (row, column) in zip(changed, corners.tolist(), strict=True):
        if side:
            hole = slice(max(row, 0), row + side), slice(max(column, 0), column + side)
            image[hole] = blank[hole]
    return changed


def _place(
    image: np.ndarray, out: np.ndarray, down: int, right: int, mirrored: bool, blank: np.ndarray
) -> None:
    """Writes into `out` the window of an image that starts at pixel (down, right), mirrored."""
    if down or right:
        out[:] = blank
    if mirrored:  # To mirror the window is to shift the mirrored image the other way.
        image, right = image[:, ::-1], -right
    (rows, from_rows), (columns, from_columns) = (_overlap(n, len(image)) for n in (down, right))
    if mirrored:  # Channel by channel NumPy walks along the rows, else along three numbers.
        for channel in range(3):
            out[rows, columns, channel] = image[from_rows, from_columns, channel]
    else:
        out[rows, columns] = image[from_rows, from_columns]


def _overlap(start: int, size: int) -> tuple[slice, slice]:
    """Where a window that starts at `start` shows the image: (in the window, in the image)."""
    first, last = min(max(-start, 0), size), max(min(size - start, size), 0)
    return slice(first, last), slice(first + start, last + start)


def decode_file(path: pathlib.Path, size: int) -> np.ndarray:
    """Decodes an image file to uint8 [size, size, 3]; see `instanas_tf.photos.read`."""
    return photos.read(path, size, size)


def to_rgb_squares(images: np.ndarray, size: int) -> np.ndarray:
    """Converts grey [n, H, W] or [n, H, W, 1] or RGB [n, H, W, 3] to uint8 [n, size, size, 3].

    Pixels are 0..255, uint8 or float32; those of float32 are rounded once, at the end.
    """
    if images.shape[-1] == 1 and images.ndim == 4:
        images = images[..., 0]
    if images.shape[1:3] != (size, size):
        images = np.stack([_fit(image, size) for image in images])
    if images.dtype != np.uint8:
        images = np.clip(np.round(images), 0, 255).astype(np.uint8)
    return images if images.ndim == 4 else np.repeat(images[..., np.newaxis], 3, axis=-1)


def _fit(image: np.ndarray, size: int) -> np.ndarray:
    """The largest centred square of an image [H, W] or [H, W, 3], resized."""
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = Image.fromarray(image[top : top + side, left : left + side])
    return np.asarray(square.resize((size, size), Image.Resampling.BILINEAR))
