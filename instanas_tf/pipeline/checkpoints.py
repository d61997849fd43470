"""The state of an unfinished stage on disk, from which a killed run goes on.

A checkpoint is a NumPy archive, so that any backend reads what another one wrote, and the
archive's checksums tell a damaged file from a whole one. Files are written under a
temporary name; the last two are kept.
"""

from __future__ import annotations

import dataclasses
import io
import pathlib
import struct
import zipfile
import zlib
from collections.abc import Sequence

import keras
import numpy as np
from absl import logging

from instanas_tf import files
from instanas_tf.errors import DiskError, InputError

KEPT = 2
_UNREADABLE = (
    *(OSError, EOFError, ValueError, KeyError, TypeError),
    *(MemoryError, RuntimeError, zipfile.BadZipFile, zlib.error, struct.error),  # By `zipfile`.
)


@dataclasses.dataclass
class Progress:
    """How far a stage is.

    Attributes:
        epoch: whole epochs done.
        step: steps done of the next epoch.
        sums: of the metrics over these steps, by name.
    """

    epoch: int = 0
    step: int = 0
    sums: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)


class Checkpoints:
    """The checkpoints of one stage.

    Args:
        variables: all that a resumed stage needs.
        folder: where they lie.
        origin: what the training depends on beside the config, such as a digest of the data;
            checkpoints of another origin are refused.
    """

    def __init__(self, variables: Sequence[keras.Variable], folder: pathlib.Path, origin: str = ""):
        self.variables = list(variables)
        self.folder = folder
        self.origin = origin

    def prepare(self) -> None:
        """Makes the folder, so that nothing is trained in vain.

        Raises:
            DiskError: it cannot be made.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DiskError(
                f"cannot make {self.folder} ({error.strerror}); see what is in its place, or "
                "choose another --workdir"
            ) from error

    def paths(self) -> list[pathlib.Path]:
        """The checkpoints on disk, the newest first."""
        return sorted(self.folder.glob("[0-9]*.npz"), reverse=True)

    def restore(self) -> Progress:
        """Restores the newest checkpoint that can be read.

        Returns:
            How far it is; nothing done if there is no checkpoint.

        Raises:
            InputError: there are checkpoints, and none can be read, or they are of another
                origin.
        """
        found = self.paths()
        for path in found:
            try:
                return self._read(path)
            except _UNREADABLE as error:
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                logging.warning("%s cannot be read (%s)", path, reason)
        if found:
            raise InputError(
                f"no checkpoint in {self.folder} can be read; delete that folder to start the "
                "stage again"
            )
        return Progress()

    def save(self, progress: Progress) -> None:
        """Writes the variables and how far the stage is; drops the checkpoint before the last.

        Raises:
            ModelError: it cannot be written.
        """
        content = {f"state_{i:05d}": _array(v) for i, v in enumerate(self.variables)}
        content |= {f"sum_{name}": value for name, value in progress.sums.items()}
        done = np.array([progress.epoch, progress.step, len(content)])
        archive = io.BytesIO()  # On a full disk `zipfile` would leave a traceback.
        np.savez(archive, done=done, origin=np.array(self.origin), **content)
        path = self.folder / f"{progress.epoch:05d}_{progress.step:08d}.npz"
        files.write_bytes(path, archive.getbuffer())
        for old in self.paths()[KEPT:]:
            old.unlink(missing_ok=True)

    def _read(self, path: pathlib.Path) -> Progress:
        """Reads a whole checkpoint before it changes a variable."""
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as archive:
            # NumPy looks at the checksums of what it reads to the end alone.
            if damaged := archive.zip.testzip():
                raise ValueError(f"{damaged} is damaged")
            content = {name: archive[name] for name in archive.files}
        origin = str(content.pop("origin"))
        epoch, step, entries = (int(value) for value in content.pop("done"))
        if len(content) != entries:
            raise ValueError(f"{len(content)} of {entries} entries are left")
        state = [content.pop(f"state_{i:05d}") for i in range(len(self.variables))]
        sums = {name.removeprefix("sum_"): value for name, value in content.items()}
        if any(name.startswith("state_") for name in content):
            raise ValueError("it is of another model")
        for variable, value in zip(self.variables, state, strict=True):
            if value.shape != tuple(variable.shape):
                raise ValueError(f"{variable.path} is {value.shape} there")
            if value.dtype.kind not in "fiu":
                raise ValueError(f"{variable.path} holds no numbers there")
        if origin != self.origin:
            raise InputError(
                f"{path} was written with other training images; give the run its own again, or "
                "choose another --workdir"
            )
        for variable, value in zip(self.variables, state, strict=True):
            variable.assign(value)
        return Progress(epoch, step, sums)


def _array(variable: keras.Variable) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(variable))
