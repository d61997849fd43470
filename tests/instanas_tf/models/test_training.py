"""The training step: hand-computed updates of two numbers, and Keras's `fit` around them."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from instanas_tf.models.training import (
    Objective,
    TrainedModel,
    clip_by_global_norm,
    correct,
    cross_entropy,
    sgd,
)


class Line(TrainedModel):
    """y = w x, then y = w b x: two numbers, one objective each."""

    def __init__(self, noise=0.0, clip_norm=0.0):
        super().__init__(["line_loss", "bend_loss"])
        self.w = self.add_weight(shape=(), initializer="ones", name="w")
        self.b = self.add_weight(shape=(), initializer="ones", name="b")
        self.noise, self.clip_norm = noise, clip_norm
        self.generator = keras.random.SeedGenerator(3)
        self.optimizers = [keras.optimizers.SGD(0.1), keras.optimizers.SGD(0.01)]
        for optimizer, variable in zip(self.optimizers, (self.w, self.b), strict=True):
            optimizer.build([variable])

    def line_loss(self, images, labels):
        x = images[:, 0, 0, 0] + self.noise * keras.random.normal((2,), seed=self.generator)
        loss = ops.mean((self.w * x - ops.cast(labels, "float32")) ** 2)
        return loss, {"line_loss": loss}

    def bend_loss(self, images, labels):
        loss = self.w * self.b
        return loss, {"bend_loss": loss}

    def objectives(self):
        first, second = self.optimizers
        return (
            Objective(self.line_loss, [self.w], first, self.clip_norm),
            Objective(self.bend_loss, [self.b], second),
        )

    def predict_logits(self, images):
        return ops.stack([self.w * images[:, 0, 0, 0], 2.5 * self.b + 0 * images[:, 0, 0, 0]], 1)


IMAGES = tf.reshape(tf.constant([1.0, 2.0]), (2, 1, 1, 1))
LABELS = tf.constant([3, 4])


def values(model):
    return [model.w.numpy(), model.b.numpy()]


@pytest.mark.parametrize("compiled", [False, True])
def test_a_step_takes_the_objectives_in_order(compiled):
    model = Line()
    step = tf.function(model.step) if compiled else model.step
    logs = step(IMAGES, LABELS)
    # Errors 1 - 3 and 2 - 4; gradient of w: mean of 2 * -2 * 1 and 2 * -2 * 2 = -6.
    # Then w is 1 + 0.1 * 6 = 1.6, the gradient of b, and b is 1 - 0.01 * 1.6.
    np.testing.assert_allclose(values(model), [1.6, 0.984], rtol=1e-6)
    assert {name: float(value) for name, value in logs.items()} == pytest.approx(
        {"line_loss": 4.0, "bend_loss": 1.6}
    )


@pytest.mark.parametrize("compiled", [False, True])
def test_an_inactive_objective_changes_nothing(compiled):
    model = Line()
    step = tf.function(model.step) if compiled else model.step
    assert list(step(IMAGES, LABELS, (0,))) == ["line_loss"]
    np.testing.assert_allclose(values(model), [1.6, 1.0], rtol=1e-6)
    assert model.optimizers[1].iterations.numpy() == 0
    assert list(step(IMAGES, LABELS, (0, 1))) == ["line_loss", "bend_loss"]
    # Errors -1.4 and -0.8, gradient -1.4 * 1 - 0.8 * 2 = -3.0; w = 1.9, b = 1 - 0.019.
    np.testing.assert_allclose(values(model), [1.9, 0.981], rtol=1e-6)
    assert model.optimizers[1].iterations.numpy() == 1


def test_all_objectives_are_active_unless_a_model_says_otherwise():
    assert [Line().active(epoch, 0) for epoch in (0, 1)] == [(0, 1), (0, 1)]


def test_the_norm_of_a_gradient_is_cut_to_what_its_objective_says():
    model = Line(clip_norm=2.0)
    model.step(IMAGES, LABELS)
    # The gradient of w is -2 instead of -6; that of b, 1.2, belongs to another objective.
    np.testing.assert_allclose(values(model), [1.2, 1 - 0.012], rtol=1e-6)


@pytest.mark.parametrize(
    ("largest", "expected"), [(0.5, [[0.3], [0.4]]), (5.0, [[3], [4]]), (9.0, [[3], [4]])]
)
def test_clip_by_global_norm(largest, expected):
    found = clip_by_global_norm([tf.constant([3.0]), tf.constant([4.0])], largest)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_the_state_is_all_that_a_resumed_training_needs():
    model = Line()
    model.step(IMAGES, LABELS)
    state = model.state
    assert len({id(variable) for variable in state}) == len(state)
    wanted = [model.w, model.b, model.generator.state]
    for optimizer in model.optimizers:
        wanted += [optimizer.iterations, optimizer.learning_rate]
    assert {id(variable) for variable in wanted} == {id(variable) for variable in state}


def test_fit_averages_over_an_epoch_and_starts_anew():
    model = Line()
    model.compile()
    data = tf.data.Dataset.from_tensors((IMAGES, LABELS)).repeat(2)
    history = model.fit(data, epochs=2, shuffle=False, verbose=0).history
    # The losses of the four steps: errors -2, -2; -1.4, -0.8; then w = 1.9, -1.1, -0.2; the
    # gradient is -1.5 and w = 2.05: -0.95, 0.1.
    expected = [(4.0 + (1.96 + 0.64) / 2) / 2, ((1.21 + 0.04) / 2 + (0.9025 + 0.01) / 2) / 2]
    assert history["line_loss"] == pytest.approx(expected, rel=1e-5)


def test_validate_and_predict_use_the_logits():
    model = Line()
    model.compile()
    images = tf.reshape(tf.constant([1.0, 2.0, 3.0, 4.0]), (4, 1, 1, 1))
    # 1, 2, 3, 4 against 2.5: classes 1, 1, 0, 0.
    found = model.validate(images, tf.constant([1, 0, 0, 0]))
    assert {name: value.numpy().tolist() for name, value in found.items()} == {
        "accuracy": [1.0, 0.0, 1.0, 1.0]
    }
    found = model.predict(images, verbose=0)
    np.testing.assert_allclose(found, [[1, 2.5], [2, 2.5], [3, 2.5], [4, 2.5]])


def test_the_same_seed_gives_the_same_weights():
    found = []
    for noise in (1.0, 1.0, 0.0):
        model = Line(noise=noise)
        for _ in range(2):
            model.step(IMAGES, LABELS)
        found.append(values(model))
    assert found[0] == found[1]
    assert found[0] != found[2]


@pytest.mark.parametrize(
    ("labels", "logits", "smoothing", "expected"),
    [
        ([0], [[0.0, 0.0, 0.0, 0.0]], 0.0, 1.386294),  # ln 4.
        ([0], [[1.098612, 0.0]], 0.0, 0.287682),  # Probabilities 3/4 and 1/4: -ln 0.75.
        ([1], [[1.098612, 0.0]], 0.0, 1.386294),  # -ln 0.25.
        ([0], [[1.098612, 0.0]], 0.2, 0.397543),  # 0.9 * 0.287682 + 0.1 * 1.386294.
        ([0, 1], [[1.098612, 0.0]] * 2, 0.0, 0.836988),
    ],
)
def test_cross_entropy(labels, logits, smoothing, expected):
    found = cross_entropy(tf.constant(labels), tf.constant(logits), smoothing)
    assert float(found) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("dtype", ["int32", "int64", "uint8"])
def test_correct(dtype):
    logits = tf.constant([[1.0, 2.0, 0.0], [1.0, 2.0, 0.0], [0.0, -1.0, -2.0]])
    found = correct(tf.constant([1, 2, 0], dtype), logits)
    assert found.dtype == tf.float32
    np.testing.assert_array_equal(found, [1, 0, 1])


@pytest.mark.parametrize(
    ("weight_decay", "expected"),
    [
        # The first step with Nesterov momentum goes 0.1 * (1 + 0.9) = 0.19 gradients far.
        (0.0, [1 - 0.19 * 3, 1 - 0.19 * 4]),
        # Decay takes 0.1 * 0.01 of the weight first.
        (0.01, [0.999 - 0.19 * 3, 0.999 - 0.19 * 4]),
    ],
)
def test_sgd(weight_decay, expected):
    variables = [keras.Variable(1.0), keras.Variable(1.0)]
    optimizer = sgd(0.1, weight_decay, variables)
    assert optimizer.built
    optimizer.apply([tf.constant(3.0), tf.constant(4.0)], variables)
    np.testing.assert_allclose([v.numpy() for v in variables], expected, rtol=1e-5)


class Turns(Line):
    """Two objectives of both numbers with one optimizer; the first does not use `b`."""

    def objectives(self):
        optimizer = self.optimizers[0]
        return tuple(
            Objective(loss, [self.w, self.b], optimizer)
            for loss in (self.line_loss, self.bend_loss)
        )


@pytest.mark.parametrize("compiled", [False, True])
def test_what_a_step_does_not_use_stays_as_it_is(compiled):
    model = Turns()
    model.optimizers[0] = keras.optimizers.SGD(0.1)
    model.optimizers[0].build([model.w, model.b])
    step = tf.function(model.step) if compiled else model.step
    step(IMAGES, LABELS, (0,))
    np.testing.assert_allclose(values(model), [1.6, 1.0], rtol=1e-6)


def test_the_state_holds_a_shared_optimizer_once():
    model = Turns()
    names = [id(variable) for variable in model.state]
    assert len(names) == len(set(names))
