"""Controllers that score finished experts, trained on what the experts got."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from instanas_tf import spaces
from instanas_tf.models.controller import Controller
from instanas_tf.models.routers import FeatureRouter, ImageRouter
from instanas_tf.pipeline import config as config_module
from instanas_tf.pipeline import data, pools, routers
from instanas_tf.pipeline.workdir import WorkDir
from instanas_tf.search import expert_set, prices

SPACE = spaces.get("tiny", num_classes=3)
EXPERTS = np.stack([SPACE.single_op_policy(name) for name in SPACE.op_names])
CONTENT = {
    "space": SPACE.to_json(),
    "controller": "small",
    "mean": [120.0] * 3,
    "std": [60.0] * 3,
    "epochs": [2],
    "experts": [{"policy": SPACE.policy_names(policy)} for policy in EXPERTS],
}

# Eight images of one colour, dark and bright by turns. Expert 0 is right on the dark ones, the
# dearer expert 1 on all of them.
BRIGHT = np.arange(8) % 2
IMAGES = np.broadcast_to(BRIGHT[:, None, None, None], (8, 2, 2, 3)).astype(np.float32)
HITS = np.stack([1 - BRIGHT, np.ones(8)], axis=1)
COSTS = np.array([0.2, 0.6])
POSITIONS = np.arange(8)


def eye(experts=2):
    """A router of a few numbers; small ones, as far from 0 the choice is sure and has no slope."""
    keras.utils.set_random_seed(0)
    small = keras.initializers.RandomNormal(stddev=0.05)
    layers = [keras.Input((2, 2, 3)), keras.layers.GlobalAveragePooling2D()]
    return keras.Sequential([*layers, keras.layers.Dense(experts, kernel_initializer=small)])


def training(price_range=(0.1, 0.5), front=None, hits=HITS, val_hits=HITS, rate=0.1):
    router = eye()
    optimizer = keras.optimizers.Adam(rate)
    optimizer.build(router.trainable_variables)
    return routers.RouterTraining(
        router, front, hits, val_hits, COSTS, optimizer, price_range, 0.1, 0
    )


def loss_of(model, positions=POSITIONS):
    (objective,) = model.objectives()
    loss, values = objective.loss(IMAGES[positions], positions)
    return float(loss), values


@pytest.mark.parametrize("positions", [POSITIONS, np.array([5, 2, 2])])
def test_the_loss_is_the_expected_reward(positions):
    model = training((0.3, 0.3))
    scores = model.scores(IMAGES[positions])
    expected = prices.expected_reward(scores, HITS[positions], COSTS, 0.3, 0.1)
    loss, values = loss_of(model, positions)
    assert loss == pytest.approx(-expected, rel=1e-5)
    assert float(values["loss"]) == loss
    assert float(values["reward"]) == -loss


def test_each_image_has_a_price_of_its_own_within_the_range():
    model = training((0.1, 0.5))
    drawn = []
    model.reward = lambda scores, hits, price: drawn.append(price) or ops.sum(scores, axis=-1)
    loss_of(model)
    loss_of(model)
    found = np.concatenate(drawn)
    assert found.shape == (16, 1) and len(np.unique(found)) == 16
    assert found.min() >= 0.1 and found.max() <= 0.5


def test_the_same_seed_draws_the_same_prices():
    first, again = (training((0.1, 0.5)) for _ in range(2))
    assert [loss_of(first)[0] for _ in range(2)] == [loss_of(again)[0] for _ in range(2)]


def test_the_gradient_reaches_every_variable_and_no_front():
    front = keras.Sequential([keras.Input((2, 2, 3)), keras.layers.Dense(3)])
    model = training(front=front)
    (objective,) = model.objectives()
    assert {id(v) for v in objective.variables} == {id(v) for v in model.router.variables}
    with tf.GradientTape() as tape:
        loss, _ = objective.loss(IMAGES, POSITIONS)
    found = tape.gradient(loss, [*objective.variables, *front.trainable_variables])
    assert all(np.abs(np.asarray(gradient)).max() > 1e-6 for gradient in found[:2])
    assert found[2:] == [None, None]
    np.testing.assert_allclose(model.scores(IMAGES), model.router(front(IMAGES)), atol=1e-6)


def test_validation_is_at_the_middle_price():
    val_hits = HITS[::-1]  # Which are other images.
    model = training((0.2, 0.8), val_hits=val_hits)
    scores = np.asarray(model.scores(IMAGES), np.float64)
    found = {name: np.asarray(value) for name, value in model.validate(IMAGES, POSITIONS).items()}
    chosen = prices.decide(scores, COSTS, 0.4)
    assert found["accuracy"].tolist() == val_hits[POSITIONS, chosen].tolist()
    expected = prices.expected_reward(scores, val_hits, COSTS, 0.4, 0.1)
    assert found["reward"].shape == (8,)
    assert found["reward"].mean() == pytest.approx(expected, rel=1e-5)


def test_what_can_be_told_apart_is_learned():
    model = training()
    step = tf.function(model.step)
    for _ in range(100):
        step(tf.constant(IMAGES), tf.constant(POSITIONS))
    scores = np.asarray(model.scores(IMAGES), np.float64)
    for price in (0.15, 0.3, 0.45):  # One training serves all prices.
        assert prices.decide(scores, COSTS, price).tolist() == BRIGHT.tolist()
    # No controller gets more than the right expert for each image at a price of 0.3.
    best = 1.0 - 0.3 * COSTS.mean()
    assert prices.expected_reward(scores, HITS, COSTS, 0.3, 0.1) == pytest.approx(best, abs=0.05)


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        (("cascade",), []),
        (("search",), ["search_0002", "search_0005"]),
        (("image",), ["image_small", "image_half"]),
        (("start", "cascade"), ["image_small", "image_half"]),
        (("features", "image", "start"), ["image_small", "image_half", "features"]),
    ],
)
def test_names(kinds, expected):
    config = config_module.default_config()
    config.route.kinds = kinds
    config.route.image_controllers = ("small", "half")
    found = routers.names(config, [2, 5])
    assert found == expected
    assert [routers.is_learned(name) for name in found] == [
        not name.startswith("search") for name in expected
    ]


def test_routers_are_built_by_name():
    image = routers.build("image_half", CONTENT, (4, 4, 8))
    assert isinstance(image, ImageRouter)
    assert (image.kind, image.image_size, image.experts) == ("half", 8, 3)
    assert (image.mean, image.std) == ((120.0,) * 3, (60.0,) * 3)
    features = routers.build("features", CONTENT, (4, 4, 8))
    assert isinstance(features, FeatureRouter)
    assert (features.shape, features.experts) == ((4, 4, 8), 3)
    with pytest.raises(ValueError, match="Received: .*'majority'"):
        routers.build("majority", CONTENT, (4, 4, 8))


def test_the_searchs_controller_scores_experts():
    images = np.random.default_rng(1).uniform(0, 255, (5, 8, 8, 3)).astype(np.float32)
    controller = Controller(SPACE, "small", logit_stddev=0.5)
    router = routers.SearchRouter(controller, EXPERTS)
    expected = expert_set.scores(controller.logits(images), EXPERTS, SPACE)
    np.testing.assert_allclose(router(images), expected, atol=1e-5)
    assert expected.shape == (5, 3)


@pytest.fixture(scope="module")
def images():
    """60 images of 8 px; the controllers' part has 20."""
    pixels = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 3), dtype=np.uint8)
    pool = pools.array_pool(pixels, np.arange(60) % 3)
    train, validation, controller = (
        data.Split(pool, np.arange(start, start + 20)) for start in (0, 20, 40)
    )
    mean, std = (127.0,) * 3, (64.0,) * 3
    return data.ImageData(
        "some", tuple("abc"), 8, train, validation, controller, validation, mean, std
    )


def test_images_are_labelled_with_their_positions(images):
    pixels, labels = data.to_arrays(routers._positions(images.controller))
    assert labels.tolist() == list(range(20))
    np.testing.assert_array_equal(pixels, data.to_arrays(images.controller)[0])


def test_a_router_is_trained_once_and_read_back(images, tmp_path, monkeypatch):
    config = config_module.default_config()
    config.route.epochs, config.data.image_size = 1, 8
    workdir = WorkDir(tmp_path)
    content = CONTENT | {"feature_shape": [4, 4, 8]}
    hits = np.arange(60).reshape(20, 3) % 2
    costs = np.array([0.2, 0.4, 0.6])
    arguments = (content, None, hits, hits, costs, config, images, workdir)
    routers.train("image_small", *arguments)
    assert workdir.weights("router_image_small").exists()
    assert not workdir.resume("router_image_small").exists()
    monkeypatch.setattr(routers.fitting, "fit", None)  # It is not trained again.
    routers.train("image_small", *arguments)
    first, second = (routers.load("image_small", content, workdir) for _ in range(2))
    fresh = routers.build("image_small", content, (4, 4, 8))
    ours, theirs, other = (model.get_weights() for model in (first, second, fresh))
    assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(ours, other, strict=True))


def test_routers_of_other_settings_are_dropped(tmp_path):
    settings, workdir = config_module.default_config().route, WorkDir(tmp_path)
    routers.drop_others(settings, workdir)
    gone = [workdir.weights("router_image_small"), workdir.resume("router_features") / "1.npz"]
    kept = [workdir.weights("expert_00"), workdir.resume("alone_1") / "1.npz"]
    for path in (*gone, *kept, workdir.experts):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    settings.kinds = ("cascade",)  # Nothing that a training depends on.
    routers.drop_others(settings, workdir)
    assert all(path.exists() for path in (*gone, *kept, workdir.experts))
    settings.price_range = (0.1, 0.2)
    routers.drop_others(settings, workdir)
    assert all(path.exists() for path in kept)
    assert not any(path.exists() for path in (*gone, workdir.experts))
