"""The benchmark over numbers of experts: its parts by hand, and the whole on the shared run."""

import importlib
import json
import shutil

import numpy as np
import pytest

from instanas_tf.errors import InputError
from instanas_tf.pipeline.decide import Measured
from instanas_tf.search.medoids import Candidates
from tests import fixtures_ring as ring

FILES = ["expert_count.json", "expert_count.png", "measurements.jsonl", "pool.json"]


@pytest.fixture(scope="module")
def benchmark():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ring.ROOT / "benchmarks"))
        yield importlib.import_module("expert_count")


@pytest.fixture(scope="module")
def counted(benchmark):
    return importlib.import_module("counted_experts")


@pytest.fixture(scope="module")
def done(benchmark, trained, tmp_path_factory):
    """The folder that a command over K = 1, 2, 3 left, and what it printed."""
    out = tmp_path_factory.mktemp("counts") / "out"
    before = ring.listing(trained)
    code, printed, err = ring.quietly(
        benchmark.main, f"--workdir={trained}", f"--out={out}", "--counts=3,1,2", "--target=9"
    )
    assert code == 0, err
    assert ring.listing(trained) == before
    return out, printed


def test_counts(benchmark):
    assert benchmark.parse_counts("8, 1,2") == [1, 2, 8]


@pytest.mark.parametrize("text", ["", "1,", "0,1", "1,1", "-1", "1.5", "two", "²"])
def test_counts_that_are_none(benchmark, text):
    with pytest.raises(InputError, match="--counts must be different whole numbers"):
        benchmark.parse_counts(text)


def test_required_ones_are_chosen_where_there_is_room(counted):
    policies = np.eye(4, dtype=np.float32).reshape(4, 2, 2)
    weights, accuracy = np.array([0.0, 1.0, 0.0, 0.0]), np.array([0.1, 0.8, 0.7, 0.6])
    candidates = Candidates(policies, weights, accuracy, np.array([1.0, 2.0, 3.0, 4.0]))
    pool = counted.Pool(candidates, required=(0, 3))
    assert pool.choose(1) == [1]
    assert pool.choose(2) == [0, 3]
    assert pool.choose(3) == [0, 1, 3]


def softmaxes(*rows):
    """Two classes: for each expert the probability of class 1 for each image."""
    right = np.array(rows)
    return np.stack([1.0 - right, right], axis=-1)


def outcome(counted, budget_ms, expert_ms=(1.0, 3.0)):
    """All images are of class 1; the cheap expert is unsure of the one that it gets wrong."""
    probabilities = softmaxes([0.9, 0.95, 0.85, 0.45], [0.9, 0.9, 0.9, 0.9])
    labels = np.ones(4, np.int64)
    measured = Measured(np.array(expert_ms), None, {}, 2.0)
    return counted.outcome(
        probabilities,
        labels,
        probabilities,
        labels,
        measured,
        budget_ms,
        longest=2,
        powers=(0.0,),
        seed=0,
    )


def test_outcome(counted):
    found = outcome(counted, 2.0)
    assert (found["accuracy"], found["mean_latency_ms"]) == (1.0, 1.75)
    assert (found["experts"], found["shares"]) == ([0, 1], [1.0, 0.25])
    assert found["single"] == {"expert": 0, "accuracy": 0.75, "latency_ms": 1.0}
    # 1.75 ms are 0.375 of the way from 1 to 3 ms, where mixtures get 0.75 + 0.375 · 0.25.
    assert found["gain"]["static_accuracy"] == pytest.approx(0.84375)
    assert found["gain"]["gain"] == pytest.approx(0.15625)
    json.dumps(found)


def test_outcome_of_one_expert_is_that_expert(counted):
    found = outcome(counted, 1.0)
    assert (found["accuracy"], found["mean_latency_ms"]) == (0.75, 1.0)
    assert found["experts"] == [0]
    assert found["gain"]["gain"] == 0.0


def test_outcome_within_no_reach(counted):
    assert outcome(counted, 0.9) is None


RESULTS = {
    "dataset": "digits",
    "epochs": 0,
    "target": 0.5,
    "budget_ms": 1.0,
    "reference_latency_ms": 2.0,
    "counts": [
        {"count": 1, "latency_ms": [1.5], "cascade": None},
        {
            "count": 2,
            "latency_ms": [0.5, 2.5],
            "cascade": {
                "accuracy": 0.75,
                "accuracy_standard_error": 0.125,
                "mean_latency_ms": 0.9,
                "experts": [0, 1],
                "single": {"expert": 0, "accuracy": 0.5, "latency_ms": 0.5},
                "gain": {"gain": 0.125, "interval": [-0.25, 0.5]},
            },
        },
    ],
}


def test_rows(benchmark):
    assert benchmark.rows(RESULTS) == [
        ["1", "-", "-", "-", "-", "-", "-", "-"],
        ["2", "2", "0.7500", "0.900", "0.45", "0.5000", "0.500", "+0.1250 (-0.2500 to +0.5000)"],
    ]


def test_a_target_that_no_count_meets(benchmark):
    benchmark.check_reached(RESULTS)
    missed = {**RESULTS, "counts": [{**RESULTS["counts"][1], "cascade": None}]}
    with pytest.raises(InputError, match=r"at least 0.25 \(0.500 ms\).*Received: 0.50"):
        benchmark.check_reached(missed)


def test_picture_with_a_count_out_of_reach(benchmark, tmp_path):
    benchmark.picture(RESULTS, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_help_does_not_load_tensorflow():
    code = (
        "import sys; sys.path.insert(0, 'benchmarks'); import expert_count; "
        "expert_count.main(['x', '--help']); sys.exit('tensorflow' in sys.modules)"
    )
    done = ring.python("-c", code)
    assert done.returncode == 0, done.stderr
    assert "as the search left them" in done.stdout


def test_results(done):
    out, printed = done
    assert sorted(path.name for path in out.iterdir()) == ["epochs_0", *FILES]
    results = json.loads((out / "expert_count.json").read_text())
    assert [entry["count"] for entry in results["counts"]] == [1, 2, 3]
    assert [len(entry["policies"]) for entry in results["counts"]] == [1, 2, 3]
    assert results["budget_ms"] == 9 * results["reference_latency_ms"]
    for entry in results["counts"]:
        cascade = entry["cascade"]
        expected = np.dot(cascade["shares"], entry["latency_ms"])
        assert cascade["mean_latency_ms"] == pytest.approx(expected)
        assert 0 <= cascade["accuracy"] <= 1
    assert results["counts"][0]["cascade"]["gain"]["gain"] == 0
    assert str(out / "expert_count.png") in printed


def test_experts_are_those_that_the_run_chose(done, trained):
    results = json.loads((done[0] / "expert_count.json").read_text())
    chosen = json.loads((trained / "checkpoints" / "chosen.json").read_text())
    assert len(chosen["policies"]) == 3
    assert results["counts"][2]["policies"] == chosen["policies"]


def test_experts_of_the_search_answer_once_for_all_counts(done):
    out, _ = done
    results = json.loads((out / "expert_count.json").read_text())
    different = {json.dumps(p) for entry in results["counts"] for p in entry["policies"]}
    assert len(list((out / "epochs_0" / "answers").iterdir())) == len(different)
    assert len((out / "measurements.jsonl").read_text().splitlines()) == len(different) + 1


def test_goes_on_from_its_files(benchmark, done, trained, tmp_path):
    copy = shutil.copytree(done[0], tmp_path / "out")
    expected = (copy / "expert_count.json").read_bytes()
    (copy / "expert_count.json").unlink()
    (copy / "epochs_0" / "k_03" / "cascade.json").unlink()
    next((copy / "epochs_0" / "answers").iterdir()).unlink()
    arguments = (f"--workdir={trained}", f"--out={copy}", "--counts=1,2,3", "--target=9")
    code, printed, err = ring.quietly(benchmark.main, *arguments)
    assert code == 0, err
    assert "running 1 experts" in printed
    assert "measuring" not in printed and "judging" not in printed
    assert (copy / "expert_count.json").read_bytes() == expected


def test_training_first(benchmark, done, trained, tmp_path):
    copy = shutil.copytree(done[0], tmp_path / "out")
    arguments = (f"--workdir={trained}", f"--out={copy}", "--counts=2", "--target=9", "--epochs=1")
    code, printed, err = ring.quietly(benchmark.main, *arguments)
    assert code == 0, err
    assert "training 2 experts together" in printed
    place = copy / "epochs_1" / "k_02"
    assert (place / "checkpoints" / "finetune.weights.h5").exists()
    rows = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1]
    code, printed, err = ring.quietly(benchmark.main, *arguments)
    assert code == 0, err
    assert "training 2" not in printed


def test_more_experts_than_candidates(benchmark, done, trained):
    out = done[0]
    candidates = len(json.loads((out / "pool.json").read_text())["policies"])
    arguments = (f"--workdir={trained}", f"--out={out}", f"--counts=1,{candidates + 1}")
    code, _, err = ring.quietly(benchmark.main, *arguments)
    assert code == 2
    assert f"must be at most {candidates}," in ring.said(err, "expert_count")


def test_results_of_another_search(benchmark, done, trained, tmp_path):
    copy = shutil.copytree(done[0], tmp_path / "out")
    ring.change_json(copy / "pool.json", lambda pool: pool.update(origin=["a", "b"]))
    code, _, err = ring.quietly(benchmark.main, f"--workdir={trained}", f"--out={copy}")
    assert code == 2
    assert "is of another search" in ring.said(err, "expert_count")


@pytest.mark.parametrize("content", ["{}", "[]", "1", '{"policies": 1}'])
def test_a_damaged_pool(benchmark, trained, tmp_path, content):
    (tmp_path / "pool.json").write_text(content)
    code, _, err = ring.quietly(benchmark.main, f"--workdir={trained}", f"--out={tmp_path}")
    assert code == 2
    assert "pool.json is damaged" in ring.said(err, "expert_count")


@pytest.mark.parametrize(
    ("flag", "told"),
    [
        ("--target=-1", "--target must be"),
        ("--target=nan", "--target must be"),
        ("--counts=0", "--counts must be"),
        ("--epochs=-1", "--epochs"),
    ],
)
def test_bad_flags(benchmark, trained, tmp_path, flag, told):
    arguments = (f"--workdir={trained}", f"--out={tmp_path / 'out'}", flag)
    code, _, err = ring.quietly(benchmark.main, *arguments)
    assert code == 2
    assert told in ring.said(err, "expert_count")
    assert not (tmp_path / "out").exists()


def test_a_search_that_is_not_done(benchmark, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "latency_table.json").write_text("{}")
    code, _, err = ring.quietly(benchmark.main, f"--workdir={tmp_path}")
    assert code == 2
    assert "has no result of search yet" in ring.said(err, "expert_count")


@pytest.mark.parametrize("is_run", [True, False])
def test_a_folder_that_is_taken(benchmark, trained, tmp_path, is_run):
    out = trained if is_run else tmp_path / "file"
    (tmp_path / "file").write_text("")
    code, _, err = ring.quietly(benchmark.main, f"--workdir={trained}", f"--out={out}")
    assert code == 2
    assert "choose another folder" in ring.said(err, "expert_count")
