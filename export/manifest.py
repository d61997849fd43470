"""`manifest.json`: what an export holds, strictly read. Standard library only."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

from instanas_tf import files
from instanas_tf.errors import InputError

FORMAT = "instanas_tf/manifest"
VERSION = 1
NAME = "manifest.json"
REMEDY = "export again: export_tflite --expert=all"


@dataclasses.dataclass(frozen=True)
class ModelEntry:
    """One file of an export; whatever else the manifest says of it is in `details`.

    Attributes:
        name: such as `controller` or `expert_00`.
        kind: `controller`, `expert` or `probe`.
        path: the file.
        sha256: of the file.
        details: the rest of its entry.
    """

    name: str
    kind: str
    path: pathlib.Path
    sha256: str
    details: dict[str, Any]

    def verify(self) -> None:
        """Raises InputError if the file is missing or not the one that was exported."""
        if not self.path.is_file():
            raise InputError(f"{self.path} is missing; {REMEDY}")
        if files.sha256(self.path) != self.sha256:
            raise InputError(f"{self.path} is not the file that was exported; {REMEDY}")


@dataclasses.dataclass(frozen=True)
class Manifest:
    """A read manifest.

    Attributes:
        models: all files.
        content: the whole JSON object.
    """

    models: tuple[ModelEntry, ...]
    content: dict[str, Any]

    def of_kind(self, kind: str) -> tuple[ModelEntry, ...]:
        """The files of one kind, in order."""
        return tuple(model for model in self.models if model.kind == kind)


def entry(name: str, kind: str, path: pathlib.Path, **details: Any) -> dict[str, Any]:
    """The manifest's JSON object for one file."""
    return {
        "name": name,
        "kind": kind,
        "file": path.name,
        "sha256": files.sha256(path),
        "bytes": path.stat().st_size,
        **details,
    }


def write(folder: pathlib.Path, models: list[dict[str, Any]], **content: Any) -> pathlib.Path:
    """Writes `manifest.json` into a folder and returns its path."""
    path = pathlib.Path(folder) / NAME
    files.write_json(path, {"format": FORMAT, "version": VERSION, **content, "models": models})
    return path


def read(folder: pathlib.Path) -> Manifest:
    """Reads the manifest of a folder; files are checked by `ModelEntry.verify`.

    Raises:
        InputError: it is missing or damaged, of another format or version, or an entry
            lacks a key or points outside the folder.
    """
    folder = pathlib.Path(folder)
    path = folder / NAME
    content = files.read_json(path, REMEDY)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(f"{path} is no manifest of this package; {REMEDY}")
    if content.get("version") != VERSION:
        raise InputError(f"{path} has version {content.get('version')}, not {VERSION}; {REMEDY}")
    models = []
    try:
        for item in content["models"]:
            name, kind, file, sha256 = (item[key] for key in ("name", "kind", "file", "sha256"))
            if pathlib.PurePath(file).name != file or file in ("", ".", ".."):
                raise InputError(f"{path}: the file {file!r} lies outside the folder; {REMEDY}")
            models.append(ModelEntry(name, kind, folder / file, sha256, dict(item)))
    except (KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged (missing {error}); {REMEDY}") from error
    if not models:
        raise InputError(f"{path} lists no model; {REMEDY}")
    return Manifest(tuple(models), content)
