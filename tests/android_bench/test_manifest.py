"""Tests of android_bench.manifest."""

import hashlib
import json

import pytest

from android_bench.errors import InputError
from android_bench.manifest import ModelFile, read_manifest


def _change_first(path, **changes):
    manifest = json.loads(path.read_text())
    manifest["models"][0].update(changes)
    path.write_text(json.dumps(manifest))
    return path


def test_reads_models_in_order_and_ignores_more_keys(make_manifest, tmp_path):
    path = _change_first(make_manifest({"b": b"bb", "a": b"a"}), accuracy=0.5)
    assert read_manifest(path) == [
        ModelFile("b", "expert", tmp_path / "b.tflite", hashlib.sha256(b"bb").hexdigest(), 2),
        ModelFile("a", "expert", tmp_path / "a.tflite", hashlib.sha256(b"a").hexdigest(), 1),
    ]


def test_reads_a_relative_path(make_manifest, tmp_path, monkeypatch):
    make_manifest({"a": b"a"}, tmp_path / "export")
    monkeypatch.chdir(tmp_path)
    assert read_manifest("export/manifest.json")[0].path == tmp_path / "export" / "a.tflite"


def test_a_file_may_lie_in_a_folder_below(make_manifest, tmp_path):
    path = make_manifest({"a": b"a"})
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.tflite").rename(tmp_path / "sub" / "a.tflite")
    models = read_manifest(_change_first(path, file="sub/a.tflite"))
    assert models[0].path == tmp_path / "sub" / "a.tflite"


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"format": "other"}, "`format` is not 'instanas_tf/manifest'; export again"),
        ({"format": None}, "`format`"),
        ({"version": 1}, "has version 1, expected 2; export again"),
        ({"version": True}, "has version True"),
        ({"version": "1"}, "has version '1'"),
        ({"models": []}, "lists no models; export again"),
        ({"models": {"a": 1}}, "lists no models"),
        ({"models": None}, "lists no models"),
        ({"models": ["a"]}, r"models\[0\] is no JSON object"),
    ],
)
def test_a_wrong_manifest_is_refused(make_manifest, changes, complaint):
    with pytest.raises(InputError, match=complaint):
        read_manifest(make_manifest({"a": b"a"}, **changes))


@pytest.mark.parametrize("key", ["name", "kind", "file", "sha256", "bytes"])
def test_a_missing_key_of_a_model_is_named(make_manifest, key):
    path = make_manifest({"a": b"a"})
    manifest = json.loads(path.read_text())
    del manifest["models"][0][key]
    path.write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=rf"models\[0\] has no key '{key}'; export again"):
        read_manifest(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"name": ""},
        {"name": 3},
        {"name": "a\nb"},
        {"kind": None},
        {"file": ""},
        {"file": 3},
        {"file": "a\0"},
        {"sha256": "abc"},
        {"sha256": None},
        {"bytes": -1},
        {"bytes": True},
        {"bytes": "1"},
    ],
)
def test_an_impossible_value_is_named(make_manifest, changes):
    with pytest.raises(InputError, match=f"`{next(iter(changes))}` must be .*; export again"):
        read_manifest(_change_first(make_manifest({"a": b"a"}), **changes))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"\xff\xfe", b"[" * 100000])
def test_what_is_no_json_object_is_refused(tmp_path, content):
    path = tmp_path / "manifest.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match="manifest.json .*; export again"):
        read_manifest(path)


def test_a_missing_manifest_is_named(tmp_path):
    with pytest.raises(InputError, match="cannot read manifest .*nothing.json: No such file"):
        read_manifest(tmp_path / "nothing.json")


def test_a_folder_instead_of_a_manifest_is_refused(tmp_path):
    with pytest.raises(InputError, match="Is a directory; give --manifest the manifest.json"):
        read_manifest(tmp_path)


def test_two_models_of_the_same_name_are_refused(make_manifest):
    path = _change_first(make_manifest({"a": b"a", "b": b"b"}), name="b")
    with pytest.raises(InputError, match="two models are named 'b'; export again"):
        read_manifest(path)


@pytest.fixture
def outside(tmp_path):
    """A file beside the folder of the manifest, with the content of its model."""
    path = tmp_path / "outside.tflite"
    path.write_bytes(b"a")
    return path


@pytest.mark.parametrize("name", ["{absolute}", "../outside.tflite", "../export/a.tflite"])
def test_a_path_that_leaves_the_folder_is_refused(make_manifest, tmp_path, outside, name):
    path = make_manifest({"a": b"a"}, tmp_path / "export")
    _change_first(path, file=name.format(absolute=outside))
    with pytest.raises(InputError, match="is not inside the manifest's folder"):
        read_manifest(path)


def test_an_absolute_path_inside_the_folder_is_refused(make_manifest, tmp_path):
    path = _change_first(make_manifest({"a": b"a"}), file=str(tmp_path / "a.tflite"))
    with pytest.raises(InputError, match="is not inside the manifest's folder"):
        read_manifest(path)


def test_a_link_that_leaves_the_folder_is_refused(make_manifest, tmp_path, outside):
    path = make_manifest({"a": b"a"}, tmp_path / "export")
    (tmp_path / "export" / "a.tflite").unlink()
    (tmp_path / "export" / "a.tflite").symlink_to(outside)
    with pytest.raises(InputError, match="'a.tflite' is not inside the manifest's folder"):
        read_manifest(path)


def test_a_folder_reached_by_a_link_is_fine(make_manifest, tmp_path):
    make_manifest({"a": b"a"}, tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert len(read_manifest(tmp_path / "link" / "manifest.json")) == 1


@pytest.mark.parametrize("name", ["gone.tflite", ".", "loop", "x" * 300])
def test_a_file_that_does_not_exist_is_named(make_manifest, tmp_path, name):
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(InputError, match=f"'{name}' does not exist; export again"):
        read_manifest(_change_first(make_manifest({"a": b"a"}), file=name))


@pytest.mark.parametrize("content", [b"b", b"aa", b""])
def test_a_file_that_has_changed_is_named(make_manifest, tmp_path, content):
    path = make_manifest({"a": b"a"})
    (tmp_path / "a.tflite").write_bytes(content)
    with pytest.raises(InputError, match="'a.tflite' is not the file that was exported .*; export"):
        read_manifest(path)
