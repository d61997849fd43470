"""The pixels of one image: made an RGB square when read, changed at random in training.

An image that is no square loses the ends of its longer side: the largest centred square is
resized, bilinearly and with anti-aliasing. Grey becomes three equal channels, transparency
becomes white, and 16 bits are scaled to 8.
"""

from __future__ import annotations

import pathlib
import struct
import zlib

import numpy as np
import tensorflow as tf
from ml_collections import ConfigDict
from PIL import Image, ImageOps

from instanas_tf.errors import InputError

# What Pillow raises on damaged files.
_UNREADABLE = (
    *(OSError, SyntaxError, ValueError, EOFError, TypeError, IndexError, OverflowError),
    *(struct.error, zlib.error, Image.DecompressionBombError),
)
Colour = tuple[float, float, float]


def augment(image: tf.Tensor, seed: tf.Tensor, settings: ConfigDict, mean: Colour) -> tf.Tensor:
    """Shifts, mirrors and blanks an image, in the order of the published code.

    Args:
        image: [S, S, 3], raw pixels 0..255, any number type.
        seed: int64 [2]; the same seed gives the same image.
        settings: `config.data.augmentation`, with `pad`, `flip` and `cutout`.
        mean: colour of padded and blanked pixels, in raw pixels.

    Returns:
        float32 [S, S, 3], raw pixels 0..255.
    """
    seeds = tf.random.split(seed, 3)
    image = tf.cast(image, tf.float32)
    if settings.pad:
        image = pad_and_crop(image, seeds[0], settings.pad, mean)
    if settings.flip:
        image = tf.image.stateless_random_flip_left_right(image, seeds[1])
    if settings.cutout:
        image = cutout(image, seeds[2], settings.cutout, mean)
    return image


def pad_and_crop(image: tf.Tensor, seed: tf.Tensor, pad: int, colour: Colour) -> tf.Tensor:
    """Pads all four sides, then crops a random window of the former size.

    The padding has the mean colour, which is zero after normalisation.

    Args:
        image: float32 [S, S, 3].
        seed: int64 [2].
        pad: pixels added on each side.
        colour: of the padding, in the units of `image`.

    Returns:
        float32 [S, S, 3].
    """
    sides = [[pad, pad], [pad, pad]]
    channels = [
        tf.pad(image[..., channel], sides, constant_values=value)
        for channel, value in enumerate(colour)
    ]
    return tf.image.stateless_random_crop(tf.stack(channels, axis=-1), image.shape, seed)


def cutout(image: tf.Tensor, seed: tf.Tensor, side: int, colour: Colour) -> tf.Tensor:
    """Blanks a square around a random pixel (DeVries and Taylor, arXiv 1708.04552).

    Every pixel is equally likely to be the centre, so that squares near a border are clipped.

    Args:
        image: float32 [S, S, 3].
        seed: int64 [2].
        side: of the square, in pixels. The square of an even side reaches one pixel further to
            the left and to the top.
        colour: of the square, in the units of `image`.

    Returns:
        float32 [S, S, 3].
    """
    size = image.shape[0]
    start = tf.random.stateless_uniform([2], seed, maxval=size, dtype=tf.int32) - side // 2
    rows = tf.range(size)[:, tf.newaxis] - start[0]
    columns = tf.range(size)[tf.newaxis, :] - start[1]
    inside = (rows >= 0) & (rows < side) & (columns >= 0) & (columns < side)
    return tf.where(inside[..., tf.newaxis], tf.constant(colour, tf.float32), image)


def decode_file(path: pathlib.Path, size: int) -> np.ndarray:
    """Decodes an image file of any mode to uint8 [size, size, 3]; of a film, the first picture.

    The file is turned as its EXIF orientation says.

    Raises:
        InputError: the file is missing or damaged.
    """
    try:
        with Image.open(path) as opened:
            image = _to_rgb(ImageOps.exif_transpose(opened))
        return np.asarray(ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR))
    except _UNREADABLE as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} must be a readable image. Received: {reason}") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    """Converts any mode of Pillow to 8-bit RGB."""
    if image.mode.startswith("I"):
        values = np.round(np.asarray(image, np.float32) / 257)
        image = Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


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
