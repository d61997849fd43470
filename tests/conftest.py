"""What the tests of several rooms share: the tiny space, its policies, a table for it.

Imports stand inside the fixtures: the tests of android_bench must not wait for NumPy.
"""

import os

import pytest

# Sums depend on the number of threads: this process and those that it starts have the same.
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "2")


@pytest.fixture(scope="session")
def tiny():
    """3 cells, 3 ops, 8 px; cell 1 changes the shape and falls back to `ir3_e3`."""
    from instanas_tf import spaces

    return spaces.get("tiny", num_classes=3)


@pytest.fixture(scope="session")
def tiny_policies():
    """All 2^9 policies of the tiny space, float32 [512, 3, 3]; number n has the bits of n."""
    import numpy as np

    bits = (np.arange(512)[:, None] >> np.arange(9)) & 1
    return bits.reshape(512, 3, 3).astype(np.float32)


@pytest.fixture(scope="session")
def tiny_table(tiny):
    """Op n of the 9 costs 2^n ms, so that every sum says which ops are in it."""
    from instanas_tf.latency import LatencyTable

    return LatencyTable(
        space=tiny,
        op_ms=((1.0, 2.0, 4.0), (8.0, 16.0, 32.0), (64.0, 128.0, 256.0)),
        stem_ms=0.5,
        head_ms=0.25,
        controller_ms=3.0,
        controller_kind="small",
    )
