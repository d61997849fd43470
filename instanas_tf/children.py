"""Processes of this project's own modules, started so that nothing else gets in between."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

_ROOT = pathlib.Path(__file__).resolve().parents[1]


def run_module(module: str, *arguments: str) -> subprocess.CompletedProcess:
    """Runs `python -m MODULE ARGUMENTS` and returns what it printed.

    The current folder is kept off the import path: a user's `export.py` there is not ours.

    Args:
        module: dotted name.
        *arguments: of the command.
    """
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=_environment(),
    )


def follow_module(module: str, *arguments: str, **environment: str) -> int:
    """Runs `python -m MODULE ARGUMENTS` on this terminal and returns its exit code.

    Args:
        module: dotted name.
        *arguments: of the command.
        **environment: variables that it gets beside this process's own.
    """
    command = [sys.executable, "-m", module, *arguments]
    inherited = _environment()
    inherited.pop("TF_CPP_MIN_LOG_LEVEL", None)  # The child keeps TensorFlow quiet by itself.
    return subprocess.run(command, check=False, env={**inherited, **environment}).returncode


def _environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}
