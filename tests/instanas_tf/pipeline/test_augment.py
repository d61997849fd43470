"""Golden pixels of the conversions and the random changes."""

import ml_collections
import numpy as np
import pytest
from PIL import Image

from instanas_tf.pipeline import augment

MEAN = (10.0, 20.0, 30.0)
UNMIRRORED, MIRRORED = 0.5, 0.49


def settings(pad=0, flip=False, cutout=0):
    return ml_collections.ConfigDict({"pad": pad, "flip": flip, "cutout": cutout})


def numbered(size):
    """An image whose pixels and channels are all different, and none of them the mean colour."""
    return np.arange(100, 100 + size * size * 3).astype(np.uint8).reshape(size, size, 3)


def change(image, config, *numbers):
    return augment.augment(image[np.newaxis], np.array([numbers]), config, MEAN)[0]


def reds(values):
    """An image with these red values; green and blue are 1 and 2 larger."""
    return np.array(values, np.uint8)[..., np.newaxis] + np.arange(3, dtype=np.uint8)


def test_without_settings_only_the_type_changes():
    images = np.stack([numbered(4), numbered(4)[::-1]])
    numbers = np.random.default_rng(0).random((2, augment.NUMBERS))
    changed = augment.augment(images, numbers, settings(), MEAN)
    assert changed.dtype == np.float32
    np.testing.assert_array_equal(changed, images)


@pytest.mark.parametrize(
    ("row", "column", "expected"),
    [
        (0.5, 0.5, [[1, 2, 3], [4, 5, 6], [7, 8, 9]]),
        (0.0, 0.0, [[10, 10, 10], [10, 1, 2], [10, 4, 5]]),
        (0.99, 0.5, [[4, 5, 6], [7, 8, 9], [10, 10, 10]]),
        (0.34, 0.99, [[2, 3, 10], [5, 6, 10], [8, 9, 10]]),
    ],
)
def test_a_shifted_image_has_the_mean_colour_around(row, column, expected):
    image = reds([[1, 2, 3], [4, 5, 6], [7, 8, 9]])
    changed = change(image, settings(pad=1), row, column, 0, 0, 0)
    expected = np.array(expected)
    np.testing.assert_array_equal(changed[..., 0], expected)
    np.testing.assert_array_equal(changed[..., 2], np.where(expected == 10, 30, expected + 2))


def test_mirroring_comes_after_shifting():
    image = reds([[1, 2, 3], [4, 5, 6], [7, 8, 9]])
    config = settings(pad=1, flip=True)
    changed = change(image, config, 0.99, 0.0, MIRRORED, 0, 0)
    np.testing.assert_array_equal(changed[..., 0], [[5, 4, 10], [8, 7, 10], [10, 10, 10]])
    np.testing.assert_array_equal(changed[:2, :2, 2], [[7, 6], [10, 9]])
    np.testing.assert_array_equal(changed[2, 2], MEAN)
    kept = change(image, config, 0.99, 0.0, UNMIRRORED, 0, 0)
    np.testing.assert_array_equal(kept, changed[:, ::-1])


@pytest.mark.parametrize(
    ("side", "row", "column", "expected"),
    [
        (1, 0.0, 0.99, [[1, 2, 10], [4, 5, 6], [7, 8, 9]]),
        (2, 0.5, 0.5, [[10, 10, 3], [10, 10, 6], [7, 8, 9]]),
        (2, 0.0, 0.0, [[10, 2, 3], [4, 5, 6], [7, 8, 9]]),
        (3, 0.99, 0.99, [[1, 2, 3], [4, 10, 10], [7, 10, 10]]),
        (9, 0.0, 0.99, [[10, 10, 10], [10, 10, 10], [10, 10, 10]]),
    ],
)
def test_cutout_blanks_a_square_that_borders_clip(side, row, column, expected):
    image = reds([[1, 2, 3], [4, 5, 6], [7, 8, 9]])
    changed = change(image, settings(cutout=side), 0, 0, 0, row, column)
    np.testing.assert_array_equal(changed[..., 0], expected)
    blanked = np.array(expected) == 10
    np.testing.assert_array_equal(changed[blanked], np.broadcast_to(MEAN, (blanked.sum(), 3)))


@pytest.mark.parametrize("size", [1, 2, 5, 8])
@pytest.mark.parametrize("pad", [1, 3, 9])
@pytest.mark.parametrize("side", [0, 1, 4])
def test_it_is_padding_cropping_mirroring_and_blanking(size, pad, side):
    numbers = np.random.default_rng(0).random((64, augment.NUMBERS))
    images = np.random.default_rng(1).integers(0, 256, (64, size, size, 3), dtype=np.uint8)
    changed = augment.augment(images, numbers, settings(pad, True, side), MEAN)
    for image, (row, column, coin, down, right), found in zip(
        images, numbers, changed, strict=True
    ):
        framed = np.full((size + 2 * pad, size + 2 * pad, 3), MEAN)
        framed[pad : pad + size, pad : pad + size] = image
        top, left = int(row * (2 * pad + 1)), int(column * (2 * pad + 1))
        expected = framed[top : top + size, left : left + size]
        expected = (expected[:, ::-1] if coin < 0.5 else expected).copy()
        top, left = int(down * size) - side // 2, int(right * size) - side // 2
        expected[max(top, 0) : top + side, max(left, 0) : left + side] = MEAN
        np.testing.assert_array_equal(found, expected.astype(np.float32))


def test_numbers_just_below_one_stay_inside():
    below = np.nextafter(1.0, 0.0)
    for size in (2, 3, 7, 32, 224):
        changed = change(np.zeros((size, size, 3), np.uint8), settings(0, False, 1), *[below] * 5)
        np.testing.assert_array_equal(changed[-1, -1], MEAN)
        assert changed[:-1].max() == 0


def test_each_window_and_each_centre_is_equally_likely():
    image = numbered(3)
    # Of 2700 draws each of 9 is taken 300 times, with a deviation of 16.3; 5.5 deviations are 90.
    numbers = np.random.default_rng(0).random((2700, augment.NUMBERS))
    images = np.broadcast_to(image, (2700, *image.shape))
    for config in (settings(pad=1), settings(cutout=1)):
        changed = augment.augment(images, numbers, config, MEAN)
        _, counts = np.unique(changed.reshape(2700, -1), axis=0, return_counts=True)
        assert len(counts) == 9 and np.abs(counts - 300).max() < 90


def test_the_images_handed_in_are_not_changed():
    images = numbered(4)[np.newaxis]
    images.flags.writeable = False
    augment.augment(images, np.zeros((1, 5)), settings(2, True, 3), MEAN)


def test_resizing_is_bilinear_and_antialiased():
    wave = np.array([[[0, 100], [0, 100]]], np.uint8)
    np.testing.assert_array_equal(
        augment.to_rgb_squares(wave, 4)[0, :, :, 1], [[0, 25, 75, 100]] * 4
    )
    stripes = np.tile(np.array([0, 200], np.uint8), (1, 8, 4))
    # Without anti-aliasing stripes of one pixel would come out black or white.
    assert set(augment.to_rgb_squares(stripes, 2)[0, :, :, 0].ravel()) <= set(range(85, 116))


def test_float_pixels_are_rounded_once():
    wave = np.array([[[0, 3], [3, 6]]], np.float32)
    squares = augment.to_rgb_squares(wave, 4)
    assert squares.dtype == np.uint8
    expected = np.round(np.add.outer([0, 0.75, 2.25, 3], [0, 0.75, 2.25, 3]))
    np.testing.assert_array_equal(squares[0, :, :, 2], expected)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((2, 6), np.uint8), ((2, 6, 1), np.uint8), ((2, 6, 3), np.uint8), ((2, 6), np.float32)],
)
def test_to_rgb_squares_keeps_the_centre_of_wide_images(shape, dtype):
    images = np.zeros((5, *shape), dtype)
    images[:, :, 2:4] = 200
    squares = augment.to_rgb_squares(images, 3)
    assert squares.dtype == np.uint8
    np.testing.assert_array_equal(squares, np.full((5, 3, 3, 3), 200))


def test_decode_file_keeps_the_centre_of_a_tall_image(tmp_path):
    pixels = np.zeros((9, 3), np.uint8)
    pixels[3:6] = 200
    Image.fromarray(pixels).save(tmp_path / "image.png")
    image = augment.decode_file(tmp_path / "image.png", 3)
    np.testing.assert_array_equal(image, np.full((3, 3, 3), 200))
