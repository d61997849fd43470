"""Controllers that score the finished experts for each image, trained on what the experts got.

Once the experts are frozen, every outcome on every image is known: which of them are right, and
what they cost. So nothing has to be sampled, and the expected reward and its gradient are exact.
The images are those of the `controller` split, which the experts were not trained on.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import ops
from ml_collections import ConfigDict

from instanas_tf import files
from instanas_tf.models import replicas
from instanas_tf.models.controller import Controller
from instanas_tf.models.routers import FeatureRouter, ImageRouter
from instanas_tf.models.training import Objective, TrainedModel
from instanas_tf.pipeline import callbacks, data, fitting, pools
from instanas_tf.pipeline.workdir import ALONE, WorkDir
from instanas_tf.search import expert_set, schedules
from instanas_tf.spaces.space import SearchSpace

FEATURES = "features"
_IMAGE, _SEARCH = "image_", "search_"
_TRAINED_BY = ("epochs", "learning_rate", "temperature", "price_range")


class SearchRouter(keras.Model):
    """Scores experts by how likely they are under the controller of a search.

    Args:
        controller: of the search; its probabilities are per op.
        experts: 0/1 [E, L, K].

    Returns from a call:
        scores [B, E]; see `search/expert_set.py`.
    """

    def __init__(self, controller: Controller, experts: np.ndarray, **kwargs):
        super().__init__(**kwargs)
        self.controller = controller
        self.experts = np.asarray(experts, np.float32)
        self.built = True

    def call(self, images, training=None):
        """See the class."""
        logits = self.controller.logits(images, training=training)
        return expert_set.scores(logits, self.experts, self.controller.space)


class RouterTraining(TrainedModel):
    """Trains a router by the exact expected reward under prices drawn at random.

    One training serves all prices: the scores must order the experts rightly whatever latency
    costs, so after it a price can be chosen for each target. The labels of the images are their
    positions in `outcomes`.

    Args:
        router: images, or features, -> scores [B, E].
        front: images -> features, frozen; None if the router looks at the images.
        hits: whether each expert answers each training image right, [n, E].
        val_hits: the same of the validation images, [m, E].
        costs: of the experts as shares of the reference network's latency, [E].
        optimizer: built on the router's variables.
        price_range: (lowest, highest) accuracy for the reference network's latency.
        temperature: of the choice among biased scores.
        seed: of the prices.
    """

    def __init__(
        self,
        router: keras.Model,
        front: keras.Model | None,
        hits: np.ndarray,
        val_hits: np.ndarray,
        costs: np.ndarray,
        optimizer: keras.optimizers.Optimizer,
        price_range: tuple[float, float],
        temperature: float,
        seed: int,
        **kwargs,
    ):
        super().__init__(("loss", "reward"), **kwargs)
        self.router, self.front = router, front
        self.hits = np.asarray(hits, np.float32)
        self.val_hits = np.asarray(val_hits, np.float32)
        self.costs = np.asarray(costs, np.float32)
        self.router_optimizer = optimizer
        self.price_range = tuple(price_range)
        self.temperature = temperature
        self.seed_generator = keras.random.SeedGenerator(seed)

    def objectives(self):
        """The expected reward, of the router alone."""
        variables = self.router.trainable_variables
        return (Objective(self._loss, variables, self.router_optimizer),)

    def scores(self, images, training=False):
        """Scores [B, E]."""
        inputs = images
        if self.front is not None:
            inputs = ops.stop_gradient(self.front(images, training=False))
        return self.router(inputs, training=training)

    def reward(self, scores, hits, price):
        """Expected reward [B] of the soft choice: accuracy minus what latency costs.

        Args:
            scores: [B, E].
            hits: 0/1 [B, E].
            price: [B, 1].
        """
        charge = price * self.costs
        chance = ops.softmax((scores - charge) / self.temperature)
        return ops.sum(chance * (hits - charge), axis=-1)

    def _loss(self, images, positions):
        low, high = (float(np.log(price)) for price in self.price_range)
        shape = (ops.shape(images)[0], 1)
        price = ops.exp(replicas.uniform(shape, self.seed_generator, low, high))
        hits = ops.take(ops.convert_to_tensor(self.hits), positions, axis=0)
        reward = ops.mean(self.reward(self.scores(images, training=True), hits, price))
        return -reward, {"loss": -reward, "reward": reward}

    def validate(self, images, labels):
        """Reward at the middle price, and accuracy of the hard choice there."""
        middle = float(np.sqrt(self.price_range[0] * self.price_range[1]))
        scores = self.scores(images)
        hits = ops.take(ops.convert_to_tensor(self.val_hits), labels, axis=0)
        price = ops.full((ops.shape(images)[0], 1), middle)
        chosen = ops.one_hot(ops.argmax(scores - middle * self.costs, axis=-1), len(self.costs))
        return {
            "reward": self.reward(scores, hits, price),
            "accuracy": ops.sum(chosen * hits, axis=-1),
        }

    def predict_logits(self, images):
        """Scores [B, E]."""
        return self.scores(images)


def names(config: ConfigDict, epochs: list[int]) -> list[str]:
    """The routers that a config's kinds need, in the order in which they are made."""
    kinds = config.route.kinds
    found = [f"{_SEARCH}{epoch:04d}" for epoch in epochs] if "search" in kinds else []
    if "image" in kinds or "start" in kinds:
        found += [f"{_IMAGE}{kind}" for kind in config.route.image_controllers]
    return found + ([FEATURES] if "features" in kinds else [])


def is_learned(name: str) -> bool:
    """Whether a router is trained here, on the outcomes of the experts."""
    return not name.startswith(_SEARCH)


def build(name: str, content: dict[str, Any], feature_shape: tuple[int, int, int]) -> keras.Model:
    """A fresh router.

    Args:
        name: as `names` gives them.
        content: of the experts; see `variants.read_trained`.
        feature_shape: of the experts' shared features, [h, w, c].

    Raises:
        ValueError: an unknown name.
    """
    space = SearchSpace.from_json(content["space"])
    mean, std = content["mean"], content["std"]
    experts = np.stack([space.policy_from_names(item["policy"]) for item in content["experts"]])
    if name.startswith(_SEARCH):
        return SearchRouter(Controller(space, content["controller"], mean, std), experts)
    if name.startswith(_IMAGE):
        kind = name.removeprefix(_IMAGE)
        return ImageRouter(space.image_size, len(experts), kind, mean, std)
    if name == FEATURES:
        return FeatureRouter(feature_shape, len(experts))
    raise ValueError(f"`name` must be that of a router. Received: {name!r}")


def drop_others(settings: Mapping[str, Any], workdir: WorkDir) -> None:
    """Drops routers that were trained with other settings, and the variants that run them.

    Args:
        settings: `config.route`.
        workdir: of the run.
    """
    path = workdir.root / "checkpoints" / "routers.json"
    how = {
        key: list(settings[key]) if key == "price_range" else settings[key] for key in _TRAINED_BY
    }
    if path.exists() and files.read_json(path, "delete it and run the same command again") != how:
        workdir.experts.unlink(missing_ok=True)
        _drop_weights(workdir)
    files.write_json(path, how)


def drop_all(workdir: WorkDir) -> None:
    """Drops everything that was made for the experts that a run had before."""
    for path in (workdir.experts, workdir.results, workdir.picture):
        path.unlink(missing_ok=True)
    shutil.rmtree(workdir.parts, ignore_errors=True)
    _drop_weights(workdir)


def _drop_weights(workdir: WorkDir) -> None:
    for path in (workdir.root / "checkpoints").glob("router_*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


def load(name: str, content: dict[str, Any], workdir: WorkDir) -> keras.Model:
    """A trained router of a run.

    Raises:
        InputError: its weights are missing or damaged.
    """
    router = build(name, content, tuple(content["feature_shape"]))
    if name.startswith(_SEARCH):
        epoch = int(name.removeprefix(_SEARCH))
        callbacks.load_weights(router.controller, workdir.controller(epoch))
    else:
        callbacks.load_weights(router, workdir.weights(f"router_{name}"))
    return router


def train(
    name: str,
    content: dict[str, Any],
    front: keras.Model | None,
    hits: np.ndarray,
    val_hits: np.ndarray,
    costs: np.ndarray,
    config: ConfigDict,
    images: data.ImageData,
    workdir: WorkDir,
) -> None:
    """Trains a router unless that is done, and leaves its weights; resumes.

    Args:
        name: as `names` gives them.
        content: of the experts, with `feature_shape`.
        front: for a router that looks at features, what makes them; else None.
        hits: bool [n, E], of the `controller` split.
        val_hits: bool [m, E], of the validation split.
        costs: [E], as shares of the reference network's latency.
        config: of the run.
        images: the dataset.
        workdir: of the run; this process alone trains.
    """
    settings, stage = config.route, f"router_{name}"
    if workdir.weights(stage).exists():
        return
    keras.utils.set_random_seed(config.seed + 3)
    router = build(name, content, tuple(content["feature_shape"]))
    optimizer = keras.optimizers.Adam(settings.learning_rate)
    optimizer.build(router.trainable_variables)
    model = RouterTraining(
        router,
        front,
        hits,
        val_hits,
        costs,
        optimizer,
        settings.price_range,
        settings.temperature,
        config.seed,
    )
    alone = dataclasses.replace(workdir, cluster=ALONE)
    by_position = dataclasses.replace(
        images, train=_positions(images.controller), validation=_positions(images.validation)
    )
    fitting.fit(
        model,
        stage,
        epochs=settings.epochs,
        images=by_position,
        config=config,
        workdir=alone,
        schedule=[(optimizer.learning_rate, schedules.cosine(settings.learning_rate))],
        batch_size=min(config.train.batch_size, images.controller.count),
    )
    fitting.leave_weights(router, stage, alone)


def _positions(split: data.Split) -> data.Split:
    """The images of a split, labelled with their positions in it."""
    images, _ = data.to_arrays(split)
    count = np.arange(len(images))
    return data.Split(pools.array_pool(images, count), count)
