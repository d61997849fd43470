"""The supernet under path dropout and anchors; the budget of networks that are trained alone."""

import keras
import numpy as np
import pytest

from instanas_tf import spaces
from instanas_tf.models.supernet import Supernet
from instanas_tf.models.training import cross_entropy
from instanas_tf.pipeline import config as config_module
from instanas_tf.pipeline import pretrain
from instanas_tf.search import expert_set

SPACE = spaces.get("tiny", num_classes=3)
IMAGES = np.random.default_rng(1).uniform(0, 255, (6, 8, 8, 3)).astype(np.float32)
LABELS = np.array([0, 1, 2, 0, 1, 2])


def dropout(anchors, keep=1.0):
    """Stage 1 on a tiny supernet, whose weights are the same each time."""
    keras.utils.set_random_seed(0)
    supernet = Supernet(SPACE)
    optimizer = keras.optimizers.SGD(0.1)
    optimizer.build(supernet.trainable_variables)
    fixed = expert_set.named_anchors(SPACE, anchors)
    model = pretrain.PathDropout(supernet, optimizer, fixed, (0.1, 0.5), 0.0, 0.0, 0)
    model.keep.assign(keep)
    return model


def loss_of(model):
    (objective,) = model.objectives()
    loss, values = objective.loss(IMAGES, LABELS)
    return float(loss), {name: float(value) for name, value in values.items()}


@pytest.mark.parametrize("anchors", [(), ("ir3_e6",), ("least", "most")])
def test_anchors_add_their_losses(anchors):
    model = dropout(anchors)
    all_on = np.ones((6, 3, 3), np.float32)
    own = float(cross_entropy(LABELS, model.supernet((IMAGES, all_on), training=True)))
    fixed = expert_set.named_anchors(SPACE, anchors)
    theirs = [
        float(cross_entropy(LABELS, model.supernet.together(IMAGES, one[None], training=True)[0]))
        for one in fixed
    ]
    loss, values = loss_of(model)
    assert loss == pytest.approx(own + sum(theirs), rel=1e-5)
    assert values["loss"] == pytest.approx(own, rel=1e-5)  # As without anchors, to compare.


def test_anchors_are_trained_where_no_random_policy_is():
    for anchors, moves in (((), False), (("most",), True)):
        model = dropout(anchors, keep=0.0)
        ir3_e6 = model.supernet.cells[0].candidates[SPACE.op_names.index("ir3_e6")]
        before = [variable.numpy() for variable in ir3_e6.trainable_variables]
        model.step(IMAGES, LABELS)
        moved = [
            not np.array_equal(old, new)
            for old, new in zip(before, ir3_e6.trainable_variables, strict=True)
        ]
        assert any(moved) == moves


@pytest.mark.parametrize(
    ("recipe", "epochs", "expected"), [("priced", 7, 3 + 7 + 5), ("published", 7, 3 + 3 + 5)]
)
def test_weight_epochs(recipe, epochs, expected):
    config = config_module.default_config()
    config.pretrain.epochs, config.search.epochs, config.finetune.epochs = 3, epochs, 5
    config.search.recipe = recipe
    assert pretrain.weight_epochs(config) == expected
