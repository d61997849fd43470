"""What may be built, as plain data. `get` is a public name: `instanas_tf.spaces.get`."""

from instanas_tf.spaces.mobilenet_v2 import get

__all__ = ["get"]
