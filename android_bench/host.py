"""The machine that android_bench itself runs on, as a device."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

from android_bench.device import Completed, Device
from android_bench.errors import DeviceError, InputError

_ID_FILES = ("/etc/machine-id", "/var/lib/dbus/machine-id")
_MODEL_FILES = ("/sys/devices/virtual/dmi/id/product_name", "/proc/device-tree/model")


class HostDevice(Device):
    """Runs commands as subprocesses of this program.

    Args:
        target: Must be empty: there is only one host.

    Raises:
        InputError: A target was given.
    """

    name = "host"
    python = (sys.executable,)

    def __init__(self, target: str = ""):
        if target:
            raise InputError(f"device 'host:{target}' does not exist; give --device=host")

    def fingerprint(self) -> dict[str, Any]:
        """See `Device.fingerprint`."""
        identity = _first_readable(_ID_FILES) or platform.node()
        return {
            "id": hashlib.sha256(identity.encode()).hexdigest()[:16],
            "model": _first_readable(_MODEL_FILES) or platform.machine(),
            "soc": _processor_name(_first_readable(("/proc/cpuinfo",))) or platform.machine(),
            "abi": platform.machine(),
            "os": f"{platform.system()} {platform.release()}",
            "cores": os.cpu_count(),
        }

    def push(self, path: Path) -> str:
        """See `Device.push`; the file stays where it is."""
        if not path.is_file():
            raise DeviceError(f"cannot use {path}: no such file; check the path")
        return str(path.resolve())

    def run(
        self,
        command: Sequence[str],
        timeout_s: float,
        on_line: Callable[[str], None] | None = None,
    ) -> Completed:
        """See `Device.run`."""
        deadline = time.monotonic() + timeout_s
        child = _start(command)
        lines: queue.Queue[str | None] = queue.Queue()
        errors: queue.Queue[str | None] = queue.Queue()
        readers = [
            threading.Thread(target=_read_lines, args=pair, daemon=True)
            for pair in ((child.stdout, lines), (child.stderr, errors))
        ]
        for reader in readers:
            reader.start()
        try:
            stdout = _collect(lines, deadline, on_line)
            stderr = _collect(errors, deadline)
            exit_code = child.wait(max(0.0, deadline - time.monotonic()))
        except (TimeoutError, subprocess.TimeoutExpired) as error:
            raise DeviceError(
                f"host: '{' '.join(command)}' did not end within {timeout_s:g} s and was killed; "
                "measure fewer models at a time, or look why it hangs"
            ) from error
        finally:
            _end(child, readers)
        return Completed(exit_code, stdout, stderr)

    def close(self) -> None:
        """See `Device.close`; nothing was copied, so nothing is removed."""


def _start(command: Sequence[str]) -> subprocess.Popen[str]:
    # A session of its own, so that a Ctrl-C reaches only the parent and the whole group can be
    # killed at once.
    try:
        return subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        raise DeviceError(
            f"host: cannot start '{command[0]}': {error.strerror}; check that it is installed"
        ) from error


def _read_lines(stream: IO[str], lines: queue.Queue[str | None]) -> None:
    for line in stream:
        lines.put(line)
    lines.put(None)


def _collect(
    lines: queue.Queue[str | None],
    deadline: float,
    on_line: Callable[[str], None] | None = None,
) -> str:
    """Joins the lines up to the None that ends them; a TimeoutError if that comes too late."""
    collected = []
    while True:
        try:
            line = lines.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty as error:
            raise TimeoutError("no end of the output before the deadline") from error
        if line is None:
            return "".join(collected)
        collected.append(line)
        if on_line is not None:
            on_line(line.rstrip("\r\n"))


def _end(child: subprocess.Popen[str], readers: Sequence[threading.Thread]) -> None:
    # A descendant may live on and hold the pipes open after the child itself has ended.
    if child.poll() is None or any(reader.is_alive() for reader in readers):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    for reader in readers:
        reader.join()
    child.stdout.close()
    child.stderr.close()


def _first_readable(paths: Sequence[str]) -> str:
    """Returns the text of the first file that can be read and is not empty, or ""."""
    for path in paths:
        try:
            text = Path(path).read_text(encoding="utf-8", errors="replace").strip("\0 \n")
        except OSError:
            continue
        if text:
            return text
    return ""


def _processor_name(cpuinfo: str) -> str:
    """Returns the processor's name out of the text of /proc/cpuinfo, or ""."""
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Hardware", "Model"):
            return value.strip()
    return ""
