"""What `ablations.py` compares, and which results of one setting serve another one too.

A setting is a few changes to a dataset's config. What changes in none of them is trained once:
a new run starts from the stages of a sibling (same dataset and seed) whose config is the same
in all that those stages look at.
"""

from __future__ import annotations

import json
import pathlib
import shlex
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from instanas_tf import files, train
from instanas_tf.errors import InputError
from instanas_tf.pipeline import checks, config_files
from instanas_tf.pipeline.workdir import WorkDir, first_difference

_PRICED = {
    "search.recipe": "priced",
    "pretrain.anchors": (),
    "experts.choice": "picked",
    "finetune.rule": "assigned",
    "route.kinds": ("search",),
}
_ANCHOR = {"pretrain.anchors": ("ir3_e6",)}
_HISTORY = {"experts.choice": "history", "experts.required": ("least", "ir3_e6", "most")}
_SANDWICH = {"finetune.rule": "sandwich"}
_KINDS = {name: {"route.kinds": (name,)} for name in ("image", "features", "cascade", "start")}
_ALL = {
    **_PRICED,
    **_ANCHOR,
    **_HISTORY,
    **_SANDWICH,
    "route.kinds": ("search", "image", "features", "cascade", "start"),
}
SETTINGS: dict[str, dict[str, Any]] = {
    "published": {**_PRICED, "search.recipe": "published"},
    "priced": _PRICED,
    "anchor": _PRICED | _ANCHOR,
    "sandwich": _PRICED | _SANDWICH,
    "history": _PRICED | _HISTORY,
    **{name: _PRICED | kind for name, kind in _KINDS.items()},
    "all": _ALL,
    **{f"all_{name}": _ALL | kind for name, kind in _KINDS.items()},
}
# The sections of the config that a stage's result depends on.
_DRAWN = ("seed", "data", "space", "train")
_PRETRAIN = (*_DRAWN, "pretrain")
_MEASURE = ("space", "controller", "latency")
_SEARCH = (*_PRETRAIN, *_MEASURE, "search")
DEPENDS = {
    "pretrain": _PRETRAIN,
    "measure": _MEASURE,
    "search": _SEARCH,
    "finetune": (*_SEARCH, "experts", "finetune"),
}
_LEFT = {  # What a stage leaves; patterns below the work directory.
    "pretrain": ("checkpoints/pretrain.weights.h5",),
    "measure": ("latency_table.json",),
    "search": ("checkpoints/search.weights.h5", "checkpoints/controllers/*.weights.h5"),
    "finetune": (
        "checkpoints/expert_*.weights.h5",
        "checkpoints/chosen.json",
        "checkpoints/trained.json",
    ),
}
_ALONE = ("mobilenet_v2_*", "alone_*", "twin_*")
_TARGETS = ("target_ms", "variants")


def search_epochs(config: ConfigDict, recipe: str) -> int:
    """Epochs of a search by a recipe, so that weights see as many as in the config's own.

    Args:
        config: with a recipe and its epochs.
        recipe: the other recipe; twice as many where it gives every second to the controller.
    """
    a_weight_epoch = {
        name: 2 if config.search[name].alternate == "epoch" else 1
        for name in (recipe, config.search.recipe)
    }
    return config.search.epochs // a_weight_epoch[config.search.recipe] * a_weight_epoch[recipe]


def arguments(name: str, base: ConfigDict) -> list[str]:
    """The `--config.some.key=value` arguments that make a setting out of a dataset's config."""
    changes = dict(SETTINGS[name])
    changes["search.epochs"] = search_epochs(base, changes["search.recipe"])
    return [f"--config.{key}={value}" for key, value in changes.items()]


def planned(path: str, own: Sequence[str], name: str) -> tuple[ConfigDict, list[str]]:
    """The checked config of a setting, and the arguments of `instanas_tf.train` that give it.

    Args:
        path: of the dataset's config file.
        own: arguments that hold for all settings; the setting's own win.
        name: of the setting.

    Raises:
        InputError: an unknown setting or value.
    """
    base = train.override(config_files.load(path), own)
    mine = [*own, *arguments(name, base)]
    config = train.override(config_files.load(path), mine)
    checks.check(config)
    return config, [f"--config={path}", *mine]


def is_of(workdir: WorkDir, config: ConfigDict) -> bool:
    """Whether a work directory holds a run with this config; its targets may be others."""
    if not workdir.config.exists():
        return False
    theirs = files.read_json(workdir.config, "delete that folder to train it again")
    return first_difference(*map(_without_targets, (as_json(config), theirs))) is None


def as_json(config: ConfigDict) -> dict[str, Any]:
    """A config as it lies in a work directory."""
    return json.loads(config.to_json())


def shared(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> tuple[str, ...]:
    """The stages that give two configs the same result, in order."""
    return tuple(
        stage
        for stage, sections in DEPENDS.items()
        if all(ours[section] == theirs[section] for section in sections)
    )


def prepare(workdir: WorkDir, config: ConfigDict, siblings: Mapping[str, WorkDir]) -> list[str]:
    """Gives a new run what its siblings have trained already, in one piece.

    Networks trained alone depend on a digest of their policy, which is in their name, and on
    the dataset, seed and budget, which siblings share; so all of them are copied.

    Args:
        workdir: of the run; left as it is if that has begun.
        config: of the run.
        siblings: runs of the same table, dataset and seed, by name.

    Returns:
        What came from where, a line each.
    """
    if workdir.config.exists():
        return []
    ours, done = as_json(config), {}
    for name, sibling in siblings.items():
        stages = shared(ours, files.read_json(sibling.config, "delete that folder"))
        done[name] = [stage for stage in stages if sibling.is_done(stage)]
    best = max(done, key=lambda name: len(done[name]), default=None)
    stages = done[best] if best is not None else []
    said = [f"{', '.join(stages)} as in {best}"] if stages else []
    if not siblings:
        return said
    with files.folder_replacing(workdir.root) as new:
        for pattern in [pattern for stage in stages for pattern in _LEFT[stage]]:
            _copy(siblings[best].root, pattern, new)
        kept = {stage: best for stage in stages}
        for name, sibling in siblings.items():
            for pattern in _ALONE:
                found = _copy(sibling.root, f"checkpoints/{pattern}.weights.h5", new)
                kept |= {network: name for network in found if network not in kept}
        rows = [
            row
            for name in dict.fromkeys(kept.values())
            for row in _rows(siblings[name])
            if kept.get(row["stage"]) == name
        ]
        if rows:
            text = "".join(f"{json.dumps(row)}\n" for row in rows)
            files.write_text(new / workdir.metrics.name, text)
    alone = len(kept) - len(stages)
    return [*said, *([f"{alone} networks trained alone"] if alone else [])]


def _rows(workdir: WorkDir) -> list[dict[str, Any]]:
    path = workdir.metrics
    return files.read_json_lines(path, "delete that folder") if path.exists() else []


def _copy(root: pathlib.Path, pattern: str, new: pathlib.Path) -> list[str]:
    """Copies files that are not there yet; the names of the weights among them."""
    found = []
    for path in sorted(root.glob(pattern)):
        target = new / path.relative_to(root)
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
            found.append(path.name.removesuffix(".weights.h5"))
    return found


def _without_targets(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in _TARGETS}


def quoted(argument: str) -> str:
    """An argument for a shell, with double quotes where they do."""
    plain = shlex.quote(argument)
    if plain == argument or set(argument) & set('"$`\\!'):
        return plain
    name, _, value = argument.partition("=")
    return f'{name}="{value}"'


def check_names(names: Sequence[str]) -> list[str]:
    """The names in the order of the table; all settings if there are none.

    Raises:
        InputError: an unknown one.
    """
    unknown = [name for name in names if name not in SETTINGS]
    if unknown:
        raise InputError(f"--only must name some of {', '.join(SETTINGS)}. Received: {unknown[0]}")
    return [name for name in SETTINGS if name in names or not names]
