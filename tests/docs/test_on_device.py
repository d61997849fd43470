"""The Python loop of docs/on_device.md, run on made-up networks; its other code is not run."""

import hashlib
import json
import pathlib
import runpy
import sys
import types

import numpy as np
import pytest

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "on_device.md"


class Interpreter:
    """Runs plain functions as if they were signatures of a file."""

    signatures: dict = {}
    calls: list = []

    def __init__(self, path, num_threads):
        self.calls.clear()

    def allocate_tensors(self):
        self.calls.append("allocate")

    def get_signature_runner(self, name):
        def run(**inputs):
            self.calls.append((name, *sorted(inputs)))
            return self.signatures[name](**inputs)

        return run


def probabilities(*values):
    return lambda **inputs: {"probabilities": np.array([values], np.float32)}


def decide(probabilities, votes, expert):
    total = votes + probabilities
    go_on = total.max() / total.sum() < 0.7 and expert[0] < 1
    following = np.array([expert[0] + 1 if go_on else -1], np.int32)
    return {"next": following, "total": total, "mean": total / total.sum()}


@pytest.fixture
def classify(tmp_path, monkeypatch):
    """Makes the page's `classify` for signatures and an entry of a variant."""
    program = tmp_path / "loop.py"
    program.write_text(PAGE.read_text().split("```python\n")[1].split("```")[0])
    module = types.ModuleType("ai_edge_litert.interpreter")
    module.Interpreter = Interpreter
    monkeypatch.setitem(sys.modules, "ai_edge_litert", types.ModuleType("ai_edge_litert"))
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", module)
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "digits" / "export"
    folder.mkdir(parents=True)
    (folder / "instanas.tflite").write_bytes(b"networks")

    def make(
        signatures, controller=None, decide=None, experts=("a",), first=0, content=b"networks"
    ):
        monkeypatch.setattr(Interpreter, "signatures", signatures)
        digest = hashlib.sha256(content).hexdigest()
        entry = {"name": "B", "controller": controller, "decide": decide, "experts": experts}
        manifest = {
            "labels": ["cat", "dog"],
            "selected": "B",
            "bundle": {
                "file": "instanas.tflite",
                "sha256": digest,
                "signatures": dict.fromkeys(signatures),
            },
            "variants": [{"name": "A"}, entry | {"routing": {"first": first}}],
        }
        (folder / "manifest.json").write_text(json.dumps(manifest))
        return runpy.run_path(str(program))["classify"]

    return make


IMAGES = np.zeros((1, 4, 4, 3), np.float32)


def test_one_network_alone(classify):
    run = classify({"a": probabilities(0.25, 0.75)})
    assert run(IMAGES) == ("dog", 0.75)
    assert Interpreter.calls == ["allocate", ("a", "images")]


def test_a_cascade_goes_on_and_answers_with_the_mean(classify):
    experts = {"a": probabilities(0.5, 0.5), "b": probabilities(1.0, 0.0)}
    run = classify(experts | {"decide": decide}, decide="decide", experts=("a", "b"))
    assert run(IMAGES) == ("cat", 0.75)
    last = ("decide", "expert", "probabilities", "votes")
    assert Interpreter.calls[1:] == [("a", "images"), last, ("b", "images"), last]


def test_a_cascade_stops_when_it_is_sure(classify):
    experts = {"a": probabilities(0.25, 0.75), "b": probabilities(1.0, 0.0)}
    run = classify(experts | {"decide": decide}, decide="decide", experts=("a", "b"))
    assert run(IMAGES) == ("dog", 0.75)


def test_the_controller_names_the_expert_and_gives_features(classify):
    def front(images):
        return {"expert": np.array([1], np.int32), "features": np.ones((1, 1, 1, 2), np.float32)}

    experts = {"a": probabilities(1.0, 0.0), "b": probabilities(0.25, 0.75)}
    run = classify(experts | {"c": front}, controller="c", experts=("a", "b"), first=None)
    assert run(IMAGES) == ("dog", 0.75)
    assert Interpreter.calls[1:] == [("c", "images"), ("b", "features")]


def test_a_controller_may_only_give_features(classify):
    signatures = {"c": lambda images: {"features": images}, "a": probabilities(0.75, 0.25)}
    assert classify(signatures, controller="c")(IMAGES) == ("cat", 0.75)


def test_another_file_is_refused(classify):
    with pytest.raises(SystemExit, match="instanas.tflite is not the file that was exported"):
        classify({"a": probabilities(1.0, 0.0)}, content=b"other")
