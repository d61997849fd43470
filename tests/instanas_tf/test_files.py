"""A file is whole or not there, whatever happens in between."""

import errno
import hashlib
import os
import pathlib
import signal
import stat
import types

import pytest

from instanas_tf import files
from instanas_tf.errors import InputError, ModelError
from tests import fixtures_ring as ring


def disk_full(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_writes(tmp_path):
    files.write_json(tmp_path / "deep" / "a.json", {"a": 1})
    assert files.read_json(tmp_path / "deep" / "a.json", "") == {"a": 1}
    assert names(tmp_path / "deep") == ["a.json"]


def test_the_file_can_be_read_by_others(tmp_path):
    files.write_text(tmp_path / "a", "ä")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o644
    assert (tmp_path / "a").read_bytes() == "ä".encode()


def test_replacing_has_the_suffix_that_writers_look_at(tmp_path):
    with files.replacing(tmp_path / "a", suffix=".weights.h5") as temporary:
        assert temporary.name.endswith(".weights.h5")
        assert temporary.parent == tmp_path


@pytest.mark.parametrize("suffix", ["", ".weights.h5"])
@pytest.mark.parametrize("name", ["a", "a[1]"])
def test_what_a_killed_writer_left_goes_with_the_next_write(tmp_path, name, suffix):
    code = (
        "import os, pathlib, signal, sys\n"
        "from instanas_tf import files\n"
        "with files.replacing(pathlib.Path(sys.argv[1]), suffix=sys.argv[2]):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert ring.python("-c", code, tmp_path / name, suffix).returncode == -signal.SIGKILL
    assert len(names(tmp_path)) == 1
    for other in (".a", f".{name}.txt", f".b.12345678{suffix}"):
        (tmp_path / other).write_text("not ours")
    with files.replacing(tmp_path / name, suffix=suffix) as temporary:
        temporary.write_text("new")
    assert names(tmp_path) == sorted([".a", f".{name}.txt", f".b.12345678{suffix}", name])


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_inside_leaves_nothing_behind(tmp_path, error):
    (tmp_path / "a").write_text("old")
    with pytest.raises(error), files.replacing(tmp_path / "a") as temporary:
        temporary.write_text("half")
        raise error
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a").read_text() == "old"


@pytest.mark.parametrize("where", [(os, "replace"), (pathlib.Path, "write_bytes")])
def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch, where):
    (tmp_path / "a").write_text("old")
    monkeypatch.setattr(*where, disk_full)
    with pytest.raises(ModelError, match="cannot write .*a: No space left.*free some space"):
        files.write_text(tmp_path / "a", "new")
    monkeypatch.undo()
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a").read_text() == "old"


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match="cannot write .*file/sub/a: .*choose another folder"):
        files.write_text(tmp_path / "file" / "sub" / "a", "x")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_without_numbers_that_are_none(tmp_path, value):
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(tmp_path / "a.json", {"a": value})
    assert names(tmp_path) == []


def old_folder(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("old")
    return tmp_path / "out"


def test_folder_is_replaced_as_a_whole(tmp_path):
    out = old_folder(tmp_path)
    with files.folder_replacing(out) as new:
        (new / "new").write_text("new")
        assert names(out) == ["old"]
    assert names(out) == ["new"]
    assert names(tmp_path) == ["out"]


def test_folder_is_made(tmp_path):
    with files.folder_replacing(tmp_path / "deep" / "out") as new:
        (new / "new").write_text("new")
    assert names(tmp_path / "deep") == ["out"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_inside_leaves_the_old_folder(tmp_path, error):
    out = old_folder(tmp_path)
    with pytest.raises(error), files.folder_replacing(out) as new:
        (new / "new").write_text("half")
        raise error
    assert names(tmp_path) == ["out"]
    assert names(out) == ["old"]


def test_a_full_disk_inside_leaves_the_old_folder(tmp_path):
    out = old_folder(tmp_path)
    with pytest.raises(ModelError, match="cannot write .*out: No space left"):
        with files.folder_replacing(out):
            disk_full()
    assert names(tmp_path) == ["out"]
    assert names(out) == ["old"]


@pytest.mark.parametrize("failing", [1, 2])
def test_a_folder_that_cannot_be_renamed_leaves_the_old_one(tmp_path, monkeypatch, failing):
    out, replace, calls = old_folder(tmp_path), os.replace, []

    def sometimes(*args):
        calls.append(args)
        return disk_full() if len(calls) == failing else replace(*args)

    monkeypatch.setattr(os, "replace", sometimes)
    with pytest.raises(ModelError, match="cannot write .*out"), files.folder_replacing(out) as new:
        (new / "new").write_text("new")
    monkeypatch.undo()
    assert names(tmp_path) == ["out"]
    assert names(out) == ["old"]


def test_an_interruption_between_the_renames_leaves_the_old_folder(tmp_path, monkeypatch):
    out, replace, calls = old_folder(tmp_path), os.replace, []

    def sometimes(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return replace(*args)

    monkeypatch.setattr(os, "replace", sometimes)
    with pytest.raises(KeyboardInterrupt), files.folder_replacing(out) as new:
        (new / "new").write_text("new")
    monkeypatch.undo()
    assert names(tmp_path) == ["out"]
    assert names(out) == ["old"]


def test_a_folder_that_another_process_is_writing(tmp_path):
    out = tmp_path / "out"
    with files.folder_replacing(out) as new:
        (new / "new").write_text("new")
        with pytest.raises(InputError, match="another command is writing .*out; wait for it"):
            with files.folder_replacing(out):
                pass
    assert names(out) == ["new"]
    assert names(tmp_path) == ["out"]


def test_what_a_killed_folder_writer_left_goes_and_nothing_else(tmp_path):
    for name in (".o*.abcdefgh", ".out.abcdefgh", ".o*.mine", ".o*.pictures"):
        (tmp_path / name / "new").mkdir(parents=True)
    (tmp_path / ".o*.pictures" / "a.png").write_text("picture")
    (tmp_path / ".o*.textfile").write_text("text")
    with files.folder_replacing(tmp_path / "o*") as new:
        (new / "new").write_text("new")
    kept = [".o*.mine", ".o*.pictures", ".o*.textfile", ".out.abcdefgh", "o*"]
    assert names(tmp_path) == kept


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"{'a': 1}", b"-1e999"])
def test_read_json_of_a_damaged_file(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(InputError, match="a.json is damaged .*; do this"):
        files.read_json(tmp_path / "a.json", "do this")


@pytest.mark.parametrize("read", [files.read_json, files.read_json_lines])
def test_read_of_no_file(tmp_path, read):
    with pytest.raises(InputError, match="a.json does not exist; do this"):
        read(tmp_path / "a.json", "do this")
    with pytest.raises(InputError, match="damaged .*; do this"):
        read(tmp_path, "do this")


def test_read_json_lines(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n[2]\n')
    assert files.read_json_lines(tmp_path / "a.jsonl", "") == [{"a": 1}, [2]]
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n{"a"')
    with pytest.raises(InputError, match="a.jsonl, line 2 is damaged .*; do this"):
        files.read_json_lines(tmp_path / "a.jsonl", "do this")


def test_hashes(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * (2 << 20))
    assert files.sha256(tmp_path / "a") == hashlib.sha256(b"x" * (2 << 20)).hexdigest()
    assert files.digest({"a": 1, "b": [2]}) == files.digest({"b": [2], "a": 1})
    assert files.digest({"a": 1}) != files.digest({"a": 2})
    assert files.digest({"a": (1, 2)}) == files.digest({"a": [1, 2]})


def test_room_is_looked_for_before_writing(tmp_path, monkeypatch):
    files.require_space(tmp_path / "some" / "file", 10)
    assert (tmp_path / "some").is_dir()
    usage = types.SimpleNamespace(free=2**20 + 9)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage)
    with pytest.raises(ModelError, match="No space left on device .* free some space"):
        files.require_space(tmp_path / "some" / "file", 10)
