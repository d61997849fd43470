"""Results come in order and in time; errors arrive; no thread outlives its reader."""

import gc
import pathlib
import subprocess
import sys
import threading
import time

import pytest

from instanas_tf.pipeline.ahead import read_ahead

PATIENCE_S = 30  # Far longer than any thread needs; reached only if the test fails.


def wait_until(condition):
    end = time.monotonic() + PATIENCE_S
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    assert condition()


def readers():
    return [thread for thread in threading.enumerate() if thread.name.startswith("read-ahead")]


@pytest.fixture(autouse=True)
def no_reader_is_left():
    wait_until(lambda: not readers())
    yield
    gc.collect()
    wait_until(lambda: not readers())


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("count", [0, 1, 4, 50])
def test_results_keep_their_order(workers, count):
    def square(number):
        time.sleep(0.001 * (number % 3))
        return number**2

    found = list(read_ahead(square, range(count), workers=workers))
    assert found == [number**2 for number in range(count)]


def test_it_works_ahead_as_deep_as_is_said_and_no_deeper():
    done = []
    results = read_ahead(done.append, range(100), depth=3)
    assert not readers() and not done
    next(results)
    wait_until(lambda: len(done) == 4)
    next(results)
    wait_until(lambda: len(done) == 5)
    time.sleep(0.05)
    assert done == [0, 1, 2, 3, 4]
    results.close()


def test_one_worker_calls_one_at_a_time():
    busy = threading.Lock()

    def work(number):
        assert busy.acquire(blocking=False)
        time.sleep(0.001)
        busy.release()

    assert len(list(read_ahead(work, range(20)))) == 20


def test_an_error_arrives_in_the_place_of_its_result():
    def work(number):
        if number == 2:
            raise OSError("no disk")
        return number

    results = read_ahead(work, range(10))
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(OSError, match="no disk"):
        next(results)
    assert list(results) == []


def test_threads_end_when_the_reader_stops_early():
    started, may_go = threading.Event(), threading.Event()

    def work(number):
        if number == 1:
            started.set()
            may_go.wait(PATIENCE_S)
        done.append(number)

    done = []
    results = read_ahead(work, range(100), depth=5)
    next(results)
    started.wait(PATIENCE_S)
    results.close()  # Does not wait for what is under way, and drops what is not.
    assert readers()
    may_go.set()
    wait_until(lambda: not readers())
    assert done == [0, 1]


def test_threads_end_when_the_iterator_is_forgotten():
    results = read_ahead(str, range(100))
    next(results)
    del results
    gc.collect()
    wait_until(lambda: not readers())


def test_an_iterator_that_is_never_used_starts_no_thread():
    results = read_ahead(str, range(100))
    del results
    assert not readers()


@pytest.mark.parametrize(
    "keeper", ["kept = results", "sys.kept = results", "results.kept = results"]
)
def test_the_process_ends_quietly_while_batches_lie_ready(keeper):
    code = (
        "import sys\n"
        "from instanas_tf.pipeline.ahead import read_ahead\n"
        "class Results(list): pass\n"
        "results = Results([read_ahead(str, range(10**9))])\n"
        "next(results[0])\n"
        f"{keeper}\n"  # The last one is a cycle, which goes late.
    )
    root = pathlib.Path(__file__).parents[3]
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=root, capture_output=True, timeout=PATIENCE_S)
    assert (done.returncode, done.stderr) == (0, b"")
