"""TensorFlow's first import, without its start-up chatter on the terminal."""

from __future__ import annotations

import os
import sys
import tempfile

# oneDNN compiles a kernel for each shape, and a routed op meets another batch size in each
# step: with the default of 1,024 kernels it compiles most of them anew.
KERNEL_CACHE = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16384"}


def import_tensorflow() -> None:
    """Imports TensorFlow and looks for GPUs with standard error held back.

    Its notes on CPUs and missing CUDA drivers would bury this package's own lines. They
    appear if the import fails, and always if TF_CPP_MIN_LOG_LEVEL is set.
    """
    for name, value in {"KERAS_BACKEND": "tensorflow", **KERNEL_CACHE}.items():
        os.environ.setdefault(name, value)
    if "tensorflow" in sys.modules or "TF_CPP_MIN_LOG_LEVEL" in os.environ:
        return
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
    sys.stderr.flush()
    kept = os.dup(2)
    done = False
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            import tensorflow as tf

            tf.config.list_physical_devices("GPU")
            tf.get_logger().setLevel("ERROR")  # Its hints on retracing are for other code.
            done = True
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            if not done:
                held.seek(0)
                sys.stderr.write(held.read().decode(errors="replace"))
