"""Tests of android_bench.host."""

import json
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from android_bench.errors import DeviceError
from android_bench.host import HostDevice, _processor_name

# Says its process id, then never ends by itself.
_SLEEPER = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
# The same, but the sleeper is a grandchild that holds the pipes after the child has ended.
_ORPHAN = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {_SLEEPER!r}])"


def _python(code):
    return [sys.executable, "-c", code]


def _is_gone(pid):
    """Waits until a process has ended; a zombie that nobody has waited for counts as ended."""
    for _ in range(1000):
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return True
        if stat.rsplit(")", 1)[1].split()[0] == "Z":
            return True
        time.sleep(0.01)
    return False


def test_run_returns_exit_code_and_both_streams():
    code = "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"
    completed = HostDevice().run(_python(code), 60)
    assert (completed.exit_code, completed.stdout, completed.stderr) == (3, "out\n", "err\n")


def test_run_passes_words_as_they_are():
    words = ["a b", "$HOME", "'", "*"]
    completed = HostDevice().run([*_python("import sys; print(sys.argv[1:])"), *words], 60)
    assert completed.stdout == f"{words}\n"


def test_run_hands_over_lines_without_their_breaks():
    lines = []
    completed = HostDevice().run(_python("print('a'); print('b', end='')"), 60, lines.append)
    assert lines == ["a", "b"]
    assert completed.stdout == "a\nb"


def test_run_hands_over_a_line_while_the_command_still_runs():
    pids = []

    def stop(line):
        pids.append(int(line))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        HostDevice().run(_python(_SLEEPER), 300, stop)
    assert len(pids) == 1
    assert _is_gone(pids[0])


@pytest.mark.parametrize("code", [_SLEEPER, _ORPHAN], ids=["child", "grandchild"])
def test_run_kills_at_the_time_limit(code, monkeypatch):
    # The time limit passes as soon as the process has said its id, however slow the machine is.
    pids = []
    clock = SimpleNamespace(monotonic=lambda: 1000.0 if pids else 0.0)
    monkeypatch.setattr("android_bench.host.time", clock)
    with pytest.raises(DeviceError, match="did not end within 300 s and was killed"):
        HostDevice().run(_python(code), 300, lambda line: pids.append(int(line)))
    assert len(pids) == 1
    assert _is_gone(pids[0])


def test_run_kills_a_silent_command_at_the_time_limit():
    with pytest.raises(DeviceError, match="did not end within 0.5 s and was killed"):
        HostDevice().run(_python("import time; time.sleep(600)"), 0.5)


def test_run_does_not_block_on_much_output_in_both_streams():
    code = "import sys; [s.write('x' * 300000) for s in (sys.stderr, sys.stdout)]"
    completed = HostDevice().run(_python(code), 60)
    assert len(completed.stdout) == len(completed.stderr) == 300000


def test_run_replaces_bytes_that_are_no_text():
    completed = HostDevice().run(_python(r"import os; os.write(1, b'a\xff\n')"), 60)
    assert completed.stdout == "a\ufffd\n"


def test_run_reports_a_signal_as_a_negative_exit_code():
    completed = HostDevice().run(_python("import os; os.kill(os.getpid(), 9)"), 60)
    assert completed.exit_code == -9


def test_run_names_a_program_that_is_missing(tmp_path):
    with pytest.raises(DeviceError, match="cannot start '.*nothing': No such file"):
        HostDevice().run([str(tmp_path / "nothing")], 60)


def test_push_returns_the_absolute_path(tmp_path, monkeypatch):
    (tmp_path / "a").write_text("x")
    monkeypatch.chdir(tmp_path)
    assert HostDevice().push(tmp_path.relative_to(os.getcwd()) / "a") == str(tmp_path / "a")


def test_push_names_a_file_that_is_missing(tmp_path):
    with pytest.raises(DeviceError, match="nothing: no such file"):
        HostDevice().push(tmp_path / "nothing")


def test_fingerprint_is_complete_stable_and_hashed(monkeypatch, tmp_path):
    (tmp_path / "id").write_text("secret\n")
    monkeypatch.setattr("android_bench.host._ID_FILES", (str(tmp_path / "id"),))
    fingerprint = HostDevice().fingerprint()
    assert list(fingerprint) == ["id", "model", "soc", "abi", "os", "cores"]
    # First 16 digits of: printf secret | sha256sum
    assert fingerprint["id"] == "2bb80d537b1da3e3"
    assert all(fingerprint.values())
    assert json.loads(json.dumps(fingerprint)) == HostDevice().fingerprint()


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        ("processor : 0\nmodel name\t: AMD EPYC\nflags : x", "AMD EPYC"),
        ("processor : 0\nHardware\t: BCM2835", "BCM2835"),
        ("processor : 0", ""),
    ],
)
def test_processor_name(cpuinfo, expected):
    assert _processor_name(cpuinfo) == expected
