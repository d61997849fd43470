"""Folders and prepared datasets of every shape, and one error a defect."""

import pathlib

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image

from instanas_tf.errors import InputError
from instanas_tf.pipeline import data, sources
from instanas_tf.pipeline.config import default_config


def load(name, folder, seed=0, **changes):
    settings = default_config().data
    settings.update({"name": name, "data_dir": str(folder), "image_size": 4, "download": False})
    settings.update({"validation_fraction": 0.2, **changes})
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
    images, labels = sources.collect(source.train.read(np.arange(1797)), 1797)
    expected = np.round(datasets.load_digits().images * 255 / 16)
    for channel in range(3):
        np.testing.assert_array_equal(images[..., channel], expected)
    np.testing.assert_array_equal(labels[:5], [0, 1, 2, 3, 4])
    settings.image_size = 16
    larger = sources.open_source(settings).train.read(np.arange(1)).element_spec[0]
    assert larger.shape == (16, 16, 3)


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


def test_a_large_folder_is_streamed_and_gives_the_same_images(tmp_path):
    write_classes(tmp_path, count=10)
    (tmp_path / "cat" / "bad.png").write_bytes(b"")
    held = load("folder", tmp_path, unreadable_limit=0.1)
    streamed = load("folder", tmp_path, unreadable_limit=0.1, memory_limit_mib=0)
    assert held.train.shuffle_buffer == 0 and streamed.train.shuffle_buffer == 1
    for name in ("train", "validation", "test"):
        assert colours(getattr(held, name)) == colours(getattr(streamed, name))
    assert held.mean == streamed.mean and held.std == streamed.std


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


def test_a_streamed_file_that_vanishes_is_named(tmp_path):
    write_classes(tmp_path)
    loaded = load("folder", tmp_path, memory_limit_mib=0)
    for path in tmp_path.rglob("*.png"):
        path.unlink()
    with pytest.raises(InputError, match=r"damaged or incomplete.*\.png must be a readable image"):
        data.to_arrays(loaded.test)


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


# --- tensorflow-datasets ----------------------------------------------------------------------


def write_tfds(root, splits, shape=(4, 4, 3), dtype=np.uint8, keys=("image", "label"), count=20):
    """Prepares the dataset `tiny_set`; image number i of a split is filled with i.

    Args:
        root: the data folder.
        splits: name -> function from the number of an image to its label.
        shape: of an image.
        dtype: of an image.
        keys: the supervised keys.
        count: images of a split, in two files.
    """
    folder = pathlib.Path(root) / "tiny_set" / "1.0.0"
    folder.mkdir(parents=True)
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=shape, dtype=dtype),
            "label": tfds.features.ClassLabel(names=["cat", "dog"]),
        }
    )
    infos = []
    for split, label in splits.items():
        template = tfds.core.ShardedFileTemplate(
            dataset_name="tiny_set", data_dir=folder, split=split, filetype_suffix="tfrecord"
        )
        for shard in range(2):
            path = folder / f"tiny_set-{split}.tfrecord-{shard:05d}-of-00002"
            with tf.io.TFRecordWriter(str(path)) as writer:
                for number in range(shard * count // 2, (shard + 1) * count // 2):
                    image = np.full([side or 6 for side in shape], number, dtype)
                    example = {"image": image, "label": label(number)}
                    writer.write(features.serialize_example(example))
        infos.append(tfds.core.SplitInfo(split, [count // 2] * 2, 0, template))
    tfds.folder_dataset.write_metadata(
        data_dir=str(folder), features=features, split_infos=infos, supervised_keys=keys
    )
    return folder


def parity(number):
    return number % 2


def hidden(number):
    return -1


def numbers(split):
    return sorted(red for red, _, _ in colours(split))


@pytest.mark.parametrize("memory_limit_mib", [0, 1])
def test_missing_splits_are_cut_off_the_training_images(tmp_path, memory_limit_mib):
    write_tfds(tmp_path, {"train": parity})
    loaded = load("tiny_set", tmp_path, memory_limit_mib=memory_limit_mib)
    assert loaded.labels == ("cat", "dog")
    assert (loaded.train.count, loaded.validation.count, loaded.test.count) == (13, 3, 4)
    splits = (loaded.train, loaded.validation, loaded.test)
    assert sorted(sum((numbers(split) for split in splits), [])) == list(range(20))
    assert all(red % 2 == label for split in splits for red, _, label in colours(split))


@pytest.mark.parametrize("memory_limit_mib", [0, 1])
def test_splits_that_are_there_are_kept(tmp_path, memory_limit_mib):
    write_tfds(tmp_path, {"train": parity, "validation": parity, "test": parity})
    loaded = load("tiny_set", tmp_path, memory_limit_mib=memory_limit_mib)
    assert [s.count for s in (loaded.train, loaded.validation, loaded.test)] == [20, 20, 20]


@pytest.mark.parametrize("memory_limit_mib", [0, 1])
def test_validation_is_the_test_split_where_test_has_no_labels(tmp_path, memory_limit_mib):
    write_tfds(tmp_path, {"train": parity, "validation": parity, "test": hidden})
    loaded = load("tiny_set", tmp_path, memory_limit_mib=memory_limit_mib)
    assert numbers(loaded.test) == list(range(20))
    assert (loaded.train.count, loaded.validation.count) == (16, 4)
    assert colours(loaded.test) == colours(
        load("tiny_set", tmp_path, 1, memory_limit_mib=memory_limit_mib).test
    )


def test_a_small_part_of_a_streamed_set_is_held_in_memory(tmp_path, monkeypatch):
    write_tfds(tmp_path, {"train": parity})
    monkeypatch.setattr(sources, "fits", lambda count, settings: count <= 6)
    loaded = load("tiny_set", tmp_path, train_images=6)
    assert loaded.train.count == 6 and loaded.train.shuffle_buffer == 0
    assert set(numbers(loaded.train)).isdisjoint(numbers(loaded.validation))


@pytest.mark.parametrize(
    ("shape", "dtype"), [((None, None, 1), np.uint8), ((5, 7, 4), np.uint8), ((6, 6, 3), np.uint16)]
)
def test_any_kind_of_image_becomes_an_rgb_square(tmp_path, shape, dtype):
    write_tfds(tmp_path, {"train": parity}, shape, dtype)
    images, _ = data.to_arrays(load("tiny_set", tmp_path).train)
    assert images.shape == (13, 4, 4, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"splits": {"test": parity}}, "tiny_set must have a split `train`. Received: test"),
        ({"keys": None}, "supervised keys image and label.*Received: tiny_set with.* None"),
        ({"keys": ("label", "image")}, r"supervised keys image and label.*\('label', 'image'\)"),
        ({"shape": (4, 4, 1), "dtype": np.float32}, r"8 or 16 bits.*float32 \(4, 4, 1\)"),
        ({"splits": {"train": hidden}}, "must lie in 0..1. Received: -1..-1"),
        ({"splits": {"train": lambda number: 0}}, "train split. Received: none of dog"),
    ],
)
def test_datasets_without_labelled_images_are_refused(tmp_path, options, message):
    write_tfds(tmp_path, **{"splits": {"train": parity}, **options})
    assert_refused(message, "tiny_set", tmp_path)


def test_a_streamed_validation_split_without_a_class_is_refused(tmp_path):
    write_tfds(tmp_path, {"train": parity, "validation": lambda number: 1, "test": parity})
    assert_refused("validation split. Received: none of cat", "tiny_set", tmp_path)
    assert_refused("validation split.*none of cat", "tiny_set", tmp_path, memory_limit_mib=0)


def damage_bytes(path):
    content = bytearray(path.read_bytes())
    content[40:60] = b"\xff" * 20
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        damage_bytes,
        pathlib.Path.unlink,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-30]),
    ],
)
@pytest.mark.parametrize("split", ["train", "test"])
def test_damaged_records_are_refused(tmp_path, damage, split):
    folder = write_tfds(tmp_path, {"train": parity, "test": parity})
    damage(folder / f"tiny_set-{split}.tfrecord-00000-of-00002")
    assert_refused(f"{split} in {folder} is damaged or incomplete", "tiny_set", tmp_path)


@pytest.mark.parametrize("name", ["features.json", "dataset_info.json"])
def test_damaged_metadata_are_refused(tmp_path, name):
    folder = write_tfds(tmp_path, {"train": parity})
    (folder / name).write_text('{"cut')
    assert_refused("'tiny_set' cannot be opened", "tiny_set", tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifar11", "Received: 'cifar11'; did you mean .*cifar10"),
        ("digit", "did you mean .*digits"),
        ("qqqqqqqqqqq", "see tfds.list_builders"),
        ("", "config.data.name='' cannot be opened"),
        ("no name", "config.data.name='no name' cannot be opened"),
        ("cifar10/none", "'cifar10/none' cannot be opened.*none not found"),
        ("cifar10:9.9.9", "'cifar10:9.9.9' cannot be opened.*only: 3"),
    ],
)
def test_unknown_names_are_refused(tmp_path, name, message):
    assert_refused(message, name, tmp_path)


def test_a_dataset_that_is_not_there_is_not_downloaded_unasked(tmp_path):
    assert_refused(
        f"cifar100 is not prepared in {tmp_path}/cifar100.*--config.data.download=True",
        "cifar100",
        tmp_path,
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "failure",
    [
        ConnectionError("no route"),
        TimeoutError("no route"),
        OSError(28, "no route"),
        tfds.download.DownloadError("no route\nsecond line"),
        AssertionError("no route"),
        ImportError("no route"),
    ],
)
def test_a_failed_download_is_one_line(tmp_path, monkeypatch, failure):
    def fail(self, **kwargs):
        raise failure

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", fail)
    assert_refused(
        f"cifar100 could not be downloaded.*{tmp_path}.*{type(failure).__name__}.*no route",
        "cifar100",
        tmp_path,
        download=True,
    )
