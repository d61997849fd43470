"""The command `android_bench`: measures the models of a manifest on a device."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from android_bench.device import open_device
from android_bench.display import Progress, format_table
from android_bench.errors import BenchError, InputError
from android_bench.harness import RUNTIMES, Protocol, measure_models
from android_bench.manifest import read_manifest
from android_bench.measurement import write_measurements

_EXPORTS = "runs/*/export/manifest.json"
_EXIT_INTERRUPTED = 130
_EXIT_TERMINATED = 143
_EPILOG = """\
exit codes:
  0    done
  2    usage or bad input
  4    device
  5    model or runtime
  6    output of the measurement that cannot be read
  130  interrupted
"""


class _Parser(argparse.ArgumentParser):
    """Reports wrong usage in one line, as every other error."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see android_bench --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        argv: The arguments; those of the process if None.

    Returns:
        The exit code.
    """
    try:
        with _ended_by_sigterm():
            _measure(_parser().parse_args(argv))
    except BenchError as error:
        _say(f"android_bench: {error}")
        if error.details:
            _say(error.details)
        return error.exit_code
    except KeyboardInterrupt:
        _say("android_bench: interrupted; nothing was written")
        return _EXIT_INTERRUPTED
    return 0


def newest_manifest(folder: Path) -> Path:
    """Returns the manifest that was exported last.

    Args:
        folder: Where the `runs` folder lies.

    Returns:
        The most recently modified `runs/*/export/manifest.json`.

    Raises:
        InputError: There is none.
    """
    found = [path for path in sorted(folder.glob(_EXPORTS)) if path.is_file()]
    if not found:
        raise InputError(
            f"no {_EXPORTS} below {folder}; run `export_tflite --expert=all` first, "
            "or give --manifest=PATH"
        )
    return max(found, key=lambda path: path.stat().st_mtime_ns)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="android_bench",
        description="Measures the latency of TFLite models on a device.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add, default = parser.add_argument, Protocol()
    add("--manifest", type=Path, help=f"manifest.json of the models (default: newest {_EXPORTS})")
    add("--device", default="host", help="host: this machine (default: %(default)s)")
    add("--out", type=Path, help="file to write (default: measurements.jsonl beside the manifest)")
    add("--rounds", type=int, default=default.rounds, help="rounds over all models (%(default)s)")
    add("--warmup_runs", type=int, default=default.warmup_runs, help="untimed runs (%(default)s)")
    add("--min_runs", type=int, default=default.min_runs, help="runs a visit (%(default)s)")
    add("--min_secs", type=float, default=default.min_secs, help="seconds a visit (%(default)s)")
    add("--max_secs", type=float, default=default.max_secs, help="limit of a visit (%(default)s)")
    add("--threads", type=int, default=default.threads, help="threads (%(default)s)")
    add("--seed", type=int, default=default.seed, help="seed of inputs and order (%(default)s)")
    add("--runtime", choices=RUNTIMES, default=default.runtime, help="(%(default)s)")
    return parser


def _measure(args: argparse.Namespace) -> None:
    protocol = _protocol(args)
    manifest = args.manifest or newest_manifest(Path.cwd())
    models = read_manifest(manifest)
    out = args.out or manifest.with_name("measurements.jsonl")
    _check_writable(out)
    with open_device(args.device) as device, contextlib.closing(Progress(sys.stderr)) as progress:
        if args.manifest is None:
            _say(f"measuring the models of {manifest}")
        measurements = measure_models(models, device, protocol, progress)
    write_measurements(out, measurements)
    print(format_table(models, measurements))
    print(f"Wrote {out}")


def _protocol(args: argparse.Namespace) -> Protocol:
    names = ("rounds", "warmup_runs", "min_runs", "min_secs", "max_secs", "threads", "seed")
    try:
        return Protocol(runtime=args.runtime, **{name: getattr(args, name) for name in names})
    except ValueError as error:
        raise InputError(f"{error}; see android_bench --help") from error


def _check_writable(out: Path) -> None:
    """Finds out before the measurement, not after it, that the result cannot be written."""
    if out.is_dir() or not out.parent.is_dir() or not os.access(out.parent, os.W_OK):
        raise InputError(f"cannot write {out}; give --out a file in a folder that exists")


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Lets a SIGTERM unwind the stack, so that the device is closed in that ending too."""

    def leave(*_: object) -> NoReturn:
        raise SystemExit(_EXIT_TERMINATED)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _say(text: str) -> None:
    print(text, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
