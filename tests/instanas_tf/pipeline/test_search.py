"""Which epochs of a search become variants, and what is set when."""

import types

import pytest

from instanas_tf.errors import InputError
from instanas_tf.pipeline import config as config_module
from instanas_tf.pipeline import search


def rows(*pairs, stage="search"):
    """Rows of a search: (accuracy, latency ratio) of epoch 1, 2 and so on."""
    return [
        {"stage": stage, "epoch": epoch, "val_accuracy": accuracy, "val_latency_ratio": ratio}
        for epoch, (accuracy, ratio) in enumerate(pairs, 1)
    ]


def picked(found):
    return [(pick.name, pick.target, pick.epoch) for pick in found]


def test_best_of_those_that_meet_the_target():
    found = search.pick_variants(rows((0.9, 1.0), (0.7, 0.5), (0.8, 0.6), (0.6, 0.3)), (0.6,))
    assert found == [search.Pick("A", 0.6, 3, 0.6, 0.8)]


def test_two_percent_over_counts_as_met():
    found = search.pick_variants(rows((0.9, 0.612), (0.8, 0.5)), (0.6,))
    assert picked(found) == [("A", 0.6, 1)]
    found = search.pick_variants(rows((0.9, 0.613), (0.8, 0.5)), (0.6,))
    assert picked(found) == [("A", 0.6, 2)]


def test_the_later_of_equals():
    found = search.pick_variants(rows((0.8, 0.5), (0.8, 0.6), (0.7, 0.1)), (0.6,))
    assert picked(found) == [("A", 0.6, 2)]


def test_the_cheapest_and_of_equals_the_later_if_none_meets_it():
    found = search.pick_variants(rows((0.9, 0.7), (0.5, 0.5), (0.4, 0.5), (0.9, 0.8)), (0.3,))
    assert picked(found) == [("A", 0.3, 3)]


def test_from_the_largest_target_to_the_smallest():
    found = search.pick_variants(rows((0.9, 0.8), (0.8, 0.5), (0.7, 0.3)), (0.3, 0.8, 0.5))
    assert picked(found) == [("A", 0.8, 1), ("B", 0.5, 2), ("C", 0.3, 3)]


def test_the_same_epoch_is_one_variant():
    found = search.pick_variants(rows((0.9, 0.3), (0.8, 0.2), (0.7, 0.1)), (0.6, 0.4, 0.2))
    assert picked(found) == [("A", 0.6, 1), ("B", 0.2, 2)]


def test_rows_of_other_stages_do_not_count():
    others = rows((1.0, 0.1), stage="pretrain")
    assert picked(search.pick_variants(others + rows((0.5, 0.5)), (0.6,))) == [("A", 0.6, 1)]
    with pytest.raises(InputError, match="run --stage=search first"):
        search.pick_variants(others, (0.6,))
    with pytest.raises(InputError, match="config.variants.targets is empty"):
        search.pick_variants(rows((0.5, 0.5)), ())


def variable():
    item = types.SimpleNamespace(value=None)
    item.assign = lambda value: setattr(item, "value", value)
    return item


def scheduled(recipe, progress, **changes):
    """What the schedules set at a progress, of a table with round numbers."""
    config = config_module.default_config()
    config.search.recipe, config.search.controller_learning_rate = recipe, 1e-3
    config.search.priced.target = ((0.0, 1.5), (0.5, 0.4))
    config.search.priced.alpha = ((0.0, 0.92), (1.0, 0.99))
    for name, value in changes.items():
        config.search[name] = value
    names = ("alpha", "target", "window_ms")
    model = types.SimpleNamespace(**{name: variable() for name in names})
    model.controller_optimizer = types.SimpleNamespace(learning_rate=variable())
    table = types.SimpleNamespace(l_max_ms=10.0, l_base_ms=4.0, l_min_ms=2.0)
    for changed, schedule in search.schedule(model, config, table):
        changed.assign(schedule(progress))
    found = {name: getattr(model, name).value for name in names}
    return {**found, "rate": model.controller_optimizer.learning_rate.value}


def test_schedule_of_the_priced_recipe():
    start, end = scheduled("priced", 0.0), scheduled("priced", 1.0)
    assert (start["alpha"], end["alpha"]) == pytest.approx((0.92, 0.99))
    assert (start["target"], end["target"]) == pytest.approx((1.5, 0.4))
    assert start["window_ms"] is None
    assert start["rate"] == end["rate"] == 1e-3


def test_schedule_of_the_published_recipe():
    start, end = scheduled("published", 0.0), scheduled("published", 1.0)
    assert start["alpha"] == end["alpha"] == pytest.approx(0.8)
    assert start["window_ms"] == pytest.approx((2.0, 7.0))
    assert end["window_ms"] == pytest.approx((1.0, 2.0))


def test_the_rate_changes_at_whole_epochs():
    changes = {"epochs": 6, "controller_decay_epochs": 2}
    rates = []
    for epoch in range(6):
        for step in range(7):
            rates.append(scheduled("published", (epoch * 7 + step) / 42, **changes)["rate"])
    assert rates == pytest.approx([1e-3] * 14 + [1e-4] * 14 + [1e-5] * 14)


@pytest.mark.parametrize("recipe", ["priced", "published"])
def test_settings_come_from_the_recipe(recipe):
    config = config_module.default_config()
    config.search.recipe = recipe
    config.train.label_smoothing = 0.25
    settings = search.search_settings(config)
    assert settings.recipe == recipe
    assert settings.label_smoothing == 0.25
    assert settings.alternate == ("step" if recipe == "priced" else "epoch")
    assert settings.shuffle_share == (0.3 if recipe == "priced" else 1.0)
