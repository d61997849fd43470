"""Stage 4: turn each variant's policies into experts and train the weights for them.

Source: InstaNAS, arXiv 1811.10201, section 3.4 (controller frozen, no shuffling). Here the
policies are first reduced to the K experts that will be shipped, so that the weights are
trained for just those; each expert's normalisation statistics are then recalibrated.
"""

from __future__ import annotations

import itertools
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
from instanas_tf.pipeline import callbacks, data, fitting, variants
from instanas_tf.pipeline.search import Pick, pick_variants
from instanas_tf.pipeline.workdir import WorkDir
from instanas_tf.search import expert_set, schedules
from instanas_tf.spaces.space import SearchSpace


class FineTune(TrainedModel):
    """Trains a supernet under the expert that the frozen controller gives each image.

    Args:
        supernet: what is trained.
        controller: frozen.
        experts: 0/1 [E, L, K].
        optimizer: built on the supernet's variables.
        smoothing: label smoothing.
        clip_norm: largest global norm of the gradient; 0 does not clip.
    """

    def __init__(
        self,
        supernet: Supernet,
        controller: Controller,
        experts: np.ndarray,
        optimizer: keras.optimizers.Optimizer,
        smoothing: float,
        clip_norm: float = 0.0,
        **kwargs,
    ):
        super().__init__(("loss", "train_accuracy"), **kwargs)
        self.supernet = supernet
        self.controller = controller
        self.experts = np.asarray(experts, np.float32)
        self.weight_optimizer = optimizer
        self.smoothing, self.clip_norm = smoothing, clip_norm

    def objectives(self):
        """Cross-entropy of the supernet."""
        variables = self.supernet.trainable_variables
        return (Objective(self._loss, variables, self.weight_optimizer, self.clip_norm),)

    def policy(self, images):
        """The policy [B, L, K] of the expert that each image is assigned."""
        logits = self.controller.logits(images, training=False)
        scores = expert_set.scores(logits, self.experts, self.supernet.space)
        return ops.take(ops.convert_to_tensor(self.experts), ops.argmax(scores, axis=-1), axis=0)

    def _loss(self, images, labels):
        policy = ops.stop_gradient(self.policy(images))
        logits = self.supernet((images, policy), training=True)
        loss = cross_entropy(labels, logits, self.smoothing)
        return loss, {"loss": loss, "train_accuracy": ops.mean(correct(labels, logits))}

    def predict_logits(self, images):
        """Logits [B, N] of the assigned experts."""
        return self.supernet((images, self.policy(images)), training=False)


def controller_logits(controller: Controller, split: data.Split) -> np.ndarray:
    """Log-odds [n, L, K] for all images of a split, in order."""

    def infer(images):
        return controller.logits(images, training=False)

    return fitting.outputs(infer, controller.variables, fitting.images_of(split))


def assign(logits: np.ndarray, experts: np.ndarray, space: SearchSpace) -> np.ndarray:
    """Index [n] of the expert that each image is assigned, from log-odds [n, L, K]."""
    return np.argmax(np.asarray(expert_set.scores(logits, experts, space)), axis=-1)


def supernet_accuracy(supernet: Supernet, policies: np.ndarray, split: data.Split) -> float:
    """Accuracy on a split when each image runs its own policy of [n, L, K]."""

    def infer(images, policy):
        return supernet((images, policy), training=False)

    bits = np.asarray(policies, np.float32)
    size = fitting.EVAL_BATCH
    in_batches = (bits[start : start + size] for start in range(0, len(bits), size))
    logits = fitting.outputs(infer, supernet.variables, fitting.images_of(split), in_batches)
    return float(np.mean(np.argmax(logits, axis=-1) == fitting.labels_of(split)))


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


def choose(
    pick: Pick, controller: Controller, config: ConfigDict, images: data.ImageData, table
) -> dict[str, Any]:
    """The experts of a variant, from the policies that its controller gives the training images.

    Returns:
        As JSON: `policies`, a dict of op names for each expert, from cheap to dear;
        `unique_policies` and `varying_bits` of what the experts stand for.
    """
    found = expert_set.count_policies(controller_logits(controller, images.train) >= 0, table.space)
    experts = expert_set.choose_experts(found, config.experts.count, config.seed)
    experts = experts[np.argsort(table.static_ms(experts), kind="stable")]
    return {
        "epoch": pick.epoch,
        "policies": [table.space.policy_names(policy) for policy in experts],
        "unique_policies": found.unique,
        "varying_bits": found.varying_bits,
    }


def choose_once(
    pick: Pick,
    controller: Controller,
    config: ConfigDict,
    images: data.ImageData,
    table: LatencyTable,
    workdir: WorkDir,
) -> dict[str, Any]:
    """What `choose` gave the chief the first time: rounding might make another choice differ."""
    path = workdir.chosen(pick.name)
    if workdir.cluster.is_chief and not path.exists():
        files.write_json(path, choose(pick, controller, config, images, table))
    workdir.cluster.wait()
    return variants.read_chosen(path, table.space)


def make_variant(
    pick: Pick,
    config: ConfigDict,
    images: data.ImageData,
    table: LatencyTable,
    workdir: WorkDir,
) -> None:
    """Makes one variant: its experts, their weights, and its entry for `experts.json`."""
    settings, shared, cluster = config.finetune, config.train, workdir.cluster
    with cluster.scope():
        supernet = fitting.make_supernet(config, images)
        controller = fitting.make_controller(config, images)
        variables = supernet.trainable_variables
        optimizer = sgd(settings.learning_rate, settings.weight_decay, variables)
    callbacks.load_weights(controller, workdir.controller(pick.epoch))
    callbacks.load_weights(supernet, workdir.weights("search"))
    chosen = choose_once(pick, controller, config, images, table, workdir)
    experts = np.stack([table.space.policy_from_names(names) for names in chosen["policies"]])

    accuracy = {}
    split = images.validation
    if cluster.is_chief:
        logits = controller_logits(controller, split)
        assigned = assign(logits, experts, table.space)
        accuracy["greedy"] = supernet_accuracy(supernet, logits >= 0, split)
        accuracy["reduced"] = supernet_accuracy(supernet, experts[assigned], split)
    with cluster.scope():
        smoothing, clip_norm = shared.label_smoothing, shared.clip_norm
        model = FineTune(supernet, controller, experts, optimizer, smoothing, clip_norm)
    fitting.fit(
        model,
        f"finetune_{pick.name}",
        epochs=settings.epochs,
        images=images,
        config=config,
        workdir=workdir,
        schedule=[(optimizer.learning_rate, schedules.cosine(settings.learning_rate))],
        batch_size=settings.batch_size,
    )
    if not cluster.is_chief:
        return
    accuracy["finetuned"] = supernet_accuracy(supernet, experts[assigned], split)
    hits, entries = freeze(pick.name, supernet, experts, assigned, config, images, workdir)
    for item, policy in zip(entries, experts, strict=True):
        item["predicted_latency_ms"] = float(table.static_ms(policy))
    accuracy["recalibrated"] = float(np.mean(hits[assigned, np.arange(split.count)]))
    callbacks.save_weights(controller, workdir.weights(f"{pick.name}_controller"))
    entry = {
        "name": pick.name,
        "target": pick.target,
        "epoch": pick.epoch,
        "unique_policies": chosen["unique_policies"],
        "varying_bits": chosen["varying_bits"],
        "validation_accuracy": accuracy,
        "predicted_latency_ms": float(
            np.mean(table.static_ms(experts)[assigned]) + table.controller_ms
        ),
        "experts": entries,
    }
    files.write_json(workdir.variant(pick.name), entry)
    fitting.finish(f"finetune_{pick.name}", workdir)


def freeze(
    name: str,
    supernet: Supernet,
    experts: np.ndarray,
    assigned: np.ndarray,
    config: ConfigDict,
    images: data.ImageData,
    workdir: WorkDir,
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Freezes the experts, recalibrated, and scores them on the validation split.

    Args:
        name: of the variant.
        supernet: fine-tuned.
        experts: 0/1 [E, L, K].
        assigned: index of the expert of each validation image, [n].
        config: of the run.
        images: the dataset.
        workdir: where the experts' weights go.

    Returns:
        Whether each expert answers each image right, bool [E, n], and the experts' entries.
    """
    batches = recalibration_batches(config, images)
    labels = fitting.labels_of(images.validation)
    hits = np.zeros((len(experts), len(labels)), bool)
    entries = []
    for index, policy in enumerate(experts):
        network = build_expert(supernet, policy)
        recalibrate(network, batches)
        expert = f"expert_{index:02d}"
        callbacks.save_weights(network, workdir.weights(f"{name}_{expert}"))
        hits[index] = np.argmax(fitting.predict(network, images.validation), axis=-1) == labels
        mine = assigned == index
        where_chosen = float(np.mean(hits[index][mine])) if mine.any() else None
        entries.append(
            {
                "name": expert,
                "policy": supernet.space.policy_names(policy),
                "share": float(np.mean(mine)),
                "validation_accuracy": float(np.mean(hits[index])),
                "validation_accuracy_where_chosen": where_chosen,
            }
        )
    return hits, entries


def finetune(config: ConfigDict, images: data.ImageData, workdir: WorkDir) -> None:
    """Runs stage 4 for every variant and leaves `experts.json`."""
    space = fitting.make_space(config, images.num_classes)
    table = LatencyTable.load(workdir.latency_table, space, config.controller.kind)
    picks = pick_variants(callbacks.read_metrics(workdir.metrics), config.variants.targets)
    found = []
    for pick in picks:
        if not workdir.variant(pick.name).exists():
            make_variant(pick, config, images, table, workdir)
        workdir.cluster.wait()
        found.append(variants.read_entry(workdir.variant(pick.name), space))
    if not workdir.cluster.is_chief:
        return
    files.write_json(
        workdir.experts,
        {
            "format": variants.FORMAT,
            "version": variants.VERSION,
            "space": space.to_json(),
            "mean": list(images.mean),
            "std": list(images.std),
            "labels": list(images.labels),
            "controller": config.controller.kind,
            "selected": select(found),
            "variants": found,
        },
    )


def select(entries: list[dict[str, Any]], tolerance: float = 0.005) -> str:
    """Name of the variant to ship unless the user says otherwise.

    The one with the least predicted latency among those within `tolerance` of the best
    validation accuracy.
    """
    best = max(variant["validation_accuracy"]["recalibrated"] for variant in entries)
    near = [
        variant
        for variant in entries
        if variant["validation_accuracy"]["recalibrated"] >= best - tolerance
    ]
    return min(near, key=lambda variant: variant["predicted_latency_ms"])["name"]
