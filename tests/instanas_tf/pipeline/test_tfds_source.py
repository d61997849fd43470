"""Prepared datasets of every shape, and one error a defect."""

import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from instanas_tf.errors import InputError
from instanas_tf.pipeline import data, pools, tfds_source
from instanas_tf.pipeline.config import default_config


def load(name, folder, seed=0, **changes):
    settings = default_config().data
    settings.update({"name": name, "data_dir": str(folder), "image_size": 4, "download": False})
    settings.update({"validation_fraction": 0.2, "controller_fraction": 0.0, **changes})
    return data.load(settings, seed)


def colours(split):
    """(red, label) of each image of a split."""
    images, labels = data.to_arrays(split)
    return [(int(i[0, 0, 0]), int(n)) for i, n in zip(images, labels, strict=True)]


def assert_refused(message, name, folder, **changes):
    with pytest.raises(InputError, match=message) as caught:
        load(name, folder, **changes)
    assert "\n" not in str(caught.value)


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
    return sorted(red for red, _ in colours(split))


@pytest.mark.parametrize("memory_limit_mib", [0, 1])
def test_missing_splits_are_cut_off_the_training_images(tmp_path, memory_limit_mib):
    write_tfds(tmp_path, {"train": parity})
    loaded = load("tiny_set", tmp_path, memory_limit_mib=memory_limit_mib)
    assert loaded.labels == ("cat", "dog")
    assert (loaded.train.count, loaded.validation.count, loaded.test.count) == (13, 3, 4)
    splits = (loaded.train, loaded.validation, loaded.test)
    assert sorted(sum((numbers(split) for split in splits), [])) == list(range(20))
    assert all(red % 2 == label for split in splits for red, label in colours(split))


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
    monkeypatch.setattr(pools, "fits", lambda count, settings: count <= 6)
    monkeypatch.setattr(tfds_source, "fits", lambda count, settings: count <= 6)
    loaded = load("tiny_set", tmp_path, train_images=6)
    assert loaded.train.count == 6 and not loaded.train.is_streamed
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


def batches(split, **changes):
    augmentation = default_config().data.augmentation
    augmentation.update({"pad": 1, "flip": True, "cutout": 2})
    arguments = {"batch_size": 3, "epoch": 0, "seed": 0, "augmentation": augmentation}
    arguments |= {"mean": (1.0, 2.0, 3.0), **changes}
    return list(data.train_batches(split, **arguments))


def assert_same(first, second):
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_array_equal(one[1], other[1])


@pytest.fixture(scope="module")
def streamed(tmp_path_factory):
    """A set that is streamed although its shuffle buffer holds all of it."""
    folder = tmp_path_factory.mktemp("streamed")
    write_tfds(folder, {"train": parity, "test": parity})
    with pytest.MonkeyPatch.context() as patch:
        for module in (pools, tfds_source):
            patch.setattr(module, "fits", lambda count, settings: False)
        return load("tiny_set", folder, memory_limit_mib=1)


def test_a_streamed_epoch_holds_each_image_once(streamed):
    augmentation = default_config().data.augmentation
    augmentation.pad = 0
    found = batches(streamed.train, augmentation=augmentation)
    assert streamed.train.is_streamed and len(found) == 5
    for images, labels in found:
        assert images.shape == (3, 4, 4, 3) and images.dtype == np.float32
        assert labels.dtype == np.int32
        np.testing.assert_array_equal(images[:, 0, 0, 0] % 2, labels)
    assert len({image[0, 0, 0] for images, _ in found for image in images}) == 15


def test_a_streamed_epoch_is_resumed_and_shared_out(streamed):
    whole = batches(streamed.train)
    tf.random.set_seed(1234)  # Must not matter.
    assert_same(batches(streamed.train), whole)
    assert_same(batches(streamed.train, first_step=2), whole[2:])
    assert_same(
        batches(streamed.train, first_step=1, rows=(1, 3)),
        [(images[1:3], labels[1:3]) for images, labels in whole[1:]],
    )


def test_streamed_epochs_and_seeds_are_shuffled_differently(streamed):
    plain = default_config().data.augmentation
    plain.pad = 0
    orders = set()
    for epoch, seed in np.ndindex(2, 2):
        found = batches(streamed.train, epoch=epoch, seed=seed, augmentation=plain)
        orders.add(tuple(int(image[0, 0, 0]) for images, _ in found for image in images))
    in_order = tuple(red for red, _ in colours(streamed.train))
    assert len(orders) == 4 and in_order[:15] not in orders


def test_the_shuffle_buffer_takes_its_share_of_the_memory():
    settings = default_config().data
    settings.update({"image_size": 32, "memory_limit_mib": 12})
    assert tfds_source._buffer(50_000, settings) == 1024
    settings.memory_limit_mib = 0
    assert tfds_source._buffer(50_000, settings) == 1


def test_streamed_images_are_evaluated_in_order(streamed):
    images, labels = data.to_arrays(streamed.test)
    assert images[:, 0, 0, 0].tolist() == list(range(20))
    found = list(data.eval_batches(streamed.test, 8))
    assert [len(labels) for _, labels in found] == [8, 8, 4]
    np.testing.assert_array_equal(np.concatenate([images for images, _ in found]), images)
    np.testing.assert_array_equal(np.concatenate([labels for _, labels in found]), labels)
    assert found[0][0].dtype == np.float32 and found[0][1].dtype == np.int32


def test_a_stream_that_breaks_off_is_named(tmp_path):
    folder = write_tfds(tmp_path, {"train": parity, "test": parity})
    loaded = load("tiny_set", tmp_path, memory_limit_mib=0)
    damage_bytes(folder / "tiny_set-test.tfrecord-00001-of-00002")
    with pytest.raises(InputError, match=f"test in {folder} is damaged or incomplete"):
        list(data.eval_batches(loaded.test, 4))


@pytest.mark.parametrize(("backend", "calls"), [("tensorflow", []), ("jax", [([], "GPU")])])
def test_the_accelerator_is_left_to_the_backend_that_trains(tmp_path, monkeypatch, backend, calls):
    write_tfds(tmp_path, {"train": parity})
    seen = []
    monkeypatch.setattr(keras.backend, "backend", lambda: backend)
    monkeypatch.setattr(tf.config, "set_visible_devices", lambda *args: seen.append(args))
    load("tiny_set", tmp_path)
    assert seen == calls


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
    square = tfds_source.to_rgb_square(tf.constant(image), 4)
    assert square.dtype == tf.uint8
    np.testing.assert_array_equal(square, np.full((4, 4, 3), expected))


def test_resize_square_keeps_the_centre_of_a_wide_image():
    image = np.zeros((2, 6, 1), np.float32)
    image[:, 2:4] = 200
    np.testing.assert_array_equal(tfds_source.resize_square(image, 3), np.full((3, 3, 1), 200))
