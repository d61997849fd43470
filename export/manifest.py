"""`manifest.json`: what an export holds, strictly read. Standard library only."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

from instanas_tf import files
from instanas_tf.errors import InputError

FORMAT = "instanas_tf/manifest"
VERSION = 2
NAME = "manifest.json"
BUNDLE = "instanas.tflite"  # All files of an export as signatures of one.
REMEDY = "export again: export_tflite --expert=all"


@dataclasses.dataclass(frozen=True)
class ModelEntry:
    """One file of an export; whatever else the manifest says of it is in `details`.

    Attributes:
        name: such as `controller` or `expert_00`.
        kind: `controller`, `expert`, `decide` or `probe`.
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
class VariantEntry:
    """Which files of an export belong together, and what they are worth.

    Attributes:
        name: its letter; the name of the network if that ships alone.
        controller: name of the file that runs before the experts; None if there is none.
        decide: name of the file that says after an expert which one runs next; None if one
            expert runs for an image.
        experts: names of their files, from cheap to dear.
        routing: the rules; see `export.routed.Rules.from_json`.
        details: its whole entry.
    """

    name: str
    controller: str | None
    decide: str | None
    experts: tuple[str, ...]
    routing: Any
    details: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Manifest:
    """A read manifest.

    Attributes:
        models: all files.
        variants: ways of running them; none in a manifest of probes.
        bundle: the file with all of them as signatures; None if there is none.
        content: the whole JSON object.
    """

    models: tuple[ModelEntry, ...]
    variants: tuple[VariantEntry, ...]
    bundle: ModelEntry | None
    content: dict[str, Any]

    def model(self, name: str) -> ModelEntry:
        """A file by its name.

        Raises:
            InputError: the export does not hold it.
        """
        for model in self.models:
            if model.name == name:
                return model
        raise InputError(f"the export lacks {name}, which may have to run; {REMEDY}")

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
            models.append(_entry(item["name"], item["kind"], item, path))
        item = content.get("bundle")
        bundle = _entry(item["file"], "bundle", item, path) if item is not None else None
    except (KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged (missing {error}); {REMEDY}") from error
    if not models:
        raise InputError(f"{path} lists no model; {REMEDY}")
    try:
        found = tuple(_variant(item) for item in content.get("variants", []))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is damaged (in its variants: {error}); {REMEDY}") from error
    return Manifest(tuple(models), found, bundle, content)


def _entry(name: str, kind: str, item: dict[str, Any], path: pathlib.Path) -> ModelEntry:
    """A file that a manifest lists."""
    file = item["file"]
    if pathlib.PurePath(file).name != file or file in ("", ".", ".."):
        raise InputError(f"{path}: the file {file!r} lies outside the folder; {REMEDY}")
    return ModelEntry(name, kind, path.parent / file, item["sha256"], dict(item))


def _variant(item: dict[str, Any]) -> VariantEntry:
    names = [item["name"], *item["experts"]]
    names += [item[key] for key in ("controller", "decide") if item[key] is not None]
    if not all(isinstance(name, str) for name in names) or not item["experts"]:
        raise ValueError("names must be text, and there must be an expert")
    parts = item["controller"], item["decide"], tuple(item["experts"])
    return VariantEntry(item["name"], *parts, item["routing"], dict(item))
