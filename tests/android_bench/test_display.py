"""Tests of android_bench.display."""

import io

from android_bench.display import Progress, format_table
from android_bench.measurement import Measurement


class _Terminal(io.StringIO):
    def isatty(self):
        return True


def _show(stream, moments, total=40):
    """Reports one more visit at each moment, the first with none done."""
    clock = iter(moments)
    progress = Progress(stream, lambda: next(clock))
    for done in range(len(moments)):
        progress(done, total)
    progress.close()
    return stream.getvalue()


def test_a_terminal_rewrites_one_line_with_the_time_left():
    # Loading took 100 s; the visits then take 2 s each.
    shown = _show(_Terminal(), [0, 100, 102], total=5)
    start = "\r\x1b[K"
    assert shown == (
        f"{start}measuring 0/5 visits{start}measuring 1/5 visits"
        f"{start}measuring 2/5 visits, about 6 s left\n"
    )


def test_elsewhere_lines_are_sparse_and_the_last_is_shown():
    shown = _show(io.StringIO(), [0, 1, 2, 11, 12, 13], total=5)
    assert shown == (
        "measuring 0/5 visits\nmeasuring 3/5 visits, about 10 s left\nmeasuring 5/5 visits\n"
    )


def test_closing_without_progress_writes_nothing():
    stream = _Terminal()
    Progress(stream).close()
    assert stream.getvalue() == ""


def test_table_golden(make_models, measurement_values):
    models = make_models("a", "expert_01")
    rows = [
        Measurement(**measurement_values),
        Measurement(**{**measurement_values, "model": "expert_01", "median_ms": 1.75, "rounds": 1}),
    ]
    assert format_table(models, rows).splitlines() == [
        "model      median ms  IQR ms  min ms  p95 ms  runs  size KiB",
        "a             2.0000  0.2500  1.5000  3.0000   150       2.0",
        "expert_01     1.7500       -  1.5000  3.0000   150       2.0",
    ]
