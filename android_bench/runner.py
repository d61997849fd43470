"""Times TFLite models on the machine it runs on: `python runner.py JOB.json`.

This one file is copied to the device, so it imports only the standard library, numpy and a TFLite
runtime, and keeps to the syntax of older Pythons. The job is one JSON object:

    {"models": [{"name": NAME, "path": PATH}, ...], "rounds": R, "warmup_runs": N, "min_runs": N,
     "min_secs": S, "max_secs": S, "threads": N, "seed": N, "runtime": "auto" or a package}

Standard output carries JSON lines and nothing else; whatever the runtime prints goes to standard
error. First comes a `runtime` line, then for each model a `loading` and a `model` line, then a
`visit` line for each model in each round. A failure is a line {"error": ..., "model": ...} and
exit code 5.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
import json
import os
import random
import statistics
import sys
import time

EXIT_FAILED = 5
PIP_NAMES = {"tflite_runtime": "tflite-runtime", "ai_edge_litert": "ai-edge-litert"}
_MODEL_FAILURES = (ValueError, RuntimeError, OSError, MemoryError)


class RunFailed(Exception):
    """The job cannot be done.

    Args:
        message: Why, and what to do next.
        model: The name of the model at fault, if one is.
    """

    def __init__(self, message, model=None):
        super().__init__(one_line(message))
        self.model = model


class LoadedModel:
    """A model that is ready to run, and the random inputs that it is run on.

    Args:
        interpreter: An interpreter of the runtime, its tensors allocated.
        rng: The `numpy.random.Generator` that the inputs are drawn from.
    """

    def __init__(self, interpreter, rng):
        self._interpreter = interpreter
        details = interpreter.get_input_details()
        self._inputs = [(d["index"], random_input(d["shape"], d["dtype"], rng)) for d in details]
        self._outputs = [d["index"] for d in interpreter.get_output_details()]

    def describe_inputs(self):
        """Returns shape and dtype of each input, as plain JSON values."""
        return [{"shape": list(a.shape), "dtype": a.dtype.name} for _, a in self._inputs]

    def run(self):
        """Does what is timed: set the inputs, invoke, get the outputs."""
        for index, array in self._inputs:
            self._interpreter.set_tensor(index, array)
        self._interpreter.invoke()
        for index in self._outputs:
            self._interpreter.get_tensor(index)

    def check_outputs(self):
        """Raises a ValueError if an output of the last run is not a number.

        Some runtimes run a file whose weights were lost in the export, and time nonsense.
        """
        for index in self._outputs:
            array = self._interpreter.get_tensor(index)
            if array.dtype.kind == "f" and (array != array).any():
                raise ValueError("an output is NaN, as if weights were lost in the export")


def one_line(text):
    """Returns a text without line breaks and unprintable characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())


def random_input(shape, dtype, rng):
    """Draws an input tensor.

    Args:
        shape: The sizes.
        dtype: A numpy dtype or scalar type.
        rng: A `numpy.random.Generator`.

    Returns:
        Uniform values: in [0, 1) for floats, over the whole range for the quantized types. Zeros
        for wide integers, since those may be indices into a tensor of unknown size.

    Raises:
        ValueError: The dtype is none of these.
    """
    import numpy as np

    dtype, shape = np.dtype(dtype), tuple(int(size) for size in shape)
    if dtype.kind == "f":
        return rng.random(shape).astype(dtype)
    if dtype.name in ("uint8", "int8", "int16"):
        limits = np.iinfo(dtype)
        return rng.integers(limits.min, limits.max, shape, dtype=dtype, endpoint=True)
    if dtype.kind in "iub":
        return np.zeros(shape, dtype)
    raise ValueError(f"an input of type {dtype.name} cannot be made up; use floats or integers")


def find_runtime(choice):
    """Imports a TFLite runtime.

    Args:
        choice: "auto" for the first one installed, or the name of a package.

    Returns:
        The package's name and its Interpreter class.

    Raises:
        RunFailed: None is installed, or it does not load.
    """
    names = list(PIP_NAMES) if choice == "auto" else [choice]
    installed = [name for name in names if importlib.util.find_spec(name) is not None]
    if not installed:
        wanted = " or ".join(PIP_NAMES[name] for name in names)
        raise RunFailed(
            f"no TFLite runtime ({' or '.join(names)}) for {sys.executable}; pip install {wanted}"
        )
    name = installed[0]
    try:
        return name, importlib.import_module(name + ".interpreter").Interpreter
    except (ImportError, AttributeError) as error:
        raise RunFailed(
            f"{name} does not load: {error}; reinstall {PIP_NAMES[name]} or give another --runtime"
        ) from error


def describe_runtime(name):
    """Returns name, version, and file name and sha256 of the loaded native library.

    Args:
        name: An imported runtime package.
    """
    package = importlib.import_module(name)
    try:
        version = importlib.metadata.version(PIP_NAMES[name])
    except importlib.metadata.PackageNotFoundError:
        version = getattr(package, "__version__", None)
    library = _native_library(os.path.dirname(os.path.abspath(package.__file__)))
    return {
        "name": name,
        "version": version,
        "library": library and os.path.basename(library),
        "sha256": library and _file_sha256(library),
    }


def _native_library(folder):
    """Returns the largest library of a folder that this process has mapped, or None.

    The largest one holds the kernels; the others only bind it to Python.
    """
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
            words = [line.rstrip("\n").split(None, 5) for line in maps]
    except OSError:
        return None
    prefix = os.path.join(os.path.realpath(folder), "")
    mapped = {w[5] for w in words if len(w) == 6 and w[5].startswith(prefix) and ".so" in w[5]}
    return max(sorted(mapped), key=os.path.getsize, default=None)


def _file_sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def load_model(path, threads, rng, interpreter_class, clock=time.perf_counter_ns):
    """Loads a model and runs it once.

    Args:
        path: The .tflite file.
        threads: Number of threads.
        rng: A `numpy.random.Generator` for its inputs.
        interpreter_class: The runtime's Interpreter.
        clock: Returns nanoseconds.

    Returns:
        The model, the µs to load it, and the µs of its first run.

    Raises:
        ValueError: The file has several signatures, of which only the first would be run, or an
            output is NaN.
    """
    begin = clock()
    interpreter = interpreter_class(model_path=path, num_threads=threads)
    interpreter.allocate_tensors()
    init_us = (clock() - begin) / 1e3
    signatures = interpreter.get_signature_list()
    if len(signatures) > 1:
        raise ValueError(
            f"the file has {len(signatures)} signatures; measure files that have one each"
        )
    model = LoadedModel(interpreter, rng)
    begin = clock()
    model.run()
    first_us = (clock() - begin) / 1e3
    model.check_outputs()
    return model, init_us, first_us


def time_runs(run, job, clock=time.perf_counter_ns):
    """Does one visit: warm-up runs, then timed runs.

    Args:
        run: Called for each run.
        job: The limits `warmup_runs`, `min_runs`, `min_secs` and `max_secs`; the last holds for
            the warm-up runs and for the timed runs alike.
        clock: Returns nanoseconds.

    Returns:
        The ns of each timed run.

    Raises:
        ValueError: `max_secs` were over before `min_runs` were done.
    """
    limit_ns = job["max_secs"] * 1e9
    begin = clock()
    for _ in range(job["warmup_runs"]):
        run()
        if clock() - begin >= limit_ns:
            break
    times, elapsed = [], 0
    begin = clock()
    while (len(times) < job["min_runs"] or elapsed < job["min_secs"] * 1e9) and elapsed < limit_ns:
        start = clock()
        run()
        end = clock()
        times.append(end - start)
        elapsed = end - begin
    if len(times) < job["min_runs"]:
        raise ValueError(
            f"only {len(times)} of {job['min_runs']} runs fitted into {job['max_secs']:g} s; "
            "raise --max_secs or lower --min_runs"
        )
    return times


def summarise(times_ns):
    """Returns the numbers of a visit in µs; p95 is the nearest rank.

    Args:
        times_ns: The ns of each timed run.
    """
    ordered = sorted(times_ns)
    rank = -(-95 * len(ordered) // 100)
    return {
        "runs": len(ordered),
        "median_us": statistics.median(ordered) / 1e3,
        "min_us": ordered[0] / 1e3,
        "p95_us": ordered[rank - 1] / 1e3,
        "mean_us": sum(ordered) / len(ordered) / 1e3,
    }


def visit_order(names, rounds, seed):
    """Returns the names in a fresh order for each round; the same seed gives the same orders."""
    rng = random.Random(seed)
    return [rng.sample(names, len(names)) for _ in range(rounds)]


def run_job(job, emit):
    """Loads every model of a job and measures them in rounds.

    Args:
        job: The job, as the head of this file describes it.
        emit: Called with each line as a dict.

    Raises:
        RunFailed: A model or the runtime failed.
    """
    name, interpreter_class = find_runtime(job["runtime"])
    import numpy as np  # After the runtime, so that a bare Python is told to install that.

    emit({"type": "runtime", **describe_runtime(name)})
    loaded = {}
    for index, entry in enumerate(job["models"]):
        emit({"type": "loading", "model": entry["name"]})
        rng = np.random.default_rng([job["seed"], index])
        try:
            model, init_us, first_us = load_model(
                entry["path"], job["threads"], rng, interpreter_class
            )
        except _MODEL_FAILURES as error:
            raise RunFailed(
                f"cannot be loaded or run ({one_line(error)}); "
                "export it again or try another --runtime",
                entry["name"],
            ) from error
        loaded[entry["name"]] = model
        line = {"type": "model", "model": entry["name"], "init_us": init_us, "first_us": first_us}
        emit({**line, "inputs": model.describe_inputs()})
    for number, order in enumerate(visit_order(list(loaded), job["rounds"], job["seed"])):
        for model_name in order:
            try:
                times = time_runs(loaded[model_name].run, job)
            except _MODEL_FAILURES as error:
                raise RunFailed(error, model_name) from error
            emit({"type": "visit", "model": model_name, "round": number, **summarise(times)})


def _read_job(path):
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError) as error:
        raise RunFailed(f"cannot read the job {path}: {error}") from error


def main(argv):
    """Runs the job in the file named by the only argument; returns the exit code."""
    # The runtimes chat on descriptor 1 as they like: it becomes standard error, and the lines go
    # to a private copy of the real standard output.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out:
        os.dup2(2, 1)

        def emit(line):
            out.write(json.dumps(line, allow_nan=False) + "\n")
            out.flush()

        try:
            run_job(_read_job(argv[0]), emit)
        except RunFailed as failure:
            emit({"error": str(failure), "model": failure.model})
            return EXIT_FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
