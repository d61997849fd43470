"""Where the time of one step goes, by kind of op.

    python benchmarks/profile_step.py [--step=supernet] [--batch=32] [--keep=0.3] ...

One thread runs one op at a time, unless TF_NUM_INTRAOP_THREADS and TF_NUM_INTEROP_THREADS
say otherwise, so that the times of the ops add up to that of the step. Beside them stands
what the static network's ops would take if it had the step's MACs.
"""

from __future__ import annotations

import collections
import os
import pathlib
import re
import tempfile
import time

from instanas_tf import startup

os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")
os.environ.update({**startup.environment(), **os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"})

import keras
import numpy as np
import steps
import tensorflow as tf
from absl import app, flags
from tensorflow.tsl.profiler.protobuf import xplane_pb2

from instanas_tf import spaces
from instanas_tf.models.supernet import Supernet
from instanas_tf.search import policies

# The first pattern that the type of an op matches says its kind. oneDNN's own ops are named
# like `_MklNativeFusedConv2D`, TensorFlow's like `_FusedConv2D`.
KINDS = (
    ("depthwise: gradient of kernels", r"DepthwiseConv2dNativeBackpropFilter"),
    ("depthwise: gradient of inputs", r"DepthwiseConv2dNativeBackpropInput"),
    ("depthwise: forward", r"DepthwiseConv2dNative$"),
    ("convolution: gradient of kernels", r"Conv2DBackpropFilter"),
    ("convolution: gradient of inputs", r"Conv2DBackpropInput"),
    ("convolution: forward", r"Conv2D$"),
    ("matrix product", r"MatMul$"),
    ("normalisation", r"BatchNorm"),
    ("gather and scatter", r"Gather|Scatter|SegmentSum|^Where$"),
    ("optimizer and assignments", r"^Assign|^Resource|VariableOp$"),
    (
        "slices, padding, concatenation",
        r"^(Strided)?Slice(Grad)?$|^Pad$|^Concat|^Split|^Pack$|^Tile$|^Transpose$",
    ),
    (
        "element-wise",
        r"^_?(Fused)?(Add|Sub|Mul|Div|RealDiv|Neg|Square|Sqrt|Rsqrt|Relu|Select|Maximum|Minimum"
        r"|Greater|Less|Equal|NotEqual|Logical|Cast|BiasAdd|Sum|Mean|Log|Exp|ZerosLike|OnesLike"
        r"|Fill|Cumsum|Any|Max|Min|Prod)",
    ),
)
_SPACE = flags.DEFINE_string("space", "mobilenet_v2_32", "Search space.")
_WIDTH = flags.DEFINE_float("width", 1.0, "Width multiplier.")
_MERGE = flags.DEFINE_enum("merge", "sum", ["sum", "shortcut"], "Merge of a cell.")
_BATCH = flags.DEFINE_integer("batch", 32, "Images in a step.", lower_bound=1)
_KEEP = flags.DEFINE_float("keep", 0.3, "Share of ops that are on.")
_ALPHA = flags.DEFINE_float("alpha", 0.95, "1 - α is the share of bits that sampling flips.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Steps that are profiled.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Of images and policies.")
_STEP = flags.DEFINE_enum(
    "step",
    "supernet",
    ["supernet", "controller", "static_train", "static_forward", "evaluation"],
    "What is profiled.",
)


def kind_of(op_type: str) -> str:
    """The kind of an op, of `KINDS`, or `other`."""
    return next((kind for kind, pattern in KINDS if re.search(pattern, op_type)), "other")


def make_step(name: str, space):
    """The step of that name; its MACs over the static network's; the step to compare with."""
    keep, generator = _KEEP.value, np.random.default_rng(_SEED.value)
    train, forward = steps.static_steps(steps.reference_network(space))
    bits = steps.make_policies(space, _BATCH.value, keep, generator)
    if name == "supernet":
        step = steps.supernet_step(space, True, keep, _SEED.value)
        return step, steps.macs_ratio(space, keep), train
    if name == "controller":
        step = steps.controller_steps(Supernet(space), bits, [_ALPHA.value], _SEED.value)[0]
        sampled = policies.mix(keep, _ALPHA.value)
        return step, sum(steps.macs_ratio(space, p) for p in (keep, sampled)), forward
    if name == "evaluation":
        return steps.evaluation(space, bits), steps.macs_ratio(space, keep), forward
    return (train, 1.0, train) if name == "static_train" else (forward, 1.0, forward)


def profile(step, batch, rounds: int):
    """Milliseconds and count of each op type in one step, and the step's own milliseconds."""
    for _ in range(4):
        step(*batch)
    taken = []
    for _ in range(rounds):
        start = time.perf_counter()
        tf.nest.map_structure(np.asarray, step(*batch))
        taken.append((time.perf_counter() - start) * 1e3)
    with tempfile.TemporaryDirectory() as folder:
        with tf.profiler.experimental.Profile(folder):
            for _ in range(rounds):
                tf.nest.map_structure(np.asarray, step(*batch))
        (file,) = pathlib.Path(folder).rglob("*.xplane.pb")
        trace = xplane_pb2.XSpace.FromString(file.read_bytes())
    spent, count = collections.Counter(), collections.Counter()
    for plane in trace.planes:
        if "CPU" not in plane.name:
            continue
        for event in (event for line in plane.lines for event in line.events):
            name, colon, op_type = plane.event_metadata[event.metadata_id].name.rpartition(":")
            if colon and "::" not in name + colon + op_type and re.fullmatch(r"\w+", op_type):
                spent[op_type] += event.duration_ps / 1e9 / rounds
                count[op_type] += 1 / rounds
    return spent, count, float(np.median(taken))


def by_kind(values) -> collections.Counter:
    """Sums of values by op type."""
    found = collections.Counter()
    for op_type, value in values.items():
        found[kind_of(op_type)] += value
    return found


def main(argv):
    """Prints the table."""
    del argv
    keras.utils.set_random_seed(_SEED.value)
    space = spaces.get(_SPACE.value, _WIDTH.value, merge=_MERGE.value)
    step, ratio, static = make_step(_STEP.value, space)
    batch = steps.make_batch(space, _BATCH.value, np.random.default_rng(_SEED.value))
    types, counts, median = profile(step, batch, _ROUNDS.value)
    spent, count = by_kind(types), by_kind(counts)
    scaled = by_kind(profile(static, batch, _ROUNDS.value)[0])
    whole = sum(spent.values())
    print(f"{_STEP.value}: {median:.0f} ms a step, {whole:.0f} ms in ops; {ratio:.2f} x the MACs")
    print(f"{'kind':34} {'ms':>7} {'count':>6} {'share':>6} {'static x MACs, ms':>18}")
    for kind in sorted({*spent, *scaled}, key=lambda kind: -spent[kind]):
        share = spent[kind] / whole
        print(
            f"{kind:34} {spent[kind]:7.1f} {count[kind]:6.0f} {share:6.1%} "
            f"{scaled[kind] * ratio:18.1f}"
        )
    print(f"{'all':34} {whole:7.1f} {'':6} {'':6} {sum(scaled.values()) * ratio:18.1f}")
    others = ((name, ms) for name, ms in types.most_common() if kind_of(name) == "other")
    print("other:", ", ".join(f"{name} {ms:.1f}" for name, ms in list(others)[:6]))


if __name__ == "__main__":
    app.run(main)
