"""Time of supernet and controller steps against static networks and masking.

    python benchmarks/training_step.py [--batch=32] [--keep=0.3] [--alpha=0.95] [--rounds=10] ...

All steps are visited in a fresh random order each round, so that disturbance meets all
alike; the figures are ratios of medians. They run with the settings of a training, and the
static network once more in a process with TensorFlow's own numbers of threads, which suit it
better: that is what the supernet is compared with. The last line is one JSON object, whose
keys `benchmarks/README.md` explains.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
import time

from instanas_tf import startup

os.environ.update({**startup.environment(), **os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"})

import keras
import numpy as np
import static_worker
import steps
import tensorflow as tf
from absl import app, flags
from tqdm import tqdm

from instanas_tf import spaces
from instanas_tf.models.supernet import Supernet
from instanas_tf.search import policies

PUBLISHED_ALPHA = 0.8

_SPACE = flags.DEFINE_string("space", "mobilenet_v2_32", "Search space.")
_WIDTH = flags.DEFINE_float("width", 1.0, "Width multiplier.")
_MERGE = flags.DEFINE_enum("merge", "sum", ["sum", "shortcut"], "Merge of a cell.")
_BATCH = flags.DEFINE_integer("batch", 32, "Images in a step.", lower_bound=1)
_KEEP = flags.DEFINE_float("keep", 0.3, "Share of ops that are on.")
_ALPHA = flags.DEFINE_float("alpha", 0.95, "1 - α is the share of bits that sampling flips.")
_ROUNDS = flags.DEFINE_integer("rounds", 10, "Times that each step is timed.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Of images, policies and order.")
_MEMORY_BATCH = flags.DEFINE_integer(
    "memory_batch", 128, "Images in the step whose memory is measured; 0 leaves it out."
)
_MEMORY = flags.DEFINE_bool("memory", False, "Only a supernet step's memory, in this process.")


def make_steps(space) -> dict:
    """All steps by name."""
    keep, seed = _KEEP.value, _SEED.value
    bits = steps.make_policies(space, _BATCH.value, keep, np.random.default_rng(seed))
    found = {}
    found["static_train_same"], found["static_forward_same"] = steps.static_steps(
        steps.reference_network(space)
    )
    found["plain_static_train"], found["plain_static_forward"] = steps.static_steps(
        steps.plain_network(space)
    )
    found["evaluation"] = steps.evaluation(space, bits)
    alphas = (_ALPHA.value, PUBLISHED_ALPHA)
    for way in ("routed", "masked"):
        found[f"supernet_{way}"] = steps.supernet_step(space, way == "routed", keep, seed)
        supernet = Supernet(space, routed=way == "routed")
        found[f"controller_{way}"], published = steps.controller_steps(supernet, bits, alphas, seed)
        if way == "routed":
            found["controller_published_alpha"] = published
    found["controller_unshared"] = steps.controller_steps(
        steps.Unshared(space), bits, alphas[:1], seed
    )[0]
    return found


def measure(by_name: dict, batch, rounds: int, seed: int):
    """Median seconds of each step over the rounds, in interleaved order.

    Returns:
        Seconds by name, and those of the first call, in which the step is traced.
    """
    first = {}
    for name, step in tqdm(by_name.items(), desc="tracing", disable=None):
        start = time.perf_counter()
        step(*batch)
        first[name] = time.perf_counter() - start
        step(*batch)
    generator = np.random.default_rng(seed)
    names = list(by_name)
    wall = {name: [] for name in names}
    for _ in tqdm(range(rounds), desc="timing", disable=None):
        for index in generator.permutation(len(names)):
            name = names[index]
            start = time.perf_counter()
            tf.nest.map_structure(np.asarray, by_name[name](*batch))
            wall[name].append(time.perf_counter() - start)
    return {name: float(np.median(values)) for name, values in wall.items()}, first


def ratios(seconds: dict[str, float]) -> dict[str, float]:
    """The figures, from the seconds of each step."""
    train, forward = seconds["static_train"], seconds["static_forward"]
    same = {name: seconds[f"static_{name}_same"] for name in ("train", "forward")}
    compared = {
        "supernet_vs_static": ("supernet_routed", train),
        "supernet_vs_static_same_threads": ("supernet_routed", same["train"]),
        "controller_vs_forward_same_threads": ("controller_routed", 2 * same["forward"]),
        "supernet_vs_plain_static": ("supernet_routed", seconds["plain_static_train"]),
        "controller_vs_forward": ("controller_routed", 2 * forward),
        "controller_vs_forward_alpha_0.8": ("controller_published_alpha", 2 * forward),
        "controller_vs_forward_unshared": ("controller_unshared", 2 * forward),
        "evaluation_vs_static": ("evaluation", forward),
        "routed_vs_masked_supernet": ("supernet_masked", seconds["supernet_routed"]),
        "routed_vs_masked_controller": ("controller_masked", seconds["controller_routed"]),
        "plain_static_vs_static": ("plain_static_train", same["train"]),
    }
    return {key: round(seconds[name] / by, 3) for key, (name, by) in compared.items()}


def shares(space) -> dict[str, float]:
    """Expected shares of ops on and MACs over the static network's, by arithmetic."""
    shape = (space.num_cells, space.num_ops)
    greedy = np.full(shape, _KEEP.value)
    found = {}
    for name, alpha in (("", 1.0), ("_sampled", _ALPHA.value), ("_alpha_0.8", PUBLISHED_ALPHA)):
        bits = policies.mix(greedy, alpha)
        found[f"ops_on{name}"] = float(np.mean(bits))
        found[f"ops_run{name}"] = float(np.mean(space.effective(bits)))
        found[f"macs_ratio{name}"] = steps.macs_ratio(space, bits)
    drawn = np.random.default_rng(_SEED.value)
    many = steps.make_policies(space, 1000, _KEEP.value, drawn)
    for name, alpha, shared in (
        ("", _ALPHA.value, True),
        ("_alpha_0.8", PUBLISHED_ALPHA, True),
        ("_unshared", _ALPHA.value, False),
    ):
        ratio = steps.controller_macs_ratio(space, many, alpha, shared, drawn)
        found[f"macs_ratio_controller{name}"] = ratio
    return {key: round(value, 3) for key, value in found.items()}


def peak_rss() -> float:
    """Largest memory of this process so far, in GiB."""
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 2**30


def memory_of_a_step(space, batch: int) -> float:
    """GiB that a routed supernet and its training step add to this process."""
    pair = steps.make_batch(space, batch, np.random.default_rng(_SEED.value))
    before = peak_rss()
    step = steps.supernet_step(space, True, _KEEP.value, _SEED.value)
    for _ in range(_ROUNDS.value):
        step(*pair)
    return peak_rss() - before


def memory_in_a_child() -> float:
    """`memory_of_a_step` in a process of its own; a peak says nothing after other steps."""
    given = (_SPACE, _WIDTH, _MERGE, _KEEP, _ROUNDS, _SEED)
    arguments = [f"--{flag.name}={flag.value}" for flag in given]
    done = subprocess.run(
        [sys.executable, __file__, "--memory", f"--batch={_MEMORY_BATCH.value}", *arguments],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])["peak_memory_gib"]


def main(argv):
    """Runs the benchmark and prints a table and the JSON line."""
    del argv
    keras.utils.set_random_seed(_SEED.value)
    space = spaces.get(_SPACE.value, _WIDTH.value, merge=_MERGE.value)
    if _MEMORY.value:
        peak = memory_of_a_step(space, _BATCH.value)
        print(json.dumps({"peak_memory_gib": round(peak, 2), "batch": _BATCH.value}))
        return
    memory = {}
    if _MEMORY_BATCH.value:
        memory["peak_memory_gib"] = memory_in_a_child()
        memory["peak_memory_batch"] = _MEMORY_BATCH.value
    batch = steps.make_batch(space, _BATCH.value, np.random.default_rng(_SEED.value))
    settings = (_SPACE.value, _WIDTH.value, _MERGE.value)
    worker = static_worker.StaticWorker(settings, _BATCH.value, _SEED.value)
    by_name = {**worker.steps, **make_steps(space)}
    wall, first = measure(by_name, batch, _ROUNDS.value, _SEED.value)
    worker.close()
    print(f"{'':28} {'median':>9} {'first call':>11}")
    for name in wall:
        print(f"{name:28} {wall[name] * 1e3:6.0f} ms {first[name]:9.1f} s")
    result = {
        **ratios(wall),
        **shares(space),
        **memory,
        "space": space.name,
        "width": _WIDTH.value,
        "merge": space.merge,
        "batch": _BATCH.value,
        "keep": _KEEP.value,
        "alpha": _ALPHA.value,
        "rounds": _ROUNDS.value,
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "onednn": os.environ.get("TF_ENABLE_ONEDNN_OPTS", "default"),
        "threads": [os.environ.get(f"TF_NUM_{k}OP_THREADS", "default") for k in ("INTRA", "INTER")],
        "kernel_cache": os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    app.run(main)
