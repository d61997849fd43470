"""Whether the precision that a config asks for is worth it on this machine."""

from __future__ import annotations

import time

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from instanas_tf.models import compiled
from instanas_tf.models.expert import static_network
from instanas_tf.models.training import sgd
from instanas_tf.pipeline.fitting import trained_in
from instanas_tf.pipeline.pretrain import Alone
from instanas_tf.spaces.space import SearchSpace

_WARM_UP = 3
_ROUNDS = 5


def warn_if_slower(config: ConfigDict, space: SearchSpace) -> float | None:
    """Times what the config asks for against float32, and warns where it is slower.

    Returns:
        Time of a training step of the space's reference network in that precision over
        that in float32, medians of interleaved steps; None where float32 is asked for.
    """
    wanted = config.train.precision
    if wanted == "float32":
        return None
    steps = {name: _stepper(space, name) for name in (wanted, "float32")}
    generator = np.random.default_rng(0)
    size = (config.train.batch_size, space.image_size, space.image_size, 3)
    images = generator.uniform(0, 255, size).astype(np.float32)
    labels = np.zeros(len(images), np.int32)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(_WARM_UP + _ROUNDS):
        for name, step in steps.items():
            start = time.perf_counter()
            np.asarray(step(images, labels, (0,))["loss"])
            seconds[name].append(time.perf_counter() - start)
    medians = {name: np.median(values[_WARM_UP:]) for name, values in seconds.items()}
    ratio = float(medians[wanted] / medians["float32"])
    if ratio > 1:
        logging.warning(
            "a training step of the reference network takes %.2f times as long in %s as in "
            "float32 here; --config.train.precision=float32 is faster on this machine",
            ratio,
            wanted,
        )
    return ratio


def _stepper(space: SearchSpace, precision: str):
    with trained_in(precision):
        policy = space.single_op_policy(space.reference_op)
        network = static_network(space, policy, (127.5,) * 3, (64.0,) * 3)
        optimizer = sgd(0.01, 0.0, network.trainable_variables)
        model = Alone(network, optimizer, 0.0, 0.0)
    return compiled.stepper(model)
