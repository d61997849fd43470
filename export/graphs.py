"""The graphs that ship: who runs first, what an expert says, and whether to go on."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf

from export.routed import LEAST, Rules
from export.tolerances import PROBABILITY_SCALE


class DeployedFront(keras.Model):
    """images -> features that the experts go on from, and which of them runs first.

    Args:
        front: images -> features [B, h, w, c]; None: the router looks at the images.
        router: features, or images -> scores [B, E]; None: the first expert is constant.
        biases: [E], taken off the scores: the price times the cost of each expert; None
            for none.

    Returns from a call:
        `features` if there is a front; with a router, `expert`: int32 [B], the largest
        of `scores - biases`, and `scores`: float [B, E].

    Raises:
        ValueError: neither front nor router, or biases that are not finite, have another
            number of entries than the scores, or have no router.
    """

    def __init__(
        self,
        front: keras.Model | None,
        router: keras.Model | None,
        biases: np.ndarray | None = None,
        **kwargs,
    ):
        kwargs.setdefault("name", "controller")  # One counted up would get into the file.
        super().__init__(**kwargs)
        if front is None and router is None:
            raise ValueError("`front` or `router` must be a model. Received: None for both")
        self.front = front
        self.router = router
        self.biases = np.asarray(0.0 if biases is None else biases, np.float32)
        if biases is not None and router is None:
            raise ValueError(f"`biases` must be None without a router. Received: {biases}")
        if biases is not None and self.biases.ndim != 1 or not np.isfinite(self.biases).all():
            raise ValueError(f"`biases` must be finite numbers [E]. Received: {biases}")
        self.built = True

    def call(self, images, training=None):
        """See the class."""
        found = {}
        features = images
        if self.front is not None:
            features = found["features"] = self.front(images, training=training)
        if self.router is not None:
            scores = self.router(features, training=training)
            if self.biases.shape not in ((), (scores.shape[-1],)):
                raise ValueError(
                    f"`biases` must be [{scores.shape[-1]}], as the scores. "
                    f"Received: shape {self.biases.shape}"
                )
            found |= {"expert": _best(scores - self.biases), "scores": scores}
        return found


def _best(scores):
    """Index of the largest score of each row, int32 [B]."""
    # Not `keras.ops.argmax`, whose care for negative zero needs ops outside TFLite's.
    return tf.argmax(scores, axis=-1, output_type=tf.int32)


class Classifier(keras.Model):
    """images, or features -> probabilities: a static network and its softmax.

    Args:
        network: -> logits [B, N].

    Returns from a call:
        `probabilities`: float [B, N].
    """

    def __init__(self, network: keras.Model, **kwargs):
        kwargs.setdefault("name", "classifier")
        super().__init__(**kwargs)
        self.network = network
        self.built = True

    def call(self, inputs, training=None):
        """See the class."""
        return {"probabilities": tf.nn.softmax(self.network(inputs, training=training))}


class Decide(keras.Model):
    """Whether a larger expert runs, after one has run; one image at a time.

    Args:
        rules: whose thresholds, weights and order are built in.
        classes: N, at least 2.

    Takes `probabilities` [1, N] of the expert that ran, `votes` [1, N] (zeros before the first
    one) and `expert`, int32 [1]: which one ran.

    Returns from a call:
        `next`: int32 [1], the expert to run next, or -1; `total`: float [1, N], the next
        `votes`; `mean`: float [1, N], the weighted mean of the probabilities so far.
    """

    def __init__(self, rules: Rules, classes: int, **kwargs):
        kwargs.setdefault("name", "decide")
        super().__init__(**kwargs)
        if classes < 2:
            raise ValueError(f"`classes` must be at least 2. Received: classes={classes}")
        self.classes = classes
        self.following = np.array(rules.following, np.int32)
        self.limits = np.array(rules.limits, np.float32)
        self.weights_of_experts = np.array(rules.weights, np.float32)
        self.built = True

    def call(self, inputs, training=None):
        """See the class."""
        expert, probabilities = inputs["expert"], inputs["probabilities"]
        if probabilities.dtype == tf.uint8:
            probabilities = tf.cast(probabilities, tf.float32) * PROBABILITY_SCALE
        weight = tf.gather(self.weights_of_experts, expert)[:, None]
        total = inputs["votes"] + weight * probabilities
        whole = tf.maximum(tf.reduce_sum(total, axis=-1), LEAST)
        largest = tf.math.top_k(total, k=2).values
        margin = largest[:, 0] - largest[:, 1]
        goes_on = margin < tf.gather(self.limits, expert) * whole
        following = tf.where(goes_on, tf.gather(self.following, expert), -1)
        return {"next": following, "total": total, "mean": total / whole[:, None]}

    @property
    def inputs_by_name(self) -> dict[str, tf.TensorSpec]:
        """What it takes; the probabilities may also be uint8, in steps of 1/256."""
        votes = tf.TensorSpec((1, self.classes), tf.float32)
        return {"probabilities": votes, "votes": votes, "expert": tf.TensorSpec((1,), tf.int32)}
