"""Holds the order of imports: they only go down, and what is light stays light."""

import ast
import functools
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGES = ("instanas_tf", "export", "android_bench")

# A file may import what stands on its own floor or on a lower one.
FLOORS = {
    "instanas_tf.children": 0,
    "instanas_tf.cli": 0,
    "instanas_tf.errors": 0,
    "instanas_tf.files": 0,
    "instanas_tf.photos": 0,
    "instanas_tf.startup": 0,
    "instanas_tf.spaces": 1,
    "instanas_tf.latency": 2,
    "instanas_tf.models": 2,
    "instanas_tf.search": 3,
    "instanas_tf.pipeline": 4,
    "export": 5,
    "instanas_tf.measure": 6,
    "instanas_tf.parts": 6,
    "instanas_tf.systems": 6,
    "instanas_tf.route": 6,
    "instanas_tf.compare": 6,
    "instanas_tf.train": 7,
    "instanas_tf.oracles": 6,
    "instanas_tf.trial": 7,
    "instanas_tf.tuner": 7,
    "instanas_tf.tune": 8,
}
DOOR = "instanas_tf"

TENSORFLOW = {"tensorflow", "tensorflow_datasets", "keras", "keras_tuner", "tf_keras"}
RUNTIMES = {"tflite_runtime", "ai_edge_litert"}
WITHOUT_TENSORFLOW = (
    "export.bench",
    "export.budget",
    "export.bundled",
    "export.manifest",
    "export.photos",
    "export.predictor",
    "export.predictor_cli",
    "export.routed",
    "export.runtime",
    "export.worker",
    "instanas_tf.cli",
    "instanas_tf.errors",
    "instanas_tf.files",
    "instanas_tf.latency",
    "instanas_tf.photos",
    "instanas_tf.pipeline.ahead",
    "instanas_tf.pipeline.augment",
    "instanas_tf.pipeline.cluster",
    "instanas_tf.pipeline.config",
    "instanas_tf.pipeline.config_files",
    "instanas_tf.pipeline.data",
    "instanas_tf.pipeline.decide",
    "instanas_tf.pipeline.envelope",
    "instanas_tf.pipeline.evaluate",
    "instanas_tf.pipeline.npz_source",
    "instanas_tf.pipeline.pools",
    "instanas_tf.pipeline.sources",
    "instanas_tf.pipeline.splits",
    "instanas_tf.pipeline.knobs",
    "instanas_tf.pipeline.objectives",
    "instanas_tf.pipeline.tuning",
    "instanas_tf.pipeline.workdir",
    "instanas_tf.pipeline.yardstick",
    "instanas_tf.search.cascade_choice",
    "instanas_tf.search.cascades",
    "instanas_tf.search.medoids",
    "instanas_tf.search.prices",
    "instanas_tf.spaces",
)
# Imports that only one choice of the user leads to: they stand in a function, after the choice.
ON_REQUEST = {
    ("instanas_tf.pipeline.sources", "instanas_tf.pipeline.tfds_source"),
    ("instanas_tf.pipeline.cluster", "keras"),
    ("instanas_tf.pipeline.cluster", "tensorflow"),
}
BENCH_EXTRAS = {"android_bench.runner": {"numpy", *RUNTIMES}}
# What an app needs, and what the command around it does.
PREDICTOR_EXTRAS = {
    "export.budget": set(),
    "export.bundled": {"numpy", *RUNTIMES},
    "export.photos": {"numpy", "PIL"},
    "export.predictor": {"numpy", *RUNTIMES},
    "export.predictor_cli": {"absl", "tqdm"},
    "export.routed": {"numpy", *RUNTIMES},
    "export.runtime": {"numpy", *RUNTIMES},
    "instanas_tf.cli": {"absl"},
    "instanas_tf.photos": {"numpy", "PIL"},
}
PREDICTOR_INSIDE = [*PREDICTOR_EXTRAS, "export.manifest", "instanas_tf.errors"]

# `instanas_tf.spaces.get` is a public name, so this one may pass on names from below it.
PASSING_ON = ("instanas_tf/spaces/__init__.py",)


def imports(module, source, is_package=False):
    """(line, dotted name) of each import in `source`, wherever it stands.

    `from a import b` counts as `a.b`; relative names are made absolute; the literal
    argument of `importlib.import_module` counts too.
    """
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, name.name) for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                parents = parts[: len(parts) - node.level + is_package]
                base = ".".join([*parents, *([base] if base else [])])
            found += [(node.lineno, f"{base}.{name.name}") for name in node.names]
        elif isinstance(node, ast.Call) and node.args:
            called = ast.unparse(node.func).rpartition(".")[2]
            literal = node.args[0].value if isinstance(node.args[0], ast.Constant) else None
            if called in ("import_module", "__import__") and isinstance(literal, str):
                found.append((node.lineno, literal))
    return found


def is_within(name, package):
    return name == package or name.startswith(package + ".")


def root(name):
    return name.partition(".")[0]


def is_standard(name):
    return root(name) in sys.stdlib_module_names


def floor(name):
    return next((rank for room, rank in FLOORS.items() if is_within(name, room)), None)


def upward(module, imported):
    """Imports that go up, or through the public door, or into a room that has no floor."""
    own, bad = floor(module), []
    for line, name in imported:
        if root(name) not in ("instanas_tf", "export"):
            continue
        if own is None:
            bad.append(f"{line}: {module} has no floor; add it to FLOORS")
        elif floor(name) is None:
            bad.append(f"{line}: {name} goes through the door {DOOR}, or has no floor")
        elif floor(name) > own:
            bad.append(f"{line}: {name} stands above {module}")
    return bad


def not_allowed(imported, inside, extras):
    """Imports that are neither standard, nor within a name of `inside`, nor in `extras`."""
    return [
        f"{line}: {name}"
        for line, name in imported
        if not is_standard(name)
        and root(name) not in extras
        and not any(is_within(name, package) for package in inside)
    ]


def heavy(module, graph, on_request=frozenset()):
    """Chains of imports that lead from `module` to TensorFlow or Keras, but those on request."""
    chains, bad, seen = [(module,)], [], {module}
    while chains:
        chain = chains.pop()
        for _, name in graph[chain[-1]]:
            target = name if name in graph else name.rpartition(".")[0] or name
            if (chain[-1], target) in on_request:
                continue
            if root(name) in TENSORFLOW:
                bad.append(" -> ".join([*chain, name]))
            if target in graph and target not in seen and target != DOOR:
                seen.add(target)
                chains.append((*chain, target))
    return bad


def more_than_names(source):
    """Lines of an __init__.py that do more than pass names on."""
    found = []
    for node in ast.parse(source).body:
        is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        is_all = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        if not (is_text or is_all or isinstance(node, ast.ImportFrom)):
            found.append(f"{node.lineno}: {ast.unparse(node)}")
    return found


@functools.cache
def graph():
    """Every module of the three packages -> its imports."""
    found = {}
    for path in sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        is_package = path.name == "__init__.py"
        parts = path.relative_to(ROOT).with_suffix("").parts
        module = ".".join(parts[:-1] if is_package else parts)
        found[module] = imports(module, path.read_text("utf-8"), is_package)
    return found


def modules(*packages):
    return [name for name in graph() if any(is_within(name, package) for package in packages)]


def report(found):
    """One line for each of {module: [violation]}; an empty text if there is none."""
    return "".join(f"\n{module}: {line}" for module, lines in found.items() for line in lines)


def test_imports_only_go_down():
    inner = [module for module in modules("instanas_tf", "export") if module != DOOR]
    assert not report({module: upward(module, graph()[module]) for module in inner})


def test_android_bench_needs_the_standard_library_alone():
    bench = modules("android_bench")
    assert bench
    found = {
        module: not_allowed(graph()[module], ["android_bench"], BENCH_EXTRAS.get(module, set()))
        for module in bench
    }
    assert not report(found)


def test_the_predictor_needs_little_more_than_a_runtime_and_numpy():
    found = {
        module: not_allowed(graph()[module], PREDICTOR_INSIDE, extras)
        for module, extras in PREDICTOR_EXTRAS.items()
    }
    assert not report(found)


def test_what_is_light_leads_to_no_tensorflow():
    light = modules(*WITHOUT_TENSORFLOW)
    assert light
    assert not report({module: heavy(module, graph(), ON_REQUEST) for module in light})


def test_what_is_imported_on_request_is_there_and_heavy():
    for module, late in ON_REQUEST:
        assert late in [name for _, name in graph()[module]]
        assert late in TENSORFLOW or heavy(late, graph())


def test_inner_init_files_are_empty():
    found = {}
    for path in sorted(path for name in PACKAGES for path in (ROOT / name).rglob("__init__.py")):
        name, source = path.relative_to(ROOT).as_posix(), path.read_text("utf-8")
        if name in PASSING_ON:
            found[name] = more_than_names(source)
        elif name != "instanas_tf/__init__.py" and source.strip():
            found[name] = ["1: is not empty"]
    assert not report(found)


def test_the_door_and_what_is_light_open_without_tensorflow():
    names = [DOOR, *modules(*WITHOUT_TENSORFLOW)]
    blocked = sorted(TENSORFLOW)
    code = (
        "import importlib, sys\n"
        f"sys.modules.update(dict.fromkeys({blocked}))\n"  # None makes the import fail.
        f"for name in {names}: importlib.import_module(name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import a.b, c\n", ["a.b", "c"]),
        ("from a import b as c\n", ["a.b"]),
        ("def f():\n    from a import b\n", ["a.b"]),
        ("from . import b\n", ["pkg.b"]),
        ("from ..low import b\n", ["low.b"]),
        ("from .low import b\n", ["pkg.low.b"]),
        ("importlib.import_module('a.b')\n", ["a.b"]),
        ("importlib.import_module(name)\n", []),
    ],
)
def test_imports_are_found(source, expected):
    assert [name for _, name in imports("pkg.module", source)] == expected


def test_relative_imports_of_a_package_start_at_itself():
    assert imports("a.pkg", "from .x import y\n", is_package=True) == [(1, "a.pkg.x.y")]


@pytest.mark.parametrize(
    ("module", "source", "is_bad"),
    [
        ("instanas_tf.spaces.space", "from instanas_tf.models import expert\n", True),
        ("instanas_tf.search.rewards", "def f():\n    import instanas_tf.pipeline.data\n", True),
        ("instanas_tf.pipeline.data", "from export import convert\n", True),
        ("instanas_tf.models.expert", "from instanas_tf import Supernet\n", True),
        ("instanas_tf.models.expert", "import instanas_tf\n", True),
        ("instanas_tf.attic", "from instanas_tf import files\n", True),
        ("instanas_tf.measure", "from instanas_tf import train\n", True),
        ("instanas_tf.measure", "from instanas_tf import compare, files\n", False),
        ("instanas_tf.train", "from export.convert import convert\n", False),
        ("export.convert", "from instanas_tf.models.expert import build_expert\n", False),
        ("instanas_tf.latency", "import json, numpy\n", False),
    ],
)
def test_upward_imports_are_found(module, source, is_bad):
    assert bool(upward(module, imports(module, source))) == is_bad


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import os.path, numpy, tensorflow.lite\n", ["1: tensorflow.lite"]),
        ("from export.convert import convert\n", ["1: export.convert.convert"]),
        ("from export.manifest import read\n", []),
        ("from export import manifest\n", []),
        ("from tflite_runtime.interpreter import Interpreter\n", []),
    ],
)
def test_forbidden_imports_are_found(source, expected):
    imported = imports("export.predictor", source)
    assert not_allowed(imported, ["export.manifest"], {"numpy", *RUNTIMES}) == expected


def test_a_roundabout_way_to_tensorflow_is_found():
    chain = {
        "a": [(1, "b.name"), (2, "instanas_tf.x")],
        "b": [(1, "a"), (2, "keras.ops")],
        "instanas_tf": [(1, "tensorflow")],
        "c": [(1, "instanas_tf.x"), (2, "numpy")],
    }
    assert heavy("a", chain) == ["a -> b -> keras.ops"]
    assert heavy("a", chain, {("a", "b")}) == []
    assert heavy("a", chain, {("b", "a")}) == ["a -> b -> keras.ops"]
    assert heavy("c", chain) == []


def test_code_in_an_init_file_is_found():
    assert more_than_names('"""A."""\nfrom a import b\n\n__all__ = ["b"]\n') == []
    assert more_than_names("import a\nb = a.c()\n") == ["1: import a", "2: b = a.c()"]
