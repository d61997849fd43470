"""The experts are trained together: who takes part in a step, by what loss, and what it moves."""

import types

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from instanas_tf import spaces
from instanas_tf.models.controller import Controller
from instanas_tf.models.supernet import Supernet
from instanas_tf.models.training import cross_entropy
from instanas_tf.pipeline import config as config_module
from instanas_tf.pipeline import data, finetune, pools

SPACE = spaces.get("tiny", num_classes=3)
IMAGES = np.random.default_rng(1).uniform(0, 255, (6, 8, 8, 3)).astype(np.float32)
LABELS = np.array([0, 1, 2, 0, 1, 2])
RATE = 0.1


def experts(*names):
    return np.stack([SPACE.single_op_policy(name) for name in names])


def plain_sgd(variables):
    optimizer = keras.optimizers.SGD(RATE)
    optimizer.build(list(variables))
    return optimizer


def sandwich(policies, **settings):
    """A sandwich whose supernet has the same weights each time."""
    keras.utils.set_random_seed(0)
    supernet = Supernet(SPACE)
    optimizer = plain_sgd(supernet.variables_of(policies))
    return finetune.Sandwich(supernet, policies, optimizer, 0.0, **settings)


def losses(model, labels=LABELS):
    """Loss of each expert by itself."""
    return [
        cross_entropy(labels, model.supernet.together(IMAGES, one[None], training=True)[0])
        for one in model.experts
    ]


@pytest.mark.parametrize(
    ("count", "between", "expected"),
    [
        (1, 1, [(0,)]),
        (2, 1, [(0, 1)]),
        (3, 1, [(0, 1, 2)]),
        (4, 1, [(0, 1, 3), (0, 2, 3)]),
        (4, 2, [(0, 1, 2, 3)]),
        (5, 2, [(0, 1, 2, 4), (0, 2, 3, 4), (0, 1, 3, 4)]),
        (4, 9, [(0, 1, 2, 3)]),
    ],
)
def test_groups(count, between, expected):
    assert finetune.groups(count, between) == expected


def test_the_groups_take_turns_within_and_across_epochs():
    model = sandwich(np.ones((5, 3, 3), np.float32), between=1)
    assert model.groups == [(0, 1, 4), (0, 2, 4), (0, 3, 4)]
    assert len(model.objectives()) == 3
    turns = [model.active(epoch, step) for epoch in range(3) for step in range(4)]
    assert [turn for (turn,) in turns] == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2]
    trained = [index for (turn,) in turns for index in model.groups[turn]]
    assert np.bincount(trained).tolist() == [12, 4, 4, 4, 12]


def test_a_step_adds_up_the_gradients_of_the_experts_in_its_group():
    policies = experts("basic", "ir3_e3", "ir3_e6")
    alone = sandwich(policies)
    variables = alone.supernet.variables_of(policies)
    expected = [variable.numpy() for variable in variables]
    for index in range(3):
        with tf.GradientTape() as tape:
            loss = losses(alone)[index]
        gradients = tape.gradient(loss, variables)
        expected = [
            old if gradient is None else old - RATE * np.asarray(gradient)
            for old, gradient in zip(expected, gradients, strict=True)
        ]
    model = sandwich(policies)
    values = model.step(IMAGES, LABELS, (0,))
    for variable, value in zip(model.supernet.variables_of(policies), expected, strict=True):
        np.testing.assert_allclose(variable, value, atol=2e-5, err_msg=variable.path)
    mean = np.mean([float(loss) for loss in losses(sandwich(policies))])
    assert float(values["loss"]) == pytest.approx(mean, rel=1e-5)


@pytest.mark.parametrize("count", [2, 4])
def test_a_step_moves_what_its_experts_use_and_nothing_else(count):
    four = experts("basic", "ir3_e3", "ir3_e6", "ir3_e3")
    four[3, 0] = four[2, 0]
    model = sandwich(four[:count], between=2)
    assert moved(model, (0,)) == names(model.supernet.variables_of(model.experts))


def test_experts_of_another_group_stay_as_they_are():
    # Only the third of them uses the op that is named last.
    model = sandwich(experts("basic", "ir3_e3", "ir3_e6", "basic"), between=1)
    assert model.groups == [(0, 1, 3), (0, 2, 3)]
    for turn, group in enumerate(model.groups):
        group_uses = names(model.supernet.variables_of(model.experts[list(group)]))
        assert moved(model, (turn,)) == group_uses


def names(variables):
    """Paths of those that a step must move: biases may have a gradient of 0."""
    return {variable.path for variable in variables if not variable.path.endswith("/beta")}


def moved(model, active):
    """Paths of the trainable variables that a step changes."""
    variables = model.supernet.trainable_variables
    before = [variable.numpy() for variable in variables]
    model.step(IMAGES, LABELS, active)
    return names(
        variable
        for variable, old in zip(variables, before, strict=True)
        if not np.array_equal(variable, old)
    )


def test_the_dearest_teaches_the_others():
    policies = experts("basic", "ir3_e3", "ir3_e6")
    plain, half, whole = (sandwich(policies, distillation=share) for share in (0.0, 0.5, 1.0))
    outputs = plain.supernet.together(IMAGES, policies, training=True)
    target = ops.softmax(outputs[-1])
    taught = [
        float(-ops.mean(ops.sum(target * ops.log_softmax(logits), axis=-1)))
        for logits in outputs[:-1]
    ]
    own = [float(loss) for loss in losses(plain)]
    for model, expected in (
        (plain, sum(own)),
        (half, sum(own[:2]) / 2 + sum(taught) / 2 + own[2]),
        (whole, sum(taught) + own[2]),
    ):
        (objective,) = model.objectives()
        loss, _ = objective.loss(IMAGES, LABELS)
        assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_what_is_taught_does_not_move_the_teacher():
    model = sandwich(experts("basic", "ir3_e6"), distillation=1.0)
    op = model.supernet.cells[0].candidates[SPACE.op_names.index("ir3_e6")]
    with tf.GradientTape(persistent=True) as tape:
        both, _ = model.objectives()[0].loss(IMAGES, LABELS)
        own = losses(model)[1]
    for ours, theirs in zip(
        *(tape.gradient(loss, op.trainable_variables) for loss in (both, own)), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_the_dearest_is_what_validation_sees():
    policies = experts("basic", "ir3_e6")
    model = sandwich(policies)
    policy = np.broadcast_to(policies[1], (6, 3, 3))
    expected = model.supernet((IMAGES, policy), training=False)
    np.testing.assert_allclose(model.predict_logits(IMAGES), expected, atol=1e-5)


class Sees(keras.Model):
    """Log-odds of the expert whose number is an image's first pixel, or of the one after it."""

    def __init__(self, policies, offset):
        super().__init__()
        self.signs, self.offset = 2.0 * policies - 1.0, offset
        self.scale = self.add_weight(shape=(), initializer="ones", name="scale")
        self.built = True

    def logits(self, images, training=None):
        assert training is False
        number = ops.cast(images[:, 0, 0, 0], "int32") + self.offset
        return self.scale * ops.take(self.signs, number % len(self.signs), axis=0)


@pytest.fixture
def assigned():
    """Two controllers: one names the expert that the first pixel says, the other the next."""
    policies = experts("basic", "ir3_e3", "ir3_e6")
    keras.utils.set_random_seed(0)
    supernet = Supernet(SPACE)
    controllers = [Sees(policies, 0), Sees(policies, 1)]
    optimizer = plain_sgd(supernet.trainable_variables)
    return finetune.Assigned(supernet, controllers, policies, optimizer, 0.0)


NUMBERED = np.concatenate([np.full((2, 8, 8, 3), number, np.float32) for number in range(3)])


def test_each_image_gets_its_expert(assigned):
    for controller, expected in zip(
        assigned.controllers, ([0, 0, 1, 1, 2, 2], [1, 1, 2, 2, 0, 0]), strict=True
    ):
        policy = assigned.policy(controller, NUMBERED)
        np.testing.assert_array_equal(policy, assigned.experts[expected])


def test_each_image_is_trained_in_its_expert(assigned):
    for turn, expected in enumerate(([0, 0, 1, 1, 2, 2], [1, 1, 2, 2, 0, 0])):
        policy = assigned.experts[expected]
        logits = assigned.supernet((NUMBERED, policy), training=True)
        loss, values = assigned.objectives()[turn].loss(NUMBERED, LABELS)
        assert float(loss) == pytest.approx(float(cross_entropy(LABELS, logits)), rel=1e-5)
        assert float(values["loss"]) == float(loss)
    first = assigned.supernet((NUMBERED, assigned.experts[[0, 0, 1, 1, 2, 2]]), training=False)
    np.testing.assert_allclose(assigned.predict_logits(NUMBERED), first, atol=1e-5)


def test_controllers_take_turns_and_stay_as_they_are(assigned):
    assert [assigned.active(0, step) for step in range(3)] == [(0,), (1,), (0,)]
    assert assigned.active(1, 0) == (1,)
    before = [variable.numpy() for variable in assigned.supernet.trainable_variables]
    assigned.step(NUMBERED, LABELS, (0,))
    assert [float(controller.scale) for controller in assigned.controllers] == [1.0, 1.0]
    moved = [
        not np.array_equal(old, new)
        for old, new in zip(before, assigned.supernet.trainable_variables, strict=True)
    ]
    assert any(moved)


@pytest.fixture(scope="module")
def some_images():
    """A data set of 60 training images, of which the first two differ in every pixel."""
    pixels = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 3), dtype=np.uint8)
    pool = pools.array_pool(pixels, np.arange(60) % 3)
    train, other = data.Split(pool, np.arange(40)), data.Split(pool, np.arange(40, 60))
    mean, std = (127.0,) * 3, (64.0,) * 3
    return data.ImageData("some", tuple("abc"), 8, train, other, other, other, mean, std)


@pytest.mark.parametrize(("wanted", "sizes"), [(16, [16]), (40, [40]), (99, [40])])
def test_recalibration_sees_whole_training_images(some_images, wanted, sizes):
    config = config_module.default_config()
    config.experts.recalibration_images = wanted
    config.data.augmentation.update({"pad": 3, "flip": True, "cutout": 4})
    batches = finetune.recalibration_batches(config, some_images)
    assert [len(batch) for batch in batches] == sizes
    known = {image.tobytes() for image in data.to_arrays(some_images.train)[0]}
    assert {image.astype(np.uint8).tobytes() for image in batches[0]} <= known


def test_the_rule_decides_who_trains(some_images, monkeypatch):
    config = config_module.default_config()
    config.space.name, config.data.image_size = "tiny", 8
    config.finetune.between, config.finetune.distillation = 1, 0.25
    config.train.label_smoothing, config.train.clip_norm = 0.1, 2.0
    policies = experts("basic", "ir3_e3", "ir3_e6", "basic")
    loaded = []
    monkeypatch.setattr(
        finetune.callbacks, "load_weights", lambda model, path: loaded.append((model, path))
    )
    workdir = types.SimpleNamespace(controller=lambda epoch: f"epoch {epoch}")

    def made():
        supernet = Supernet(SPACE)
        return finetune.make_training(config, some_images, supernet, policies, [3, 5], workdir)

    model = made()
    assert isinstance(model, finetune.Sandwich)
    assert (len(model.groups), model.distillation, loaded) == (2, 0.25, [])
    config.finetune.rule = "assigned"
    other = made()
    assert isinstance(other, finetune.Assigned)
    assert [(type(one), path) for one, path in loaded] == [
        (Controller, "epoch 3"),
        (Controller, "epoch 5"),
    ]
    assert other.controllers == [one for one, _ in loaded]
    for one in (model, other):
        assert (one.smoothing, one.clip_norm) == (0.1, 2.0)
