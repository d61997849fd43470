"""Reading ahead: what will be asked for is computed in the background, in order."""

from __future__ import annotations

import collections
import concurrent.futures
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def read_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], depth: int = 3, workers: int = 1
) -> Iterator[Result]:
    """Yields `function(item)` of each item, in order, and works ahead while the caller is busy.

    The background threads start with the first result that is asked for. They only ever compute
    what was asked of them and never wait for the caller, so that they end by themselves when the
    iterator is closed or forgotten.

    Args:
        function: with one worker it is called for one item after the other.
        items: what it is called with.
        depth: results that may lie ready.
        workers: background threads.

    Raises:
        Exception: what `function` raises, in the place of its result.
    """
    executor = concurrent.futures.ThreadPoolExecutor(workers, thread_name_prefix="read-ahead")
    waiting = collections.deque()
    is_exiting = sys.is_finalizing  # A name of its own: at exit the module's may be gone.
    try:
        for item in items:
            waiting.append(executor.submit(function, item))
            if len(waiting) > depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        if not is_exiting():  # Else the threads have ended, and parts of Python too.
            executor.shutdown(wait=False, cancel_futures=True)
