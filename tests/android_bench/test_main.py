"""Tests of android_bench.__main__: most in this process, the endings in a subprocess."""

import os
import signal
import subprocess
import sys
import time

import pytest

from android_bench.__main__ import main, newest_manifest
from android_bench.errors import ParseError
from android_bench.measurement import read_measurements

_COMMAND = [sys.executable, "-m", "android_bench"]
_FAST = ["--rounds=2", "--warmup_runs=1", "--min_runs=3", "--min_secs=0"]


def _fails(capsys, arguments, code):
    """Runs the command, expects one line on standard error and nothing else; returns the line."""
    assert main(arguments) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("android_bench: ")
    assert err.count("\n") == 1
    return err


@pytest.fixture
def canned(monkeypatch, fake_device, runner_lines, as_text):
    """Puts a device that replays one round of model `a` in the place of the host."""
    device = fake_device(as_text(runner_lines({"a": [2000.0]})))
    monkeypatch.setattr("android_bench.__main__.open_device", lambda spec: device)
    return device


@pytest.mark.parametrize(
    ("argument", "complaint"),
    [
        ("--nonsense", "unrecognized arguments: --nonsense"),
        ("--round=1", "unrecognized arguments: --round=1"),
        ("--rounds=x", "--rounds: invalid int value: 'x'"),
        ("--rounds=0", "`rounds` must be a whole number of at least 1"),
        ("--max_secs=nan", "`max_secs` must be a finite number"),
        ("--max_secs=0.1", "`max_secs` must be above 0 and at least `min_secs`"),
        ("--runtime=torch", "--runtime: invalid choice: 'torch'"),
    ],
)
def test_wrong_usage_is_one_line(capsys, argument, complaint):
    line = _fails(capsys, [argument], 2)
    assert complaint in line
    assert "see android_bench --help" in line


def test_a_missing_manifest_is_one_line(capsys, tmp_path):
    line = _fails(capsys, [f"--manifest={tmp_path}/no\nfile"], 2)
    assert "cannot read manifest" in line


def test_an_unknown_device_is_one_line(capsys, make_manifest):
    line = _fails(capsys, [f"--manifest={make_manifest({'a': b'a'})}", "--device=toaster"], 2)
    assert "unknown device 'toaster'; give --device=host" in line


@pytest.mark.parametrize("out", ["nowhere/m.jsonl", "", "manifest.json/m.jsonl"])
def test_an_output_that_cannot_be_written_is_found_before_measuring(
    capsys, make_manifest, tmp_path, canned, out
):
    manifest = make_manifest({"a": b"a"})
    line = _fails(capsys, [f"--manifest={manifest}", f"--out={tmp_path / out}"], 2)
    assert "give --out a file in a folder that exists" in line
    assert canned.commands == []


def test_without_an_export_it_says_what_to_run(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "run `export_tflite --expert=all` first" in _fails(capsys, [], 2)


def test_newest_manifest_goes_by_time_of_change(tmp_path, make_manifest):
    paths = [make_manifest({"a": b"a"}, tmp_path / "runs" / name / "export") for name in "abc"]
    for path, moment in zip(paths, (10, 30, 20), strict=True):
        os.utime(path, (moment, moment))
    make_manifest({"a": b"a"}, tmp_path / "runs" / "deep" / "er" / "export")
    assert newest_manifest(tmp_path) == paths[1]


def test_defaults_find_the_manifest_and_write_beside_it(
    capsys, tmp_path, make_manifest, monkeypatch, canned
):
    manifest = make_manifest({"a": b"a"}, tmp_path / "runs" / "x" / "export")
    monkeypatch.chdir(tmp_path)
    assert main(["--rounds=1"]) == 0
    out, err = capsys.readouterr()
    written = manifest.with_name("measurements.jsonl")
    assert read_measurements(written)[0].median_ms == 2.0
    assert out.splitlines()[-1] == f"Wrote {written}"
    assert out.splitlines()[1].split() == ["a", "2.0000", "-", "1.9990", "2.0100", "30", "0.0"]
    assert f"measuring the models of {manifest}" in err
    assert "measuring 1/1 visits" in err
    assert canned.closed == 1


def test_flags_reach_the_job(capsys, make_manifest, tmp_path, canned):
    flags = ["--rounds=1", "--warmup_runs=4", "--min_runs=5", "--min_secs=0.5", "--max_secs=6"]
    flags += ["--threads=2", "--seed=8", "--runtime=ai_edge_litert"]
    manifest, out = make_manifest({"a": b"a"}), tmp_path / "out.jsonl"
    assert main([f"--manifest={manifest}", f"--out={out}", *flags]) == 0
    del canned.job["models"]
    assert canned.job == {
        "rounds": 1,
        "warmup_runs": 4,
        "min_runs": 5,
        "min_secs": 0.5,
        "max_secs": 6.0,
        "threads": 2,
        "seed": 8,
        "runtime": "ai_edge_litert",
    }
    assert out.exists()


def test_a_parse_error_shows_the_last_lines_and_writes_nothing(
    capsys, make_manifest, tmp_path, canned
):
    manifest = make_manifest({"a": b"a"})
    assert main([f"--manifest={manifest}", "--rounds=2"]) == ParseError.exit_code == 6
    out, err = capsys.readouterr()
    assert out == ""
    assert "android_bench: cannot read the runner's output: model 'a' has 1 visits" in err
    assert '"median_us": 2000.0' in err
    assert not (tmp_path / "measurements.jsonl").exists()
    assert canned.closed == 1


def test_ctrl_c_is_one_line_and_closes_the_device(capsys, make_manifest, monkeypatch, canned):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(canned, "run", interrupt)
    assert main([f"--manifest={make_manifest({'a': b'a'})}"]) == 130
    err = capsys.readouterr().err
    assert err.splitlines()[-1] == "android_bench: interrupted; nothing was written"
    assert canned.closed == 1


def test_sigterm_is_as_before_afterwards(capsys):
    before = signal.getsignal(signal.SIGTERM)
    assert main(["--rounds=0"]) == 2
    assert signal.getsignal(signal.SIGTERM) is before


def test_help_lists_flags_and_exit_codes(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    flags = "manifest device out rounds warmup_runs min_runs min_secs max_secs threads seed runtime"
    assert all(f"--{flag}" in out for flag in flags.split())
    codes = out[out.index("exit codes:") :].split()
    assert all(code in codes for code in ("0", "2", "4", "5", "6", "130"))


def test_the_command_line_loads_no_heavy_module():
    code = (
        "import sys, android_bench.__main__\n"
        "heavy = {'numpy', 'tflite_runtime', 'ai_edge_litert', 'tensorflow'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ended.stdout == "[]\n"


def test_the_whole_command(command_env, tflite_folder, make_manifest, tmp_path):
    manifest = make_manifest({"float": (tflite_folder / "float.tflite").read_bytes()})
    command = [*_COMMAND, f"--manifest={manifest}", *_FAST]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.endswith(f"Wrote {tmp_path / 'measurements.jsonl'}\n")
    measured = read_measurements(tmp_path / "measurements.jsonl")
    assert [(item.model, item.runs, item.rounds) for item in measured] == [("float", 6, 2)]


@pytest.mark.parametrize(
    ("number", "code", "message"),
    [
        (signal.SIGINT, 130, "android_bench: interrupted; nothing was written\n"),
        (signal.SIGTERM, 143, ""),
    ],
)
def test_a_signal_ends_the_command_its_child_and_its_files(
    command_env, make_manifest, tmp_path, monkeypatch, number, code, message
):
    # A runtime that says where it runs, then hangs.
    package = tmp_path / "site" / "tflite_runtime"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    hang = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))"
    (package / "interpreter.py").write_text(f"{hang}; time.sleep(600)")
    monkeypatch.setenv("PYTHONPATH", f"{package.parent}{os.pathsep}{os.environ['PYTHONPATH']}")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    manifest = make_manifest({"a": b"a"})
    with subprocess.Popen(
        [*_COMMAND, f"--manifest={manifest}"], stderr=subprocess.PIPE, text=True
    ) as command:
        child = _wait_for_pid(tmp_path / "pid", command)
        command.send_signal(number)
        _, err = command.communicate(timeout=60)
    assert command.returncode == code
    assert err == "measuring 0/5 visits\n" + message
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
    assert list((tmp_path / "temporary").iterdir()) == []


def _wait_for_pid(path, command):
    for _ in range(6000):
        if command.poll() is not None:
            break
        try:
            return int(path.read_text())
        except (FileNotFoundError, ValueError):
            time.sleep(0.01)
    command.kill()
    raise AssertionError(f"the runtime was not started: {command.stderr.read()}")
