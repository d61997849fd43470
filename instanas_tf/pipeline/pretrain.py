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

from instanas_tf.models.expert import static_network
from instanas_tf.models.supernet import Supernet
from instanas_tf.models.training import Objective, TrainedModel, correct, cross_entropy, sgd
from instanas_tf.pipeline import callbacks, data, fitting
from instanas_tf.pipeline.workdir import WorkDir
from instanas_tf.search import policies, schedules
from instanas_tf.spaces.space import SearchSpace


class PathDropout(TrainedModel):
    """Trains a supernet under random policies.

    Args:
        supernet: what is trained.
        optimizer: built on its variables.
        keep_range: (lowest, highest) of the rate drawn for each image once `random_keep`.
        smoothing: label smoothing.
        seed: of the bits.
    """

    def __init__(
        self,
        supernet: Supernet,
        optimizer: keras.optimizers.Optimizer,
        keep_range: tuple[float, float],
        smoothing: float,
        seed: int,
        **kwargs,
    ):
        super().__init__(("loss", "train_accuracy"), **kwargs)
        self.supernet = supernet
        self.weight_optimizer = optimizer
        self.keep_range = tuple(keep_range)
        self.smoothing = smoothing
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.keep = self.add_weight(shape=(), initializer="ones", trainable=False, name="keep")
        self.random_keep = self.add_weight(
            shape=(), initializer="zeros", trainable=False, name="random_keep"
        )

    def objectives(self):
        """Cross-entropy of the supernet."""
        variables = self.supernet.trainable_variables
        return (Objective(self._loss, variables, self.weight_optimizer),)

    def _loss(self, images, labels):
        space, batch = self.supernet.space, ops.shape(images)[0]
        low, high = self.keep_range
        drawn = keras.random.uniform((batch, 1, 1), low, high, seed=self.seed_generator)
        keep = ops.where(self.random_keep > 0.5, drawn, self.keep)
        shape = (space.num_cells, space.num_ops)
        policy = policies.dropout(batch, shape, keep, self.seed_generator)
        logits = self.supernet((images, policy), training=True)
        loss = cross_entropy(labels, logits, self.smoothing)
        return loss, {"loss": loss, "train_accuracy": ops.mean(correct(labels, logits))}

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
    """

    def __init__(self, network: keras.Model, optimizer, smoothing: float, **kwargs):
        super().__init__(("loss", "train_accuracy"), **kwargs)
        self.network = network
        self.weight_optimizer = optimizer
        self.smoothing = smoothing

    def objectives(self):
        """Cross-entropy of the network."""
        variables = self.network.trainable_variables
        return (Objective(self._loss, variables, self.weight_optimizer),)

    def _loss(self, images, labels):
        logits = self.network(images, training=True)
        loss = cross_entropy(labels, logits, self.smoothing)
        return loss, {"loss": loss, "train_accuracy": ops.mean(correct(labels, logits))}

    def predict_logits(self, images):
        """Logits [B, N]."""
        return self.network(images, training=False)


def pretrain(config: ConfigDict, images: data.ImageData, workdir: WorkDir) -> None:
    """Runs stage 1 and leaves `checkpoints/pretrain.weights.h5`."""
    settings, supernet = config.pretrain, fitting.make_supernet(config, images)
    optimizer = sgd(
        settings.learning_rate,
        settings.weight_decay,
        config.train.clip_norm,
        supernet.trainable_variables,
    )
    model = PathDropout(
        supernet, optimizer, settings.keep_range, config.train.label_smoothing, config.seed
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
            fitting.learning_rate(optimizer, rate),
            (model.keep.assign, schedules.knots(settings.keep)),
            (model.random_keep.assign, lambda progress: float(progress >= random_from)),
        ],
    )
    callbacks.save_weights(supernet, workdir.weights("pretrain"))
    fitting.finish("pretrain", workdir)


def weight_epochs(config: ConfigDict) -> int:
    """Passes over the training images that a variant's weights see in all stages.

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
) -> keras.Model:
    """Trains a static network from scratch with the budget of a variant; resumes.

    Args:
        name: of the network, in logs and checkpoints.
        space: the search space, perhaps of another width than the run's.
        policy: 0/1 [L, K].
        config: of the run: the optimizer of stage 1 over `weight_epochs` epochs.
        images: the dataset.
        workdir: of the run.

    Returns:
        The trained network.
    """
    keras.utils.set_random_seed(config.seed + 2)
    network = static_network(space, policy, images.mean, images.std, config.train.bn_momentum)
    saved = workdir.weights(name)
    if saved.exists():
        callbacks.load_weights(network, saved)
        return network
    settings = config.pretrain
    optimizer = sgd(
        settings.learning_rate,
        settings.weight_decay,
        config.train.clip_norm,
        network.trainable_variables,
    )
    rate = schedules.LEARNING_RATES[settings.schedule](settings.learning_rate)
    fitting.fit(
        Alone(network, optimizer, config.train.label_smoothing),
        name,
        epochs=weight_epochs(config),
        images=images,
        config=config,
        workdir=workdir,
        schedule=[fitting.learning_rate(optimizer, rate)],
    )
    callbacks.save_weights(network, saved)
    fitting.finish(name, workdir)
    return network
