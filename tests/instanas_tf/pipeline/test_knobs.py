"""The table of knobs, and how a trial's values become a config."""

import shlex

import pytest

from instanas_tf import train
from instanas_tf.errors import InputError
from instanas_tf.pipeline import checks, config_files, knobs
from instanas_tf.pipeline import config as config_module
from instanas_tf.pipeline.knobs import KNOBS, Knob


@pytest.fixture(params=config_module.RECIPES)
def config(request):
    made = config_module.default_config()
    made.search.recipe = request.param
    return made


def names(found):
    return [knob.name for knob in found]


def test_the_usual_knobs():
    rates = ["pretrain", "controller", "supernet", "finetune"]
    rates = [f"{name}_learning_rate" for name in rates]
    assert names(knobs.select("", "priced")) == [*rates, "price_rate"]
    assert names(knobs.select("", "published")) == [*rates, "beta", "gamma"]


def test_knobs_by_name_come_in_the_order_of_the_table():
    assert names(knobs.select("width, beta,alpha_end,width", "priced")) == [
        "alpha_end",
        "beta",
        "width",
    ]
    assert knobs.select("beta", "priced")[0].setting == "search.priced.entropy_weight"
    assert knobs.select("beta", "published")[0].setting == "search.published.entropy_weight"


def test_all_knobs():
    both = set(names(knobs.select("all", "priced"))) | set(names(knobs.select("all", "published")))
    assert both == set(names(KNOBS))
    assert "gamma" not in names(knobs.select("all", "priced"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("controler_learning_rate", "did you mean controller_learning_rate?"),
        ("experts,widht", "--knobs=widht is no knob; did you mean width?"),
        ("qqqq", "choose among pretrain_learning_rate, "),
        ("gamma", "a knob of the published recipe; .*--config.search.recipe=published"),
        (",", "--knobs= is no knob"),
    ],
)
def test_unknown_knobs(given, message):
    with pytest.raises(InputError, match=message):
        knobs.select(given, "priced")


def test_every_knob_sets_what_the_config_has_and_the_checks_allow(config):
    found = knobs.select("all", config.search.recipe)
    known = config_files.flatten(config)
    for end in (0, -1):
        changed = knobs.turned(config, found, {knob.name: knob.values[end] for knob in found})
        checks.check(changed)
        for knob in found:
            value = config_files.flatten(changed)[knobs.setting(knob, config)]
            if knob.knot is not None:
                value = value[knob.knot][1]
            assert value == knob.values[end]
    assert config_files.flatten(config) == known


def test_the_arguments_of_a_config_give_it_back(config):
    found = knobs.select("all", config.search.recipe)
    middle = {knob.name: sum(knob.values) / len(knob.values) for knob in found}
    changed = knobs.turned(config, found, middle)
    given = shlex.split(" ".join(knobs.arguments(changed, found)))
    assert len(given) == len(found) - 1  # Both ends of alpha are one setting.
    again = train.override(config, given)
    assert config_files.flatten(again) == config_files.flatten(changed)


def test_both_ends_of_alpha():
    config = config_module.default_config()
    ends = knobs.select("alpha_start,alpha_end", "priced")
    changed = knobs.turned(config, ends, {"alpha_start": 0.75, "alpha_end": 0.9})
    assert changed.search.priced.alpha == ((0.0, 0.75), (1.0, 0.9))
    config.search.priced.alpha = ((0.5, 0.8),)
    changed = knobs.turned(config, ends[1:], {"alpha_end": 0.9})
    assert changed.search.priced.alpha == ((0.0, 0.8), (1.0, 0.9))


def test_the_nearest_value():
    rate = Knob("a", "b", "log", (0.001, 0.1))
    assert rate.nearest(0.0123456) == 0.01235
    assert rate.nearest(0.012299999594688416) == 0.0123  # 0.0123 in single precision.
    assert (rate.nearest(0.0001), rate.nearest(1.0)) == (0.001, 0.1)
    choice = Knob("a", "b", "choice", (2, 4, 8))
    assert choice.nearest(5.0) == 4
    assert isinstance(choice.nearest(5.0), int)


@pytest.mark.parametrize(
    ("share", "expected"),
    [(1.0, (10, 12, 12, 12, 5)), (1 / 3, (3, 4, 4, 4, 2)), (0.01, (1, 1, 1, 1, 1))],
)
def test_all_stages_are_shortened_alike(share, expected):
    config = config_module.default_config()
    config.search.controller_decay_epochs = 5
    found = knobs.shortened(config, share)
    search = found.search
    assert expected == (
        found.pretrain.epochs,
        search.epochs,
        found.finetune.epochs,
        found.route.epochs,
        search.controller_decay_epochs,
    )
    checks.check(found)
    config.search.controller_decay_epochs = 0
    assert knobs.shortened(config, share).search.controller_decay_epochs == 0


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("curved", (1.0, 2.0)),
        ("linear", (2.0, 1.0)),
        ("linear", (1.0, 2.0, 3.0)),
        ("log", (0.0, 1.0)),
        ("choice", (1,)),
    ],
)
def test_a_knob_is_checked(kind, values):
    with pytest.raises(ValueError, match="Received"):
        Knob("a", "b", kind, values)
