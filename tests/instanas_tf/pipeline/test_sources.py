"""Digits, folders of every shape, and one error a defect."""

import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from instanas_tf.errors import InputError
from instanas_tf.pipeline import augment, data, sources
from instanas_tf.pipeline.config import default_config


def load(name, folder, seed=0, **changes):
    settings = default_config().data
    settings.update({"name": name, "data_dir": str(folder), "image_size": 4, "download": False})
    settings.update({"validation_fraction": 0.2, "controller_fraction": 0.0, **changes})
    return data.load(settings, seed)


def write_class(folder, value, count=10, suffix="png"):
    """Images of one colour a file: (value, number, 0)."""
    folder.mkdir(parents=True)
    for number in range(count):
        Image.new("RGB", (6, 5), (value, number, 0)).save(folder / f"{number:02d}.{suffix}")


def write_classes(folder, classes=("cat", "dog"), count=10, first=0):
    for number, name in enumerate(classes):
        write_class(folder / name, first + 100 * number, count)
    return folder


def colours(split):
    """(red, green, label) of each image of a split."""
    images, labels = data.to_arrays(split)
    return [(int(i[0, 0, 0]), int(i[0, 0, 1]), int(n)) for i, n in zip(images, labels, strict=True)]


def assert_refused(message, name, folder, **changes):
    with pytest.raises(InputError, match=message) as caught:
        load(name, folder, **changes)
    assert "\n" not in str(caught.value)


# --- digits -----------------------------------------------------------------------------------


def test_digits_are_scaled_to_bytes_and_enlarged():
    from sklearn import datasets

    settings = default_config().data
    settings.image_size = 8
    source = sources.open_source(settings)
    images, labels = source.train.read(np.arange(1797))
    expected = np.round(datasets.load_digits().images * 255 / 16)
    for channel in range(3):
        np.testing.assert_array_equal(images[..., channel], expected)
    np.testing.assert_array_equal(labels[:5], [0, 1, 2, 3, 4])
    settings.image_size = 16
    larger, _ = sources.open_source(settings).train.read(np.arange(1))
    assert larger.shape == (1, 16, 16, 3) and larger.dtype == np.uint8


# --- folder -----------------------------------------------------------------------------------


def test_class_folders_are_split(tmp_path):
    write_classes(tmp_path)
    (tmp_path / "readme.txt").write_text("no class")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "cat" / "._00.png").write_text("what a Mac leaves behind")
    loaded = load("folder", tmp_path)
    assert loaded.labels == ("cat", "dog")
    assert (loaded.train.count, loaded.validation.count, loaded.test.count) == (13, 3, 4)
    everything = colours(loaded.train) + colours(loaded.validation) + colours(loaded.test)
    assert sorted(everything) == [(v, n, v // 100) for v in (0, 100) for n in range(10)]
    assert len({label for _, _, label in colours(loaded.train)[:8]}) == 2  # Not sorted by class.


def test_all_image_formats_and_inner_folders_are_found(tmp_path):
    for number, suffix in enumerate(("png", "jpg", "jpeg", "bmp", "gif", "webp", "PNG", "JPEG")):
        write_class(tmp_path / "cat" / f"inner{number}", 10, 2, suffix)
    write_class(tmp_path / "dog", 100, 16)
    loaded = load("folder", tmp_path)
    assert loaded.train.count + loaded.validation.count + loaded.test.count == 32


@pytest.mark.parametrize("name", ["validation", "val"])
def test_split_folders_are_kept(tmp_path, name):
    for number, split in enumerate(("train", name, "test")):
        write_classes(tmp_path / split, first=10 * number)
    for seed in (0, 1):
        loaded = load("folder", tmp_path, seed)
        for number, split in enumerate((loaded.train, loaded.validation, loaded.test)):
            assert split.count == 20
            assert {red for red, _, _ in colours(split)} == {10 * number, 10 * number + 100}


def test_a_lone_validation_folder_is_the_test_split(tmp_path):
    write_classes(tmp_path / "train")
    write_classes(tmp_path / "val", first=10)
    loaded = load("folder", tmp_path)
    assert {red for red, _, _ in colours(loaded.test)} == {10, 110}
    assert (loaded.train.count, loaded.validation.count) == (16, 4)


def test_the_test_split_and_its_part_do_not_depend_on_the_seed(tmp_path):
    write_classes(tmp_path / "train")
    write_classes(tmp_path / "test", first=10)
    for limit in (0, 6):
        first, second = (load("folder", tmp_path, seed, test_images=limit) for seed in (0, 1))
        assert colours(first.test) == colours(second.test)
    assert set(colours(first.validation)) != set(colours(second.validation))


def test_a_class_may_be_called_train(tmp_path):
    write_classes(tmp_path, ("plane", "train"))
    assert load("folder", tmp_path).labels == ("plane", "train")


def test_a_large_folder_stays_on_disk_and_gives_the_same_images(tmp_path):
    write_classes(tmp_path, count=10)
    (tmp_path / "cat" / "bad.png").write_bytes(b"")
    held = load("folder", tmp_path, unreadable_limit=0.1)
    on_disk = load("folder", tmp_path, unreadable_limit=0.1, memory_limit_mib=0)
    assert held.train.pool.in_memory and not on_disk.train.pool.in_memory
    assert not on_disk.train.is_streamed
    for name in ("train", "validation", "test"):
        assert colours(getattr(held, name)) == colours(getattr(on_disk, name))
    assert held.mean == on_disk.mean and held.std == on_disk.std


def test_only_files_that_are_asked_for_are_decoded(tmp_path, monkeypatch):
    write_classes(tmp_path)
    train = load("folder", tmp_path, memory_limit_mib=0).train
    images, labels = data.to_arrays(train)
    decoded, decode = [], augment.decode_file
    monkeypatch.setattr(
        augment, "decode_file", lambda path, size: decoded.append(path) or decode(path, size)
    )
    some, their_labels = train.read(np.array([7, 2, 7]))
    np.testing.assert_array_equal(some, images[[7, 2, 7]])
    np.testing.assert_array_equal(their_labels, labels[[7, 2, 7]])
    assert len(decoded) == 3 and len(set(decoded)) == 2


def test_file_names_may_hold_any_letter(tmp_path):
    write_classes(tmp_path, ("größe 1", "猫"))
    assert load("folder", tmp_path, memory_limit_mib=0).labels == ("größe 1", "猫")


def test_unreadable_files_are_named_and_skipped(tmp_path, caplog):
    write_classes(tmp_path)
    (tmp_path / "dog" / "bad.jpg").write_bytes(b"\xff\xd8\xff")
    loaded = load("folder", tmp_path, unreadable_limit=0.05)
    assert loaded.train.count + loaded.validation.count + loaded.test.count == 20
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warned) == 1 and f"{tmp_path}/dog/bad.jpg" in warned[0]
    assert_refused(
        r"1 of 21 image files \(4.76%\) cannot be read, the first is .*dog/bad.jpg.*"
        "unreadable_limit. Received: 0.04",
        "folder",
        tmp_path,
        unreadable_limit=0.04,
    )


def test_a_file_that_vanishes_is_named(tmp_path):
    write_classes(tmp_path)
    loaded = load("folder", tmp_path, memory_limit_mib=0)
    for path in tmp_path.rglob("*.png"):
        path.unlink()
    with pytest.raises(InputError, match=r"\.png must be a readable image. Received: .*No such"):
        data.to_arrays(loaded.test)
    with pytest.raises(InputError, match=r"\.png must be a readable image"):
        list(data.eval_batches(loaded.test, 2))


def test_a_class_without_readable_images_is_named(tmp_path):
    write_classes(tmp_path)
    (tmp_path / "eel").mkdir()
    (tmp_path / "eel" / "bad.png").write_bytes(b"")
    assert_refused("none of eel", "folder", tmp_path, unreadable_limit=0.5)


def test_folders_that_cannot_be_used_are_refused(tmp_path):
    assert_refused("data_dir must be a folder of images that exists", "folder", tmp_path / "no")
    assert_refused("data_dir must be a folder of images that exists. Received: ''", "folder", "")
    assert_refused(r"two classes. Received: 0 \(no folders\)", "folder", tmp_path)
    write_class(tmp_path / "cat", 0)
    assert_refused(r"two classes. Received: 1 \(cat\)", "folder", tmp_path)
    (tmp_path / "dog").mkdir()
    assert_refused(r"dog must hold images \(.bmp, .*\). Received: none", "folder", tmp_path)


@pytest.mark.parametrize("classes", [("cat",), ("cat", "dog", "eel")])
def test_split_folders_with_other_classes_are_refused(tmp_path, classes):
    write_classes(tmp_path / "train")
    write_classes(tmp_path / "test", classes, count=1)
    different = "dog" if len(classes) == 1 else "eel"
    assert_refused(f"same class folders as train. Received: {different} in one", "folder", tmp_path)


def test_two_validation_folders_are_refused(tmp_path):
    for split in ("train", "val", "validation"):
        write_classes(tmp_path / split, count=1)
    assert_refused("`validation` or `val`. Received: both", "folder", tmp_path)


# --- without TensorFlow -----------------------------------------------------------------------

WITHOUT = """
import sys
sys.modules.update(dict.fromkeys(["tensorflow", "tensorflow_datasets", "keras"]))
import numpy as np
from instanas_tf.errors import InputError
from instanas_tf.pipeline import data
from instanas_tf.pipeline.config import default_config

def load(name, path):
    settings = default_config().data
    settings.update({"name": name, "data_dir": path, "image_size": 8})
    return settings, data.load(settings, 0)

for name, path in zip(("digits", "folder", "npz"), ("", *sys.argv[1:])):
    settings, loaded = load(name, path)
    found = data.train_batches(
        loaded.train, batch_size=4, epoch=0, seed=0, augmentation=settings.augmentation,
        mean=loaded.mean,
    )
    assert next(found)[0].shape == (4, 8, 8, 3)
    assert sum(len(labels) for _, labels in data.eval_batches(loaded.test, 4)) == loaded.test.count
for name in ("cifar10", "digit"):
    try:
        load(name, "")
    except InputError as error:
        sys.stderr.write(f"{error}\\n")
"""


def test_all_but_tensorflow_datasets_loads_without_tensorflow(tmp_path):
    write_classes(tmp_path / "folder")
    x, y = np.zeros((20, 6, 6), np.uint8), np.arange(20) % 2
    np.savez(tmp_path / "set.npz", x_train=x, y_train=y)
    arguments = [str(tmp_path / "folder"), str(tmp_path / "set.npz")]
    root = pathlib.Path(__file__).parents[3]
    command = [sys.executable, "-c", WITHOUT, *arguments]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, second = done.stderr.splitlines()
    assert "'cifar10' needs tensorflow and tensorflow-datasets" in first
    assert first.endswith("; use digits, folder or npz, or install them")
    assert second.endswith("; did you mean digits, or install them")
