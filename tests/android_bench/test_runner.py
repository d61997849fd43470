"""Tests of android_bench.runner: its parts here, the whole in a subprocess."""

import ast
import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from android_bench import runner

JOB = {
    "rounds": 2,
    "warmup_runs": 1,
    "min_runs": 3,
    "min_secs": 0.0,
    "max_secs": 10.0,
    "threads": 1,
    "seed": 0,
    "runtime": "auto",
}
# A runtime that prints wherever a runtime should not, and does what the file's content says.
_FAKE_RUNTIME = """
import os, signal
import numpy as np
print("chatter of python")
class Interpreter:
    def __init__(self, model_path, num_threads):
        content = open(model_path).read()
        os.write(1, b"chatter of C")
        if content == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if content == "fail":
            raise ValueError("bad\\nmodel\\x00")
    def allocate_tensors(self): pass
    def get_signature_list(self): return {"serving_default": {}}
    def get_input_details(self): return [{"index": 0, "shape": [1, 2], "dtype": np.int8}]
    def get_output_details(self): return [{"index": 1}]
    def set_tensor(self, index, value): pass
    def invoke(self): os.write(1, b"x")
    def get_tensor(self, index): return np.zeros(1, np.float32)
"""


class _Clock:
    """Nanoseconds that pass only when somebody runs a model."""

    def __init__(self, *durations_ns):
        self.now = 0
        self._durations = itertools.cycle(durations_ns)

    def __call__(self):
        return self.now

    def run(self):
        self.now += next(self._durations)


class _Interpreter:
    """Counts what is done with it; `output` and `signatures` are set by the tests."""

    output = np.zeros(1, np.float32)
    signatures = {"serving_default": {}}

    def __init__(self, model_path, num_threads):
        self.threads = num_threads
        self.calls = []

    def allocate_tensors(self):
        self.calls.append("allocate")

    def get_signature_list(self):
        return self.signatures

    def get_input_details(self):
        return [
            {"index": 4, "shape": np.array([1, 2]), "dtype": np.float32},
            {"index": 5, "shape": np.array([3]), "dtype": np.uint8},
        ]

    def get_output_details(self):
        return [{"index": 8}, {"index": 9}]

    def set_tensor(self, index, value):
        self.calls.append(f"set {index}")

    def invoke(self):
        self.calls.append("invoke")

    def get_tensor(self, index):
        self.calls.append(f"get {index}")
        return self.output


def _run_runner(job, tmp_path, *options):
    path = tmp_path / "job.json"
    path.write_text(job if isinstance(job, str) else json.dumps(job))
    command = [sys.executable, *options, runner.__file__, str(path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return ended.returncode, [json.loads(line) for line in ended.stdout.splitlines()], ended.stderr


def _job(folder, **contents):
    for name, content in contents.items():
        (folder / name).write_text(content)
    return {**JOB, "models": [{"name": name, "path": str(folder / name)} for name in contents]}


@pytest.fixture
def fake_runtime(tmp_path, monkeypatch):
    """Puts a fake tflite_runtime before the real one of a subprocess; returns its folder."""
    folder = tmp_path / "site" / "tflite_runtime"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "interpreter.py").write_text(_FAKE_RUNTIME)
    monkeypatch.setenv("PYTHONPATH", str(folder.parent))
    return folder


def test_runner_imports_nothing_that_a_device_lacks():
    tree = ast.parse(Path(runner.__file__).read_text())
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module.split(".")[0])
    assert names - set(sys.stdlib_module_names) == {"numpy"}


@pytest.mark.parametrize(
    ("dtype", "low", "high"),
    [(np.float32, 0, 1), (np.uint8, 0, 255), (np.int8, -128, 127), (np.int16, -32768, 32767)],
)
def test_random_input_spans_the_range_of_its_dtype(dtype, low, high):
    array = runner.random_input(np.array([50, 20], np.int32), dtype, np.random.default_rng(0))
    assert array.dtype == dtype
    assert array.shape == (50, 20)
    assert low <= array.min() < array.max() <= high
    # Of 1000 uniform draws all miss an outer quarter with a probability of 1e-125.
    assert array.min() < low + (high - low) / 4
    assert array.max() > high - (high - low) / 4


def test_random_input_of_the_same_seed_is_the_same():
    first, again, other = (
        runner.random_input([8], np.float32, np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    assert (first == again).all()
    assert (first != other).any()


def test_random_input_makes_indices_zero_and_refuses_text():
    rng = np.random.default_rng(0)
    assert runner.random_input([2], np.int64, rng).tolist() == [0, 0]
    with pytest.raises(ValueError, match="cannot be made up"):
        runner.random_input([1], np.str_, rng)


def test_summarise_golden_numbers():
    times = [3000, 1000, 2000, 4000]
    assert runner.summarise(times) == {
        "runs": 4,
        "median_us": 2.5,
        "min_us": 1.0,
        "p95_us": 4.0,
        "mean_us": 2.5,
    }


def test_summarise_p95_is_the_nearest_rank():
    assert runner.summarise(range(1000, 101000, 1000))["p95_us"] == 95.0
    assert runner.summarise([7000])["p95_us"] == 7.0


def test_visit_order_is_fresh_each_round_and_seeded():
    names = [f"m{number}" for number in range(20)]
    orders = runner.visit_order(names, 3, seed=5)
    assert [sorted(order) for order in orders] == [sorted(names)] * 3
    assert orders == runner.visit_order(names, 3, seed=5)
    assert orders != runner.visit_order(names, 3, seed=6)
    assert orders[0] != orders[1] != orders[2]


@pytest.mark.parametrize(
    ("limits", "run_ns", "expected_runs"),
    [
        ({"min_runs": 5, "min_secs": 0.0, "max_secs": 10.0}, 10**8, 5),
        ({"min_runs": 5, "min_secs": 1.0, "max_secs": 10.0}, 10**8, 10),
        ({"min_runs": 5, "min_secs": 0.0, "max_secs": 0.5}, 10**8, 5),
    ],
    ids=["min_runs", "min_secs", "max_secs just suffices"],
)
def test_time_runs_ends_when_both_minima_are_reached(limits, run_ns, expected_runs):
    clock = _Clock(run_ns)
    times = runner.time_runs(clock.run, {"warmup_runs": 2, **limits}, clock)
    assert times == [run_ns] * expected_runs
    assert clock.now == run_ns * (expected_runs + 2)


def test_time_runs_leaves_the_warm_up_out():
    clock = _Clock(900, 1, 2, 3)
    assert runner.time_runs(clock.run, {**JOB, "warmup_runs": 1}, clock) == [1, 2, 3]


def test_time_runs_refuses_too_few_runs():
    clock = _Clock(4 * 10**8)
    job = {"warmup_runs": 0, "min_runs": 30, "min_secs": 0.3, "max_secs": 1.0}
    with pytest.raises(ValueError, match="only 3 of 30 runs fitted into 1 s; raise --max_secs"):
        runner.time_runs(clock.run, job, clock)


def test_time_runs_bounds_the_warm_up():
    clock = _Clock(10**9)
    job = {"warmup_runs": 1000, "min_runs": 1, "min_secs": 0.0, "max_secs": 2.0}
    runner.time_runs(clock.run, job, clock)
    assert clock.now == 3 * 10**9


def test_a_run_sets_every_input_and_gets_every_output():
    interpreter = _Interpreter("", 1)
    model = runner.LoadedModel(interpreter, np.random.default_rng(0))
    model.run()
    assert interpreter.calls == ["set 4", "set 5", "invoke", "get 8", "get 9"]
    assert model.describe_inputs() == [
        {"shape": [1, 2], "dtype": "float32"},
        {"shape": [3], "dtype": "uint8"},
    ]


def test_load_model_refuses_several_signatures(monkeypatch):
    monkeypatch.setattr(_Interpreter, "signatures", {"a": {}, "b": {}})
    with pytest.raises(ValueError, match="2 signatures"):
        runner.load_model("m", 1, np.random.default_rng(0), _Interpreter)


def test_load_model_refuses_nan(monkeypatch):
    monkeypatch.setattr(_Interpreter, "output", np.array([0.0, np.nan], np.float32))
    with pytest.raises(ValueError, match="an output is NaN"):
        runner.load_model("m", 1, np.random.default_rng(0), _Interpreter)


def test_stdout_holds_the_lines_alone_however_the_runtime_chats(fake_runtime, tmp_path):
    code, lines, stderr = _run_runner(_job(tmp_path, a="good", b="good"), tmp_path)
    assert code == 0
    kinds = [line["type"] for line in lines]
    assert kinds == ["runtime", "loading", "model", "loading", "model"] + ["visit"] * 4
    assert lines[0]["name"] == "tflite_runtime"
    assert lines[0]["library"] is None
    assert lines[0]["sha256"] is None
    assert lines[2]["inputs"] == [{"shape": [1, 2], "dtype": "int8"}]
    assert {(line["model"], line["round"]) for line in lines[5:]} == {
        ("a", 0),
        ("b", 0),
        ("a", 1),
        ("b", 1),
    }
    assert all(line["runs"] == 3 for line in lines[5:])
    assert "chatter of python" in stderr
    assert "chatter of C" in stderr


def test_a_model_that_fails_is_named_in_one_line(fake_runtime, tmp_path):
    code, lines, _ = _run_runner(_job(tmp_path, a="good", b="fail"), tmp_path)
    assert code == 5
    assert lines[-1]["model"] == "b"
    assert lines[-1]["error"].startswith("cannot be loaded or run (bad model); export it again")


def test_a_runtime_that_does_not_load_is_named(fake_runtime, tmp_path):
    (fake_runtime / "interpreter.py").write_text("raise ImportError('wrong numpy')")
    code, lines, _ = _run_runner(_job(tmp_path, a="good"), tmp_path)
    assert code == 5
    expected = (
        "tflite_runtime does not load: wrong numpy; "
        "reinstall tflite-runtime or give another --runtime"
    )
    assert lines == [{"error": expected, "model": None}]


@pytest.mark.parametrize(
    ("choice", "pip_names"),
    [
        ("auto", "tflite-runtime or ai-edge-litert"),
        ("tflite_runtime", "tflite-runtime"),
        ("ai_edge_litert", "ai-edge-litert"),
    ],
)
def test_without_a_runtime_it_says_what_to_install(tmp_path, choice, pip_names):
    # -S and -I leave nothing but the standard library to be found, so not even numpy.
    code, lines, _ = _run_runner(
        {**_job(tmp_path, a="good"), "runtime": choice}, tmp_path, "-S", "-I"
    )
    assert code == 5
    assert len(lines) == 1
    assert lines[0]["model"] is None
    assert lines[0]["error"].startswith("no TFLite runtime")
    assert lines[0]["error"].endswith(f"; pip install {pip_names}")


def test_a_job_that_is_no_json_is_an_error(tmp_path):
    code, lines, _ = _run_runner("{", tmp_path)
    assert code == 5
    assert lines[0]["error"].startswith("cannot read the job")


def test_a_real_runtime_runs_real_models(tflite_folder, tmp_path):
    paths = [tflite_folder / "float.tflite", tflite_folder / "two.tflite"]
    job = {**JOB, "models": [{"name": path.stem, "path": str(path)} for path in paths]}
    code, lines, stderr = _run_runner(job, tmp_path)
    assert code == 0, stderr
    assert lines[0]["name"] in runner.PIP_NAMES
    assert lines[0]["version"][0].isdigit()
    if sys.platform == "linux":
        assert len(lines[0]["sha256"]) == 64
    loaded = {line["model"]: line for line in lines if line["type"] == "model"}
    image = {"shape": [1, 4, 4, 3], "dtype": "float32"}
    assert loaded["float"]["inputs"] == [image]
    two_inputs = sorted(loaded["two"]["inputs"], key=lambda item: item["dtype"])
    assert two_inputs == [image, {"shape": [1, 5], "dtype": "uint8"}]
    visits = [line for line in lines if line["type"] == "visit"]
    assert len(visits) == 4
    assert all(0 < v["min_us"] <= v["median_us"] <= v["p95_us"] for v in visits)


def test_a_real_model_without_numbers_is_refused(tflite_folder, tmp_path):
    job = {**JOB, "models": [{"name": "nan", "path": str(tflite_folder / "nan.tflite")}]}
    code, lines, _ = _run_runner(job, tmp_path)
    assert code == 5
    assert "an output is NaN" in lines[-1]["error"]
