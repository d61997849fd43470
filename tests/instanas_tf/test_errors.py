"""Every error has its documented exit code."""

import pytest

from instanas_tf import cli, errors

CODES = {
    errors.InstanasError: 5,
    errors.InputError: 2,
    errors.DeviceError: 4,
    errors.ModelError: 5,
    errors.ParseError: 6,
}


@pytest.mark.parametrize("kind", CODES)
def test_exit_code(kind):
    assert kind("x").exit_code == CODES[kind]
    assert isinstance(kind("x"), errors.InstanasError)
    assert f"{CODES[kind]} " in cli.EXIT_CODES


def test_command_error_passes_the_code_on():
    error = errors.CommandError("it said so", 4)
    assert (str(error), error.exit_code) == ("it said so", 4)
