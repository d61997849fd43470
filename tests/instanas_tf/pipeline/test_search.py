"""Which epochs of a search are picked, what may be asked of it, and what is set when."""

import types

import pytest

from instanas_tf.errors import InputError
from instanas_tf.pipeline import config as config_module
from instanas_tf.pipeline import search
from instanas_tf.search import expert_set


def rows(*pairs, stage="search"):
    """Rows of a search: (accuracy, latency ratio) of epoch 1, 2 and so on."""
    return [
        {"stage": stage, "epoch": epoch, "val_accuracy": accuracy, "val_latency_ratio": ratio}
        for epoch, (accuracy, ratio) in enumerate(pairs, 1)
    ]


@pytest.mark.parametrize(
    ("found", "targets", "expected"),
    [
        # The best of those that meet the target.
        (((0.9, 1.0), (0.7, 0.5), (0.8, 0.6), (0.6, 0.3)), (0.6,), [3]),
        # 2 % over counts as met, and no more.
        (((0.9, 0.612), (0.8, 0.5)), (0.6,), [1]),
        (((0.9, 0.613), (0.8, 0.5)), (0.6,), [2]),
        # The later of equals.
        (((0.8, 0.5), (0.8, 0.6), (0.7, 0.1)), (0.6,), [2]),
        # The cheapest if none meets it, and the later of equals.
        (((0.9, 0.7), (0.5, 0.5), (0.4, 0.5), (0.9, 0.8)), (0.3,), [3]),
        # One for each target, ascending, and each once.
        (((0.7, 0.3), (0.8, 0.5), (0.9, 0.8)), (0.3, 0.8, 0.5), [1, 2, 3]),
        (((0.9, 0.3), (0.8, 0.2), (0.7, 0.1)), (0.6, 0.4, 0.2), [1, 2]),
    ],
)
def test_pick_epochs(found, targets, expected):
    assert search.pick_epochs(rows(*found), targets) == expected


def test_rows_of_other_stages_do_not_count():
    others = rows((1.0, 0.1), stage="pretrain") + [{"stage": "search", "epoch": 2}]
    assert search.pick_epochs(others + rows((0.5, 0.5)), (0.6,)) == [1]
    with pytest.raises(InputError, match="run --stage=search first"):
        search.pick_epochs(others, (0.6,))
    with pytest.raises(InputError, match="config.variants.targets is empty"):
        search.pick_epochs(rows((0.5, 0.5)), ())


@pytest.mark.parametrize("by", ["shares", "ms"])
def test_targets_that_nothing_can_meet_are_refused_before_the_search(tiny_table, by):
    # Its cheapest anchor takes 0.5 + 8 + 0.25 ms, its reference 0.5 + 1 + 8 + 64 + 0.25.
    cheapest, reference = least_and_reference(tiny_table)
    config = config_module.default_config()

    def ask(share):
        if by == "ms":
            config.target_ms, config.variants.targets = share * reference, (1e-3,)
        else:
            config.variants.targets = (0.9, share)
        search.check_targets(config, tiny_table)

    ask(0.86 * cheapest / reference)  # The table may over-predict by 15 %.
    with pytest.raises(
        InputError, match=r"cannot be met: .* take [\d.]+ to [\d.]+; set config"
    ) as e:
        ask(0.84 * cheapest / reference)
    assert f"{0.84 * cheapest / reference:.2f} of the reference network" in str(e.value)
    assert f"{0.84 * cheapest:.3f} ms" in str(e.value)


def least_and_reference(table):
    anchors = dict(expert_set.anchors(table.space))
    least = float(table.static_ms(anchors["least"]))
    assert least == min(float(table.static_ms(policy)) for policy in anchors.values())
    return least, table.reference_ms


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
