"""The command that classifies photos: what it prints, and how it ends."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from export import predictor_cli
from export.predictor import Prediction
from instanas_tf.errors import InputError, ModelError
from tests import fixtures_ring as ring


class Fake:
    """Bright photos are dogs, and take a second expert."""

    image_shape = (4, 6, 3)
    labels = ("cat", "dog")
    variant = {"name": "A", "experts": ["expert_00", "expert_01", "expert_02"]}
    made = ()

    def __init__(self, folder, **options):
        type(self).made = (folder, options)

    def predict(self, images):
        assert images.shape == self.image_shape and images.dtype == np.uint8
        if images.max() > 127:
            return [Prediction("dog", 1, 0.875, "expert_01", ("expert_00", "expert_01"), 2.0)]
        return [Prediction("cat", 0, 0.5, "expert_00", ("expert_00",), 1.0)]


@pytest.fixture(autouse=True)
def fake(monkeypatch):
    monkeypatch.setattr(predictor_cli, "Predictor", Fake)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, grey in {"a.png": 0, "b.jpg": 255, "c.gif": 9}.items():
        Image.new("L", (10, 10), grey).save(folder / name)
    return folder


def call(*arguments):
    return ring.quietly(predictor_cli.main, *arguments)


def test_a_table_and_a_summary(photos):
    code, out, err = call("--bundle=x", photos)
    assert (code, err) == (0, "")
    lines = [line.split() for line in out.splitlines()]
    assert lines[0] == ["file", "label", "probability", "experts", "ms"]
    assert lines[1] == [f"{photos}/a.png", "cat", "0.500", "expert_00", "1.000"]
    assert lines[2] == [f"{photos}/b.jpg", "dog", "0.875", "expert_00,", "expert_01", "2.000"]
    assert out.splitlines()[-1] == (
        "variant A: 3 photos, mean 1.333 ms; ran for: expert_00 100%, expert_01 33%, expert_02 0%"
    )
    widths = {len(line) for line in out.splitlines()[:-1]}
    assert len(widths) == 1


def test_json(photos):
    code, out, err = call("--bundle=x", photos / "b.jpg", photos / "a.png", "--json")
    assert (code, err) == (0, "")
    found = [json.loads(line) for line in out.splitlines()]
    assert found == [
        {
            "file": str(photos / "b.jpg"),
            "label": "dog",
            "class_index": 1,
            "probability": 0.875,
            "experts": ["expert_00", "expert_01"],
            "latency_ms": 2.0,
        },
        {
            "file": str(photos / "a.png"),
            "label": "cat",
            "class_index": 0,
            "probability": 0.5,
            "experts": ["expert_00"],
            "latency_ms": 1.0,
        },
    ]


def test_flags_reach_the_predictor(photos):
    assert call(photos, "--bundle=~/x", "--budget_ms=2.5", "--by=p95", "--threads=2")[0] == 0
    options = {"threads": 2, "runtime": "auto", "variant": "", "budget_ms": 2.5, "by": "p95"}
    assert (str(Fake.made[0]), Fake.made[1]) == (os.path.expanduser("~/x"), options)
    assert call(photos, "--bundle=x", "--variant=B", "--runtime=ai_edge_litert")[0] == 0
    assert Fake.made[1]["variant"] == "B"
    assert Fake.made[1]["budget_ms"] is None
    assert Fake.made[1]["runtime"] == "ai_edge_litert"


def test_the_latest_export(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = call(photos)
    assert (code, out) == (2, "")
    assert ring.said(err, "predictor").startswith("no export below runs/; write one (export_tflite")
    for seconds, name in enumerate(["new", "old"]):
        path = tmp_path / "runs" / name / "export" / "manifest.json"
        path.parent.mkdir(parents=True)
        path.write_text("{}")
        os.utime(path, (1000 - seconds, 1000 - seconds))
    assert call(photos)[0] == 0
    assert Fake.made[0].as_posix() == "runs/new/export"


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_a_photo_that_cannot_be_read_among_others(photos, flags):
    (photos / "b.jpg").write_bytes(b"")
    code, out, err = call("--bundle=x", photos, *flags)
    assert code == 2
    first, last = err.splitlines()
    assert first.startswith(f"predictor: {photos}/b.jpg must be a readable image. Received: ")
    assert last == "predictor: 1 of 3 photos cannot be read; see above"
    assert "a.png" in out and "c.gif" in out and "b.jpg" not in out


def test_the_only_photo_cannot_be_read(photos):
    code, out, err = call("--bundle=x", photos / "a.png", "--json")
    assert (code, err) == (0, "")
    (photos / "a.png").write_bytes(b"x")
    code, out, err = call("--bundle=x", photos / "a.png")
    assert (code, out) == (2, "")
    assert ring.said(err, "predictor").startswith(f"{photos}/a.png must be a readable image")


def test_no_photo_can_be_read(photos):
    for path in photos.iterdir():
        path.write_bytes(b"x")
    code, out, err = call("--bundle=x", photos)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 4
    assert err.endswith("predictor: 3 of 3 photos cannot be read; see above\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "no photos; name files or folders of them, see --help"),
        (["nowhere.png"], "nowhere.png must be a photo or a folder. Received: No such file"),
        (["--by=median", "x"], "--by=median"),
        (["--threads=0", "x"], "--threads=0"),
        (["--budget_ms=much", "x"], "--budget_ms=much"),
        (["--runtime=tensorflow", "x"], "--runtime=tensorflow"),
        (["--bnudle=x", "x"], "Unknown command line flag 'bnudle'"),
    ],
)
def test_usage(arguments, words):
    code, out, err = call("--bundle=x", *arguments)
    assert (code, out) == (2, "")
    assert words in ring.said(err, "predictor")


@pytest.mark.parametrize(("error", "code"), [(InputError("bad"), 2), (ModelError("bad"), 5)])
def test_errors_of_the_predictor(photos, monkeypatch, error, code):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(predictor_cli, "Predictor", fail)
    found, out, err = call("--bundle=x", photos)
    assert (found, out, ring.said(err, "predictor")) == (code, "", "bad")


def test_many_photos_show_progress_on_a_terminal_alone(photos, monkeypatch):
    monkeypatch.setattr(predictor_cli, "MANY", 2)
    (photos / "b.jpg").write_bytes(b"")
    code, out, err = call("--bundle=x", photos, "--json")
    assert code == 2
    assert len(out.splitlines()) == 2
    assert len(err.splitlines()) == 2
    monkeypatch.setitem(sys.modules, "tqdm", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert call("--bundle=x", photos, "--json") == (code, out, err)


def test_names_that_a_terminal_cannot_show(photos):
    strange = photos / os.fsdecode(b"a\nb\xff\t\xc3\xa9.png")
    os.rename(photos / "a.png", strange)
    code, out, err = call("--bundle=x", strange)
    assert (code, err) == (0, "")
    assert out.splitlines()[1].startswith(rf"{photos}/a\nb\udcff\té.png")
    code, out, err = call("--bundle=x", strange, "--json")
    assert json.loads(out)["file"] == str(strange)


def test_summary_of_one_photo_without_a_list_of_experts():
    (found,) = Fake("x").predict(np.zeros((4, 6, 3), np.uint8))
    line = predictor_cli.summary({"name": "B"}, [found])
    assert line == "variant B: 1 photo, mean 1.000 ms; ran for: expert_00 100%"


# In a process of its own, where nothing but NumPy, Pillow, absl and a runtime can be imported.
ALONE = """
import runpy, sys
blocked = "tensorflow keras tensorflow_datasets keras_tuner ml_collections sklearn matplotlib tqdm"
sys.modules.update(dict.fromkeys(blocked.split()))
from importlib import util
find = util.find_spec
util.find_spec = lambda name, *rest: None if name in blocked.split() else find(name, *rest)
{more}
sys.argv = ["export.predictor", *sys.argv[1:]]
runpy.run_module("export.predictor", run_name="__main__")
"""
FAKE = """
from export import predictor
class Fake:
    image_shape, labels, variant = (4, 4, 3), ("cat", "dog"), {"name": "A"}
    def __init__(self, folder, **options):
        pass
    def predict(self, images):
        return [predictor.Prediction("cat", 0, 0.5, "expert_00", ("expert_00",), 1.0)]
predictor.Predictor = Fake
"""


def alone(more, *arguments, **options):
    return ring.python(
        "-W", "ignore::RuntimeWarning", "-c", ALONE.replace("{more}", more), *arguments, **options
    )


def test_the_command_without_tensorflow(photos):
    done = alone(FAKE, "--bundle=x", photos, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [item["file"] for item in found] == [str(path) for path in sorted(photos.iterdir())]


def test_help_in_a_process_of_its_own():
    done = ring.python("-m", "export.predictor", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "python -m export.predictor --bundle=" in done.stdout
    assert "--budget_ms: " in done.stdout


def test_a_reader_that_has_seen_enough(photos):
    read, write = os.pipe()
    os.close(read)
    code = ALONE.replace("{more}", FAKE + f"\nimport os; os.dup2({write}, 1)")
    done = subprocess.run(
        [sys.executable, "-W", "ignore::RuntimeWarning", "-c", code, "--bundle=x", photos],
        stderr=subprocess.PIPE,
        pass_fds=[write],
        text=True,
        cwd=ring.ROOT,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_export(exported, photos):
    done = alone("", f"--bundle={exported}", photos, "--json")
    assert done.returncode == 0, done.stderr
    assert "predictor: " not in done.stderr  # Runtimes say things of their own there.
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == 3
    assert all(0 < item["probability"] <= 1 and item["latency_ms"] > 0 for item in found)
