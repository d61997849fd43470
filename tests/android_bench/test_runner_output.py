"""Tests of android_bench.runner_output."""

import json

import pytest

from android_bench.device import Completed
from android_bench.errors import ParseError, RunnerError
from android_bench.runner_output import Loaded, Visit, is_visit_line, parse_output


def _parse(stdout, names=("a", "b"), rounds=2, min_runs=30, exit_code=0, stderr=""):
    return parse_output(Completed(exit_code, stdout, stderr), names, rounds, min_runs)


@pytest.fixture
def good_lines(runner_lines):
    """A good run of two models and two rounds: a visit of `a` is at index 5, of `b` at 6."""
    return runner_lines({"a": [100.0, 110.0], "b": [200.0, 210.0]})


def test_good_output(good_lines, as_text):
    output = _parse(as_text(good_lines))
    assert output.runtime["version"] == "2.14.0"
    assert output.loaded["b"] == Loaded(900.0, 700.0, [{"shape": [1, 4, 4, 3], "dtype": "float32"}])
    assert output.visits["a"] == [
        Visit(0, 30, 100.0, 99.0, 110.0, 102.0),
        Visit(1, 30, 110.0, 109.0, 120.0, 112.0),
    ]


def test_is_visit_line_knows_the_lines_of_the_runner(good_lines):
    counted = [is_visit_line(json.dumps(line)) for line in good_lines]
    assert counted == [False] * 5 + [True] * 4


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("chatter", "line 10 is no JSON: 'chatter'"),
        ("", "line 10 is no JSON: ''"),
        ("[" * 100000, "line 10 is no JSON"),
        ("[]", "line 10 is no JSON object"),
        ("{}", "line 10 is of unknown type None"),
        ('{"type": ["visit"]}', "line 10 is of unknown type"),
        ('{"type": "loading"}', "line 10 lacks, or should not have, the key 'model'"),
        ('{"type": "loading", "model": "a", "x": 1}', "the key 'x'"),
        ('{"type": "loading", "model": "c"}', "a model 'c' that was not in the job"),
        ('{"error": "e", "model": "a"}', "reports an error and yet ended with exit code 0"),
    ],
)
def test_a_bad_line_is_an_error(good_lines, as_text, line, complaint):
    with pytest.raises(ParseError) as caught:
        _parse(as_text(good_lines) + line + "\n")
    assert complaint in str(caught.value)


@pytest.mark.parametrize("key", ["median_us", "min_us", "p95_us", "mean_us"])
@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), "1", None, True, 10**400])
def test_an_impossible_time_is_an_error(good_lines, as_text, key, value):
    good_lines[5] = {**good_lines[5], key: value}
    with pytest.raises(ParseError, match=f"line 6 has an impossible `{key}`"):
        _parse(as_text(good_lines))


@pytest.mark.parametrize("inputs", [None, [[1, 2]], [{"shape": [1]}, 3], [{"shape": [-1]}]])
def test_impossible_inputs_are_an_error(good_lines, as_text, inputs):
    good_lines[2] = {**good_lines[2], "inputs": inputs}
    with pytest.raises(ParseError, match="impossible `inputs`"):
        _parse(as_text(good_lines))


@pytest.mark.parametrize(
    ("missing", "complaint"),
    [
        (0, "names 0 runtimes"),
        (2, "model 'a' was not loaded"),
        (6, "model 'b' has 1 visits, expected one in each of 2"),
        (8, "model 'b' has 1 visits, expected one in each of 2"),
    ],
)
def test_a_missing_line_is_an_error(good_lines, as_text, missing, complaint):
    del good_lines[missing]
    with pytest.raises(ParseError, match=complaint):
        _parse(as_text(good_lines))


@pytest.mark.parametrize(
    ("again", "complaint"),
    [(0, "names 2 runtimes"), (2, "loaded twice"), (5, "'a' has 3 visits"), (8, "'b' has 3")],
)
def test_a_line_too_many_is_an_error(good_lines, as_text, again, complaint):
    with pytest.raises(ParseError, match=complaint):
        _parse(as_text([*good_lines, good_lines[again]]))


def test_two_visits_in_one_round_are_an_error(good_lines, as_text):
    good_lines[7] = {**good_lines[7], "round": 0}
    with pytest.raises(ParseError, match="'a' has 2 visits, expected one in each of 2"):
        _parse(as_text(good_lines))


def test_too_few_runs_are_an_error(good_lines, as_text):
    with pytest.raises(ParseError, match="'a' has 30 runs in round 0, expected 31"):
        _parse(as_text(good_lines), min_runs=31)


def test_times_out_of_order_are_an_error(good_lines, as_text):
    good_lines[5] = {**good_lines[5], "min_us": 105.0}
    with pytest.raises(ParseError, match="out of order"):
        _parse(as_text(good_lines))


def test_an_empty_output_is_an_error():
    with pytest.raises(ParseError, match="names 0 runtimes") as caught:
        _parse("")
    assert caught.value.details == "stdout: empty\nstderr: empty"


def test_a_parse_error_shows_the_last_40_lines():
    noise = "".join(f"line{number}\n" for number in range(100))
    with pytest.raises(ParseError) as caught:
        _parse(noise, stderr="warning\n")
    shown = caught.value.details.splitlines()
    assert shown[0] == "stdout:"
    assert shown[1] == "line60"
    assert shown[40] == "line99"
    assert shown[41:] == ["stderr:", "warning"]


def test_a_reported_error_names_the_model(good_lines, as_text):
    stdout = as_text([*good_lines[:3], {"error": "bad file", "model": "b"}])
    with pytest.raises(RunnerError, match="^b: bad file$"):
        _parse(stdout, exit_code=5)


def test_a_reported_error_without_a_model(as_text):
    with pytest.raises(RunnerError, match="^no runtime; pip install it$"):
        _parse(as_text([{"error": "no runtime; pip install it", "model": None}]), exit_code=5)


def test_a_crash_names_the_last_model_and_shows_the_end(good_lines, as_text):
    with pytest.raises(RunnerError) as caught:
        _parse("noise\n" + as_text(good_lines[:4]), exit_code=-11, stderr="Segmentation fault\n")
    assert "exit code -11; the last model it began to load is b: export that one again;" in str(
        caught.value
    )
    assert caught.value.details.endswith("stderr:\nSegmentation fault")


def test_a_crash_at_the_start_names_no_model():
    with pytest.raises(RunnerError, match="exit code 127; check Python and the TFLite runtime on"):
        _parse("", exit_code=127, stderr="python3: not found\n")


def test_a_crash_after_all_lines_is_still_an_error(good_lines, as_text):
    with pytest.raises(RunnerError, match="exit code 1"):
        _parse(as_text(good_lines), exit_code=1)
