"""The one custom training step; each trained thing says only what its losses are.

`TrainedModel.step` is the step on every backend: TensorFlow, with any number of replicas,
and JAX by Keras's stateless API. `models/compiled.py` compiles it, `pipeline/loop.py` runs
it. Keras's own `fit` runs it too, on TensorFlow and without validation data, for models whose
objectives are all active all the time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from instanas_tf.models import replicas


@dataclasses.dataclass(frozen=True)
class Objective:
    """A loss, the variables that it trains, and how.

    Attributes:
        loss: (images [B, H, W, 3], labels [B]) -> (scalar loss, {metric name: value}).
        variables: what is trained.
        optimizer: a Keras optimizer, built on `variables`; without clipping of its own.
        clip_norm: largest global norm of the gradient; 0 does not clip.
    """

    loss: Callable[[Any, Any], tuple[Any, dict[str, Any]]]
    variables: Sequence[Any]
    optimizer: keras.optimizers.Optimizer
    clip_norm: float = 0.0


class TrainedModel(keras.Model):
    """A model that is trained by one or more objectives a step.

    Subclasses implement `objectives`, and `predict_logits` for validation, and name their
    metrics. A subclass must be built, and its optimizers too, before it is trained.

    Args:
        metric_names: names of the values that the losses report; each is averaged over
            an epoch.
    """

    def __init__(self, metric_names: Sequence[str], **kwargs):
        super().__init__(**kwargs)
        self.trackers = {name: keras.metrics.Mean(name=name) for name in metric_names}
        self.built = True

    @property
    def state(self) -> list[keras.Variable]:
        """Every variable that a resumed training needs, those of the optimizers included."""
        averages = {id(v) for tracker in self.metrics for v in tracker.variables}
        found = [variable for variable in self.variables if id(variable) not in averages]
        optimizers = {id(each.optimizer): each.optimizer for each in self.objectives()}
        for optimizer in optimizers.values():
            found += optimizer.variables
        return found

    def objectives(self) -> Sequence[Objective]:
        """The objectives of one step, in order."""
        raise NotImplementedError

    def active(self, epoch: int, step: int) -> tuple[int, ...]:
        """Which objectives take part in a step of an epoch (both from 0); all of them."""
        del epoch, step
        return tuple(range(len(self.objectives())))

    def predict_logits(self, images):
        """Logits [B, N] of images [B, H, W, 3] in inference mode, for validation."""
        raise NotImplementedError

    def validate(self, images, labels) -> dict[str, Any]:
        """What is averaged over the validation images: {name: [B]}."""
        return {"accuracy": correct(labels, self.predict_logits(images))}

    @property
    def metrics(self):
        """All metrics, which Keras resets at the start of each epoch."""
        return list(self.trackers.values())

    def step(self, images, labels, active: Sequence[int] | None = None) -> dict[str, Any]:
        """One update of every active objective.

        Args:
            images: this replica's [B, H, W, 3].
            labels: [B].
            active: indices of the objectives that are updated; None for all.

        Returns:
            The values that their losses report, means over all replicas.
        """
        objectives = self.objectives()
        values: dict[str, Any] = {}
        for index in range(len(objectives)) if active is None else active:
            values |= self.update(objectives[index], images, labels)
        return values

    def update(self, objective: Objective, images, labels) -> dict[str, Any]:
        """One step of one objective on a batch; returns its values."""
        values, gradients = _GRADIENTS[keras.backend.backend()](
            objective, self.state, images, labels
        )
        if objective.clip_norm:
            gradients = clip_by_global_norm(replicas.mean(gradients), objective.clip_norm)
        # The optimizer takes the sum over the replicas.
        shares = [gradient / replicas.count() for gradient in gradients]
        objective.optimizer.apply(shares, objective.variables)
        means = replicas.mean(ops.stack(list(values.values())))
        return {name: means[index] for index, name in enumerate(values)}

    def train_step(self, data):
        """One update of every objective on a batch (images, labels), for Keras's `fit`."""
        for name, value in self.step(*data).items():
            self.trackers[name].update_state(value)
        return {name: tracker.result() for name, tracker in self.trackers.items()}

    def predict_step(self, data):
        """Logits of a batch of images."""
        return self.predict_logits(data)


def _gradients_on_tensorflow(objective: Objective, state, images, labels):
    """Values of the loss, and the gradient of each of its variables."""
    import tensorflow as tf

    del state
    with tf.GradientTape() as tape:
        loss, values = objective.loss(images, labels)
    gradients = tape.gradient(loss, objective.variables)
    # As on JAX, 0 for what a step does not use; TensorFlow's own zeros need its own variables.
    return values, [
        ops.zeros_like(variable) if gradient is None else gradient
        for variable, gradient in zip(objective.variables, gradients, strict=True)
    ]


def _gradients_on_jax(objective: Objective, state, images, labels):
    """The same by Keras's stateless API; what the loss assigns stays in the scope around."""
    import jax

    def loss_of(trained):
        before = [(variable, variable.value) for variable in state]
        replaced = list(zip(objective.variables, trained, strict=True))
        with keras.StatelessScope(state_mapping=before + replaced) as inner:
            loss, values = objective.loss(images, labels)
        return loss, (values, [inner.get_current_value(variable) for variable in state])

    trained = [variable.value for variable in objective.variables]
    (_, (values, after)), gradients = jax.value_and_grad(loss_of, has_aux=True)(trained)
    fixed = {id(variable) for variable in objective.variables}
    for variable, value in zip(state, after, strict=True):
        if id(variable) not in fixed:
            variable.assign(value)
    return values, gradients


_GRADIENTS = {"tensorflow": _gradients_on_tensorflow, "jax": _gradients_on_jax}


def clip_by_global_norm(gradients, largest: float):
    """Scales gradients down so that the norm of all of them together is at most `largest`."""
    norm = ops.sqrt(sum(ops.sum(ops.square(gradient)) for gradient in gradients))
    factor = largest / ops.maximum(norm, largest)
    return [gradient * factor for gradient in gradients]


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


def sgd(learning_rate: float, weight_decay: float, variables) -> keras.optimizers.Optimizer:
    """SGD with Nesterov momentum 0.9, as every stage uses it for weights; built.

    Args:
        learning_rate: initial rate; schedules change it.
        weight_decay: decoupled; subtracts rate x decay x weight each step.
        variables: what it will train.
    """
    optimizer = keras.optimizers.SGD(
        learning_rate, momentum=0.9, nesterov=True, weight_decay=weight_decay or None
    )
    optimizer.build(list(variables))
    return optimizer
