"""A manifest is read strictly, and by the predictor too."""

import json

import pytest

from export import manifest
from export.predictor import Predictor
from export.routed import Rules
from instanas_tf.errors import InputError, ModelError
from tests.fixtures_ring import change_json


@pytest.fixture
def folder(tmp_path):
    """A folder like an export, of files that nobody runs."""
    entries = []
    for name, kind in (("controller", "controller"), ("expert_00", "expert")):
        path = tmp_path / f"{name}.tflite"
        path.write_bytes(name.encode())
        entries.append(manifest.entry(name, kind, path, more=1))
    routing = Rules.named(1).to_json("search")
    variant = {"name": "A", "controller": "controller", "decide": None, "experts": ["expert_00"]}
    variant["routing"] = routing
    manifest.write(tmp_path, entries, variants=[variant], selected="A", labels=["a", "b"])
    return tmp_path


def test_round_trip(folder):
    content = manifest.read(folder)
    assert [model.name for model in content.models] == ["controller", "expert_00"]
    assert [model.name for model in content.of_kind("expert")] == ["expert_00"]
    assert content.models[0].details["more"] == 1
    assert content.models[0].details["bytes"] == len("controller")
    for model in content.models:
        model.verify()


def first(**changes):
    return lambda content: content["models"][0].update(changes)


def without(key):
    return lambda content: content["models"][0].pop(key)


DAMAGES = {
    "format": lambda content: content.update(format="other"),
    "version": lambda content: content.update(version=1),
    "no models": lambda content: content.update(models=[]),
    "models is text": lambda content: content.update(models="x"),
    "no list": lambda content: content.pop("models"),
    "absolute": first(file="/etc/passwd"),
    "above": first(file="../controller.tflite"),
    "below": first(file="sub/controller.tflite"),
    "dots": first(file=".."),
    "empty": first(file=""),
    "a number": first(file=3),
    **{f"without {key}": without(key) for key in ("name", "kind", "file", "sha256")},
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged(folder, damage):
    change_json(folder / "manifest.json", DAMAGES[damage])
    for use in (manifest.read, Predictor):
        with pytest.raises(InputError, match="manifest.json.*export again"):
            use(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff"])
def test_no_manifest(folder, content):
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(InputError, match="manifest.json.*export again"):
        Predictor(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(InputError, match="does not exist; export again"):
        Predictor(folder)


def test_a_file_that_is_missing(folder):
    (folder / "expert_00.tflite").unlink()
    with pytest.raises(InputError, match="expert_00.tflite is missing; export again"):
        Predictor(folder)


@pytest.mark.parametrize("name", ["controller", "expert_00"])
def test_a_file_that_was_changed(folder, name):
    (folder / f"{name}.tflite").write_bytes(b"other")
    with pytest.raises(InputError, match=f"{name}.tflite is not the file that was exported"):
        Predictor(folder)


def variant(**changes):
    return lambda content: content["variants"][0].update(changes)


def test_an_export_of_some_experts(folder):
    routing = Rules.named(2).to_json("search")
    experts = ["expert_00", "expert_01"]
    change_json(folder / "manifest.json", variant(experts=experts, routing=routing))
    with pytest.raises(InputError, match="lacks expert_01, which may have to run; export again"):
        Predictor(folder)


def test_an_export_without_controller(folder):
    change_json(folder / "manifest.json", lambda content: content["models"].pop(0))
    with pytest.raises(InputError, match="lacks controller, which may have to run; export again"):
        Predictor(folder)


VARIANTS = {
    "no controller": (variant(controller=None), "a front must be there. Received: no front"),
    "no need": (
        lambda content: content["variants"][0]["routing"].update(first=0),
        "a front must be absent. Received: a front",
    ),
    "no routing": (variant(routing=None), "`routing` is missing"),
    "no expert": (variant(experts=[]), "there must be an expert"),
    "a number": (variant(experts=[3]), "names must be text"),
    "text": (variant(experts="ab"), "must speak of all 2 experts"),
    "none at all": (lambda content: content.update(variants=[]), "the variant asked for, 'A'"),
    "no list": (lambda content: content.update(variants=3), "is damaged"),
    "no names": (lambda content: content["variants"][0].pop("decide"), "is damaged"),
    "others": (lambda content: content.update(selected="B"), "the variant asked for, 'B'"),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_that_do_not_fit(folder, name):
    change, words = VARIANTS[name]
    change_json(folder / "manifest.json", change)
    with pytest.raises(InputError, match=words) as caught:
        Predictor(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"following": [-1, -1], "thresholds": [0.0, 0.0], "weights": [1.0, 1.0]},
        {"following": [0]},
        {"thresholds": [1.5]},
        {"weights": [0.0]},
        {"weights": []},
        {"first": 1},
        {"features": "yes"},
        {"more": 1},
    ],
)
def test_malformed_routing(folder, change):
    change_json(
        folder / "manifest.json", lambda content: content["variants"][0]["routing"].update(change)
    )
    with pytest.raises(InputError, match="manifest.json: .*Received: .*; export again") as caught:
        Predictor(folder)
    assert "\n" not in str(caught.value)


def test_experts_in_another_order(folder):
    def swap(content):
        first = content["models"][1]
        content["models"].append({**first, "name": "expert_00"})
        first["name"] = "expert_01"
        routing = Rules.named(2).to_json("search")
        content["variants"][0].update(experts=["expert_01", "expert_00"], routing=routing)

    change_json(folder / "manifest.json", swap)
    with pytest.raises(InputError, match="the manifest mixes up its experts; export again"):
        Predictor(folder)


def test_no_labels(folder, monkeypatch):
    change_json(folder / "manifest.json", lambda content: content.pop("labels"))
    with pytest.raises(InputError, match="manifest.json"):
        Predictor(folder)


def test_no_runtime(folder, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError, match="pip install ai-edge-litert") as caught:
        Predictor(folder)
    assert caught.value.exit_code == 5


def test_entry_of_a_written_file(tmp_path):
    (tmp_path / "a.tflite").write_bytes(b"abc")
    entry = manifest.entry("a", "expert", tmp_path / "a.tflite", share=0.5)
    assert json.loads(json.dumps(entry)) == {
        "name": "a",
        "kind": "expert",
        "file": "a.tflite",
        "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        "bytes": 3,
        "share": 0.5,
    }
