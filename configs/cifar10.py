"""CIFAR-10 at 32 px with the published recipe (InstaNAS, arXiv 1811.10201).

    python -m instanas_tf.train --config=configs/cifar10.py --workdir=runs/cifar10

1,100 epochs in all at width 1.0: days on an accelerator, out of reach on two CPU cores.
The published result is 4.3 % to 8.1 % error at 0.92 to 0.17 of MobileNetV2's latency; this
file has not been run at its full length here. `configs/cifar10_small.py` is a recipe for two
CPU cores.

On one large GPU in pieces of 20 minutes, it is the same command again and again:

    timeout 1200 python -m instanas_tf.train --config=configs/cifar10.py --workdir=runs/cifar10

It saves its state after every epoch, and every 5 minutes within one
(`config.train.checkpoint_secs`). In front of it `KERAS_BACKEND=jax` trains on JAX;
`JAX_COMPILATION_CACHE_DIR=FOLDER` then spares later pieces the compilation. No GPU has been
tried so far. See docs/scaling.md, also for CIFAR-10 as an .npz and for a GPU machine without
TensorFlow.
"""

from instanas_tf.pipeline.config import published_config


def get_config():
    """The published preset, which is made for this dataset."""
    return published_config()
