"""TensorFlow's first import, without its start-up chatter on the terminal."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
import tempfile
from collections.abc import Iterator

from instanas_tf.errors import InputError

# oneDNN compiles a kernel for each shape, and a routed op meets another batch size in each
# step: with the default of 1,024 kernels it compiles most of them anew.
_KERNEL_CACHE = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16384"}
# The ops of a cell are small and many: on two cores it pays to run two of them beside each
# other rather than to cut each in two (benchmarks/README.md). More cores were not tried.
_TWO_CORES = {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "2"}
BACKENDS = ("tensorflow", "jax")


def environment() -> dict[str, str]:
    """The environment variables that a training sets where the user has not."""
    threads = {} if set(_TWO_CORES) & set(os.environ) or os.cpu_count() != 2 else _TWO_CORES
    return {"KERAS_BACKEND": "tensorflow", **_KERNEL_CACHE, **threads}


def backend() -> str:
    """The Keras backend that the environment variable KERAS_BACKEND asks for.

    Raises:
        InputError: it is none that this package trains on.
    """
    name = os.environ.get("KERAS_BACKEND") or "tensorflow"
    if name not in BACKENDS:
        raise InputError(f"KERAS_BACKEND must be one of {', '.join(BACKENDS)}. Received: {name}")
    return name


def import_backend() -> None:
    """Imports the backend quietly, before Keras.

    Raises:
        InputError: it is not installed.
    """
    if backend() == "tensorflow":
        import_tensorflow()
    elif importlib.util.find_spec("jax") is None:
        raise InputError("KERAS_BACKEND=jax needs JAX; install it: pip install '.[jax]'")
    else:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # For parts of Keras that load it.


def import_tensorflow() -> None:
    """Imports TensorFlow and looks for GPUs with standard error held back.

    Its notes on CPUs and missing CUDA drivers would bury this package's own lines. They
    appear if the import fails, and always if TF_CPP_MIN_LOG_LEVEL is set.

    Raises:
        InputError: Keras is told to use another backend, or TensorFlow is not installed.
    """
    if backend() != "tensorflow":
        raise InputError(
            f"this command needs TensorFlow, and KERAS_BACKEND={backend()} is set; unset it"
        )
    if importlib.util.find_spec("tensorflow") is None:
        raise InputError("TensorFlow is not installed; install this package: pip install .")
    for name, value in environment().items():
        os.environ.setdefault(name, value)
    if "tensorflow" in sys.modules or "TF_CPP_MIN_LOG_LEVEL" in os.environ:
        return
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
    with quiet_stderr():
        import tensorflow as tf

        tf.config.list_physical_devices("GPU")
        tf.get_logger().setLevel("ERROR")  # Its hints on retracing are for other code.


@contextlib.contextmanager
def quiet_stderr() -> Iterator[None]:
    """Holds back what is written to standard error, by C++ code too, unless the body fails."""
    sys.stderr.flush()
    kept = os.dup(2)
    done = False
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
            done = True
        except (KeyboardInterrupt, SystemExit):
            done = True  # Nobody asks what was said.
            raise
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            if not done:
                held.seek(0)
                sys.stderr.write(held.read().decode(errors="replace"))
