"""Time of a supernet step and of a controller step against static networks and masking.

    python benchmarks/training_step.py [--batch=32] [--keep=0.3] [--rounds=10] ...

All steps run in one process and are visited in a fresh random order each round, so that
disturbance meets all alike; the figures are ratios of medians. The last line is one JSON
object:

* `supernet_vs_static`: a routed supernet step over a training step of the static reference
  network (MobileNetV2), same width and batch.
* `controller_vs_forward`: a routed controller step, which runs two policies, over two
  forward passes of that network.
* `routed_vs_masked_supernet`, `routed_vs_masked_controller`: how many times faster routing
  is than running every op on every image under a mask.
"""

from __future__ import annotations

import json
import os
import platform
import time

from instanas_tf.startup import KERNEL_CACHE

os.environ.update({**KERNEL_CACHE, **os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"})

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags
from tqdm import tqdm

from instanas_tf import spaces
from instanas_tf.latency import LatencyTable
from instanas_tf.models.controller import Controller
from instanas_tf.models.expert import static_network
from instanas_tf.models.supernet import Supernet
from instanas_tf.models.training import sgd
from instanas_tf.pipeline.pretrain import Alone, PathDropout
from instanas_tf.search.instance_aware import InstaNAS, SearchSettings
from instanas_tf.spaces import size

_SPACE = flags.DEFINE_string("space", "mobilenet_v2_32", "Search space.")
_WIDTH = flags.DEFINE_float("width", 1.0, "Width multiplier.")
_MERGE = flags.DEFINE_enum("merge", "sum", ["sum", "shortcut"], "Merge of a cell.")
_BATCH = flags.DEFINE_integer("batch", 32, "Images in a step.", lower_bound=1)
_KEEP = flags.DEFINE_float("keep", 0.3, "Share of ops that are on.")
_ROUNDS = flags.DEFINE_integer("rounds", 10, "Times that each step is timed.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Of images, policies and order.")


class FixedShare(Controller):
    """A controller whose cost is real and whose policies have a known share of ops on."""

    def __init__(self, space, probabilities, **kwargs):
        super().__init__(space, "published", **kwargs)
        self.fixed = tf.constant(probabilities, tf.float32)

    def call(self, images, training=None):
        """The fixed probabilities; the computed ones take part with weight 0."""
        return self.fixed + 0.0 * super().call(images, training=training)


def table_of(space) -> LatencyTable:
    """Latencies proportional to MACs; what a step costs does not depend on them."""
    return LatencyTable(
        space=space,
        op_ms=tuple(map(tuple, (size.op_macs(space) / 1e7).tolist())),
        stem_ms=1.0,
        head_ms=1.0,
        controller_ms=1.0,
        controller_kind="published",
    )


def supernet_step(space, routed: bool, keep: float, seed: int):
    """A training step of a supernet under path dropout."""
    supernet = Supernet(space, routed=routed)
    optimizer = sgd(0.01, 1e-4, 0.0, supernet.trainable_variables)
    model = PathDropout(supernet, optimizer, (keep, keep), 0.0, seed)
    model.keep.assign(keep)
    return tf.function(lambda images, labels: model.train_step((images, labels)))


def controller_step(space, routed: bool, probabilities, seed: int):
    """A controller update: the controller, and the supernet under two policies."""
    supernet = Supernet(space, routed=routed)
    controller = FixedShare(space, probabilities)
    adam = keras.optimizers.Adam(5e-4)
    adam.build(controller.trainable_variables)
    unused = sgd(0.01, 0.0, 0.0, supernet.trainable_variables)
    settings = SearchSettings(alternate="epoch")
    model = InstaNAS(supernet, controller, table_of(space), settings, adam, unused, seed)
    model.alpha.assign(1.0)
    objective = model.objectives()[0]
    return tf.function(lambda images, labels: model.update(objective, images, labels))


def static_steps(space):
    """A training step and a forward pass of the static reference network."""
    policy = space.single_op_policy(space.reference_op)
    network = static_network(space, policy, (127.5,) * 3, (64.0,) * 3)
    optimizer = sgd(0.01, 1e-4, 0.0, network.trainable_variables)
    model = Alone(network, optimizer, 0.0)
    train = tf.function(lambda images, labels: model.train_step((images, labels)))
    forward = tf.function(lambda images, labels: network(images, training=False))
    return train, forward


def measure(steps: dict, batch, rounds: int, seed: int) -> dict[str, float]:
    """Median seconds of each step over the rounds, in interleaved order."""
    for step in tqdm(steps.values(), desc="tracing", disable=None):
        step(*batch)
        step(*batch)
    generator = np.random.default_rng(seed)
    names = list(steps)
    seconds = {name: [] for name in names}
    for _ in tqdm(range(rounds), desc="timing", disable=None):
        for index in generator.permutation(len(names)):
            start = time.perf_counter()
            tf.nest.map_structure(np.asarray, steps[names[index]](*batch))
            seconds[names[index]].append(time.perf_counter() - start)
    return {name: float(np.median(values)) for name, values in seconds.items()}


def main(argv):
    """Runs the benchmark and prints a table and the JSON line."""
    del argv
    keras.utils.set_random_seed(_SEED.value)
    space = spaces.get(_SPACE.value, _WIDTH.value, merge=_MERGE.value)
    generator = np.random.default_rng(_SEED.value)
    shape = (_BATCH.value, space.image_size, space.image_size, 3)
    images = tf.constant(generator.uniform(0, 255, shape), tf.float32)
    labels = tf.constant(generator.integers(0, space.num_classes, _BATCH.value))
    bits = generator.uniform(size=(_BATCH.value, space.num_cells, space.num_ops)) < _KEEP.value
    probabilities = np.where(bits, 0.999, 0.001)

    train, forward = static_steps(space)
    steps = {"static_train": train, "static_forward": forward}
    for routed in (True, False):
        way = "routed" if routed else "masked"
        steps[f"supernet_{way}"] = supernet_step(space, routed, _KEEP.value, _SEED.value)
        steps[f"controller_{way}"] = controller_step(space, routed, probabilities, _SEED.value)
    seconds = measure(steps, (images, labels), _ROUNDS.value, _SEED.value)
    for name, value in seconds.items():
        print(f"{name:20} {value * 1e3:9.1f} ms")
    result = {
        "supernet_vs_static": seconds["supernet_routed"] / seconds["static_train"],
        "controller_vs_forward": seconds["controller_routed"] / (2 * seconds["static_forward"]),
        "routed_vs_masked_supernet": seconds["supernet_masked"] / seconds["supernet_routed"],
        "routed_vs_masked_controller": seconds["controller_masked"] / seconds["controller_routed"],
        "space": space.name,
        "width": _WIDTH.value,
        "merge": space.merge,
        "batch": _BATCH.value,
        "keep": _KEEP.value,
        "rounds": _ROUNDS.value,
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "onednn": os.environ.get("TF_ENABLE_ONEDNN_OPTS", "default"),
        "kernel_cache": os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    app.run(main)
