"""Reads config files, and checks the names and types of their settings against the default's."""

from __future__ import annotations

import difflib
import importlib.util
import pathlib
from collections.abc import Iterable
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict

from instanas_tf import files
from instanas_tf.errors import InputError
from instanas_tf.pipeline.config import default_config


def load(path: str) -> ConfigDict:
    """The config of a Python file or of a run's `config.json`; the default one without a path.

    Raises:
        InputError: the file is missing or broken, has no `get_config`, or returns a config
            with unknown or missing keys or wrong types.
    """
    if not path:
        return default_config()
    if not pathlib.Path(path).is_file():
        raise InputError(f"--config={path} does not exist; give the path of a config file")
    if path.endswith(".json"):
        return from_json(pathlib.Path(path))
    try:
        spec = importlib.util.spec_from_file_location("config_file", path)
        if spec is None or spec.loader is None:
            raise ImportError("its name must end in .py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        config = module.get_config()
    except (
        ArithmeticError,
        AssertionError,
        AttributeError,
        EOFError,
        ImportError,
        LookupError,
        NameError,
        OSError,
        RuntimeError,
        SyntaxError,
        SystemExit,
        TypeError,
        ValueError,
    ) as error:
        raise InputError(f"--config={path} cannot be used ({error}); mend the file") from error
    if not isinstance(config, ConfigDict) or isinstance(config, FrozenConfigDict):
        raise InputError(
            f"--config={path}: get_config() must return a ConfigDict, not frozen; mend the file"
        )
    check_keys(config)
    return config


def from_json(path: pathlib.Path) -> ConfigDict:
    """The config that a work directory was started with.

    Raises:
        InputError: the file is damaged, or of a version with other settings.
    """
    content = files.read_json(path, "choose another --workdir")
    try:
        config = ConfigDict(_tuples(content), convert_dict=True)
        check_keys(config)
    except (TypeError, ValueError, AttributeError, InputError) as error:
        raise InputError(f"{path} is damaged ({error}); choose another --workdir") from error
    return config.lock()


def _tuples(value: Any) -> Any:
    """A JSON value with its arrays as tuples, all the way down."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def flatten(config: ConfigDict, prefix: str = "config") -> dict[str, Any]:
    """All settings by dotted name, such as `config.data.name`."""
    found = {}
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            found |= flatten(value, f"{prefix}.{name}")
        else:
            found[f"{prefix}.{name}"] = value
    return found


def check_names(names: Iterable[str]) -> None:
    """Refuses dotted names that are no setting, and suggests the nearest one.

    Raises:
        InputError: naming the first unknown one.
    """
    known = flatten(default_config())
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else "see instanas_tf/pipeline/config.py"
            raise InputError(f"{name} is not a setting; {hint}")


def check_keys(config: ConfigDict) -> None:
    """Refuses a config whose keys or types differ from the default's.

    Raises:
        InputError: naming the first setting that is wrong.
    """
    known, given = flatten(default_config()), flatten(config)
    check_names(given)
    for name, default in known.items():
        if name not in given:
            raise InputError(f"{name} is missing; start from default_config() in the config file")
        value = given[name]
        fits = isinstance(value, type(default)) and isinstance(value, bool) == isinstance(
            default, bool
        )
        if isinstance(default, float) and type(value) is int:
            fits = True
        if not fits:
            raise InputError(
                f"{name} must be of type {type(default).__name__}. Received: {value!r}"
            )
