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
    path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"},
    )
