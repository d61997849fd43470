"""Two replicas compute what one process computes for the whole batch."""

import json

import numpy as np
import pytest

from instanas_tf.models import replicas
from tests import fixtures_ring as ring
from tests import fixtures_twins as twins

# 2e-5 was the most that was seen: moments are summed up in another order.
TOLERANCE = 1e-4

JOBS = [
    {"stage": "pretrain", "routed": True, "merge": "shortcut"},
    {"stage": "search_priced", "routed": True, "merge": "sum"},
    {"stage": "search_published", "routed": False, "merge": "shortcut"},
    {"stage": "sandwich", "routed": True, "merge": "shortcut"},
    {"stage": "assigned", "routed": False, "merge": "sum"},
]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each job comes to with one replica, and then with two."""
    result = tmp_path_factory.mktemp("replicas") / "result.npz"
    jobs = [{**job, "replicas": count} for job in JOBS for count in (1, 2)]
    done = ring.python("-m", "tests.fixtures_twins", json.dumps(jobs), result)
    assert done.returncode == 0, done.stderr
    return twins.read(result)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(JOBS)), ids=lambda n: JOBS[n]["stage"])
def test_two_replicas_are_one_process(found, number):
    one, two = found[2 * number], found[2 * number + 1]
    assert one.keys() == two.keys()
    differences = {name: twins.difference(one[name], two[name]) for name in one}
    assert {n: d for n, d in differences.items() if d > TOLERANCE} == {}
    # Something was trained, statistics included.
    assert np.ptp(one["loss"]) > 1e-3
    assert any("moving_mean" in name and value.any() for name, value in one.items())


def test_one_replica_leaves_everything_as_it_is():
    rows = np.arange(6.0).reshape(3, 2)
    assert replicas.count() == 1
    for same in (replicas.total, replicas.mean, replicas.all_rows, replicas.own_rows):
        assert same(rows) is rows
