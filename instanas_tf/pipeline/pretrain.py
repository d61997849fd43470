"""Stage 1: train the supernet with path dropout, and networks alone for comparison.

Source: InstaNAS, arXiv 1811.10201, section 3.2 (path dropout). Independent bits at a low
rate from the start do not train at small budgets; what does is all ops on first, then
fewer and fewer, then a rate drawn anew for each image.
"""

from __future__ import annotations

import keras
import numpy as np
from keras import ops
from ml_collections import ConfigDict

from instanas_tf.models import replicas
from instanas_tf.models.expert import static_network
from instanas_tf.models.supernet import Supernet
from instanas_tf.models.training import Objective, TrainedModel, correct, cross_entropy, sgd
from instanas_tf.pipeline import callbacks, data, fitting
from instanas_tf.pipeline.workdir import WorkDir
from instanas_tf.search import expert_set, policies, schedules
from instanas_tf.spaces.space import SearchSpace


class PathDropout(TrainedModel):
    """Trains a supernet under random policies.

    Args:
        supernet: what is trained.
        optimizer: built on its variables.
        anchors: 0/1 [A, L, K], fixed policies that are trained in each step too, perhaps none.
        keep_range: (lowest, highest) of the rate drawn for each image once `random_keep`.
        smoothing: label smoothing.
        clip_norm: largest global norm of the gradient; 0 does not clip.
        seed: of the bits.
    """

    def __init__(
        self,
        supernet: Supernet,
        optimizer: keras.optimizers.Optimizer,
        anchors: np.ndarray,
        keep_range: tuple[float, float],
        smoothing: float,
        clip_norm: float,
        seed: int,
        **kwargs,
    ):
        super().__init__(("loss", "train_accuracy"), **kwargs)
        self.supernet = supernet
        self.weight_optimizer = optimizer
        self.anchors = np.asarray(anchors, np.float32)
        self.keep_range = tuple(keep_range)
        self.smoothing, self.clip_norm = smoothing, clip_norm
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.keep = self.add_weight(shape=(), initializer="ones", trainable=False, name="keep")
        self.random_keep = self.add_weight(
            shape=(), initializer="zeros", trainable=False, name="random_keep"
        )

    def objectives(self):
        """Cross-entropy of the supernet under random policies, and under the anchors."""
        variables = self.supernet.trainable_variables
        return (Objective(self._loss, variables, self.weight_optimizer, self.clip_norm),)

    def _loss(self, images, labels):
        space, batch = self.supernet.space, ops.shape(images)[0]
        low, high = self.keep_range
        drawn = replicas.uniform((batch, 1, 1), self.seed_generator, low, high)
        keep = ops.where(self.random_keep > 0.5, drawn, self.keep)
        shape = (space.num_cells, space.num_ops)
        policy = policies.dropout(batch, shape, keep, self.seed_generator)
        logits = self.supernet((images, policy), training=True)
        loss = cross_entropy(labels, logits, self.smoothing)
        values = {"loss": loss, "train_accuracy": ops.mean(correct(labels, logits))}
        if len(self.anchors):
            for fixed in self.supernet.together(images, self.anchors, training=True):
                loss = loss + cross_entropy(labels, fixed, self.smoothing)
        return loss, values

    def predict_logits(self, images):
        """Logits [B, N] with all ops on."""
        space = self.supernet.space
        policy = ops.ones((ops.shape(images)[0], space.num_cells, space.num_ops))
        return self.supernet((images, policy), training=False)


class Alone(TrainedModel):
    """Trains one static network by itself.

    Args:
        network: images -> logits.
        optimizer: built on its variables.
        smoothing: label smoothing.
        clip_norm: largest global norm of the gradient; 0 does not clip.
    """

    def __init__(
        self, network: keras.Model, optimizer, smoothing: float, clip_norm: float, **kwargs
    ):
        super().__init__(("loss", "train_accuracy"), **kwargs)
        self.network = network
        self.weight_optimizer = optimizer
        self.smoothing, self.clip_norm = smoothing, clip_norm

    def objectives(self):
        """Cross-entropy of the network."""
        variables = self.network.trainable_variables
        return (Objective(self._loss, variables, self.weight_optimizer, self.clip_norm),)

    def _loss(self, images, labels):
        logits = ops.cast(self.network(images, training=True), "float32")
        loss = cross_entropy(labels, logits, self.smoothing)
        return loss, {"loss": loss, "train_accuracy": ops.mean(correct(labels, logits))}

    def predict_logits(self, images):
        """Logits [B, N]."""
        return ops.cast(self.network(images, training=False), "float32")


def pretrain(config: ConfigDict, images: data.ImageData, workdir: WorkDir) -> None:
    """Runs stage 1 and leaves `checkpoints/pretrain.weights.h5`."""
    settings, shared = config.pretrain, config.train
    with workdir.cluster.scope():
        supernet = fitting.make_supernet(config, images)
        variables = supernet.trainable_variables
        optimizer = sgd(settings.learning_rate, settings.weight_decay, variables)
        model = PathDropout(
            supernet,
            optimizer,
            expert_set.named_anchors(supernet.space, settings.anchors),
            settings.keep_range,
            shared.label_smoothing,
            shared.clip_norm,
            config.seed,
        )
    rate = schedules.LEARNING_RATES[settings.schedule](settings.learning_rate)
    random_from = settings.keep_random_from
    fitting.fit(
        model,
        "pretrain",
        epochs=settings.epochs,
        images=images,
        config=config,
        workdir=workdir,
        schedule=[
            (optimizer.learning_rate, rate),
            (model.keep, schedules.knots(settings.keep)),
            (model.random_keep, lambda progress: float(progress >= random_from)),
        ],
    )
    fitting.leave_weights(supernet, "pretrain", workdir)


def weight_epochs(config: ConfigDict) -> int:
    """Passes over the training images that the experts' weights see in all stages.

    In a search that alternates by epochs every second one updates the supernet.
    """
    searching = config.search.epochs
    if config.search[config.search.recipe].alternate == "epoch":
        searching //= 2
    return config.pretrain.epochs + searching + config.finetune.epochs


def train_alone(
    name: str,
    space: SearchSpace,
    policy: np.ndarray,
    config: ConfigDict,
    images: data.ImageData,
    workdir: WorkDir,
    seed: int = 2,
) -> keras.Model:
    """Trains a static network from scratch with the budget of the experts; resumes.

    Args:
        name: of the network, in logs and checkpoints.
        space: the search space, perhaps of another width than the run's.
        policy: 0/1 [L, K].
        config: of the run: the optimizer of stage 1 over `weight_epochs` epochs.
        images: the dataset.
        workdir: of the run.
        seed: of the initial weights, added to the config's.

    Returns:
        The trained network.
    """
    saved = workdir.weights(name)
    if not saved.exists():
        _train_alone(name, space, policy, config, images, workdir, seed)
    network = static_network(space, policy, images.mean, images.std, config.train.bn_momentum)
    callbacks.load_weights(network, saved)
    return network


def _train_alone(name, space, policy, config, images, workdir, seed) -> None:
    """Trains the network and leaves its weights; see `train_alone`."""
    settings, shared = config.pretrain, config.train
    keras.utils.set_random_seed(config.seed + seed)
    with workdir.cluster.scope():
        with fitting.trained_in(shared.precision):
            network = static_network(space, policy, images.mean, images.std, shared.bn_momentum)
        variables = network.trainable_variables
        optimizer = sgd(settings.learning_rate, settings.weight_decay, variables)
        model = Alone(network, optimizer, shared.label_smoothing, shared.clip_norm)
    rate = schedules.LEARNING_RATES[settings.schedule](settings.learning_rate)
    fitting.fit(
        model,
        name,
        epochs=weight_epochs(config),
        images=images,
        config=config,
        workdir=workdir,
        schedule=[(optimizer.learning_rate, rate)],
    )
    fitting.leave_weights(network, name, workdir)
