"""One line for a user's mistake, and the documented exit codes."""

import pytest
from absl import flags

from instanas_tf import cli
from instanas_tf.errors import CommandError, InputError, ModelError
from tests.fixtures_ring import python, said

COMMANDS = ("instanas_tf.train", "instanas_tf.measure", "export.export_tflite")


def run(main, *arguments, **options):
    values = flags.FlagValues()
    flags.DEFINE_integer("number", 3, "A number.", flag_values=values)
    return cli.run("name", main, ["program", *arguments], "What it does.", values, **options)


def test_done(capsys):
    seen = []
    assert run(lambda values: seen.append(values.number), "--number=5") == 0
    assert seen == [5]
    assert capsys.readouterr() == ("", "")


def test_words_beside_the_flags():
    seen = []
    for arguments in (["--number=5", "a", "b"], []):
        code = run(lambda values, words: seen.append(words), *arguments, takes_words=True)
        assert code == 0
    assert seen == [["a", "b"], []]


@pytest.mark.parametrize("flag", ["--help", "-h", "-help", "--helpfull"])
def test_help(capsys, flag):
    assert run(None, flag) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "What it does." in out
    assert cli.EXIT_CODES in out
    assert "--number: A number. (default: 3)" in out


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InputError("this is\n  wrong"), 2),
        (ModelError("this is wrong"), 5),
        (CommandError("this is wrong", 4), 4),
    ],
)
def test_errors(capsys, error, code):
    def main(_):
        raise error

    assert run(main) == code
    assert said(capsys.readouterr().err, "name") == "this is wrong"


def test_interrupted(capsys):
    def main(_):
        raise KeyboardInterrupt

    assert run(main) == 130
    assert "run the same command again" in said(capsys.readouterr().err, "name")


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("--nmuber=3", "Unknown command line flag 'nmuber'"),
        ("--number=x", "--number=x"),
        ("--number", "number"),
        ("extra", "unexpected argument 'extra'"),
    ],
)
def test_usage(capsys, argument, words):
    assert run(None, argument) == 2
    line = said(capsys.readouterr().err, "name")
    assert words in line
    assert line.endswith("see --help")


def test_a_bug_is_not_hidden():
    def main(_):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(main)


def test_table():
    rows = [["a", "1.5"], ["longer", "10"]]
    assert cli.table(rows) == "a       1.5\nlonger   10"
    assert cli.table(rows, ("name", "ms")).splitlines()[0] == "name     ms"
    assert cli.table([["a", ""]]) == "a"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_imports_nothing_heavy(command):
    code = (
        "import importlib, sys\n"
        f"code = importlib.import_module('{command}').main(['command', '--help'])\n"
        "heavy = {'tensorflow', 'keras', 'matplotlib', 'sklearn', 'tflite_runtime'}\n"
        "sys.exit(code or sorted(heavy & set(sys.modules)) or 0)\n"
    )
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "Flags:" in done.stdout
    assert "Exit codes:" in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_a_mistake_in_a_process_of_its_own(command, tmp_path):
    done = python("-m", command, "--wrokdir=x", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "wrokdir" in said(done.stderr, command.rpartition(".")[2])
    assert list(tmp_path.iterdir()) == []
