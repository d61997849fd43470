"""Instance-aware neural architecture search with mobile export (InstaNAS) for Keras.

This is the one door: public names, imported when first used, so that `import instanas_tf`
is instant.
"""

import importlib
import sys

__version__ = "0.1.0"

_NAMES = {
    "Controller": "instanas_tf.models.controller",
    "InstaNAS": "instanas_tf.search.instance_aware",
    "LatencyTable": "instanas_tf.latency",
    "SearchSpace": "instanas_tf.spaces.space",
    "Supernet": "instanas_tf.models.supernet",
    "build_expert": "instanas_tf.models.expert",
}
_MODULES = {
    "latency": "instanas_tf.latency",
    "search": "instanas_tf.search.rewards",  # So that instanas_tf.search.rewards is there.
    "spaces": "instanas_tf.spaces",
}

__all__ = [*_NAMES, *_MODULES, "__version__"]


def __getattr__(name: str):
    """Imports a public name on first use."""
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    if name in _MODULES:
        importlib.import_module(_MODULES[name])
        return sys.modules[f"{__name__}.{name}"]
    raise AttributeError(f"module 'instanas_tf' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
