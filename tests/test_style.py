"""Holds the rules of style that ruff cannot: they are read off the source with `ast`."""

import ast
import functools
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
LIBRARY = ("instanas_tf", "export", "android_bench")
EVERYWHERE = (*LIBRARY, "configs", "benchmarks", "tests")
MAY_PRINT = (
    "instanas_tf/train.py",
    "instanas_tf/measure.py",
    "instanas_tf/tune.py",
    "export/export_tflite.py",
    "android_bench/__main__.py",
    "android_bench/runner.py",
    "benchmarks/",
)
FILE_LINES = 400
FUNCTION_LINES = 60
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
DEFINITIONS = (*FUNCTIONS, ast.ClassDef)
UNSAFE_MODULES = {"pickle", "cPickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"}
UNSAFE_CALLS = {"eval", "exec", "os.system", "os.popen"}
UNSAFE_KEYWORDS = {"shell", "allow_pickle"}


def long_file(source):
    lines = len(source.splitlines())
    return [f"1: {lines} lines, more than {FILE_LINES}"] if lines > FILE_LINES else []


def long_function(source):
    found = []
    for node in nodes(source, FUNCTIONS):
        lines = node.end_lineno - node.lineno + 1
        if ast.get_docstring(node, clean=False) is not None:
            lines -= node.body[0].end_lineno - node.body[0].lineno + 1
        if lines > FUNCTION_LINES:
            found.append(
                f"{node.lineno}: {node.name} has {lines} lines, more than {FUNCTION_LINES}"
            )
    return found


def assertion(source):
    return [f"{node.lineno}: assert" for node in nodes(source, ast.Assert)]


def printing(source):
    return [f"{node.lineno}: print" for node in nodes(source, ast.Name) if node.id == "print"]


def broad_except(source):
    found = []
    for node in nodes(source, ast.ExceptHandler):
        caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
        names = [ast.unparse(kind) if kind else "bare" for kind in caught]
        if {"bare", "Exception", "BaseException"} & set(names):
            found.append(f"{node.lineno}: except of {', '.join(names)}")
    return found


def unsafe(source):
    found = []
    for node in nodes(source, ast.Import):
        found += [(node, name.name) for name in node.names if name.name in UNSAFE_MODULES]
    for node in nodes(source, ast.ImportFrom):
        names = {f"{node.module}.{name.name}" for name in node.names} | {node.module}
        found += [(node, name) for name in sorted(names & (UNSAFE_MODULES | UNSAFE_CALLS))]
    for node in nodes(source, ast.Call):
        if (name := ast.unparse(node.func)) in UNSAFE_CALLS:
            found.append((node, name))
        for keyword in node.keywords:
            is_true = isinstance(keyword.value, ast.Constant) and keyword.value.value is True
            if is_true and keyword.arg in UNSAFE_KEYWORDS:
                found.append((node, f"{keyword.arg}=True"))
    return [f"{node.lineno}: {what}" for node, what in found]


def unfinished(source):
    pattern = re.compile("|".join((r"\bTO" + r"DO\b", r"\bFIX" + r"ME\b")))
    lines = enumerate(source.splitlines(), start=1)
    return [f"{number}: {match[0]}" for number, line in lines if (match := pattern.search(line))]


def undocumented(source):
    tree = parse(source)
    found = [] if not tree.body or ast.get_docstring(tree) else ["1: module"]
    levels = [tree]
    for level in levels:
        for node in level.body:
            if not isinstance(node, DEFINITIONS) or node.name.startswith("_"):
                continue
            if ast.get_docstring(node) is None:
                found.append(f"{node.lineno}: {node.name} has no docstring")
            if isinstance(node, ast.ClassDef):
                levels.append(node)
    return found


@functools.cache
def parse(source):
    return ast.parse(source)


@functools.cache
def walk(source):
    return tuple(ast.walk(parse(source)))


def nodes(source, kinds):
    return [node for node in walk(source) if isinstance(node, kinds)]


@functools.cache
def sources(folders):
    """(path from the root, text) of every Python file in `folders`, and of setup.py."""
    paths = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    paths.append(ROOT / "setup.py")
    return [(path.relative_to(ROOT).as_posix(), path.read_text("utf-8")) for path in paths]


RULES = {
    long_file: EVERYWHERE,
    long_function: EVERYWHERE,
    assertion: (*LIBRARY, "configs"),
    printing: (*LIBRARY, "configs"),
    broad_except: EVERYWHERE,
    unsafe: EVERYWHERE,
    unfinished: EVERYWHERE,
    undocumented: (*LIBRARY, "configs", "benchmarks"),
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_source(rule):
    violations = [
        f"{path}:{violation}"
        for path, source in sources(RULES[rule])
        if not (rule is printing and path.startswith(MAY_PRINT))
        for violation in rule(source)
    ]
    assert not violations, "\n" + "\n".join(violations)


def test_the_library_is_found():
    paths = [path for path, _ in sources(LIBRARY)]
    assert "instanas_tf/errors.py" in paths
    assert "setup.py" in paths


BODY = "    pass\n"
DOCUMENTED = '"""M."""\n'
BAD = [
    (long_file, "pass\n" * (FILE_LINES + 1), "1: 401"),
    (long_function, "def f():\n" + BODY * FUNCTION_LINES, "1: f has 61"),
    (long_function, "class A:\n  async def f():\n" + BODY * FUNCTION_LINES, "2: f has 61"),
    (assertion, "x = 1\nassert x\n", "2: assert"),
    (printing, "print('x')\n", "1: print"),
    (printing, "log = print\n", "1: print"),
    (broad_except, "try:\n    pass\nexcept:\n    pass\n", "3: except of bare"),
    (broad_except, "try:\n    pass\nexcept Exception:\n    pass\n", "3: except of Exception"),
    (broad_except, "try:\n    pass\nexcept (OSError, BaseException):\n    pass\n", "3: except"),
    (unsafe, "import os, pickle\n", "1: pickle"),
    (unsafe, "def f():\n    from pickle import load\n", "2: pickle"),
    (unsafe, "from os import system\n", "1: os.system"),
    (unsafe, "eval('1')\n", "1: eval"),
    (unsafe, "exec('1')\n", "1: exec"),
    (unsafe, "import os\nos.system('ls')\n", "2: os.system"),
    (unsafe, "import subprocess\nsubprocess.run('ls', shell=True)\n", "2: shell=True"),
    (unsafe, "np.load('x', allow_pickle=True)\n", "1: allow_pickle=True"),
    (unfinished, "x = 1  # TO" + "DO: more\n", "1: TO" + "DO"),
    (unfinished, '"""FIX' + 'ME."""\n', "1: FIX" + "ME"),
    (undocumented, "x = 1\n", "1: module"),
    (undocumented, DOCUMENTED + "def f():\n    pass\n", "2: f has"),
    (undocumented, DOCUMENTED + "class A:\n    pass\n", "2: A has"),
    (undocumented, DOCUMENTED + "class A:\n    '''A.'''\n    def f(self):\n        pass\n", "4: f"),
]
GOOD = [
    (long_file, "pass\n" * FILE_LINES),
    (long_function, 'def f():\n    """A\n\n    B.\n    """\n' + BODY * (FUNCTION_LINES - 1)),
    (assertion, "'assert x'\n"),
    (printing, "device.print()\n'print'\n"),
    (broad_except, "try:\n    pass\nexcept (OSError, ValueError):\n    pass\n"),
    (unsafe, "model.eval()\nrun(['ls'], shell=False)\nimport pickles\n"),
    (unfinished, "TODOS = 1\n"),
    (undocumented, ""),
    (undocumented, DOCUMENTED + "def _f():\n    def g():\n        pass\nclass _A:\n    x = 1\n"),
]


@pytest.mark.parametrize(("rule", "source", "expected"), BAD)
def test_rule_finds(rule, source, expected):
    found = rule(source)
    assert len(found) == 1
    assert found[0].startswith(expected)


@pytest.mark.parametrize(("rule", "source"), GOOD)
def test_rule_lets_pass(rule, source):
    assert rule(source) == []


def test_every_rule_has_a_bad_and_a_good_example():
    assert {rule for rule, _, _ in BAD} == {rule for rule, _ in GOOD} == set(RULES)
