"""Photos as the networks see them: any file that Pillow reads becomes a small RGB image.

Training and the predictor both read their files here, so that an app that does the same shows
the network what it was trained on. Nothing but NumPy and Pillow is needed, and Pillow only once
a file is read.

A file is turned as its EXIF orientation says; of a film, the first picture counts. Grey becomes
three equal channels, transparency becomes white, 16 bits are scaled to 8, and CMYK and palettes
become the colours that they stand for. An image of another shape than asked for loses the ends
of its longer side: the largest centred part of that shape is resized, bilinearly and with
anti-aliasing.
"""

from __future__ import annotations

import pathlib
import struct
import zlib
from typing import TYPE_CHECKING

import numpy as np

from instanas_tf.errors import InputError, ModelError

if TYPE_CHECKING:
    from PIL import Image

# What Pillow raises on damaged files, beside its own error for those that are too large.
_UNREADABLE = (
    *(OSError, SyntaxError, ValueError, EOFError, TypeError, LookupError, ArithmeticError),
    *(AttributeError, AssertionError, RuntimeError, MemoryError, struct.error, zlib.error),
)


def read(path: pathlib.Path, height: int, width: int) -> np.ndarray:
    """Reads an image file of any format and mode that Pillow knows.

    Args:
        path: the file.
        height: H, in pixels.
        width: W, in pixels.

    Returns:
        uint8 [H, W, 3], raw RGB pixels.

    Raises:
        InputError: it is missing, damaged, no image, or of more pixels than Pillow takes.
        ModelError: Pillow is not installed.
    """
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ImportError as error:
        raise ModelError("Pillow is not installed; pip install pillow") from error
    try:
        with Image.open(path) as opened:
            image = _to_rgb(ImageOps.exif_transpose(opened))
        return np.asarray(ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR))
    except UnidentifiedImageError as error:
        raise InputError(f"{path} must be a readable image. Received: no image") from error
    except (*_UNREADABLE, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise InputError(
            f"{path} must be a readable image. Received: {' '.join(reason.split())}"
        ) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    """Converts any mode of Pillow to 8-bit RGB."""
    from PIL import Image

    if image.mode.startswith("I"):
        values = np.round(np.asarray(image, np.float32) / 257)
        image = Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
