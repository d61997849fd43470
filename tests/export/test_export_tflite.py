"""The command that exports: nothing half-written, and one line for every mistake."""

import errno
import json
import pathlib
import shutil

import pytest

from export import convert, export_tflite
from instanas_tf.errors import CommandError, InputError
from tests import fixtures_ring as ring


@pytest.fixture
def refused(capfd, monkeypatch):
    """Runs a command line that must fail, and gives the line that it leaves."""
    monkeypatch.setenv("PYTHONPATH", str(ring.ROOT))

    def run(*arguments, code=2):
        found = export_tflite.main(["export_tflite", *map(str, arguments)])
        out, err = capfd.readouterr()
        assert found == code, err
        assert "Traceback" not in out + err
        lines = [line for line in err.splitlines() if line.startswith("export_tflite: ")]
        return ring.said("\n".join(lines), "export_tflite")

    return run


@pytest.mark.parametrize(
    ("text", "expected"), [("all", [0, 1, 2, 3]), ("0", [0]), ("3,1", [1, 3]), ("2,2, 0", [0, 2])]
)
def test_parse_experts(text, expected):
    assert export_tflite.parse_experts(text, 4) == expected


@pytest.mark.parametrize("text", ["x", "", "1,", "4", "-1", "1.5", "99", "ALL"])
def test_experts_that_do_not_exist(text):
    with pytest.raises(InputError, match="0 (and|to) "):
        export_tflite.parse_experts(text, 4)


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("extra", "unexpected argument 'extra'"),
        ("--exprt=0", "exprt"),
        ("--expert=99", "--expert=99: the variant has experts 0 to"),
        ("--expert=x", "--expert=x must be all, or indices"),
        ("--variant=Z", "--variant=Z is not one of ['A']"),
    ],
)
def test_mistakes(refused, trained, argument, words):
    before = ring.listing(trained)
    assert words in refused(f"--workdir={trained}", argument)
    assert ring.listing(trained) == before


def test_no_run(refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "no run below runs/" in refused()
    assert "holds no run" in refused("--workdir=missing")
    (tmp_path / "config.json").write_text("{}")
    assert "holds no experts yet; train first" in refused(f"--workdir={tmp_path}")


@pytest.mark.parametrize("name", ["photo.jpg", "manifest.json"])
def test_out_that_is_no_export(refused, trained, tmp_path, name):
    out = tmp_path / "mine"
    out.mkdir()
    (out / name).write_text('{"name": "a web page"}')
    (out / "more.txt").write_text("dear to me")
    before = ring.listing(out)
    line = refused(f"--workdir={trained}", f"--out={out}")
    assert "exists and is no export; choose another folder" in line
    assert ring.listing(out) == before


def test_out_is_a_file_or_below_one(refused, trained, tmp_path):
    (tmp_path / "file").write_text("mine")
    assert "is no export" in refused(f"--workdir={trained}", f"--out={tmp_path / 'file'}")
    line = refused(f"--workdir={trained}", f"--out={tmp_path / 'file' / 'below'}", code=5)
    assert "cannot write" in line
    assert (tmp_path / "file").read_text() == "mine"


def test_a_full_disk_leaves_the_old_export(refused, trained_copy, exported_copy, monkeypatch):
    out = pathlib.Path(shutil.move(exported_copy, trained_copy / "export"))
    before = ring.listing(trained_copy)

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(convert, "to_tflite", lambda *args: b"x")
    monkeypatch.setattr(pathlib.Path, "write_bytes", full)
    line = refused(f"--workdir={trained_copy}", code=5)
    assert "No space left on device; free some space" in line
    monkeypatch.undo()
    assert ring.listing(trained_copy) == before
    assert out.exists()


@pytest.mark.parametrize("code", [4, 5, 6])
def test_a_bench_that_fails_leaves_nothing(refused, trained_copy, monkeypatch, code):
    def fail(*args):
        raise CommandError("the bench said so", code)

    monkeypatch.setattr(convert, "to_tflite", lambda *args: b"x")
    monkeypatch.setattr(convert, "check", lambda models, *rest: dict.fromkeys(models, 0.0))
    monkeypatch.setattr(export_tflite, "bench", fail)
    before = ring.listing(trained_copy)
    assert refused(f"--workdir={trained_copy}", code=code) == "the bench said so"
    assert ring.listing(trained_copy) == before


def test_some_experts(trained_copy, monkeypatch, capsys):
    def measure(manifest, out, *rest):
        names = [entry["name"] for entry in json.loads(manifest.read_text())["models"]]
        return [{"model": n, "median_ms": 1.0, "device": {}, "runtime": {}} for n in names]

    monkeypatch.setattr(convert, "to_tflite", lambda *args: b"x")
    monkeypatch.setattr(convert, "check", lambda models, *rest: dict.fromkeys(models, 0.0))
    monkeypatch.setattr(export_tflite, "bench", measure)
    out = trained_copy / "some"
    arguments = [f"--workdir={trained_copy}", "--expert=1", f"--out={out}"]
    assert export_tflite.main(["export_tflite", *arguments]) == 0
    content = json.loads((out / "manifest.json").read_text())
    assert [entry["name"] for entry in content["models"]] == ["controller", "expert_01"]
    assert content["experts"] > 1
    assert f"Wrote variant A to {out}" in capsys.readouterr().out
    (out / "notes.txt").write_text("mine")
    assert export_tflite.main(["export_tflite", *arguments]) == 2
    assert "holds 'notes.txt', which no export wrote" in capsys.readouterr().err
    (out / "notes.txt").unlink()
    # Another choice replaces the whole folder, through a link too, and sweeps up after a kill.
    left_behind, link = out.parent / ".some.killed", out.parent / "link"
    left_behind.mkdir()
    link.symlink_to(out)
    arguments[1:] = ["--expert=0", f"--out={link}"]
    assert export_tflite.main(["export_tflite", *arguments]) == 0
    assert link.is_symlink() and not left_behind.exists()
    assert sorted(path.name for path in out.glob("*.tflite")) == [
        "controller.tflite",
        "expert_00.tflite",
    ]
