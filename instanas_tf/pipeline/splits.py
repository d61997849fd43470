"""Disjoint splits of a data set: those that it brings, others cut off the training images."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
from ml_collections import ConfigDict
from sklearn.utils import resample

from instanas_tf.errors import InputError
from instanas_tf.pipeline import pools


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Labelled images in a fixed order: some images of a pool.

    Attributes:
        pool: the images that it is a part of.
        indices: int64 [count], those of its images in the pool, ascending.
    """

    pool: pools.Pool
    indices: np.ndarray

    @property
    def count(self) -> int:
        """Number of images."""
        return len(self.indices)

    @property
    def is_streamed(self) -> bool:
        """Whether images can only be had one after the other."""
        return self.pool.read is None

    def read(self, positions: np.ndarray) -> pools.Examples:
        """Images uint8 [n, S, S, 3] and labels int64 [n] at some positions; not if streamed."""
        return self.pool.read(self.indices[positions])

    def stream(
        self, batch_size: int, seed: int | None = None, skip: int = 0
    ) -> Iterator[pools.Examples]:
        """All images one after the other, only if streamed; see `pools.Pool.stream`."""
        return self.pool.stream(self.indices, batch_size, seed=seed, skip=skip)


def carve(source: pools.Source, settings: ConfigDict, seed: int) -> dict[str, Split]:
    """The splits `train`, `validation`, `controller` (perhaps empty) and `test`.

    Args:
        source: what the data set brings.
        settings: `config.data`.
        seed: of what is drawn.

    Raises:
        InputError: a split would be empty, or is asked for more images than there are.
    """
    parts = {
        name: Split(pool, np.arange(pool.count))
        for name in ("train", "validation", "test")
        if (pool := getattr(source, name)) is not None
    }
    # One generator a purpose, so that one setting does not move what another one draws.
    for number, name in enumerate(("test", "validation")):
        if name not in parts:
            generator = np.random.default_rng([seed, 0, number])
            parts["train"], parts[name] = _cut(parts["train"], name, settings, generator)
    for number, name in ((2, "controller"), (3, "held_back")):
        if settings[f"{name}_fraction"]:
            generator = np.random.default_rng([seed, 0, number])
            parts["train"], parts[name] = _cut(parts["train"], name, settings, generator)
    for number, name in enumerate(("train", "validation", "test")):
        wanted = settings[f"{name}_images"]
        drawn_with = 0 if name == "test" and source.test is not None else seed
        if wanted > parts[name].count:
            raise InputError(
                f"config.data.{name}_images must be at most {parts[name].count}, the "
                f"images that are there. Received: {wanted}"
            )
        if wanted:
            generator = np.random.default_rng([drawn_with, 1, number])
            parts[name] = _draw(parts[name], wanted, generator)
    none = Split(parts["train"].pool, np.arange(0))
    parts = {"controller": none, **parts}
    if "held_back" in parts:
        parts["test"] = _joined(parts["test"], parts["held_back"], settings)
    return {name: parts[name] for name in ("train", "validation", "controller", "test")}


def _joined(first: Split, second: Split, settings: ConfigDict) -> Split:
    """The images of two splits in one, in memory.

    Raises:
        InputError: they do not fit.
    """
    if not pools.fits(first.count + second.count, settings):
        raise InputError(
            "config.data.held_back_fraction needs the test images in memory. Received: "
            f"{first.count + second.count} images; raise config.data.memory_limit_mib, or set it "
            "to 0"
        )
    parts = zip(*(pools.collect(p.pool, p.indices) for p in (first, second)), strict=True)
    images, labels = (np.concatenate(part) for part in parts)
    return Split(pools.array_pool(images, labels), np.arange(len(labels)))


def _cut(
    part: Split, name: str, settings: ConfigDict, generator: np.random.Generator
) -> tuple[Split, Split]:
    """Cuts `config.data.NAME_fraction` off: (what remains, what is cut off)."""
    fraction = settings[f"{name}_fraction"]
    count = round(fraction * part.count)
    if not 0 < count < part.count:
        raise InputError(
            f"config.data.{name}_fraction must leave images in both splits. Received: {fraction} "
            f"of {part.count} images"
        )
    cut_off = _draw(part, count, generator)
    rest = np.setdiff1d(part.indices, cut_off.indices, assume_unique=True)
    return Split(part.pool, rest), cut_off


def _draw(part: Split, count: int, generator: np.random.Generator) -> Split:
    """Draws images, class by class in proportion; where labels are unknown, one long run.

    `resample` shares the images out as `train_test_split` does, and also takes numbers that the
    latter refuses: fewer images than classes, or all but a few.
    """
    if part.pool.labels is None:
        start = generator.integers(part.count - count + 1)
        return Split(part.pool, part.indices[start : start + count])
    drawn = resample(
        part.indices,
        replace=False,
        n_samples=count,
        stratify=part.pool.labels[part.indices],
        random_state=int(generator.integers(2**31)),
    )
    return Split(part.pool, np.sort(drawn))
