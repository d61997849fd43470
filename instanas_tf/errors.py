"""Errors that end a command with one line and a documented exit code."""

from __future__ import annotations


class InstanasError(Exception):
    """An error with an exit code; its message is one line and names the next step."""

    exit_code = 5


class InputError(InstanasError):
    """A flag, config, dataset, table, manifest or checkpoint that cannot be used."""

    exit_code = 2


class DeviceError(InstanasError):
    """A device that did not answer or could not be used."""

    exit_code = 4


class ModelError(InstanasError):
    """A model or a TFLite runtime that failed, or a disk that is full."""

    exit_code = 5


class DiskError(ModelError):
    """A disk that is full, or a folder that cannot be written."""


class ParseError(InstanasError):
    """Output of a tool that could not be understood."""

    exit_code = 6


class CommandError(InstanasError):
    """Another command of this project failed; its line and exit code are passed on.

    Args:
        message: what it said.
        exit_code: its exit code.
    """

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code
