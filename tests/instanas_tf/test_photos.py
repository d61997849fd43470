"""Files of every format, mode and size become the pixels that the networks see."""

import sys
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from instanas_tf import photos
from instanas_tf.errors import InputError, ModelError

WHITE = (255, 255, 255)


def palette(colours, **info):
    image = Image.new("P", (5, 3), 1)
    image.putpalette([value for colour in colours for value in colour])
    image.info.update(info)
    return image


IMAGES = [
    ("png", Image.new("1", (5, 3), 1), WHITE),
    ("png", Image.new("L", (5, 3), 7), (7, 7, 7)),
    ("tif", Image.new("L", (5, 3), 7), (7, 7, 7)),
    ("png", Image.new("LA", (5, 3), (7, 255)), (7, 7, 7)),
    ("png", Image.new("LA", (5, 3), (7, 0)), WHITE),
    ("png", Image.new("RGB", (5, 3), (1, 2, 3)), (1, 2, 3)),
    ("ppm", Image.new("RGB", (5, 3), (1, 2, 3)), (1, 2, 3)),
    ("bmp", Image.new("RGB", (5, 3), (1, 2, 3)), (1, 2, 3)),
    ("tga", Image.new("RGB", (5, 3), (1, 2, 3)), (1, 2, 3)),
    ("png", Image.new("RGBA", (5, 3), (1, 2, 3, 255)), (1, 2, 3)),
    ("png", Image.new("RGBA", (5, 3), (1, 2, 3, 0)), WHITE),
    ("png", Image.new("RGBA", (5, 3), (100, 0, 200, 51)), (224, 204, 244)),  # 0.2 over white.
    ("webp", Image.new("RGBA", (5, 3), (1, 2, 3, 0)), WHITE),
    ("gif", palette([(0, 0, 0), (10, 20, 30)]), (10, 20, 30)),
    ("png", palette([(0, 0, 0), (10, 20, 30)]), (10, 20, 30)),
    ("png", palette([(0, 0, 0), (10, 20, 30)], transparency=1), WHITE),
    ("png", palette([(0, 0, 0), (10, 20, 30)], transparency=b"\xff\x00"), WHITE),
    ("tif", Image.new("CMYK", (5, 3), (255, 0, 0, 0)), (0, 255, 255)),
    ("jpg", Image.new("CMYK", (5, 3), (0, 0, 0, 255)), (0, 0, 0)),
    ("png", Image.new("I;16", (5, 3), 257 * 9), (9, 9, 9)),
    ("tif", Image.new("I;16", (5, 3), 65535), WHITE),
    ("tif", Image.new("I", (5, 3), 257 * 9), (9, 9, 9)),
    ("tif", Image.new("F", (5, 3), 9.0), (9, 9, 9)),
]


@pytest.mark.parametrize(
    ("suffix", "image", "expected"),
    [
        pytest.param(*item, id=f"{item[0]}-{item[1].mode}-{number}")
        for number, item in enumerate(IMAGES)
    ],
)
def test_every_mode(tmp_path, suffix, image, expected):
    path = tmp_path / f"image.{suffix}"
    image.save(path)
    found = photos.read(path, 2, 4)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, np.full((2, 4, 3), expected))


def test_sixteen_bits_in_colour(tmp_path):
    rows = b"".join(b"\0" + bytes.fromhex("0a0114021e03") * 2 for _ in range(2))
    with open(tmp_path / "image.png", "wb") as stream:  # Pillow itself does not write these.
        stream.write(b"\x89PNG\r\n\x1a\n")
        header = bytes([0, 0, 0, 2, 0, 0, 0, 2, 16, 2, 0, 0, 0])
        PngImagePlugin.putchunk(stream, b"IHDR", header)
        PngImagePlugin.putchunk(stream, b"IDAT", zlib.compress(rows))
        PngImagePlugin.putchunk(stream, b"IEND", b"")
    np.testing.assert_array_equal(photos.read(tmp_path / "image.png", 1, 1)[0, 0], (10, 20, 30))


@pytest.mark.parametrize(
    ("orientation", "corner"),
    [(1, (0, 0)), (2, (0, -1)), (3, (-1, -1)), (4, (-1, 0))]
    + [(5, (0, 0)), (6, (0, -1)), (7, (-1, -1)), (8, (-1, 0))],
)
@pytest.mark.parametrize("mode", ["L", "I;16"])
def test_turned_as_exif_says(tmp_path, orientation, corner, mode):
    pixels = np.zeros((4, 4), {"L": np.uint8, "I;16": np.uint16}[mode])
    pixels[0, 0] = np.iinfo(pixels.dtype).max
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "image.png", exif=exif)
    expected = np.zeros((4, 4, 3))
    expected[corner] = 255
    np.testing.assert_array_equal(photos.read(tmp_path / "image.png", 4, 4), expected)


@pytest.mark.parametrize(
    ("size", "height", "width", "expected"),
    [
        ((1, 6), 1, 1, [[25]]),  # The square in the middle is half of row 2 and half of row 3.
        ((1, 6), 2, 1, [[20], [30]]),
        ((1, 6), 6, 1, [[0], [10], [20], [30], [40], [50]]),
    ],
)
def test_the_centre_of_the_shape_that_is_asked_for(tmp_path, size, height, width, expected):
    column = np.arange(0, 60, 10, dtype=np.uint8)[:, np.newaxis]
    assert column.shape[::-1] == size
    Image.fromarray(column).save(tmp_path / "image.png")
    found = photos.read(tmp_path / "image.png", height, width)
    np.testing.assert_array_equal(found[..., 0], expected)


def test_shrinking_is_bilinear_and_antialiased(tmp_path):
    stripes = np.tile(np.array([0, 255], np.uint8), (16, 8))
    Image.fromarray(stripes).save(tmp_path / "image.png")
    found = photos.read(tmp_path / "image.png", 2, 2).astype(int)
    assert np.abs(found - 127).max() <= 12  # Without anti-aliasing 0 or 255.
    whole = Image.fromarray(stripes).resize((2, 2), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(found[..., 0], np.asarray(whole))


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (3, 7)])
def test_any_size(tmp_path, shape):
    Image.fromarray(np.full(shape, 9, np.uint8)).save(tmp_path / "image.png")
    np.testing.assert_array_equal(photos.read(tmp_path / "image.png", 4, 5), np.full((4, 5, 3), 9))


def test_the_first_picture_of_a_film(tmp_path):
    first, second = Image.new("L", (4, 4), 10), Image.new("L", (4, 4), 200)
    first.save(tmp_path / "film.gif", save_all=True, append_images=[second])
    assert photos.read(tmp_path / "film.gif", 1, 1)[0, 0, 0] == 10


def message(path):
    with pytest.raises(InputError) as caught:
        photos.read(path, 4, 4)
    line = str(caught.value)
    assert line.startswith(f"{path} must be a readable image. Received: ")
    assert "\n" not in line
    return line.partition("Received: ")[2]


def test_what_is_no_file(tmp_path):
    assert message(tmp_path / "nowhere.png") == "No such file or directory"
    assert message(tmp_path) == "Is a directory"


def test_a_file_without_bytes_or_without_an_image(tmp_path):
    for content in (b"", b"hello", b"\x89PNG\r\n\x1a\n"):
        (tmp_path / "image.png").write_bytes(content)
        assert message(tmp_path / "image.png") == "no image"


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "gif", "webp", "tif", "ppm", "tga"])
def test_a_file_that_is_cut_off(tmp_path, suffix):
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    whole, cut = tmp_path / f"whole.{suffix}", tmp_path / f"cut.{suffix}"
    Image.fromarray(noise).save(whole)
    assert photos.read(whole, 4, 4).shape == (4, 4, 3)
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    message(cut)


def test_a_bomb(tmp_path, monkeypatch):
    Image.new("1", (64, 64)).save(tmp_path / "image.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 64 // 2 - 1)
    assert "decompression bomb" in message(tmp_path / "image.png")


@pytest.mark.parametrize("error", [MemoryError(), AssertionError("odd"), KeyError(3)])
def test_whatever_pillow_raises(tmp_path, monkeypatch, error):
    def fail(path):
        raise error

    monkeypatch.setattr(Image, "open", fail)
    assert message(tmp_path / "x") in ("MemoryError", "odd", "3")


def test_without_pillow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ModelError, match="pip install pillow"):
        photos.read(tmp_path / "image.png", 4, 4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("suffix", ["png", "jpeg", "gif", "bmp", "tiff", "webp", "tga", "ico"])
def test_any_flipped_byte(tmp_path, suffix):
    generator = np.random.default_rng(0)
    noise = generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(noise).save(path)
    content = path.read_bytes()
    for position in {*range(40), *generator.choice(len(content), 60).tolist()}:
        damaged = bytearray(content)
        damaged[position] ^= 0xFF
        path.write_bytes(damaged)
        try:
            assert photos.read(path, 4, 4).shape == (4, 4, 3)
        except InputError:
            continue
