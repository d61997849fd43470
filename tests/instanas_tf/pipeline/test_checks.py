"""Settings out of their range are refused by name."""

import pytest

from instanas_tf import spaces
from instanas_tf.errors import InputError
from instanas_tf.pipeline import checks, config
from instanas_tf.search import expert_set

NAN, INF = float("nan"), float("inf")
BAD = [
    *[(name, "no such choice") for name in checks.CHOICES],
    ("config.search.priced.reward_correct", NAN),
    ("config.train.clip_norm", INF),
    ("config.latency.min_secs", 30.0),
    ("config.evaluate.baseline_widths", (0.5, 0.5)),
    *[(name, least - 1) for name, least in checks.AT_LEAST.items()],
    *[(name, value) for name in checks.ABOVE_ZERO for value in (0.0, -1.0, NAN, INF)],
    *[(name, value) for name in checks.SHARES for value in (-0.1, 1.1, NAN)],
    *[
        (name, value)
        for name in checks.KNOTS
        for value in (
            (),
            (1.0, 2.0),
            ((0.0, 1.0, 2.0),),
            ((0.5, 1.0), (0.2, 1.0)),
            ((-0.1, 1.0),),
            ((0.0, 1.0), (1.1, 1.0)),
            (("0", 1.0),),
            ((0.0, NAN),),
            ((0.0, True),),
        )
    ],
    *[
        (name, value)
        for name in checks.POSITIVE_LISTS
        for value in ((), (0.0,), (0.5, -0.5), ("a",), (True,), (NAN,), (INF,))
    ],
    *[("config.pretrain.keep_range", v) for v in ((), (0.1,), (0.5, 0.1), (-0.1, 0.5), (0.1, 2.0))],
    ("config.pretrain.keep_range", ("a", "b")),
    *[("config.route.price_range", v) for v in ((), (0.1,), (0.5, 0.1), (0.0, 1.0), (0.1, 101.0))],
    *[("config.route.weight_powers", v) for v in ((), (-0.5,), (0.0, 4.1), ("a",), (NAN,))],
    *[
        (name, value)
        for name in (*checks.NAMES, "config.pretrain.anchors", "config.experts.required")
        for value in (("no such name",), ("ir3_e6", "nor_this"), ("small", "small"), (3,))
    ],
    ("config.route.kinds", ()),
    ("config.route.image_controllers", ()),
    ("config.experts.required", ("least", "cheap", "half_odd", "half_even", "most")),
    ("config.data.image_size", 17),
]


def set_value(made, name, value):
    with made.unlocked(), made.ignore_type():
        section = made
        *path, last = name.split(".")[1:]
        for part in path:
            section = section[part]
        section[last] = value


@pytest.mark.parametrize(("name", "value"), BAD, ids=str)
def test_refused(name, value):
    made = config.default_config()
    set_value(made, name, value)
    with pytest.raises(InputError) as caught:
        checks.check(made)
    assert str(caught.value).startswith(f"{name} must be ")
    assert "Received: " in str(caught.value)


@pytest.mark.parametrize(("name", "least"), checks.AT_LEAST.items())
def test_least_is_allowed(name, least):
    made = config.default_config()
    set_value(made, name, least)
    if name == "config.experts.count":
        set_value(made, "config.experts.required", ("least",))
    if name == "config.data.image_size":
        set_value(made, "config.space.name", "tiny")
    checks.check(made)


@pytest.mark.parametrize("kinds", [("cascade",), ("search", "features")])
def test_only_who_looks_at_images_needs_a_network_for_that(kinds):
    made = config.default_config()
    set_value(made, "config.route.kinds", kinds)
    set_value(made, "config.route.image_controllers", ())
    checks.check(made)


@pytest.mark.parametrize("space", ["tiny", "mobilenet_v2_16"])
def test_every_anchor_that_is_allowed_can_be_made(space):
    made = config.default_config()
    set_value(made, "config.space.name", space)
    set_value(made, "config.data.image_size", checks.mobilenet_v2.LAYOUTS[space].image_size)
    set_value(made, "config.pretrain.anchors", checks.ANCHORS)
    checks.check(made)
    assert len(expert_set.named_anchors(spaces.get(space), checks.ANCHORS)) == len(checks.ANCHORS)


@pytest.mark.parametrize("name", sorted(checks.CHOICES["config.space.name"]))
def test_every_space_has_its_size(name):
    made = config.default_config()
    size = checks.mobilenet_v2.LAYOUTS[name].image_size
    set_value(made, "config.space.name", name)
    set_value(made, "config.data.image_size", size)
    checks.check(made)
    set_value(made, "config.data.image_size", size + 8)
    with pytest.raises(InputError, match=f"config.data.image_size must be {size}, the size of"):
        checks.check(made)
