"""The budget of networks that are trained alone."""

import pytest

from instanas_tf.pipeline import config as config_module
from instanas_tf.pipeline import pretrain


@pytest.mark.parametrize(
    ("recipe", "epochs", "expected"), [("priced", 7, 3 + 7 + 5), ("published", 7, 3 + 3 + 5)]
)
def test_weight_epochs(recipe, epochs, expected):
    config = config_module.default_config()
    config.pretrain.epochs, config.search.epochs, config.finetune.epochs = 3, epochs, 5
    config.search.recipe = recipe
    assert pretrain.weight_epochs(config) == expected
