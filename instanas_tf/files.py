"""Files that are either whole or not there: write to a temporary name, then rename."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import hashlib
import json
import math
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

from instanas_tf.errors import DiskError, InputError

_RANDOM_CHARACTERS = 8  # In the names that `tempfile` makes.


@contextlib.contextmanager
def replacing(path: pathlib.Path, suffix: str = "") -> Iterator[pathlib.Path]:
    """Yields a temporary name beside `path` and renames it to `path` on success.

    Args:
        path: the final name; its folder is made if need be.
        suffix: ending of the temporary name, for writers that look at it.

    Raises:
        DiskError: the file cannot be written (disk full, no permission).
    """
    path = pathlib.Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        pattern = f".{glob.escape(path.name)}.{'?' * _RANDOM_CHARACTERS}{suffix}"
        for left_behind in path.parent.glob(pattern):  # By a run that was killed.
            left_behind.unlink(missing_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=suffix, dir=path.parent)
        os.close(handle)
        temporary = pathlib.Path(name)
        yield temporary
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        raise DiskError(
            f"cannot write {path}: {error.strerror or error}; free some space or choose "
            "another folder, then run the same command again"
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def folder_replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a new folder beside `path` and puts it in its place on success.

    Raises:
        InputError: another process is writing the same folder.
        DiskError: the folder cannot be written (disk full, no permission).
    """
    path = pathlib.Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        pattern = f".{glob.escape(path.name)}.{'?' * _RANDOM_CHARACTERS}"
        for left_behind in path.parent.glob(pattern):
            _drop_left_behind(left_behind, path)
        with (
            tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as root,
            _held(pathlib.Path(root)),
        ):
            new, old = pathlib.Path(root) / "new", pathlib.Path(root) / "old"
            new.mkdir()
            yield new
            if path.exists():
                os.replace(path, old)
            try:
                os.replace(new, path)
            finally:  # An interruption too must not take the old folder away.
                if old.exists() and not path.exists():
                    os.replace(old, path)
    except OSError as error:
        raise DiskError(
            f"cannot write {path}: {error.strerror or error}; free some space or choose "
            "another folder, then run the same command again"
        ) from error


def _drop_left_behind(folder: pathlib.Path, path: pathlib.Path) -> None:
    """Removes what a killed run left of `path`; refuses while the run is alive."""
    is_ours = folder.is_dir() and not folder.is_symlink()
    if not is_ours or {item.name for item in folder.iterdir()} - {"new", "old"}:
        return  # It only happens to be called like one.
    try:
        with _held(folder):
            shutil.rmtree(folder, ignore_errors=True)
    except BlockingIOError as error:
        raise InputError(
            f"another command is writing {path}; wait for it, or choose another folder"
        ) from error


@contextlib.contextmanager
def _held(folder: pathlib.Path) -> Iterator[None]:
    """Locks a folder; the lock goes with the process. BlockingIOError if another holds it."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def require_space(path: pathlib.Path, size: int) -> None:
    """Raises DiskError unless `size` bytes and a mebibyte are free where `path` will lie."""
    folder = pathlib.Path(path).parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise DiskError(f"cannot write {path}: {error.strerror or error}") from error
    if free < size + 2**20:
        raise DiskError(
            f"cannot write {path}: No space left on device ({free} bytes are free); free some "
            "space, then run the same command again"
        )


def write_bytes(path: pathlib.Path, content: bytes) -> None:
    """Writes `content` to `path` in one piece."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes `text` to `path` in one piece, as UTF-8."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes `value` as indented JSON; NaN and infinity are refused."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: pathlib.Path, remedy: str) -> Any:
    """Reads a JSON file.

    Args:
        path: the file.
        remedy: what the user should do if it is missing or damaged.

    Raises:
        InputError: the file is missing, unreadable or no JSON.
    """
    path = pathlib.Path(path)
    try:
        return _parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; {remedy}") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is damaged ({error}); {remedy}") from error


def read_json_lines(path: pathlib.Path, remedy: str) -> list[Any]:
    """Reads a file with one JSON value a line; errors as in `read_json`."""
    try:
        lines = pathlib.Path(path).read_bytes().splitlines()
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; {remedy}") from error
    except OSError as error:
        raise InputError(f"{path} is damaged ({error}); {remedy}") from error
    values = []
    for number, line in enumerate(lines, 1):
        try:
            values.append(_parse(line.decode("utf-8")))
        except ValueError as error:
            message = f"{path}, line {number} is damaged ({error}); {remedy}"
            raise InputError(message) from error
    return values


def _parse(text: str) -> Any:
    """JSON without NaN and infinity, which the standard does not have; 1e999 is infinity too."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    def finite(number: str) -> float:
        if math.isinf(value := float(number)):
            raise ValueError(f"{number[:20]} is too large")
        return value

    try:
        return json.loads(text, parse_constant=refuse, parse_float=finite)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def sha256(path: pathlib.Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    total = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            total.update(block)
    return total.hexdigest()


def digest(value: Any) -> str:
    """SHA-256 of a JSON value, independent of the order of its keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
