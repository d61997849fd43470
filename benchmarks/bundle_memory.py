"""Size, memory and latency of one file with many signatures, beside files of one expert each.

    python benchmarks/bundle_memory.py [--space=mobilenet_v2_32] [--experts=8] [--rounds=100]

Experts with random weights and normalisation statistics of their own are converted and merged.
Each case of memory runs in a fresh process, which has loaded the runtime and reads how much its
resident set has grown once all experts of the case have run; latencies are taken in turns in one
process. The last line is a JSON object.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

import numpy as np
from absl import app, flags

from export.bundled import SignatureModel, signatures
from export.runtime import RUNTIMES, TfliteModel

BUNDLE = "instanas.tflite"
FORMS = ("files", "cut_out", "whole")
_SPACE = flags.DEFINE_string("space", "mobilenet_v2_32", "Search space.")
_EXPERTS = flags.DEFINE_integer("experts", 8, "Number of experts.", lower_bound=2)
_ROUNDS = flags.DEFINE_integer("rounds", 100, "Runs of each expert in each form.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Of weights, policies and images.")
_FOLDER = flags.DEFINE_string("folder", None, "Keep the files here, and use those that are there.")
_CASE = flags.DEFINE_string("case", None, "Used inside: RUNTIME:FORM:NUMBER or RUNTIME:latency.")


def write_files(folder: pathlib.Path) -> None:
    """Writes experts of one supernet, and the bundle, into a folder."""
    import keras

    from export import bundle, convert
    from instanas_tf import spaces
    from instanas_tf.models.expert import build_expert, recalibrate
    from instanas_tf.models.supernet import Supernet

    keras.utils.set_random_seed(_SEED.value)
    generator = np.random.default_rng(_SEED.value)
    space = spaces.get(_SPACE.value)
    size, shape = space.image_size, (space.num_cells, space.num_ops)
    net = Supernet(space)
    net((np.zeros((1, size, size, 3), np.float32), np.ones((1, *shape), np.float32)))
    batches = [generator.uniform(0, 255, (32, size, size, 3)).astype(np.float32) for _ in "ab"]
    models = {}
    for number in range(_EXPERTS.value):
        share = 0.15 + 0.3 * number / (_EXPERTS.value - 1)  # Of ops that are on.
        network = build_expert(net, (generator.random(shape) < share).astype(np.float32))
        recalibrate(network, [batch * generator.uniform(0.3, 1.0) for batch in batches])
        outputs = keras.layers.Softmax()(network.output)
        models[f"expert_{number:02d}"] = keras.Model(network.input, outputs)
    paths = convert.write_models(models, folder, dict.fromkeys(models, (1, size, size, 3)))
    bundle.merge(paths, folder / BUNDLE)


def resident_mib() -> float:
    """Resident set of this process."""
    text = pathlib.Path("/proc/self/status").read_text(encoding="utf-8")
    return int(re.search(r"VmRSS:\s+(\d+)", text).group(1)) / 1024


def load(folder: pathlib.Path, form: str, names, runtime: str):
    """A function for each name: image -> probabilities.

    Args:
        folder: of the files.
        form: `files`: each of its own; `cut_out`: `SignatureModel`; `whole`: the signature runners
            of one interpreter that has the whole bundle.
        names: of signatures.
        runtime: one of `RUNTIMES`.
    """
    if form == "whole":
        module = importlib.import_module(RUNTIMES[runtime])
        whole = module.Interpreter(str(folder / BUNDLE), num_threads=1)
        whole.allocate_tensors()  # Without this, tflite-runtime 2.14 does not use XNNPACK.
        runners = [whole.get_signature_runner(name) for name in names]
        return [lambda image, run=run: run(images=image)["probabilities"] for run in runners]
    models = [
        TfliteModel(folder / f"{name}.tflite", runtime=runtime)
        if form == "files"
        else SignatureModel(folder / BUNDLE, name, runtime=runtime)
        for name in names
    ]
    indices = [model.output("f", 2).index for model in models]
    pairs = zip(models, indices, strict=True)
    return [lambda image, pair=pair: pair[0].run_one(image, pair[1]) for pair in pairs]


def image_of(folder: pathlib.Path, runtime: str) -> np.ndarray:
    """One random image that the experts take."""
    name = signatures(folder / BUNDLE)[0]
    shape = SignatureModel(folder / BUNDLE, name, runtime=runtime).input_shape
    return np.random.default_rng(_SEED.value).uniform(0, 255, shape).astype(np.float32)


def memory(folder: pathlib.Path, runtime: str, form: str, number: int) -> float:
    """MiB that the process grows by when the first `number` experts have run."""
    importlib.import_module(RUNTIMES[runtime])
    image = np.load(folder / "image.npy")
    before = resident_mib()
    runs = load(folder, form, signatures(folder / BUNDLE)[:number], runtime)
    for run in runs:
        run(image)
    return resident_mib() - before


def latency(folder: pathlib.Path, runtime: str) -> dict[str, float]:
    """Ratios of median latency to that of the files, over all experts, and the difference."""
    names = signatures(folder / BUNDLE)
    forms = {form: load(folder, form, names, runtime) for form in FORMS}
    image = np.load(folder / "image.npy")
    expected = [run(image) for run in forms["files"]]
    found = {}
    for form in FORMS[1:]:
        rows = [run(image) for run in forms[form]]
        pairs = zip(rows, expected, strict=True)
        found[f"{form}_difference"] = max(float(np.abs(a - b).max()) for a, b in pairs)
    taken = np.zeros((len(FORMS), len(names), _ROUNDS.value))
    order = np.random.default_rng(_SEED.value)
    for position in range(_ROUNDS.value):
        for index in range(len(names)):
            for form in order.permutation(len(FORMS)):
                start = time.perf_counter()
                forms[FORMS[form]][index](image)
                taken[form, index, position] = time.perf_counter() - start
    medians = np.median(taken, axis=-1)
    for number, form in enumerate(FORMS[1:], 1):
        found[f"{form}_latency"] = float(np.mean(medians[number] / medians[0]))
    return found


def _in_a_process(folder: pathlib.Path, case: str):
    arguments = [f"--case={case}", f"--folder={folder}", f"--rounds={_ROUNDS.value}"]
    root = pathlib.Path(__file__).resolve().parent.parent
    path = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, __file__, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    if done.returncode:
        raise RuntimeError(f"{case} failed: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _case(folder: pathlib.Path, case: str):
    runtime, form, *number = case.split(":")
    if form == "image":
        np.save(folder / "image.npy", image_of(folder, runtime))
        return None
    if form == "latency":
        return latency(folder, runtime)
    return memory(folder, runtime, form, int(number[0]))


def _measure(folder: pathlib.Path) -> dict:
    if not (folder / BUNDLE).is_file():
        write_files(folder)
    paths = sorted(folder.glob("expert_*.tflite"))
    sizes = [path.stat().st_size for path in paths]
    size = (folder / BUNDLE).stat().st_size
    found: dict = {"experts": len(paths), "size_ratio": size / sum(sizes), "mib": size / 2**20}
    installed = [name for name in RUNTIMES if importlib.util.find_spec(name)]
    _in_a_process(folder, f"{installed[0]}:image")
    for runtime in installed:
        rows = found[runtime] = _in_a_process(folder, f"{runtime}:latency")
        for form in FORMS:
            for number in (1, len(paths)):
                key = f"{form}_{'one' if number == 1 else 'all'}_mib"
                rows[key] = round(_in_a_process(folder, f"{runtime}:{form}:{number}"), 1)
    return found


def main(_) -> None:
    """Runs the benchmark, or one case of it."""
    if _CASE.value:
        print(json.dumps(_case(pathlib.Path(_FOLDER.value), _CASE.value)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(_FOLDER.value or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        print(json.dumps(_measure(folder)))


if __name__ == "__main__":
    app.run(main)
