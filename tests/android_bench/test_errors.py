"""Tests of android_bench.errors."""

import pytest

from android_bench.errors import BenchError, DeviceError, InputError, ParseError, RunnerError


@pytest.mark.parametrize(
    ("kind", "code"), [(InputError, 2), (DeviceError, 4), (RunnerError, 5), (ParseError, 6)]
)
def test_each_error_has_its_documented_exit_code(kind, code):
    assert issubclass(kind, BenchError)
    assert kind("x").exit_code == code


def test_message_is_one_line_and_details_are_kept_apart():
    error = InputError("no file\nof this\tname", details="one\ntwo")
    assert str(error) == "no file of this name"
    assert error.details == "one\ntwo"
