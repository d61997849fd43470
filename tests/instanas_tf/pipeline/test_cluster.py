"""What TF_CONFIG says, and which rows of a batch are whose."""

import contextlib
import json
import types

import pytest

from instanas_tf.errors import InputError
from instanas_tf.pipeline import config as config_module
from instanas_tf.pipeline.cluster import ALONE, Cluster, join, read_tf_config

TWO = {"worker": ["a:1", "b:2"]}
LED = {"chief": ["c:1"], "worker": ["a:1", "b:2"]}


def tf_config(cluster, kind="worker", index=0):
    return json.dumps({"cluster": cluster, "task": {"type": kind, "index": index}})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", None),
        (tf_config(TWO), (0, 2)),
        (tf_config(TWO, index=1), (1, 2)),
        (tf_config(LED, "chief"), (0, 3)),
        (tf_config(LED, "worker", 0), (1, 3)),
        (tf_config(LED, "worker", 1), (2, 3)),
        (tf_config({"chief": ["c:1"]}, "chief"), None),
        (tf_config({"worker": ["a:1"]}), None),
        (tf_config({"worker": ["10.0.0.1:2222", "[fe80::1]:2222"]}, index=1), (1, 2)),
        # Keys that TensorFlow writes and this project does not need.
        ('{"cluster": {"worker": ["a:1", "b:2"]}, "rpc_layer": "grpc", '
         '"task": {"type": "worker", "index": 1, "trial": ""}}', (1, 2)),
    ],
)  # fmt: skip
def test_tf_config(text, expected):
    assert read_tf_config(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "3",
        "null",
        "[]",
        "{}",
        '{"cluster": 3, "task": {"type": "worker", "index": 0}}',
        '{"cluster": {"worker": ["a:1"]}}',
        '{"cluster": {"worker": ["a:1"]}, "task": "worker"}',
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker"}}',
        '{"cluster": {"worker": ["a:1"]}, "task": {"index": 0}}',
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": ["worker"], "index": 0}}',
        tf_config(TWO, "chief"),
        tf_config(TWO, "evaluator"),
        "[" * 100_000,
        '{\n  "cluster": 3\n}',
    ],
)
def test_tf_config_that_is_not_of_its_form(text):
    with pytest.raises(InputError, match="^TF_CONFIG must be JSON such as .* Received: ") as found:
        read_tf_config(text)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (tf_config({**TWO, "ps": ["c:3"]}), "the task 'ps' is not supported"),
        (tf_config({**TWO, "evaluator": ["c:3"]}), "the task 'evaluator' is not supported"),
        (tf_config({"chief": ["c:1", "d:1"], **TWO}), "chief must be a list of one address"),
        (tf_config({"chief": "c:1", **TWO}), "chief must be a list of one address"),
        (tf_config({"worker": {"a:1": 0}}), "worker a list"),
        (tf_config({"worker": ["a", "b:2"]}), "every address must be HOST:PORT"),
        (tf_config({"worker": ["a:x", "b:2"]}), "every address must be HOST:PORT"),
        (tf_config({"worker": [1, "b:2"]}), "every address must be HOST:PORT"),
        (tf_config({"worker": [["a:1"], "b:2"]}), "every address must be HOST:PORT"),
        (tf_config({"worker": ["a:1", "a:1"]}), "every address must be there once"),
        (tf_config({"chief": ["a:1"], **TWO}), "every address must be there once"),
        (tf_config(TWO, index=2), "task.index must be 0 to 1"),
        (tf_config(TWO, index=-1), "task.index must be 0 to 1"),
        (tf_config(TWO, index="0"), "task.index must be 0 to 1"),
        (tf_config(TWO, index=True), "task.index must be 0 to 1"),
        (tf_config(LED, "chief", 1), "task.index must be 0 to 0"),
        (tf_config(TWO, index=2).replace(",", ",\n"), "task.index must be 0 to 1"),
    ],
)
def test_a_cluster_that_cannot_be_used(text, words):
    with pytest.raises(InputError, match="^TF_CONFIG cannot be used: ") as found:
        read_tf_config(text)
    assert words in str(found.value)
    assert "\n" not in str(found.value)


def cluster(worker=0, workers=1, replicas=None):
    """A part of a training with as many replicas on each worker."""
    strategy = types.SimpleNamespace(
        num_replicas_in_sync=replicas or workers, scope=contextlib.nullcontext
    )
    return Cluster(strategy, worker, workers)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (ALONE, None),
        (cluster(replicas=4), None),
        (cluster(0, 2), (0, 6)),
        (cluster(1, 2), (6, 12)),
        (cluster(2, 3, 6), (8, 12)),
    ],
)
def test_rows(found, expected):
    assert found.rows(12) == expected


@pytest.mark.parametrize("found", [cluster(replicas=5), cluster(0, 5), cluster(0, 2, 8)])
def test_a_batch_that_cannot_be_shared_out(found):
    with pytest.raises(InputError, match=r"a multiple of the \d replicas. Received: 12; change"):
        found.rows(12)


def test_one_process():
    assert ALONE.is_chief
    assert ALONE.replicas == 1
    with ALONE.scope():
        ALONE.wait()
    ALONE.agree("anything", "at all")
    assert not cluster(1, 2).is_chief


@pytest.mark.parametrize("text", ["", tf_config({"worker": ["a:1"]})])
def test_without_others_nobody_is_joined(monkeypatch, text):
    monkeypatch.setenv("TF_CONFIG", text)
    assert join(config_module.default_config()) == ALONE


class Differing(Cluster):
    """Three processes, the last of which has something else."""

    def everybodys(self, value):
        return [value, value, value + 1]


def test_processes_that_differ():
    with pytest.raises(InputError, match="the config of worker 2 differs from the chief's; start"):
        Differing(None, 1, 3).agree("the config", "text")
