"""A batch depends on seed, epoch and step alone; settings that mean nothing are refused."""

import os
import pathlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from instanas_tf.errors import InputError
from instanas_tf.pipeline import data, pools
from instanas_tf.pipeline.augment import augment
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


def numbered(count, size=4):
    """A split whose image and label both tell the number of the example."""
    numbers = np.arange(count)
    shape = (count, size, size, 3)
    images = np.broadcast_to(numbers[:, None, None, None], shape).astype(np.uint8)
    return data.Split(pools.array_pool(images, numbers), numbers)


def batches(split, epoch=0, seed=0, batch_size=8, augmentation=(), **changes):
    settings = default_config().data.augmentation
    settings.update({"pad": 0, **dict(augmentation)})
    arguments = {"batch_size": batch_size, "epoch": epoch, "seed": seed, **changes}
    return list(data.train_batches(split, augmentation=settings, mean=MEAN, **arguments))


def labels_of(found):
    return [int(label) for _, labels in found for label in labels]


def assert_same(first, second):
    assert len(first) == len(second)
    for (images, labels), (other_images, other_labels) in zip(first, second, strict=True):
        np.testing.assert_array_equal(images, other_images)
        np.testing.assert_array_equal(labels, other_labels)


def test_mean_and_deviation_are_those_of_the_training_images(loaded):
    images = data.to_arrays(loaded.train)[0].astype(np.float64)
    np.testing.assert_allclose(loaded.mean, images.mean(axis=(0, 1, 2)), rtol=1e-9)
    np.testing.assert_allclose(loaded.std, images.std(axis=(0, 1, 2)), rtol=1e-9)


def test_mean_and_deviation_of_many_images_rest_on_a_sample(loaded, monkeypatch):
    monkeypatch.setattr(data, "STATISTICS_IMAGES", 550)
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
        ({"validation_fraction": 0.0}, "validation_fraction must be between 0 and 1"),
        ({"test_fraction": 1.0}, "test_fraction must be between 0 and 1"),
        ({"controller_fraction": -0.1}, "controller_fraction must be at least 0 and below 1"),
        ({"held_back_fraction": 1.0}, "held_back_fraction must be at least 0 and below 1"),
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


def test_the_controller_split_need_not_hold_every_class():
    assert digits(controller_fraction=0.005).controller.count == 6


@pytest.mark.parametrize("epoch", [0, 1])
def test_an_epoch_holds_each_image_once_and_drops_the_rest(epoch):
    found = batches(numbered(21), epoch, batch_size=5)
    assert len(found) == 4
    for images, labels in found:
        assert images.shape == (5, 4, 4, 3) and images.dtype == np.float32
        assert labels.dtype == np.int32
        np.testing.assert_array_equal(images[:, 0, 0, 0], labels)  # Still side by side.
    assert len(set(labels_of(found))) == 20


def test_the_order_is_that_of_numpys_permutation():
    expected = np.random.default_rng([3, 2, 1]).permutation(10)[:8]
    assert labels_of(batches(numbered(10), epoch=1, seed=3, batch_size=4)) == expected.tolist()


def test_the_changes_are_drawn_for_each_step():
    noise = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    split = data.Split(pools.array_pool(noise, np.arange(4)), np.arange(4))
    options = default_config().data.augmentation
    options.update({"pad": 2, "flip": True, "cutout": 3})
    found = batches(split, 5, 1, 2, options)
    for step, (images, labels) in enumerate(found):
        numbers = np.random.default_rng([1, 3, 5, step]).random((2, 5))
        np.testing.assert_array_equal(images, augment(noise[labels], numbers, options, MEAN))


@given(
    count=st.integers(1, 40),
    batch_size=st.integers(1, 40),
    seed=st.integers(0, 2**31 - 1),
    epoch=st.integers(0, 1000),
    shares=st.tuples(*[st.floats(0, 1)] * 3),
)
def test_resumed_and_shared_training_sees_what_undisturbed_training_sees(
    count, batch_size, seed, epoch, shares
):
    batch_size = min(count, batch_size)
    options = {"pad": 2, "flip": True, "cutout": 2}
    arguments = (numbered(count), epoch, seed, batch_size, options)
    whole = batches(*arguments)
    first_step = round(shares[0] * len(whole))
    assert_same(batches(*arguments, first_step=first_step), whole[first_step:])
    start = int(shares[1] * (batch_size - 1))
    stop = start + 1 + int(shares[2] * (batch_size - start - 1))
    assert_same(
        batches(*arguments, first_step=first_step, rows=(start, stop)),
        [(images[start:stop], labels[start:stop]) for images, labels in whole[first_step:]],
    )


def test_only_the_rows_that_are_wanted_are_read():
    read = []
    split = numbered(20)

    def remember(indices):
        read.extend(indices.tolist())
        return split.pool.read(indices)

    pool = pools.Pool(20, split.pool.labels, remember)
    found = batches(data.Split(pool, split.indices), batch_size=8, rows=(2, 5), first_step=1)
    assert sorted(read) == sorted(labels_of(found)) and len(read) == 3


@pytest.mark.parametrize("rows", [(0, 0), (-1, 2), (2, 2), (3, 2), (0, 9)])
def test_rows_that_are_not_there_are_refused(rows):
    with pytest.raises(ValueError, match=r"start < stop <= 8. Received: \("):
        batches(numbered(20), rows=rows)


@pytest.mark.parametrize("first_step", [-1, 3])
def test_steps_that_are_not_there_are_refused(first_step):
    with pytest.raises(ValueError, match=f"must lie in 0..2. Received: {first_step}"):
        batches(numbered(20), first_step=first_step)


def test_no_steps_left_gives_no_batches():
    assert batches(numbered(20), first_step=2) == []


def test_epochs_and_seeds_are_shuffled_differently():
    orders = {tuple(labels_of(batches(numbered(40), *key))) for key in np.ndindex(2, 2)}
    assert len(orders) == 4 and tuple(range(40)) not in orders


def test_epochs_seeds_steps_and_rows_are_augmented_differently():
    image = np.arange(192, dtype=np.uint8).reshape(1, 8, 8, 3)
    same = np.repeat(image, 16, axis=0)
    split = data.Split(pools.array_pool(same, np.zeros(16, np.int64)), np.arange(16))
    found = [
        images.tobytes()
        for key in np.ndindex(2, 2)
        for images, _ in batches(split, *key, augmentation={"pad": 8})
    ]
    # 17 x 17 shifts: that all eight of two batches fall together has probability 289**-8.
    assert len(set(found)) == 8
    for one in found:
        assert len({one[start : start + 768] for start in range(0, 8 * 768, 768)}) > 1


def test_shuffling_mixes_the_whole_split():
    labels = np.array(labels_of(batches(numbered(200))))
    # Of 100 first images about 50 come from the first half, with a deviation of 3.5.
    assert 25 < np.sum(labels[:100] < 100) < 75


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
    split = numbered(7)
    for _ in range(2):  # A fresh iterator each time.
        found = list(data.eval_batches(split, 3))
        assert [len(labels) for _, labels in found] == [3, 3, 1]
        assert found[0][0].dtype == np.float32 and found[0][1].dtype == np.int32
        assert labels_of(found) == list(range(7))
    with pytest.raises(InputError, match="at least 1. Received: 0"):
        data.eval_batches(split, 0)


def test_a_split_reads_its_own_part_of_the_pool():
    part = data.Split(numbered(10).pool, np.array([2, 5, 9]))
    assert part.count == 3 and not part.is_streamed
    assert part.read(np.array([2, 0]))[1].tolist() == [9, 2]
    assert data.to_arrays(part)[1].tolist() == [2, 5, 9]
    assert sorted(labels_of(batches(part, batch_size=3))) == [2, 5, 9]
    assert labels_of(data.eval_batches(part, 2)) == [2, 5, 9]


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
    assert (loaded.train.count, loaded.validation.count, loaded.test.count) == (38250, 5000, 10000)
    assert loaded.labels[:3] == ("airplane", "automobile", "bird")
    assert loaded.train.is_streamed
    assert not loaded.validation.is_streamed and not loaded.test.is_streamed
    assert set(np.bincount(data.to_arrays(loaded.test)[1])) == {1000}
    # The statistics of the 50,000 images are (125.3, 123.0, 113.9) and (63.0, 62.1, 66.7). The
    # mean of 10,000 is off by 0.4 in one of three draws, a copy stored as JPEG by 1.4.
    np.testing.assert_allclose(loaded.mean, (125.3, 123.0, 113.9), atol=3.5)
    np.testing.assert_allclose(loaded.std, (63.0, 62.1, 66.7), atol=3.5)
    first = next(loaded.train.stream(3000))
    held = {image.tobytes() for image in data.to_arrays(loaded.validation)[0]}
    held |= {image.tobytes() for image in data.to_arrays(loaded.test)[0]}
    held |= {image.tobytes() for image in data.to_arrays(loaded.controller)[0]}
    assert len(held) == 19250 and held.isdisjoint(image.tobytes() for image in first[0])
    assert len(set(first[1][:100])) == 10
