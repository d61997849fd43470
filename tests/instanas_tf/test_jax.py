"""A run that is trained with JAX alone is exported with TensorFlow."""

import importlib.util
import json
import shutil

import pytest

from export import export_tflite
from instanas_tf import train
from instanas_tf.pipeline.callbacks import read_metrics
from tests import fixtures_ring as ring

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("jax") is None,
        reason="JAX is not installed; pip install '.[jax]' to test with it",
    ),
]
TRAIN = """
import sys
from importlib.machinery import PathFinder

class WithoutTensorFlow(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] in ("tensorflow", "tensorflow_datasets"):
            return None
        return PathFinder.find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = WithoutTensorFlow
from instanas_tf import train
for stage in sys.argv[1].split(","):
    code = train.main(["train", f"--stage={stage}", *sys.argv[2:]])
    if code:
        sys.exit(code)
assert "tensorflow" not in sys.modules
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return ring.trained_run(tmp_path_factory)


def with_jax_alone(stages, workdir, *arguments):
    return ring.python(
        *("-c", TRAIN, stages, f"--workdir={workdir}", *arguments, *ring.overrides()),
        KERAS_BACKEND="jax",
        JAX_DISABLE_MOST_OPTIMIZATIONS="1",  # They take longer than the steps.
    )


def test_from_jax_alone_to_tflite_files(trained, tmp_path):
    workdir = tmp_path / "run"
    workdir.mkdir()
    shutil.copy(trained / "latency_table.json", workdir)
    done = with_jax_alone("pretrain,search,finetune", workdir)
    assert done.returncode == 0, done.stderr
    ours, theirs = (read_metrics(root / "metrics.jsonl") for root in (workdir, trained))
    assert [(row["stage"], row["epoch"]) for row in ours] == [
        (row["stage"], row["epoch"]) for row in theirs if row["stage"] in {r["stage"] for r in ours}
    ]
    assert [set(row) for row in ours] == [set(row) for row in theirs][: len(ours)]
    assert not [path for path in workdir.rglob("*") if path.name.startswith(".")]
    before = ring.listing(workdir)
    done = with_jax_alone("route", workdir)
    assert done.returncode == 2
    assert "route converts and times TFLite files and needs TensorFlow" in done.stderr
    assert ring.listing(workdir) == before
    code, out, err = ring.quietly(
        train.main, "--stage=route", f"--workdir={workdir}", *ring.overrides()
    )
    assert code == 0, err
    assert json.loads((workdir / "experts.json").read_text())["selected"] == "A"
    code, out, err = ring.quietly(export_tflite.main, f"--workdir={workdir}")
    assert code == 0, err
    assert "Wrote variant A" in out  # Without results nothing says that it does not pay.


@pytest.mark.parametrize("stage", ["measure"])
def test_what_needs_tensorflow_says_so(tmp_path, stage):
    done = with_jax_alone(stage, tmp_path / "run")
    assert done.returncode == 2
    line = ring.said(done.stderr, "train")
    assert "measure converts and times TFLite files and needs TensorFlow" in line
    assert "run --stage=measure there" in line
