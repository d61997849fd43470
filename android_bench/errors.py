"""The errors of android_bench, each with the exit code that the command line ends with."""


class BenchError(Exception):
    """Base of every error that a user can cause or meet.

    The message is always one line: what went wrong, with which thing, and what to do next.

    Args:
        message: The line; line breaks in it become spaces.
        details: Optional further lines, such as the end of a program's output.
    """

    exit_code = 1

    def __init__(self, message: str, details: str = ""):
        super().__init__(" ".join(message.split()))
        self.details = details


class InputError(BenchError):
    """Wrong usage, or a file or folder that cannot be used."""

    exit_code = 2


class DeviceError(BenchError):
    """The device cannot be reached, or did not do what it was asked."""

    exit_code = 4


class RunnerError(BenchError):
    """A model or the TFLite runtime failed on the device."""

    exit_code = 5


class ParseError(BenchError):
    """The output of a measurement is not what was expected."""

    exit_code = 6
