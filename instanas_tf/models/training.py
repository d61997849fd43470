"""The one custom training step; each trained thing says only what its losses are."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class Objective:
    """A loss, the variables that it trains, and how.

    Attributes:
        loss: (images [B, H, W, 3], labels [B]) -> (scalar loss, {metric name: value}).
        variables: what is trained.
        optimizer: a Keras optimizer, built on `variables`.
        active: scalar bool tensor, or None for always; an inactive objective is skipped.
    """

    loss: Callable[[Any, Any], tuple[Any, dict[str, Any]]]
    variables: Sequence[Any]
    optimizer: keras.optimizers.Optimizer
    active: Any = None


class TrainedModel(keras.Model):
    """A model that `fit` trains by one or more objectives a step.

    Subclasses implement `objectives`, and `predict_logits` for validation, and name their
    metrics. A subclass must be built, and its optimizers too, before `fit`.

    Args:
        metric_names: names of the values that the losses report; each is averaged over
            an epoch.
    """

    def __init__(self, metric_names: Sequence[str], **kwargs):
        super().__init__(**kwargs)
        self.trackers = {name: keras.metrics.Mean(name=name) for name in metric_names}
        self.accuracy = keras.metrics.SparseCategoricalAccuracy(name="accuracy")
        self.built = True

    @property
    def state(self) -> list[keras.Variable]:
        """Every variable that a resumed training needs, those of the optimizers included."""
        found = list(self.variables)
        for objective in self.objectives():
            found += objective.optimizer.variables
        return found

    def objectives(self) -> Sequence[Objective]:
        """The objectives of one step, in order."""
        raise NotImplementedError

    def predict_logits(self, images):
        """Logits [B, N] of images [B, H, W, 3] in inference mode, for validation."""
        raise NotImplementedError

    @property
    def metrics(self):
        """All metrics, which Keras resets at the start of each epoch."""
        return [*self.trackers.values(), self.accuracy]

    def train_step(self, data):
        """One update of every active objective on a batch (images, labels)."""
        images, labels = data
        for objective in self.objectives():
            if objective.active is None:
                self.update(objective, images, labels)
            else:
                tf.cond(
                    objective.active,
                    lambda objective=objective: self.update(objective, images, labels),
                    lambda: tf.constant(0.0),
                )
        return {name: tracker.result() for name, tracker in self.trackers.items()}

    def update(self, objective: Objective, images, labels):
        """One step of one objective on a batch; returns its loss."""
        with tf.GradientTape() as tape:
            loss, values = objective.loss(images, labels)
        gradients = tape.gradient(loss, objective.variables)
        objective.optimizer.apply(gradients, objective.variables)
        for name, value in values.items():
            self.trackers[name].update_state(value)
        return loss

    def test_step(self, data):
        """Accuracy of `predict_logits` on a batch (images, labels)."""
        images, labels = data
        self.accuracy.update_state(labels, self.predict_logits(images))
        return {"accuracy": self.accuracy.result()}

    def predict_step(self, data):
        """Logits of a batch of images."""
        return self.predict_logits(data)


def cross_entropy(labels, logits, smoothing: float = 0.0):
    """Mean cross-entropy with optional label smoothing.

    Args:
        labels: class indices [B].
        logits: [B, N].
        smoothing: mass spread evenly over all classes.

    Returns:
        Scalar.
    """
    classes = logits.shape[-1]
    target = keras.ops.one_hot(labels, classes) * (1.0 - smoothing) + smoothing / classes
    return keras.ops.mean(keras.losses.categorical_crossentropy(target, logits, from_logits=True))


def correct(labels, logits):
    """Float 0/1 [B]: whether the largest logit of [B, N] is at the label [B]."""
    hits = keras.ops.equal(keras.ops.argmax(logits, axis=-1), labels)
    return keras.ops.cast(hits, "float32")


def sgd(
    learning_rate: float, weight_decay: float, clip_norm: float, variables
) -> keras.optimizers.Optimizer:
    """SGD with Nesterov momentum 0.9, as every stage uses it for weights; built.

    Args:
        learning_rate: initial rate; schedules change it.
        weight_decay: decoupled; subtracts rate x decay x weight each step.
        clip_norm: largest global norm of the gradient; 0 does not clip.
        variables: what it will train.
    """
    optimizer = keras.optimizers.SGD(
        learning_rate,
        momentum=0.9,
        nesterov=True,
        weight_decay=weight_decay or None,
        global_clipnorm=clip_norm or None,
    )
    optimizer.build(list(variables))
    return optimizer
