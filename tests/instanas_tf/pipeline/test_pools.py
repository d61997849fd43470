"""A pool is read by index or in a stream; both ways give the same examples."""

import numpy as np
import pytest

from instanas_tf.errors import InputError
from instanas_tf.pipeline import pools
from instanas_tf.pipeline.config import default_config

IMAGES = np.arange(600, dtype=np.uint16).astype(np.uint8)[:, None, None, None] * np.ones(
    (1, 2, 2, 3), np.uint8
)
LABELS = np.arange(600)


def streamed(lost=0):
    def stream(indices, batch_size, seed=None, skip=0):
        indices = indices[skip : len(indices) - lost]
        for start in range(0, len(indices), batch_size):
            some = indices[start : start + batch_size]
            yield IMAGES[some], LABELS[some]

    return pools.Pool(600, stream=stream)


@pytest.mark.parametrize("pool", [pools.array_pool(IMAGES, LABELS), streamed()])
@pytest.mark.parametrize("indices", [np.arange(600), np.arange(3, 520), np.array([4])])
def test_examples_are_read_in_pieces_or_at_once(pool, indices):
    found = list(pools.pieces(pool, indices))
    assert all(len(labels) == pools.PIECE for _, labels in found[:-1])
    np.testing.assert_array_equal(np.concatenate([labels for _, labels in found]), indices)
    images, labels = pools.collect(pool, indices)
    assert images.dtype == np.uint8 and labels.dtype == np.int64
    np.testing.assert_array_equal(images, IMAGES[indices])
    np.testing.assert_array_equal(labels, indices)


def test_a_stream_that_ends_early_is_refused():
    with pytest.raises(InputError, match="must hold 600 images here. Received: 599"):
        pools.collect(streamed(lost=1), np.arange(600))


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"labels": LABELS, "read": len, "stream": len},
        {"read": len},
        {"labels": LABELS, "stream": len},
    ],
)
def test_a_pool_that_cannot_be_read_is_refused(fields):
    with pytest.raises(ValueError, match="a Pool must have"):
        pools.Pool(600, **fields)


def test_a_lone_validation_split_is_the_test_split():
    first, second, third = (pools.array_pool(IMAGES[:n], LABELS[:n]) for n in (1, 2, 3))
    alone = pools.source_of(("a",), {"train": first, "validation": second})
    assert alone.test is second and alone.validation is None
    both = pools.source_of(("a",), {"train": first, "validation": second, "test": third})
    assert both.test is third and both.validation is second
    assert pools.source_of(("a",), {"train": first}).test is None


def test_images_fit_up_to_the_limit():
    settings = default_config().data
    settings.update({"image_size": 32, "memory_limit_mib": 3})
    assert pools.fits(1024, settings) and not pools.fits(1025, settings)
