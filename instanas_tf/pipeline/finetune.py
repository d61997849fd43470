"""Stage 4: choose the K experts of a run, train their weights together, and freeze them.

Two rules. `sandwich`: in each step the cheapest expert, the dearest and some between see the
whole batch and their gradients are added up (Yu et al., Slimmable Networks, arXiv 1812.08928
and 1903.05134); each expert's normalisation statistics are then its own, so that nothing is
lost against training it alone. `assigned`: each image runs the expert that the frozen
controller of the search gives it (InstaNAS, arXiv 1811.10201, section 3.4).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops
from ml_collections import ConfigDict

from instanas_tf import files
from instanas_tf.latency import LatencyTable
from instanas_tf.models.controller import Controller
from instanas_tf.models.expert import build_expert, recalibrate
from instanas_tf.models.supernet import Supernet
from instanas_tf.models.training import Objective, TrainedModel, correct, cross_entropy, sgd
from instanas_tf.pipeline import callbacks, choice, data, fitting, routers, variants
from instanas_tf.pipeline.workdir import WorkDir
from instanas_tf.search import expert_set, schedules

STAGE = "finetune"


class Sandwich(TrainedModel):
    """Trains the experts within a supernet: cheapest, dearest and some between in each step.

    Args:
        supernet: what is trained.
        experts: 0/1 [E, L, K], from cheap to dear.
        optimizer: built on the variables that these experts use.
        smoothing: label smoothing.
        clip_norm: largest global norm of the gradient; 0 does not clip.
        between: how many experts between the cheapest and the dearest each step trains.
        distillation: share of the smaller experts' targets that the dearest's softmax sets.
    """

    def __init__(
        self,
        supernet: Supernet,
        experts: np.ndarray,
        optimizer: keras.optimizers.Optimizer,
        smoothing: float,
        clip_norm: float = 0.0,
        between: int = 1,
        distillation: float = 0.0,
        **kwargs,
    ):
        super().__init__(("loss", "train_accuracy"), **kwargs)
        self.supernet = supernet
        self.experts = np.asarray(experts, np.float32)
        self.weight_optimizer = optimizer
        self.smoothing, self.clip_norm = smoothing, clip_norm
        self.distillation = distillation
        self.groups = groups(len(self.experts), between)

    def objectives(self):
        """One objective for each group of experts: their losses, added up."""
        variables = self.supernet.variables_of(self.experts)
        return tuple(
            Objective(
                functools.partial(self._loss, group),
                variables,
                self.weight_optimizer,
                self.clip_norm,
            )
            for group in self.groups
        )

    def active(self, epoch: int, step: int) -> tuple[int, ...]:
        """The groups take turns."""
        return ((epoch + step) % len(self.groups),)

    def _loss(self, group: tuple[int, ...], images, labels):
        outputs = self.supernet.together(images, self.experts[list(group)], training=True)
        losses = [cross_entropy(labels, logits, self.smoothing) for logits in outputs]
        if self.distillation:
            target = ops.stop_gradient(ops.softmax(outputs[-1]))
            taught = [
                ops.mean(keras.losses.categorical_crossentropy(target, logits, from_logits=True))
                for logits in outputs[:-1]
            ]
            share = self.distillation
            smaller = [
                (1.0 - share) * own + share * other
                for own, other in zip(losses, taught, strict=False)
            ]
            losses = [*smaller, losses[-1]]
        hits = [ops.mean(correct(labels, logits)) for logits in outputs]
        values = {
            "loss": sum(losses) / len(losses),
            "train_accuracy": sum(hits) / len(hits),
        }
        return sum(losses), values

    def predict_logits(self, images):
        """Logits [B, N] of the dearest expert.

        With the statistics of all experts mixed: after recalibration it is better than this.
        """
        return self.supernet.together(images, self.experts[-1:], training=False)[0]


def groups(experts: int, between: int) -> list[tuple[int, ...]]:
    """Which experts a step trains, by turns: the cheapest, the dearest and some between.

    Args:
        experts: E.
        between: how many of those between a step trains.

    Returns:
        Groups of indices, rising; all experts between come equally often.
    """
    middle = list(range(1, experts - 1))
    if between >= len(middle):
        return [tuple(range(experts))]
    turns = [
        sorted(middle[(turn + offset) % len(middle)] for offset in range(between))
        for turn in range(len(middle))
    ]
    return [(0, *turn, experts - 1) for turn in turns]


class Assigned(TrainedModel):
    """Trains a supernet under the expert that a frozen controller gives each image.

    Args:
        supernet: what is trained.
        controllers: frozen; they take turns, a batch each.
        experts: 0/1 [E, L, K].
        optimizer: built on the supernet's variables.
        smoothing: label smoothing.
        clip_norm: largest global norm of the gradient; 0 does not clip.
    """

    def __init__(
        self,
        supernet: Supernet,
        controllers: Sequence[Controller],
        experts: np.ndarray,
        optimizer: keras.optimizers.Optimizer,
        smoothing: float,
        clip_norm: float = 0.0,
        **kwargs,
    ):
        super().__init__(("loss", "train_accuracy"), **kwargs)
        self.supernet = supernet
        self.controllers = list(controllers)
        self.experts = np.asarray(experts, np.float32)
        self.weight_optimizer = optimizer
        self.smoothing, self.clip_norm = smoothing, clip_norm

    def objectives(self):
        """Cross-entropy of the supernet under each of the controllers."""
        variables = self.supernet.trainable_variables
        return tuple(
            Objective(
                functools.partial(self._loss, controller),
                variables,
                self.weight_optimizer,
                self.clip_norm,
            )
            for controller in self.controllers
        )

    def active(self, epoch: int, step: int) -> tuple[int, ...]:
        """The controllers take turns."""
        return ((epoch + step) % len(self.controllers),)

    def policy(self, controller: Controller, images):
        """The policy [B, L, K] of the expert that each image is assigned."""
        logits = controller.logits(images, training=False)
        scores = expert_set.scores(logits, self.experts, self.supernet.space)
        return ops.take(ops.convert_to_tensor(self.experts), ops.argmax(scores, axis=-1), axis=0)

    def _loss(self, controller: Controller, images, labels):
        policy = ops.stop_gradient(self.policy(controller, images))
        logits = self.supernet((images, policy), training=True)
        loss = cross_entropy(labels, logits, self.smoothing)
        return loss, {"loss": loss, "train_accuracy": ops.mean(correct(labels, logits))}

    def predict_logits(self, images):
        """Logits [B, N] of the experts that the first controller assigns."""
        policy = self.policy(self.controllers[0], images)
        return self.supernet((images, policy), training=False)


def recalibration_batches(config: ConfigDict, images: data.ImageData) -> list:
    """Shuffled training images without augmentation, in batches of equal size."""
    plain = config.data.augmentation.copy_and_resolve_references()
    plain.update(pad=0, flip=False, cutout=0)
    wanted = config.experts.recalibration_images
    size = min(fitting.EVAL_BATCH, images.train.count, wanted)
    batches = data.train_batches(
        images.train,
        batch_size=size,
        epoch=0,
        seed=config.seed,
        augmentation=plain,
        mean=images.mean,
    )
    return [batch for batch, _ in itertools.islice(batches, wanted // size)]


def make_training(
    config: ConfigDict,
    images: data.ImageData,
    supernet: Supernet,
    experts: np.ndarray,
    epochs: Sequence[int],
    workdir: WorkDir,
) -> TrainedModel:
    """What trains the experts by the config's rule; in the scope of a cluster if there is one.

    Args:
        config: of the run.
        images: the dataset.
        supernet: whose weights are trained.
        experts: 0/1 [E, L, K], from cheap to dear.
        epochs: of the search, whose controllers assign images.
        workdir: of the run.
    """
    settings, shared = config.finetune, config.train
    sandwich = settings.rule == "sandwich"
    variables = supernet.variables_of(experts) if sandwich else supernet.trainable_variables
    optimizer = sgd(settings.learning_rate, settings.weight_decay, variables)
    common = (optimizer, shared.label_smoothing, shared.clip_norm)
    if sandwich:
        return Sandwich(supernet, experts, *common, settings.between, settings.distillation)
    controllers = []
    for epoch in epochs:
        controllers.append(fitting.make_controller(config, images))
        callbacks.load_weights(controllers[-1], workdir.controller(epoch))
    return Assigned(supernet, controllers, experts, *common)


def finetune(config: ConfigDict, images: data.ImageData, workdir: WorkDir) -> None:
    """Runs stage 4 and leaves the experts: their weights, and `checkpoints/trained.json`."""
    settings, cluster = config.finetune, workdir.cluster
    space = fitting.make_space(config, images.num_classes)
    table = LatencyTable.load(workdir.latency_table, space, config.controller.kind)
    with cluster.scope():
        supernet = fitting.make_supernet(config, images)
    callbacks.load_weights(supernet, workdir.weights("search"))
    chosen = choice.choose_once(config, images, table, supernet, workdir)
    callbacks.load_weights(supernet, workdir.weights("search"))
    experts = np.stack([space.policy_from_names(names) for names in chosen["policies"]])
    with cluster.scope():
        model = make_training(config, images, supernet, experts, chosen["epochs"], workdir)
    optimizer = model.objectives()[0].optimizer
    fitting.fit(
        model,
        STAGE,
        epochs=settings.epochs,
        images=images,
        config=config,
        workdir=workdir,
        schedule=[(optimizer.learning_rate, schedules.cosine(settings.learning_rate))],
        batch_size=settings.batch_size,
    )
    if cluster.is_chief:
        entries = freeze(supernet, experts, table, config, images, workdir)
        content = variants.header(space, images, config)
        content |= {"experts": entries, **chosen}
        routers.drop_all(workdir)  # What was decided was decided for other experts.
        files.write_json(workdir.trained, content)
        fitting.finish(STAGE, workdir)
    cluster.wait()


def freeze(
    supernet: Supernet,
    experts: np.ndarray,
    table: LatencyTable,
    config: ConfigDict,
    images: data.ImageData,
    workdir: WorkDir,
) -> list[dict[str, Any]]:
    """Freezes the experts, recalibrated, leaves their weights, and scores them on validation.

    Args:
        supernet: with the trained weights.
        experts: 0/1 [E, L, K].
        table: predicts latencies.
        config: of the run.
        images: the dataset.
        workdir: where the experts' weights go.

    Returns:
        The experts' entries for `experts.json`.
    """
    batches = recalibration_batches(config, images)
    labels = fitting.labels_of(images.validation)
    entries = []
    for index, policy in enumerate(experts):
        network = build_expert(supernet, policy)
        recalibrate(network, batches)
        name = variants.expert_name(index)
        callbacks.save_weights(network, workdir.weights(name))
        answers = np.argmax(fitting.predict(network, images.validation), axis=-1)
        entries.append(
            {
                "name": name,
                "policy": supernet.space.policy_names(policy),
                "validation_accuracy": float(np.mean(answers == labels)),
                "predicted_latency_ms": float(table.static_ms(policy)),
            }
        )
    return entries
