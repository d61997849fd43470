"""Splits are disjoint and repeatable, whatever the data set brings of its own."""

import numpy as np
import pytest

from instanas_tf.errors import InputError
from instanas_tf.pipeline import data, pools, splits
from instanas_tf.pipeline.config import default_config

NAMES = ("train", "validation", "controller", "test")


def digits(seed=0, **changes):
    settings = default_config().data
    settings.image_size = 8
    settings.update(changes)
    return data.load(settings, seed)


@pytest.fixture(scope="module")
def loaded():
    return digits()


def numbered(start, count, classes=2):
    """A pool of images that tell their numbers; the last bit of it is the class."""
    numbers = np.arange(start, start + count)
    shape = (count, 2, 2, 3)
    images = np.broadcast_to(numbers[:, None, None, None], shape).astype(np.uint8)
    return pools.array_pool(images, numbers % classes)


def streamed(pool):
    """The same pool, that can only be read in a stream."""

    def stream(indices, batch_size, seed=None, skip=0):
        del seed
        for start in range(skip, len(indices), batch_size):
            yield pool.read(indices[start : start + batch_size])

    return pools.Pool(pool.count, stream=stream)


def carved(source, seed=0, **changes):
    settings = default_config().data
    settings.image_size = 2
    settings.update({"controller_fraction": 0.0, **changes})
    return splits.carve(source, settings, seed)


def numbers(split):
    return sorted(data.to_arrays(split)[0][:, 0, 0, 0].tolist())


def fingerprint(*found):
    """The multiset of (image, label) of some splits."""
    return sorted(
        (image.tobytes(), int(label))
        for split in found
        for image, label in zip(*data.to_arrays(split), strict=True)
    )


def test_digits_are_split_by_class(loaded):
    assert [getattr(loaded, name).count for name in NAMES] == [1100, 216, 122, 359]
    assert loaded.labels == tuple("0123456789") and loaded.num_classes == 10
    for name, least in zip(NAMES, (104, 20, 11, 34), strict=True):
        split = getattr(loaded, name)
        images, labels = data.to_arrays(split)
        assert images.shape == (split.count, 8, 8, 3) and images.dtype == np.uint8
        counts = np.bincount(labels, minlength=10)
        assert counts.min() >= least and counts.max() - counts.min() <= 8


@pytest.mark.parametrize("held_back", [0.0, 0.25])
def test_splits_share_no_image_and_lose_none(held_back):
    from sklearn import datasets

    source = datasets.load_digits()
    grey = np.round(source.images * 255 / 16).astype(np.uint8)
    images = np.repeat(grey[..., np.newaxis], 3, axis=-1)
    whole = sorted(
        (image.tobytes(), int(label)) for image, label in zip(images, source.target, strict=True)
    )
    loaded = digits(held_back_fraction=held_back)
    assert fingerprint(*(getattr(loaded, name) for name in NAMES)) == whole


def test_the_seed_decides_the_splits(loaded):
    again, other = digits(seed=0), digits(seed=1)
    for name in NAMES:
        expected = fingerprint(getattr(loaded, name))
        assert fingerprint(getattr(again, name)) == expected
        assert fingerprint(getattr(other, name)) != expected


def test_limits_take_a_share_of_every_class_and_leave_the_other_splits_alone(loaded):
    limited = digits(train_images=100, validation_images=20, test_images=5)
    for name, count in (("train", 100), ("validation", 20), ("controller", 122), ("test", 5)):
        split = getattr(limited, name)
        assert split.count == count
        assert set(fingerprint(split)) <= set(fingerprint(getattr(loaded, name)))
    counts = np.bincount(data.to_arrays(limited.train)[1], minlength=10)
    assert counts.min() >= 9 and counts.max() <= 11
    only_train = digits(train_images=100)
    assert fingerprint(only_train.validation) == fingerprint(loaded.validation)
    assert fingerprint(only_train.train) == fingerprint(limited.train)


def test_all_but_one_image_can_be_asked_for():
    assert digits(train_images=1099).train.count == 1099


def test_no_controller_split_unless_it_is_asked_for(loaded):
    none = digits(controller_fraction=0.0)
    assert (none.train.count, none.controller.count) == (1222, 0)
    for name in ("validation", "test"):
        assert fingerprint(getattr(none, name)) == fingerprint(getattr(loaded, name))
    assert fingerprint(none.train) == fingerprint(loaded.train, loaded.controller)


def test_images_held_back_join_the_test_split(loaded):
    found = digits(held_back_fraction=0.25)
    assert [getattr(found, name).count for name in NAMES] == [825, 216, 122, 359 + 275]
    for name in ("validation", "controller"):
        assert fingerprint(getattr(found, name)) == fingerprint(getattr(loaded, name))
    images, labels = data.to_arrays(found.test)
    first = data.to_arrays(loaded.test)
    np.testing.assert_array_equal(images[:359], first[0])
    np.testing.assert_array_equal(labels[:359], first[1])
    joined = fingerprint(found.train, found.test)
    assert joined == fingerprint(loaded.train, loaded.test)


@pytest.mark.parametrize("make", [lambda pool: pool, streamed])
def test_a_data_set_with_all_splits_keeps_them(make):
    source = pools.Source(
        ("a", "b"), make(numbered(0, 40)), make(numbered(100, 10)), make(numbered(200, 10))
    )
    plain = carved(source)
    assert numbers(plain["train"]) == list(range(40))
    assert numbers(plain["validation"]) == list(range(100, 110))
    assert plain["controller"].count == 0
    assert numbers(plain["test"]) == list(range(200, 210))
    found = carved(source, controller_fraction=0.25, held_back_fraction=0.5)
    assert [found[name].count for name in NAMES] == [15, 10, 10, 25]
    held_back = set(numbers(found["test"])) - set(range(200, 210))
    assert len(held_back) == 15
    parts = [set(numbers(found["train"])), set(numbers(found["controller"])), held_back]
    assert set.union(*parts) == set(range(40)) and sum(map(len, parts)) == 40
    assert numbers(found["validation"]) == list(range(100, 110))


def test_the_part_of_a_test_split_of_its_own_does_not_depend_on_the_seed():
    source = pools.Source(("a", "b"), numbered(0, 40), None, numbered(200, 20))
    first, other = (carved(source, seed, test_images=6) for seed in (0, 1))
    assert numbers(first["test"]) == numbers(other["test"])
    assert numbers(first["validation"]) != numbers(other["validation"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_images": 1101}, "train_images must be at most 1100.*Received: 1101"),
        ({"validation_images": 217}, "validation_images must be at most 216"),
        ({"test_images": 360}, "test_images must be at most 359"),
        ({"validation_fraction": 1e-6}, "validation_fraction must leave images in both"),
        ({"test_fraction": 0.9999}, "test_fraction must leave images in both"),
        ({"controller_fraction": 1e-6}, "controller_fraction must leave images.*Received: 1e-06"),
        ({"held_back_fraction": 0.9999}, "held_back_fraction must leave images in both"),
        (
            {"held_back_fraction": 0.5, "memory_limit_mib": 0},
            "held_back_fraction needs the test images in memory. Received: 909 images; raise",
        ),
    ],
)
def test_splits_that_cannot_be_made_are_refused(changes, message):
    with pytest.raises(InputError, match=message) as caught:
        digits(**changes)
    assert "\n" not in str(caught.value)
