"""What the tests of android_bench share: tiny models, a manifest, a device that replays lines."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

import android_bench
from android_bench.device import Completed, Device
from android_bench.manifest import ModelFile
from android_bench.measurement import Measurement

# TensorFlow and a TFLite runtime do not live in one process, so the models are made in a child.
_MAKE_MODELS = """
import sys
from pathlib import Path
import tensorflow as tf

def save(name, function, *specs):
    module = tf.Module()
    concrete = tf.function(function, input_signature=specs).get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], module)
    Path(sys.argv[1], name + ".tflite").write_bytes(converter.convert())

image = tf.TensorSpec([1, 4, 4, 3], tf.float32)
save("float", lambda x: tf.nn.relu(tf.reduce_mean(x, [1, 2])), image)
save("nan", lambda x: tf.math.log(x - 2.0), image)
save(
    "two",
    lambda x, y: (x + 1.0, tf.cast(y, tf.float32) * 2.0),
    image,
    tf.TensorSpec([1, 5], tf.uint8),
)
"""


@pytest.fixture(scope="session")
def tflite_folder(tmp_path_factory) -> Path:
    """A folder with float.tflite, nan.tflite and two.tflite."""
    folder = tmp_path_factory.mktemp("models")
    made = subprocess.run(
        [sys.executable, "-c", _MAKE_MODELS, str(folder)], capture_output=True, text=True
    )
    assert made.returncode == 0, made.stderr[-2000:]
    return folder


@pytest.fixture
def command_env(monkeypatch):
    """Lets a subprocess find the package, wherever it is started."""
    monkeypatch.setenv("PYTHONPATH", str(Path(android_bench.__file__).parents[1]))


def model_entry(path: Path, **changes) -> dict:
    """One entry of a manifest for a file."""
    content = path.read_bytes()
    entry = {
        "name": path.stem,
        "kind": "expert",
        "file": path.name,
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
    }
    return {**entry, **changes}


@pytest.fixture
def make_manifest(tmp_path):
    """Writes a manifest of files with the given contents; keywords change the whole of it."""

    def make(contents: dict[str, bytes], folder: Path = tmp_path, **changes) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            (folder / f"{name}.tflite").write_bytes(content)
        entries = [model_entry(folder / f"{name}.tflite") for name in contents]
        manifest = {"format": "instanas_tf/manifest", "version": 2, "models": entries, "more": 1}
        path = folder / "manifest.json"
        path.write_text(json.dumps({**manifest, **changes}))
        return path

    return make


@pytest.fixture
def make_models(tmp_path):
    """Makes model files that nobody runs."""

    def make(*names: str) -> list[ModelFile]:
        return [ModelFile(name, "expert", tmp_path / name, "0" * 64, 2048) for name in names]

    return make


class FakeDevice(Device):
    """Replays the output of a runner and remembers what it was asked."""

    name = "fake"
    python = ("fakepython",)

    def __init__(self, stdout: str = "", stderr: str = "", exit_code: int = 0):
        self.completed = Completed(exit_code, stdout, stderr)
        self.commands: list[list[str]] = []
        self.pushed: list[Path] = []
        self.job: dict = {}
        self.closed = 0

    def fingerprint(self):
        return {"id": "1", "model": "m", "soc": "s", "abi": "a", "os": "o", "cores": 2}

    def push(self, path):
        self.pushed.append(path)
        if path.name == "job.json":
            self.job = json.loads(path.read_text())
        return f"/device/{path.name}"

    def run(self, command, timeout_s, on_line=None):
        self.commands.append(list(command))
        for line in self.completed.stdout.splitlines():
            if on_line is not None:
                on_line(line)
        return self.completed

    def close(self):
        self.closed += 1


@pytest.fixture
def fake_device():
    """The class FakeDevice."""
    return FakeDevice


RUNTIME_LINE = {
    "type": "runtime",
    "name": "tflite_runtime",
    "version": "2.14.0",
    "library": None,
    "sha256": None,
}
INPUTS = [{"shape": [1, 4, 4, 3], "dtype": "float32"}]


def visit_line(model: str, number: int, median_us: float, **changes) -> dict:
    """A visit line whose other numbers follow from the median."""
    line = {
        "type": "visit",
        "model": model,
        "round": number,
        "runs": 30,
        "median_us": median_us,
        "min_us": median_us - 1,
        "p95_us": median_us + 10,
        "mean_us": median_us + 2,
    }
    return {**line, **changes}


@pytest.fixture
def runner_lines():
    """Makes the lines of a good run as dicts: `{"a": [medians in us of the rounds]}`."""

    def make(medians_us: dict[str, list[float]]) -> list[dict]:
        lines = [RUNTIME_LINE]
        for name in medians_us:
            lines.append({"type": "loading", "model": name})
            loaded = {"type": "model", "model": name, "init_us": 900.0, "first_us": 700.0}
            lines.append({**loaded, "inputs": INPUTS})
        for number in range(len(next(iter(medians_us.values())))):
            lines += [visit_line(name, number, medians_us[name][number]) for name in medians_us]
        return lines

    return make


@pytest.fixture
def as_text():
    """Joins dicts to the standard output of a runner."""
    return lambda lines: "".join(json.dumps(line) + "\n" for line in lines)


@pytest.fixture
def measurement_values() -> dict:
    """The values of a valid measurement."""
    return {
        "model": "a",
        "sha256": "0" * 64,
        "median_ms": 2.0,
        "iqr_ms": 0.25,
        "min_ms": 1.5,
        "p95_ms": 3.0,
        "first_ms": 4.0,
        "init_ms": 5.0,
        "runs": 150,
        "rounds": 5,
        "emulated": False,
        "device": {"name": "host", "id": "1", "model": "m", "soc": "s", "abi": "a", "os": "o"}
        | {"cores": 2},
        "runtime": {"name": "tflite_runtime", "version": "2.14.0", "sha256": None},
        "protocol": {"rounds": 5, "threads": 1},
        "time": "2025-01-02T03:04:05+00:00",
    }


@pytest.fixture
def measurement(measurement_values) -> Measurement:
    """A valid measurement."""
    return Measurement(**measurement_values)
