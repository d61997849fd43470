"""InstaNAS: train a controller and a supernet together, so that each image gets its ops.

Source: InstaNAS, arXiv 1811.10201, section 3. Two recipes:

* `published`: REINFORCE on an accuracy-gated reward within a window of latencies.
* `priced`: REINFORCE on accuracy alone; latency has a price λ, whose exact gradient is
  known because the expected table latency is a polynomial of the probabilities. λ is
  steered so that the mean greedy latency meets a target.
"""

from __future__ import annotations

import dataclasses

import keras
from keras import ops

from instanas_tf.latency import LatencyTable
from instanas_tf.models import replicas
from instanas_tf.models.controller import Controller
from instanas_tf.models.supernet import Supernet
from instanas_tf.models.training import Objective, TrainedModel, correct, cross_entropy
from instanas_tf.search import policies, rewards

CONTROLLER_METRICS = (
    "loss",
    "reward",
    "sampled_accuracy",
    "greedy_accuracy",
    "latency_ratio",
    "price",
    "entropy",
)
SUPERNET_METRICS = ("supernet_loss", "supernet_accuracy")


@dataclasses.dataclass(frozen=True)
class SearchSettings:
    """The knobs of the search; names as in `pipeline/config.py`."""

    recipe: str = "priced"
    alternate: str = "step"
    shuffle_share: float = 0.3
    reward_correct: float = 30.0
    reward_wrong: float = 0.0
    gamma: float = 1.0
    entropy: str = "full"
    entropy_weight: float = 0.0
    diversity_weight: float = 0.0
    diversity_ratio: float = 1.2
    price_rate: float = 0.5
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        for name, allowed in (
            ("recipe", ("priced", "published")),
            ("alternate", ("step", "epoch")),
            ("entropy", ("full", "half")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"`{name}` must be one of {allowed}. Received: {getattr(self, name)!r}"
                )


class InstaNAS(TrainedModel):
    """The search as a Keras model: `fit` on (images, labels) trains both networks.

    Schedules set `alpha`, `target` and `window_ms`; see `pipeline/search.py`. All state that
    a resumed run needs is in its `state`.

    Args:
        supernet: pretrained by path dropout.
        controller: its probabilities choose the ops.
        table: latencies that policies are charged with.
        settings: the knobs.
        controller_optimizer: built on the controller's variables.
        supernet_optimizer: built on the supernet's variables.
        clip_norm: largest global norm of the supernet's gradient; 0 does not clip.
        seed: of all sampling.
    """

    def __init__(
        self,
        supernet: Supernet,
        controller: Controller,
        table: LatencyTable,
        settings: SearchSettings,
        controller_optimizer: keras.optimizers.Optimizer,
        supernet_optimizer: keras.optimizers.Optimizer,
        clip_norm: float,
        seed: int,
        **kwargs,
    ):
        super().__init__(CONTROLLER_METRICS + SUPERNET_METRICS, **kwargs)
        self.supernet = supernet
        self.controller = controller
        self.table = table
        self.settings = settings
        self.controller_optimizer = controller_optimizer
        self.supernet_optimizer = supernet_optimizer
        self.clip_norm = clip_norm
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.alpha = self._scalar("alpha", 0.8)
        self.target = self._scalar("target", 1.0)
        self.price = self._scalar("price", 0.0)
        self.window_ms = self.add_weight(
            shape=(2,), initializer="zeros", trainable=False, name="window_ms"
        )
        first = rewards.window(table.l_max_ms, table.l_base_ms, table.l_min_ms, progress=0.0)
        self.window_ms.assign(first)

    def _scalar(self, name: str, value: float):
        return self.add_weight(
            shape=(),
            initializer=keras.initializers.Constant(value),
            trainable=False,
            name=name,
        )

    def objectives(self) -> tuple[Objective, Objective]:
        """First the controller, then the supernet."""
        return (
            Objective(
                self.controller_loss,
                self.controller.trainable_variables,
                self.controller_optimizer,
            ),
            Objective(
                self.supernet_loss,
                self.supernet.trainable_variables,
                self.supernet_optimizer,
                self.clip_norm,
            ),
        )

    def active(self, epoch: int, step: int) -> tuple[int, ...]:
        """Both networks in each epoch, or one by turns, the controller first."""
        del step
        return (0, 1) if self.settings.alternate == "step" else (epoch % 2,)

    def controller_loss(self, images, labels):
        """Loss of the controller and its metrics; the supernet is in inference mode."""
        probabilities = self.controller(images, training=True)
        explored = policies.mix(probabilities, self.alpha)
        sampled = policies.sample(explored, self.seed_generator)
        greedy = policies.greedy(probabilities)
        sampled_correct, greedy_correct = self._outcomes(images, labels, sampled, greedy)
        greedy_ms = self.table.latency_ms(greedy, ops.sum)
        ratio = replicas.mean(ops.mean(greedy_ms)) / self.table.reference_ms
        sampled_reward, greedy_reward = (
            self._reward(hits, policy)
            for hits, policy in ((sampled_correct, sampled), (greedy_correct, greedy))
        )
        loss = rewards.policy_gradient_loss(
            policies.log_probability(sampled, explored),
            rewards.advantage(sampled_reward, greedy_reward),
        )
        loss = loss + self._regularizer(probabilities, explored)
        if self.settings.recipe == "priced":
            expected_ms = ops.mean(self.table.latency_ms(probabilities, ops.sum))
            loss = loss + ops.stop_gradient(self.price) * expected_ms / self.table.reference_ms
            price = rewards.next_price(self.price, ratio, self.target, self.settings.price_rate)
            self.price.assign(price)
        values = {
            "loss": loss,
            "reward": ops.mean(sampled_reward),
            "sampled_accuracy": ops.mean(sampled_correct),
            "greedy_accuracy": ops.mean(greedy_correct),
            "latency_ratio": ratio,
            "price": self.price.value,
            "entropy": ops.mean(policies.entropy(probabilities)),
        }
        return loss, values

    def _outcomes(self, images, labels, sampled, greedy):
        """Whether each policy answers right, both in one pass: two float 0/1 [B]."""
        outcomes = self.supernet.both(images, sampled, greedy)
        return tuple(correct(labels, ops.stop_gradient(logits)) for logits in outcomes)

    def _reward(self, hits, policy):
        """Reward of each image under a policy, [B]."""
        settings = self.settings
        if settings.recipe == "priced":
            return settings.reward_correct * hits + settings.reward_wrong * (1.0 - hits)
        value = rewards.latency_reward(
            self.table.latency_ms(policy, ops.sum), self.window_ms[0], self.window_ms[1]
        )
        return rewards.gated_reward(
            hits,
            value,
            positive=settings.reward_correct,
            negative=settings.reward_wrong,
            gamma=settings.gamma,
        )

    def _regularizer(self, probabilities, explored):
        """Entropy and diversity, as terms of the loss."""
        settings = self.settings
        loss = 0.0
        if settings.entropy_weight:
            entropy = policies.entropy(explored, half=settings.entropy == "half")
            loss = loss - settings.entropy_weight * ops.mean(entropy)
        if settings.diversity_weight:
            bonus = policies.diversity(probabilities, settings.diversity_ratio)
            loss = loss - settings.diversity_weight * bonus
        return loss

    def supernet_loss(self, images, labels):
        """Cross-entropy under sampled policies, in some batches those of other images."""
        explored = policies.mix(self.controller(images, training=False), self.alpha)
        sampled = policies.sample(explored, self.seed_generator)
        shuffled = policies.shuffle(sampled, self.seed_generator)
        draw = keras.random.uniform((), seed=self.seed_generator)
        sampled = ops.where(draw < self.settings.shuffle_share, shuffled, sampled)
        logits = self.supernet((images, sampled), training=True)
        loss = cross_entropy(labels, logits, self.settings.label_smoothing)
        accuracy = ops.mean(correct(labels, logits))
        return loss, {"supernet_loss": loss, "supernet_accuracy": accuracy}

    def predict_logits(self, images):
        """Logits [B, N] under the greedy policy of each image."""
        policy = policies.greedy(self.controller(images, training=False))
        return self.supernet((images, policy), training=False)

    def validate(self, images, labels):
        """Accuracy and table latency (as a share) of the greedy policy of each image."""
        policy = policies.greedy(self.controller(images, training=False))
        logits = self.supernet((images, policy), training=False)
        ratio = self.table.latency_ms(policy, ops.sum) / self.table.reference_ms
        return {"accuracy": correct(labels, logits), "latency_ratio": ratio}
