"""What the tests of models share: supernets whose every weight matters, and test images."""

import keras
import numpy as np
import pytest

from instanas_tf import spaces
from instanas_tf.models.supernet import Supernet


def _scramble(model, seed=0):
    """Gives every weight a random value, normalisation included; keeps it well-conditioned."""
    generator = np.random.default_rng(seed)
    for weight in model.weights:
        value = generator.normal(0.0, 0.3, weight.shape)
        if "gamma" in weight.path or "variance" in weight.path:
            value = generator.uniform(0.5, 1.5, weight.shape)
        weight.assign(value)
    return model


@pytest.fixture(scope="session")
def scramble():
    return _scramble


@pytest.fixture(scope="session")
def images():
    """Six images of 8 px that differ."""
    return np.random.default_rng(1).uniform(0, 255, (6, 8, 8, 3)).astype(np.float32)


@pytest.fixture(scope="session")
def policies():
    """A policy for each image; none has op 2 of cell 2, and cell 1 is empty for two images."""
    bits = np.random.default_rng(2).integers(0, 2, (6, 3, 3)).astype(np.float32)
    bits[0], bits[1], bits[2, 1] = 1.0, 0.0, 0.0
    bits[:, 2, 2] = 0.0
    return bits


@pytest.fixture(scope="session", params=["sum", "shortcut"])
def merge(request):
    return request.param


@pytest.fixture(scope="session")
def make_supernet(merge):
    """Supernets of the tiny space with the same scrambled weights, routed or masked."""

    def make(routed=True):
        space = spaces.get("tiny", num_classes=3, merge=merge)
        return _scramble(Supernet(space, (120.0, 130.0, 140.0), (60.0, 70.0, 80.0), routed))

    return make


@pytest.fixture(scope="session")
def supernet(make_supernet):
    """A routed supernet that no test may change."""
    return make_supernet()


def _check_layer(layer, input_shape, output_shape, params, folder):
    """What must hold for every layer of the project.

    Args:
        layer: not built yet.
        input_shape: of one batch.
        output_shape: of what comes out.
        params: how many weights it must have, those that are not trained included.
        folder: for files.
    """
    inputs = np.random.default_rng(3).normal(0, 1, input_shape).astype(np.float32)
    model = keras.Sequential([keras.Input(input_shape[1:]), layer])
    assert layer.count_params() == params
    _scramble(model)
    expected = model(inputs).numpy()
    assert expected.shape == output_shape
    assert model.output_shape == (None, *output_shape[1:])
    assert tuple(layer.compute_output_shape(input_shape)) == output_shape

    clone = type(layer).from_config(layer.get_config())
    assert clone.get_config() == layer.get_config()
    clone.build(input_shape)
    clone.set_weights(layer.get_weights())
    np.testing.assert_allclose(clone(inputs), expected, atol=1e-5)

    model.save(folder / "model.keras")
    loaded = keras.models.load_model(folder / "model.keras")
    assert type(loaded.layers[0]) is type(layer)
    np.testing.assert_allclose(loaded(inputs), expected, atol=1e-5)

    statistics = [w.numpy() for w in layer.non_trainable_weights]
    layer(inputs, training=True)
    moved = [
        not np.array_equal(a, b)
        for a, b in zip(statistics, layer.non_trainable_weights, strict=True)
    ]
    assert all(moved)


@pytest.fixture(scope="session")
def check_layer():
    return _check_layer


def _check_saving(model, fresh, inputs, folder):
    """What must hold for every model: its config and its weights survive a file.

    Args:
        model: with weights that matter.
        fresh: makes a model alike, with other weights.
        inputs: to call both with.
        folder: for files.
    """
    expected = model(inputs).numpy()
    clone = type(model).from_config(model.get_config())
    assert clone.get_config() == model.get_config()
    assert [w.shape for w in clone.weights] == [w.shape for w in model.weights]

    model.save_weights(folder / "model.weights.h5")
    other = fresh()
    assert not np.allclose(other(inputs), expected, atol=1e-3)
    other.load_weights(folder / "model.weights.h5")
    np.testing.assert_allclose(other(inputs), expected, atol=1e-5)

    model.save(folder / "model.keras")
    loaded = keras.models.load_model(folder / "model.keras")
    assert loaded.get_config() == model.get_config()
    np.testing.assert_allclose(loaded(inputs), expected, atol=1e-5)


@pytest.fixture(scope="session")
def check_saving():
    return _check_saving
