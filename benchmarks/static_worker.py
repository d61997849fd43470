"""The static network's steps in a process of their own, with TensorFlow's default threads.

A training of a supernet sets the numbers of threads that suit it (`instanas_tf/startup.py`);
a static network is quicker with TensorFlow's own. So it is timed at its best, round by round
beside the steps of the other process.

    python benchmarks/static_worker.py SPACE WIDTH MERGE BATCH SEED

Reads names of steps from standard input and writes a line when each is done.
"""

from __future__ import annotations

import os
import subprocess
import sys

NAMES = ("static_train", "static_forward")
_THREADS = ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")


class StaticWorker:
    """Starts the process; `steps` are functions that run a step there and wait for it.

    Args:
        space: name, width and merge of the search space.
        batch: images in a step.
        seed: of the images.
    """

    def __init__(self, space: tuple[str, float, str], batch: int, seed: int):
        environment = {k: v for k, v in os.environ.items() if k not in _THREADS}
        words = [str(word) for word in (*space, batch, seed)]
        self._process = subprocess.Popen(
            [sys.executable, __file__, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )
        self.steps = {name: self._step(name) for name in NAMES}

    def _step(self, name: str):
        def run(images, labels) -> float:
            del images, labels  # The worker has its own.
            self._process.stdin.write(name + "\n")
            self._process.stdin.flush()
            if self._process.stdout.readline().strip() != name:
                raise RuntimeError("the process of the static network ended")
            return 0.0

        return run

    def close(self) -> None:
        """Ends the process."""
        self._process.stdin.close()
        self._process.wait()


def main(name: str, width: str, merge: str, batch: str, seed: str) -> None:
    """Serves steps until standard input ends."""
    import numpy as np
    import steps
    import tensorflow as tf

    from instanas_tf import spaces

    space = spaces.get(name, float(width), merge=merge)
    pair = steps.make_batch(space, int(batch), np.random.default_rng(int(seed)))
    found = dict(zip(NAMES, steps.static_steps(steps.reference_network(space)), strict=True))
    for line in sys.stdin:
        tf.nest.map_structure(np.asarray, found[line.strip()](*pair))
        print(line.strip(), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
