"""What the command line shows: the progress of a measurement and the table of its results."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TextIO

from android_bench.manifest import ModelFile
from android_bench.measurement import Measurement

_SECONDS_BETWEEN_LINES = 10.0
_CLEAR_LINE = "\r\x1b[K"


class Progress:
    """Says how many visits are done and how long the rest takes.

    On a terminal one line is rewritten in place; elsewhere a line comes every ten seconds.

    Args:
        stream: Where to write.
        clock: Returns seconds.
    """

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic):
        self._stream = stream
        self._clock = clock
        self._in_place = stream.isatty()
        self._first: tuple[float, int] | None = None
        self._shown = float("-inf")
        self._open_line = False

    def __call__(self, done: int, total: int) -> None:
        """Reports progress.

        Args:
            done: Visits done.
            total: Visits in all.
        """
        now = self._clock()
        if done and self._first is None:
            # The time before the first visit goes to loading and says nothing of the rest.
            self._first = (now, done)
        if not self._in_place and now - self._shown < _SECONDS_BETWEEN_LINES and done < total:
            return
        self._shown = now
        text = f"measuring {done}/{total} visits" + self._time_left(now, done, total)
        self._stream.write(f"{_CLEAR_LINE}{text}" if self._in_place else f"{text}\n")
        self._stream.flush()
        self._open_line = self._in_place

    def close(self) -> None:
        """Ends the line that was rewritten in place, if there is one."""
        if self._open_line:
            self._stream.write("\n")
            self._open_line = False

    def _time_left(self, now: float, done: int, total: int) -> str:
        if self._first is None or done == self._first[1] or done == total:
            return ""
        began, done_then = self._first
        return f", about {(now - began) / (done - done_then) * (total - done):.0f} s left"


def format_table(models: Sequence[ModelFile], measurements: Sequence[Measurement]) -> str:
    """Returns an aligned table of measurements.

    Args:
        models: The models.
        measurements: The measurement of each, in the same order.

    Returns:
        A head and one line a model. The IQR is a dash where there was one round only.
    """
    rows = [("model", "median ms", "IQR ms", "min ms", "p95 ms", "runs", "size KiB")]
    for model, measured in zip(models, measurements, strict=True):
        rows.append(
            (
                measured.model,
                f"{measured.median_ms:.4f}",
                f"{measured.iqr_ms:.4f}" if measured.rounds > 1 else "-",
                f"{measured.min_ms:.4f}",
                f"{measured.p95_ms:.4f}",
                str(measured.runs),
                f"{model.bytes / 1024:.1f}",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    )
