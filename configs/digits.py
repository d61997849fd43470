"""scikit-learn's digits at 16 px: the whole ring in minutes, on two CPU cores.

    python -m instanas_tf.train --config=configs/digits.py --workdir=runs/digits

Shows that the ring turns; digits is too easy to show that choosing by image pays.
"""

from instanas_tf.pipeline.config import default_config


def get_config():
    """The default settings, which are made for this dataset."""
    return default_config()
