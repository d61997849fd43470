"""The contract of a device: how files get to it and how commands run on it."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from android_bench.errors import InputError


@dataclass(frozen=True)
class Completed:
    """A command that has ended.

    Attributes:
        exit_code: As the device saw it; on the host negative for a signal.
        stdout: Standard output, decoded; bytes that are no UTF-8 are replaced.
        stderr: Standard error, likewise.
    """

    exit_code: int
    stdout: str
    stderr: str


class Device(abc.ABC):
    """Something that models are measured on.

    A subclass takes one argument, the part of the device spec behind the colon ("" if none).
    It is a context manager: leaving the block closes it, whatever happened inside.

    Attributes:
        name: The kind, such as "host"; never a serial number or an address.
        python: The command that starts a Python with a TFLite runtime on the device.
        emulated: Whether times taken there mean nothing, because the processor is emulated.
    """

    name: str
    python: tuple[str, ...]
    emulated: bool = False

    @abc.abstractmethod
    def fingerprint(self) -> dict[str, Any]:
        """Returns what identifies the device in a measurement.

        Returns:
            Plain JSON values under the keys `id` (hashed), `model`, `soc`, `abi`, `os`, `cores`.

        Raises:
            DeviceError: The device cannot be reached.
        """

    @abc.abstractmethod
    def push(self, path: Path) -> str:
        """Makes a file of this machine available on the device.

        Files of different content never share a path there, even if they have the same name;
        the same content need not travel twice.

        Args:
            path: A file on this machine.

        Returns:
            Its path on the device, to be used as a word of a command or in a file.

        Raises:
            DeviceError: It did not arrive whole.
        """

    @abc.abstractmethod
    def run(
        self,
        command: Sequence[str],
        timeout_s: float,
        on_line: Callable[[str], None] | None = None,
    ) -> Completed:
        """Runs a command on the device and waits for its end.

        The command has ended on the device too when this returns or raises, be it because of
        the time limit, a Ctrl-C, or an error raised by `on_line`.

        Args:
            command: The words; no word is ever read by a shell.
            timeout_s: Seconds after which the command is killed.
            on_line: Called here, in the calling thread, with each line of standard output as
                it comes, without its line break.

        Returns:
            The exit code and the output. An exit code that is not 0 is no error here.

        Raises:
            DeviceError: The command did not start, ran out of time, or the connection was lost
                before its end was seen.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Removes what was pushed and restores what was changed; may be called twice."""

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_device(spec: str) -> Device:
    """Opens a device named on the command line.

    Args:
        spec: A kind, or a kind and its target as in `kind:target`.

    Returns:
        The device; the caller closes it.

    Raises:
        InputError: There is no such kind, or the target does not suit it.
        DeviceError: The device cannot be reached.
    """
    from android_bench.host import HostDevice

    kinds: dict[str, Callable[[str], Device]] = {"host": HostDevice}
    kind, _, target = spec.partition(":")
    if kind not in kinds:
        raise InputError(f"unknown device '{spec}'; give --device={' or --device='.join(kinds)}")
    return kinds[kind](target)
