"""Command: classify photos with an export, as an app would.

    python -m export.predictor --bundle=runs/digits/export photo.jpg folder

Prints a table of all photos and a line that sums them up, or with --json one JSON object a line.
A photo that cannot be read costs a line on standard error and, when the others are done, exit
code 2. NumPy, Pillow, absl-py and a TFLite runtime are all that it needs; it shows its progress
where tqdm is installed.
"""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TextIO

from absl import flags

from export import budget, manifest, photos
from export.predictor import Prediction, Predictor
from export.runtime import RUNTIMES
from instanas_tf import cli
from instanas_tf.errors import InputError

NAME = "predictor"
MANY = 50  # From more files than this on, progress is shown.
HEADER = ("file", "label", "probability", "experts", "ms")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    values = flags.FlagValues()
    values.set_gnu_getopt(True)  # Flags may stand behind files.
    flags.DEFINE_string(
        "bundle", "", "Folder of the export; empty: the latest below runs/.", flag_values=values
    )
    flags.DEFINE_string(
        "variant", "", "Which variant; empty: the one picked on validation.", flag_values=values
    )
    flags.DEFINE_float(
        "budget_ms",
        None,
        "Run the most accurate variant that takes at most so many milliseconds an image.",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "by", "mean", list(budget.LATENCIES), "Latency within the budget.", flag_values=values
    )
    flags.DEFINE_integer("threads", 1, "Threads of the runtime.", lower_bound=1, flag_values=values)
    flags.DEFINE_enum(
        "runtime", "auto", ["auto", *RUNTIMES], "Which TFLite runtime.", flag_values=values
    )
    flags.DEFINE_bool("json", False, "Print one JSON object for each photo.", flag_values=values)
    return cli.run(NAME, _command, argv or sys.argv, __doc__ or "", values, takes_words=True)


def latest_export(runs: pathlib.Path) -> pathlib.Path:
    """The export below a folder of runs that was written last.

    Args:
        runs: holds a folder for each run.

    Raises:
        InputError: there is none.
    """
    found = sorted(
        runs.glob(f"*/export/{manifest.NAME}"), key=lambda path: (path.stat().st_mtime, path)
    )
    if not found:
        raise InputError(
            f"no export below {runs}/; write one (export_tflite) or give its folder as --bundle"
        )
    return found[-1].parent


def to_json(path: pathlib.Path, found: Prediction) -> dict[str, Any]:
    """The JSON object for one photo."""
    return {
        "file": str(path),
        "label": found.label,
        "class_index": found.class_index,
        "probability": found.probability,
        "experts": list(found.experts),
        "latency_ms": found.latency_ms,
    }


def to_row(path: pathlib.Path, found: Prediction) -> list[str]:
    """The cells of `HEADER` for one photo."""
    experts = ", ".join(found.experts)
    return [
        printable(str(path)),
        printable(found.label),
        f"{found.probability:.3f}",
        experts,
        f"{found.latency_ms:.3f}",
    ]


def summary(variant: dict[str, Any], found: Sequence[Prediction]) -> str:
    """One line over at least one prediction.

    Args:
        variant: its entry in the manifest.
        found: the predictions.

    Returns:
        Number of photos, mean latency, and the share of the photos that each expert ran for.
    """
    names = list(variant.get("experts") or sorted({name for one in found for name in one.experts}))
    shares = [sum(name in one.experts for one in found) / len(found) for name in names]
    parts = ", ".join(f"{name} {share:.0%}" for name, share in zip(names, shares, strict=True))
    photos_word = "photo" if len(found) == 1 else "photos"
    mean = statistics.fmean(one.latency_ms for one in found)
    head = f"variant {variant.get('name')}: {len(found)} {photos_word}, mean {mean:.3f} ms"
    return f"{head}; ran for: {parts}"


def printable(text: str) -> str:
    """The text on one line that any terminal shows: other characters as Python escapes them."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    shown = (
        one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in text
    )
    return "".join(shown).encode(encoding, "backslashreplace").decode(encoding)


def _command(values: flags.FlagValues, words: list[str]) -> None:
    try:
        _predict(values, words)
        sys.stdout.flush()
    except BrokenPipeError:  # Whoever read the output has seen enough; so for Python's last flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _predict(values: flags.FlagValues, words: list[str]) -> None:
    if not words:
        raise InputError("no photos; name files or folders of them, see --help")
    paths = photos.found(words)
    predictor = Predictor(
        _bundle(values.bundle),
        threads=values.threads,
        runtime=values.runtime,
        variant=values.variant,
        budget_ms=values.budget_ms,
        by=values.by,
    )
    height, width, _ = predictor.image_shape
    answered, unreadable = [], 0
    steps, write = _progress(paths)
    for path in steps:
        try:
            pixels = photos.read(path, height, width)
        except InputError as error:
            if len(paths) == 1:
                raise
            unreadable += 1
            write(f"{NAME}: {printable(str(error))}", sys.stderr)
            continue
        (found,) = predictor.predict(pixels)
        answered.append((path, found))
        if values.json:
            write(json.dumps(to_json(path, found)), sys.stdout)
    if answered and not values.json:
        write(cli.table([to_row(*item) for item in answered], HEADER), sys.stdout)
        write(summary(predictor.variant, [found for _, found in answered]), sys.stdout)
    if unreadable:
        raise InputError(f"{unreadable} of {len(paths)} photos cannot be read; see above")


def _bundle(folder: str) -> pathlib.Path:
    """The folder of the export that `--bundle` names, or the latest one."""
    return pathlib.Path(folder).expanduser() if folder else latest_export(pathlib.Path("runs"))


def _progress(
    paths: Sequence[pathlib.Path],
) -> tuple[Iterable[pathlib.Path], Callable[[str, TextIO], None]]:
    """The paths, with progress on a terminal if they are many; and what writes beside it."""
    if len(paths) <= MANY or importlib.util.find_spec("tqdm") is None:
        return paths, _write
    from tqdm import tqdm

    steps = tqdm(paths, desc=NAME, unit="photo", file=sys.stderr, disable=None, leave=False)
    return steps, lambda line, stream: tqdm.write(line, file=stream)


def _write(line: str, stream: TextIO) -> None:
    stream.write(f"{line}\n")
    stream.flush()
