"""What a source of images hands over: pools of labelled images, and how they are read."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
from ml_collections import ConfigDict

from instanas_tf.errors import InputError

PIECE = 256  # Images that are read at a time where no batch size is given.
Examples = tuple[np.ndarray, np.ndarray]  # uint8 [n, S, S, 3] and int64 [n].


@dataclasses.dataclass(frozen=True, eq=False)
class Pool:
    """Labelled images in a fixed order, that can be read one by one or only in a stream.

    Attributes:
        count: number of images.
        labels: int64 [count], or None of a streamed pool: only reading it would tell them.
        read: indices [n] -> examples in the order of the indices. None of a streamed pool.
        stream: (ascending indices, batch_size, seed=None, skip=0) -> iterator of examples, the
            last batch smaller. In order, or with a seed mixed as that says; without the first
            `skip` examples. The indices should form few runs without gaps.
        in_memory: whether the decoded images are held.
    """

    count: int
    labels: np.ndarray | None = None
    read: Callable[[np.ndarray], Examples] | None = None
    stream: Callable[..., Iterator[Examples]] | None = None
    in_memory: bool = False

    def __post_init__(self):
        if (self.read is None) == (self.stream is None):
            raise ValueError("a Pool must have either read or stream. Received: both or neither")
        if (self.labels is None) != (self.read is None):
            raise ValueError("a Pool must have labels if, and only if, it has read")


@dataclasses.dataclass(frozen=True)
class Source:
    """What a data set brings: its classes, and the splits it has of its own."""

    classes: tuple[str, ...]
    train: Pool
    validation: Pool | None = None
    test: Pool | None = None


def source_of(classes: tuple[str, ...], pools: dict[str, Pool]) -> Source:
    """A source of the splits by name; a lone validation split is the test split.

    So no choice is ever made on images that final results are computed on.
    """
    if "test" not in pools and "validation" in pools:
        pools = {"train": pools["train"], "test": pools["validation"]}
    return Source(classes, **pools)


def array_pool(images: np.ndarray, labels: np.ndarray) -> Pool:
    """A pool of images uint8 [n, S, S, 3] with labels int64 [n] that lie in memory."""
    return Pool(
        len(labels), labels, lambda indices: (images[indices], labels[indices]), in_memory=True
    )


def fits(count: int, settings: ConfigDict) -> bool:
    """Whether `count` decoded images stay within `memory_limit_mib`."""
    return count * 3 * settings.image_size**2 <= settings.memory_limit_mib * 2**20


def pieces(pool: Pool, indices: np.ndarray) -> Iterator[Examples]:
    """Reads examples in the order of ascending indices, a piece at a time.

    Raises:
        InputError: the files behind the pool are damaged.
    """
    if pool.read is None:
        yield from pool.stream(indices, PIECE)
        return
    for start in range(0, len(indices), PIECE):
        yield pool.read(indices[start : start + PIECE])


def collect(pool: Pool, indices: np.ndarray) -> Examples:
    """Reads all examples of ascending indices at once.

    Raises:
        InputError: the files behind the pool are damaged, or hold another number of images.
    """
    if pool.read is not None:
        return pool.read(indices)
    images, labels, done = None, np.empty(len(indices), np.int64), 0
    for some, their_labels in pool.stream(indices, PIECE):
        if images is None:
            images = np.empty((len(indices), *some.shape[1:]), np.uint8)
        images[done : done + len(some)] = some
        labels[done : done + len(some)] = their_labels
        done += len(some)
    if done != len(indices):
        raise InputError(f"the data set must hold {len(indices)} images here. Received: {done}")
    return images, labels
