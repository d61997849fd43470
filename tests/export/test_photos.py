"""Photos that a user names become files, and pixels as in training."""

import os
import sys
import warnings

import numpy as np
import pytest
from PIL import Image

from export import photos
from instanas_tf.errors import InputError, ModelError
from instanas_tf.pipeline import augment


def test_read_as_in_training(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "image.jpg")
    found = photos.read(tmp_path / "image.jpg", 8, 8)
    np.testing.assert_array_equal(found, augment.decode_file(tmp_path / "image.jpg", 8))
    assert photos.read(str(tmp_path / "image.jpg"), 4, 8).shape == (4, 8, 3)


def test_a_large_photo_is_read_quietly(tmp_path, monkeypatch):
    Image.new("1", (64, 64)).save(tmp_path / "image.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 64 - 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert photos.read(tmp_path / "image.png", 4, 4).max() == 0


def test_what_is_no_image(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(InputError, match="a.png must be a readable image. Received: no image"):
        photos.read(tmp_path / "a.png", 4, 4)


@pytest.fixture
def folder(tmp_path):
    names = ["b.PNG", "a.jpg", "in/deep/c.tif", "in/d.webp", "a.txt", "noending", ".hidden.png"]
    names += [".thumbs/e.png", "f.eps", "g.pdf", "z.png/h.gif"]
    for name in names:
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return tmp_path / "photos"


def test_files_stay_as_they_are(folder):
    given = [folder / "b.PNG", str(folder / "a.txt"), folder / "a.jpg", folder / "b.PNG"]
    names = [path.name for path in photos.found(given)]
    assert names == ["b.PNG", "a.txt", "a.jpg", "b.PNG"]


def test_folders_are_searched(folder):
    found = photos.found([folder / "a.txt", folder])
    names = [path.relative_to(folder).as_posix() for path in found]
    images = ["a.jpg", "b.PNG", "in/d.webp", "in/deep/c.tif", "z.png/h.gif"]
    assert names == ["a.txt", *images]


def test_links(folder):
    (folder / "in" / "up").symlink_to(folder)
    (folder / "lost.png").symlink_to(folder / "nowhere")
    (folder / "link.png").symlink_to(folder / "a.jpg")
    names = [path.name for path in photos.found([folder])]
    assert names == ["a.jpg", "b.PNG", "d.webp", "c.tif", "link.png", "h.gif"]


def test_a_folder_without_images(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(InputError, match=f"{tmp_path} must hold images, .* Received: none"):
        photos.found([tmp_path])


@pytest.mark.parametrize("name", ["nowhere.png", "nowhere/a.png", "x" * 300, "a\0b"])
def test_a_path_that_does_not_exist(tmp_path, name):
    with pytest.raises(InputError) as caught:
        photos.found([tmp_path / name])
    assert str(caught.value).startswith(f"{tmp_path / name} must be a photo or a folder. Received:")


def test_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(InputError, match="pipe.png must be a photo or a folder. Received: neither"):
        photos.found([tmp_path / "pipe.png"])


def test_a_folder_that_cannot_be_read(tmp_path, monkeypatch):
    def walk(folder, onerror):
        onerror(PermissionError(13, "Permission denied", str(folder)))

    monkeypatch.setattr("os.walk", walk)
    with pytest.raises(InputError, match=f"{tmp_path} must .* Received: Permission denied"):
        photos.found([tmp_path])


def test_without_pillow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert photos.found([__file__])
    with pytest.raises(ModelError, match="pip install pillow"):
        photos.found([tmp_path])
