"""Measures the files of a manifest with `android_bench`, in a process of its own.

The bench imports nothing of this package and is not imported by it: a manifest goes in, and
a file of measurements comes out.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from instanas_tf import children, files
from instanas_tf.errors import CommandError


def bench(
    manifest: pathlib.Path, out: pathlib.Path, settings: Mapping[str, Any], device: str
) -> list[dict]:
    """Measures a manifest's files with `android_bench`, in a process of its own.

    Args:
        manifest: lists the files.
        out: the `.jsonl` to write.
        settings: `config.latency`.
        device: such as `host`.

    Returns:
        The measurements, as JSON objects.

    Raises:
        CommandError: with the exit code and the line of `android_bench`.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    arguments = [f"--manifest={manifest}", f"--out={out}", f"--device={device}"]
    for flag in ("runtime", "threads", "rounds", "warmup_runs", "min_runs", "min_secs"):
        arguments.append(f"--{flag}={settings[flag]}")
    done = children.run_module("android_bench", *arguments)
    if done.returncode:
        prefix = "android_bench: "
        said = [line for line in done.stderr.splitlines() if line.startswith(prefix)]
        raise CommandError(
            said[0].removeprefix(prefix) if said else f"android_bench: {done.stderr[-300:]}",
            done.returncode,
        )
    return files.read_json_lines(out, "measure again")
