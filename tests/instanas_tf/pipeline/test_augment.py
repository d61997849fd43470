"""Golden pixels of the conversions and the random changes."""

import ml_collections
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from instanas_tf.errors import InputError
from instanas_tf.pipeline import augment

MEAN = (10.0, 20.0, 30.0)


def settings(pad=0, flip=False, cutout=0):
    return ml_collections.ConfigDict({"pad": pad, "flip": flip, "cutout": cutout})


def seeds(count):
    return [tf.constant([5, number], tf.int64) for number in range(count)]


def numbered(size):
    """An image whose pixels are all different, and none of them the mean colour."""
    return tf.reshape(tf.range(100, 100 + size * size * 3, dtype=tf.float32), [size, size, 3])


def test_without_settings_only_the_type_changes():
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    changed = augment.augment(image, seeds(1)[0], settings(), MEAN)
    assert changed.dtype == tf.float32
    np.testing.assert_array_equal(changed, image)


def test_the_same_seed_gives_the_same_image_and_another_one_another():
    image = numbered(8)
    config = settings(pad=3, flip=True, cutout=3)
    first, second = seeds(2)
    once, again, other = (augment.augment(image, s, config, MEAN) for s in (first, first, second))
    np.testing.assert_array_equal(once, again)
    assert not np.array_equal(once, other)


def test_pad_and_crop_is_every_shift_with_the_mean_colour_around():
    image = numbered(2)
    framed = np.empty((4, 4, 3), np.float32)
    framed[:] = MEAN
    framed[1:3, 1:3] = image
    windows = {
        framed[top : top + 2, left : left + 2].tobytes() for top in range(3) for left in range(3)
    }
    # Each of 9 windows is missed by 120 fair draws with probability (8/9)**120 < 1e-6.
    drawn = {augment.pad_and_crop(image, seed, 1, MEAN).numpy().tobytes() for seed in seeds(120)}
    assert drawn == windows


def test_cutout_blanks_a_clipped_square_around_every_pixel():
    image = numbered(3)
    expected = set()
    for row in range(3):
        for column in range(3):
            blanked = image.numpy()
            blanked[max(row - 1, 0) : row + 1, max(column - 1, 0) : column + 1] = MEAN
            expected.add(blanked.tobytes())
    drawn = {augment.cutout(image, seed, 2, MEAN).numpy().tobytes() for seed in seeds(120)}
    assert drawn == expected


def test_flip_mirrors_about_half_of_the_images():
    image = numbered(2)
    changed = [augment.augment(image, seed, settings(flip=True), MEAN) for seed in seeds(64)]
    mirrored = [np.array_equal(one, image[:, ::-1]) for one in changed]
    kept = [np.array_equal(one, image) for one in changed]
    assert sum(mirrored) + sum(kept) == 64
    assert 12 < sum(mirrored) < 52  # Five standard deviations of a fair coin are 20.


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (np.full((4, 4, 1), 7, np.uint8), (7, 7, 7)),
        (np.full((4, 6, 1), 7, np.uint8), (7, 7, 7)),
        (np.full((4, 4, 3), (0, 257, 65535), np.uint16), (0, 1, 255)),
        (np.full((4, 4, 4), (0, 100, 200, 255), np.uint8), (0, 100, 200)),
        (np.full((4, 4, 4), (0, 100, 200, 0), np.uint8), (255, 255, 255)),
    ],
)
def test_to_rgb_square_takes_grey_deep_and_transparent_images(image, expected):
    square = augment.to_rgb_square(tf.constant(image), 4)
    assert square.dtype == tf.uint8
    np.testing.assert_array_equal(square, np.full((4, 4, 3), expected))


def test_resize_square_keeps_the_centre_of_a_wide_image():
    image = np.zeros((2, 6, 1), np.float32)
    image[:, 2:4] = 200
    np.testing.assert_array_equal(augment.resize_square(image, 3), np.full((3, 3, 1), 200))


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("L", 7, (7, 7, 7)),
        ("1", 1, (255, 255, 255)),
        ("RGB", (1, 2, 3), (1, 2, 3)),
        ("RGBA", (1, 2, 3, 255), (1, 2, 3)),
        ("RGBA", (1, 2, 3, 0), (255, 255, 255)),
        ("LA", (7, 0), (255, 255, 255)),
        ("I;16", 257 * 9, (9, 9, 9)),
        ("I;16", 65535, (255, 255, 255)),
    ],
)
def test_decode_file_converts_every_mode_to_rgb(tmp_path, mode, colour, expected):
    path = tmp_path / "image.png"
    Image.new(mode, (5, 3), colour).save(path)
    image = augment.decode_file(path, 2)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, np.full((2, 2, 3), expected))


def test_decode_file_looks_palette_colours_up(tmp_path):
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    image.save(tmp_path / "image.gif")
    np.testing.assert_array_equal(augment.decode_file(tmp_path / "image.gif", 4)[0, 0], MEAN)


def test_decode_file_turns_as_exif_says(tmp_path):
    pixels = np.zeros((8, 8), np.uint8)
    pixels[:4] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # Upside down.
    Image.fromarray(pixels).save(tmp_path / "image.png", exif=exif)
    image = augment.decode_file(tmp_path / "image.png", 8)
    assert image[:4].max() == 0 and image[4:].min() == 255


def test_decode_file_keeps_the_centre_of_a_tall_image(tmp_path):
    pixels = np.zeros((9, 3), np.uint8)
    pixels[3:6] = 200
    Image.fromarray(pixels).save(tmp_path / "image.png")
    image = augment.decode_file(tmp_path / "image.png", 3)
    np.testing.assert_array_equal(image, np.full((3, 3, 3), 200))


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "gif", "webp"])
def test_decode_file_refuses_what_is_cut_off_or_scrambled(tmp_path, suffix):
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    whole = tmp_path / f"whole.{suffix}"
    Image.fromarray(noise).save(whole)
    content = whole.read_bytes()
    assert augment.decode_file(whole, 4).shape == (4, 4, 3)
    for name, damaged in {"empty": b"", "cut": content[: len(content) // 3], "text": b"hi"}.items():
        path = tmp_path / f"{name}.{suffix}"
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=f"{name}.{suffix} must be a readable image"):
            augment.decode_file(path, 4)


def test_decode_file_survives_any_flipped_byte(tmp_path):
    generator = np.random.default_rng(0)
    noise = generator.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    path = tmp_path / "image"
    for suffix in ("png", "jpeg", "gif", "bmp"):
        Image.fromarray(noise).save(path, format=suffix)
        content = path.read_bytes()
        for position in generator.choice(len(content), 40, replace=False):
            damaged = bytearray(content)
            damaged[position] ^= 0xFF
            path.write_bytes(damaged)
            try:
                shape = augment.decode_file(path, 4).shape
            except InputError:
                continue
            assert shape == (4, 4, 3)


def test_decode_file_names_a_missing_file(tmp_path):
    with pytest.raises(InputError, match="nowhere.png must be a readable image"):
        augment.decode_file(tmp_path / "nowhere.png", 4)
