"""The list of exported models: reading and checking `manifest.json`."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from android_bench.checks import is_count, is_sha256, is_text
from android_bench.errors import InputError

FORMAT = "instanas_tf/manifest"
VERSION = 2
_REMEDY = "export again"


@dataclass(frozen=True)
class ModelFile:
    """One model to be measured.

    Attributes:
        name: Its name, unique in the manifest.
        kind: What it is, such as "expert".
        path: The .tflite file.
        sha256: Hash of the file, in hex.
        bytes: Size of the file.

    Raises:
        ValueError: A value has the wrong type or cannot be true.
    """

    name: str
    kind: str
    path: Path
    sha256: str
    bytes: int

    def __post_init__(self):
        for field in ("name", "kind"):
            value = getattr(self, field)
            if not is_text(value) or not value.isprintable():
                raise ValueError(f"`{field}` must be a printable text. Received: {value!r}")
        if not is_sha256(self.sha256):
            raise ValueError(f"`sha256` must be 64 hexadecimal digits. Received: {self.sha256!r}")
        if not is_count(self.bytes, 1):
            raise ValueError(f"`bytes` must be a whole number above 0. Received: {self.bytes!r}")


def read_manifest(path: Path) -> list[ModelFile]:
    """Reads a manifest and checks every file that it names.

    Args:
        path: The manifest; its models lie in its folder or below.

    Returns:
        The models, in the order of the manifest.

    Raises:
        InputError: The manifest cannot be used, or a file is missing, changed or outside.
    """
    path = Path(path)
    entries = _read_entries(path)
    models: dict[str, ModelFile] = {}
    for number, entry in enumerate(entries):
        model = _read_model(entry, f"{path}: models[{number}]", path.parent)
        if model.name in models:
            raise InputError(f"{path}: two models are named '{model.name}'; {_REMEDY}")
        models[model.name] = model
    return list(models.values())


def _read_entries(path: Path) -> list[Any]:
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"cannot read manifest {path}: {error.strerror}; "
            "give --manifest the manifest.json that the export wrote"
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no valid JSON ({error}); {_REMEDY}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise InputError(f"{path} is no manifest: its `format` is not '{FORMAT}'; {_REMEDY}")
    version = manifest.get("version")
    if type(version) is not int or version != VERSION:
        raise InputError(f"{path} has version {version!r}, expected {VERSION}; {_REMEDY}")
    entries = manifest.get("models")
    if not isinstance(entries, list) or not entries:
        raise InputError(f"{path} lists no models; {_REMEDY}")
    return entries


def _read_model(entry: Any, where: str, folder: Path) -> ModelFile:
    if not isinstance(entry, dict):
        raise InputError(f"{where} is no JSON object; {_REMEDY}")
    for key in ("name", "kind", "file", "sha256", "bytes"):
        if key not in entry:
            raise InputError(f"{where} has no key '{key}'; {_REMEDY}")
    file = _file_inside(entry["file"], where, folder)
    try:
        model = ModelFile(entry["name"], entry["kind"], file, entry["sha256"], entry["bytes"])
    except ValueError as error:
        raise InputError(f"{where}: {error}; {_REMEDY}") from error
    _check_content(model, where)
    return model


def _file_inside(name: Any, where: str, folder: Path) -> Path:
    if not is_text(name) or "\0" in name:
        raise InputError(f"{where}: `file` must be a file name. Received: {name!r}; {_REMEDY}")
    path = Path(os.path.realpath(folder / name))
    escapes = PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts
    if escapes or not path.is_relative_to(os.path.realpath(folder)):
        raise InputError(f"{where}: '{name}' is not inside the manifest's folder; {_REMEDY}")
    if not os.path.isfile(path):
        raise InputError(f"{where}: '{name}' does not exist; {_REMEDY}")
    return path


def _check_content(model: ModelFile, where: str) -> None:
    try:
        content = model.path.read_bytes()
    except OSError as error:
        raise InputError(f"{where}: cannot read {model.path}: {error.strerror}") from error
    if len(content) != model.bytes or hashlib.sha256(content).hexdigest() != model.sha256:
        raise InputError(
            f"{where}: '{model.path.name}' is not the file that was exported "
            f"(its size or sha256 differs); {_REMEDY}"
        )
