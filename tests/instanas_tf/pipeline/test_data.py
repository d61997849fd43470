"""Splits are disjoint and repeatable; an epoch depends on the seed and its number alone."""

import os
import pathlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from instanas_tf.errors import InputError
from instanas_tf.pipeline import data
from instanas_tf.pipeline.config import default_config

MEAN = (1.0, 2.0, 3.0)


def digits(seed=0, **changes):
    settings = default_config().data
    settings.image_size = 8
    settings.update(changes)
    return data.load(settings, seed)


@pytest.fixture(scope="module")
def loaded():
    return digits()


def numbered(count, buffer=0):
    """A split whose image and label both tell the number of the example."""
    numbers = np.arange(count)
    images = np.broadcast_to(numbers[:, None, None, None], (count, 4, 4, 3)).astype(np.uint8)
    return data.Split(tf.data.Dataset.from_tensor_slices((images, numbers)), count, buffer)


def batches(split, first_epoch=0, epochs=3, seed=0, batch_size=8, **augmentation):
    settings = default_config().data.augmentation
    settings.update({"pad": 0, **augmentation})
    dataset = data.train_batches(
        split,
        batch_size=batch_size,
        epochs=epochs,
        first_epoch=first_epoch,
        seed=seed,
        augmentation=settings,
        mean=MEAN,
    )
    return list(dataset.as_numpy_iterator())


def assert_same(first, second):
    assert len(first) == len(second)
    for (images, labels), (other_images, other_labels) in zip(first, second, strict=True):
        np.testing.assert_array_equal(images, other_images)
        np.testing.assert_array_equal(labels, other_labels)


def fingerprint(*splits):
    """The multiset of (image, label) of some splits."""
    return sorted(
        (image.tobytes(), int(label))
        for split in splits
        for image, label in zip(*data.to_arrays(split), strict=True)
    )


def test_digits_are_split_by_class(loaded):
    assert (loaded.train.count, loaded.validation.count, loaded.test.count) == (1222, 216, 359)
    assert loaded.labels == tuple("0123456789") and loaded.num_classes == 10
    for split, least in ((loaded.train, 115), (loaded.validation, 20), (loaded.test, 34)):
        images, labels = data.to_arrays(split)
        assert images.shape == (split.count, 8, 8, 3) and images.dtype == np.uint8
        counts = np.bincount(labels, minlength=10)
        assert counts.min() >= least and counts.max() - counts.min() <= 8


def test_splits_share_no_image_and_lose_none(loaded):
    from sklearn import datasets

    source = datasets.load_digits()
    grey = np.round(source.images * 255 / 16).astype(np.uint8)
    images = np.repeat(grey[..., np.newaxis], 3, axis=-1)
    whole = sorted(
        (image.tobytes(), int(label)) for image, label in zip(images, source.target, strict=True)
    )
    assert fingerprint(loaded.train, loaded.validation, loaded.test) == whole


def test_the_seed_decides_the_splits(loaded):
    again, other = digits(seed=0), digits(seed=1)
    for name in ("train", "validation", "test"):
        expected = fingerprint(getattr(loaded, name))
        assert fingerprint(getattr(again, name)) == expected
        assert fingerprint(getattr(other, name)) != expected


def test_limits_take_a_share_of_every_class_and_leave_the_other_splits_alone(loaded):
    limited = digits(train_images=100, validation_images=20, test_images=5)
    for name, count in (("train", 100), ("validation", 20), ("test", 5)):
        split = getattr(limited, name)
        assert split.count == count
        assert set(fingerprint(split)) <= set(fingerprint(getattr(loaded, name)))
    counts = np.bincount(data.to_arrays(limited.train)[1], minlength=10)
    assert counts.min() >= 9 and counts.max() <= 11
    only_train = digits(train_images=100)
    assert fingerprint(only_train.validation) == fingerprint(loaded.validation)
    assert fingerprint(only_train.train) == fingerprint(limited.train)


def test_all_but_one_image_can_be_asked_for():
    assert digits(train_images=1221).train.count == 1221


def test_mean_and_deviation_are_those_of_the_training_images(loaded):
    images = data.to_arrays(loaded.train)[0].astype(np.float64)
    np.testing.assert_allclose(loaded.mean, images.mean(axis=(0, 1, 2)), rtol=1e-9)
    np.testing.assert_allclose(loaded.std, images.std(axis=(0, 1, 2)), rtol=1e-9)


def test_mean_and_deviation_of_many_images_rest_on_a_sample(loaded, monkeypatch):
    monkeypatch.setattr(data, "STATISTICS_IMAGES", 611)
    images = data.to_arrays(loaded.train)[0][::2].astype(np.float64)
    sampled = digits()
    np.testing.assert_allclose(sampled.mean, images.mean(axis=(0, 1, 2)), rtol=1e-9)


def test_the_deviation_is_at_least_one(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(10):
            Image.new("RGB", (4, 4), (50, 60, 70)).save(tmp_path / name / f"{number}.png")
    constant = digits(name="folder", data_dir=str(tmp_path))
    assert constant.mean == (50.0, 60.0, 70.0) and constant.std == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_images": -1}, "train_images must be 0 or more. Received: -1"),
        ({"validation_images": -2}, "validation_images must be 0 or more"),
        ({"test_images": -3}, "test_images must be 0 or more"),
        ({"train_images": 1223}, "train_images must be at most 1222.*Received: 1223"),
        ({"validation_images": 217}, "validation_images must be at most 216"),
        ({"test_images": 360}, "test_images must be at most 359"),
        ({"validation_fraction": 0.0}, "validation_fraction must be between 0 and 1"),
        ({"test_fraction": 1.0}, "test_fraction must be between 0 and 1"),
        ({"validation_fraction": 1e-6}, "validation_fraction must leave images in both"),
        ({"test_fraction": 0.9999}, "test_fraction must leave images in both"),
        ({"validation_images": 9}, "have an image in the validation split.*none of"),
        ({"train_images": 9}, "have an image in the train split.*1 of 10 classes"),
        ({"image_size": 0}, "image_size must be 1 or more. Received: 0"),
        ({"memory_limit_mib": -1}, "memory_limit_mib must be 0 or more"),
        ({"unreadable_limit": 1.5}, "unreadable_limit must be between 0 and 1. Received: 1.5"),
        ({"augmentation": {"pad": -1}}, "augmentation.pad must be 0 or more"),
        ({"augmentation": {"cutout": -1}}, "augmentation.cutout must be 0 or more"),
        ({"seed": -1}, "config.seed must be 0 or more. Received: -1"),
    ],
)
def test_settings_that_cannot_be_used_are_named(changes, message):
    with pytest.raises(InputError, match=message) as caught:
        digits(**changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("buffer", [0, 5])
def test_an_epoch_holds_each_image_once_and_drops_the_rest(buffer):
    found = batches(numbered(21, buffer), epochs=2, batch_size=5)
    assert len(found) == 8
    for images, labels in found:
        assert images.shape == (5, 4, 4, 3) and images.dtype == np.float32
        assert labels.dtype == np.int32
        np.testing.assert_array_equal(images[:, 0, 0, 0], labels)  # Still side by side.
    for epoch in (found[:4], found[4:]):
        assert len({label for _, labels in epoch for label in labels}) == 20


@pytest.mark.parametrize("buffer", [0, 5])
def test_resumed_training_sees_what_undisturbed_training_sees(buffer):
    options = {"pad": 2, "flip": True, "cutout": 2}
    undisturbed = batches(numbered(40, buffer), **options)
    tf.random.set_seed(1234)  # Must not matter.
    assert_same(batches(numbered(40, buffer), first_epoch=2, **options), undisturbed[10:])
    assert_same(
        batches(numbered(40, buffer), first_epoch=1, epochs=2, **options), undisturbed[5:10]
    )


def test_epochs_and_seeds_are_shuffled_differently():
    orders = [
        tuple(np.concatenate([labels for _, labels in batches(numbered(40), *epochs, seed)]))
        for epochs in ((0, 1), (1, 2))
        for seed in (0, 1)
    ]
    assert len(set(orders)) == 4 and tuple(range(40)) not in orders


def test_epochs_seeds_and_positions_are_augmented_differently():
    image = np.arange(192, dtype=np.uint8).reshape(1, 8, 8, 3)
    same = np.repeat(image, 8, axis=0)
    split = data.Split(tf.data.Dataset.from_tensor_slices((same, np.zeros(8, np.int64))), 8)
    found = [
        batches(split, *epochs, seed, pad=8)[0][0] for epochs in ((0, 1), (1, 2)) for seed in (0, 1)
    ]
    for first in range(4):
        # 17 x 17 shifts: that all eight fall together has probability 289**-7.
        assert len({one.tobytes() for one in found[first]}) > 1
        for second in range(first):
            assert not np.array_equal(found[first], found[second])


def test_shuffling_mixes_the_whole_split():
    labels = np.concatenate([labels for _, labels in batches(numbered(200), epochs=1)])
    # Of 100 first images about 50 come from the first half, with a deviation of 3.5.
    assert 25 < np.sum(labels[:100] < 100) < 75


def test_no_epochs_left_gives_no_batches():
    assert batches(numbered(8), first_epoch=3, epochs=3) == []
    assert batches(numbered(8), first_epoch=4, epochs=3) == []


def test_the_length_of_training_is_known():
    settings = default_config().data.augmentation
    dataset = data.train_batches(
        numbered(21),
        batch_size=5,
        epochs=3,
        first_epoch=1,
        seed=0,
        augmentation=settings,
        mean=MEAN,
    )
    assert dataset.cardinality() == 8


@pytest.mark.parametrize("batch_size", [0, -1, 22])
def test_a_batch_that_does_not_fit_is_refused(batch_size):
    message = f"between 1 and the 21 images of the split. Received: {batch_size}"
    with pytest.raises(InputError, match=message):
        data.steps_per_epoch(numbered(21), batch_size)
    with pytest.raises(InputError, match=message):
        batches(numbered(21), batch_size=batch_size)


def test_steps_are_whole_batches():
    assert data.steps_per_epoch(numbered(21), 5) == 4
    assert data.steps_per_epoch(numbered(21), 21) == 1


def test_evaluation_keeps_order_and_remainder():
    found = list(data.eval_batches(numbered(7), 3).as_numpy_iterator())
    assert [len(labels) for _, labels in found] == [3, 3, 1]
    assert found[0][0].dtype == np.float32 and found[0][1].dtype == np.int32
    np.testing.assert_array_equal(np.concatenate([labels for _, labels in found]), np.arange(7))
    with pytest.raises(InputError, match="at least 1. Received: 0"):
        data.eval_batches(numbered(7), 0)


def test_to_arrays_keeps_order():
    images, labels = data.to_arrays(numbered(300))
    assert images.dtype == np.uint8 and labels.dtype == np.int64
    np.testing.assert_array_equal(labels, np.arange(300))
    np.testing.assert_array_equal(images[:, 0, 0, 0], np.arange(300) % 256)


@pytest.fixture(scope="module")
def cifar10_folder():
    root = pathlib.Path(__file__).parents[3]
    folder = pathlib.Path(
        os.environ.get("INSTANAS_TFDS_DIR", root.parent / "shared" / "data" / "tfds")
    )
    if not (folder / "cifar10").is_dir():
        pytest.skip(f"CIFAR-10 is not prepared in {folder}; set INSTANAS_TFDS_DIR to test with it")
    return str(folder)


def test_cifar10_with_a_streamed_training_split(cifar10_folder):
    loaded = digits(
        name="cifar10",
        data_dir=cifar10_folder,
        image_size=32,
        download=False,
        memory_limit_mib=30,  # Holds the 10,000 test images, not the training images.
        validation_images=5000,
    )
    assert (loaded.train.count, loaded.validation.count, loaded.test.count) == (42500, 5000, 10000)
    assert loaded.labels[:3] == ("airplane", "automobile", "bird")
    assert 0 < loaded.train.shuffle_buffer < 42500
    assert loaded.validation.shuffle_buffer == loaded.test.shuffle_buffer == 0
    assert set(np.bincount(data.to_arrays(loaded.test)[1])) == {1000}
    # The statistics of the 50,000 images are (125.3, 123.0, 113.9) and (63.0, 62.1, 66.7). The
    # mean of 10,000 is off by 0.4 in one of three draws, a copy stored as JPEG by 1.4.
    np.testing.assert_allclose(loaded.mean, (125.3, 123.0, 113.9), atol=3.5)
    np.testing.assert_allclose(loaded.std, (63.0, 62.1, 66.7), atol=3.5)
    first = next(iter(loaded.train.examples.batch(3000).as_numpy_iterator()))
    held = {image.tobytes() for image in data.to_arrays(loaded.validation)[0]}
    held |= {image.tobytes() for image in data.to_arrays(loaded.test)[0]}
    assert len(held) == 15000 and held.isdisjoint(image.tobytes() for image in first[0])
    assert len(set(first[1][:100])) == 10
