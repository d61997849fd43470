"""How every stage is trained."""

import keras
import numpy as np
import pytest

from instanas_tf.errors import InputError
from instanas_tf.models.training import Objective, TrainedModel, correct, cross_entropy, sgd
from instanas_tf.pipeline import config as config_module
from instanas_tf.pipeline import data, fitting
from instanas_tf.pipeline.callbacks import read_metrics
from instanas_tf.pipeline.workdir import WorkDir


class Linear(TrainedModel):
    """One matrix on raw pixels; it draws one random number a step."""

    def __init__(self):
        super().__init__(("loss", "train_accuracy", "drawn"))
        self.network = keras.Sequential(
            [
                keras.Input((8, 8, 3)),
                keras.layers.Rescaling(1 / 255),
                keras.layers.Flatten(),
                keras.layers.Dense(10, kernel_initializer="zeros"),
            ]
        )
        self.weight_optimizer = sgd(0.1, 1e-4, self.network.trainable_variables)
        self.seed_generator = keras.random.SeedGenerator(0)

    def objectives(self):
        variables = self.network.trainable_variables
        return (Objective(self._loss, variables, self.weight_optimizer, 5.0),)

    def _loss(self, images, labels):
        logits = self.network(images, training=True)
        loss = cross_entropy(labels, logits)
        drawn = keras.random.uniform((), seed=self.seed_generator)
        accuracy = keras.ops.mean(correct(labels, logits))
        return loss, {"loss": loss, "train_accuracy": accuracy, "drawn": drawn}

    def predict_logits(self, images):
        return self.network(images, training=False)


@pytest.fixture(scope="module")
def images():
    config = config_module.default_config()
    config.data.image_size = 8
    config.data.train_images = 160
    config.data.validation_images = config.data.test_images = 60
    return data.load(config.data, 0)


def fitted(images, root, stop_after=None, epochs=3):
    config, model = config_module.default_config(), Linear()

    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == stop_after:
                raise KeyboardInterrupt

    rate = (model.weight_optimizer.learning_rate, lambda progress: 0.1 * (1 - progress))
    fitting.fit(
        model,
        "stage",
        epochs=epochs,
        images=images,
        config=config,
        workdir=WorkDir(root),
        schedule=[rate],
        extra=[Stop()],
    )
    return model


def test_resumed_training_is_undisturbed_training(images, tmp_path):
    whole = fitted(images, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fitted(images, tmp_path / "parts", stop_after=2)
    assert [row["epoch"] for row in read_metrics(tmp_path / "parts" / "metrics.jsonl")] == [1, 2]
    parts = fitted(images, tmp_path / "parts")
    for ours, theirs in zip(whole.get_weights(), parts.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    metrics = [read_metrics(tmp_path / name / "metrics.jsonl") for name in ("whole", "parts")]
    assert metrics[0] == metrics[1]
    assert [row["epoch"] for row in metrics[0]] == [1, 2, 3]
    assert metrics[0][-1]["val_accuracy"] > 0.3  # Guessing is right for one image in ten.
    assert len({row["drawn"] for row in metrics[0]}) == 3


def test_a_finished_stage_is_restored_and_not_trained(images, tmp_path):
    first = fitted(images, tmp_path, epochs=1)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    again = fitted(images, tmp_path, epochs=1)
    np.testing.assert_array_equal(first.get_weights()[0], again.get_weights()[0])
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    assert list((tmp_path / "tensorboard" / "stage").rglob("events*"))
    fitting.finish("stage", WorkDir(tmp_path))
    assert not WorkDir(tmp_path).resume("stage").exists()


def test_a_batch_larger_than_the_split(images, tmp_path):
    config, model = config_module.default_config(), Linear()
    config.train.batch_size = 161
    with pytest.raises(InputError, match="config.train.batch_size"):
        fitting.fit(
            model,
            "stage",
            epochs=1,
            images=images,
            config=config,
            workdir=WorkDir(tmp_path),
            schedule=[],
        )
    assert list(tmp_path.iterdir()) == []


def test_labels_and_predictions_are_in_order(images):
    pixels, labels = data.to_arrays(images.test)
    np.testing.assert_array_equal(fitting.labels_of(images.test), labels)
    model = Linear()
    expected = model.network.predict(pixels.astype(np.float32), verbose=0)
    np.testing.assert_allclose(fitting.predict(model.network, images.test), expected, atol=1e-6)


@pytest.mark.parametrize("make", [fitting.make_supernet, fitting.make_controller])
def test_fresh_networks_depend_on_the_seed_alone(images, make):
    config = config_module.default_config()
    config.space.name = "tiny"
    first = make(config, images).get_weights()
    again = make(config, images).get_weights()
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    config.seed = 1
    other = make(config, images).get_weights()
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))
