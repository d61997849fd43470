"""Golden sizes of the controllers."""

import pytest

from instanas_tf import spaces
from instanas_tf.spaces import controllers
from instanas_tf.spaces.controllers import controller_size, trunk_size
from instanas_tf.spaces.size import Size


@pytest.mark.parametrize(
    ("name", "params", "macs_in_millions"),
    [("mobilenet_v2_32", 80_165, 12.2), ("mobilenet_v2_224", 320_421, 20.3)],
)
def test_published_controllers_have_the_published_sizes(name, params, macs_in_millions):
    space = spaces.get(name)
    found = controller_size(controllers.get("published", space.image_size), space)
    assert found.params == params
    assert round(found.macs / 1e6, 1) == macs_in_millions


def test_size_of_the_small_controller():
    # Stem 3 -> 8 on 16 * 16: 216 * 256 = 55296, then per stage both convolutions:
    # 2 * 576 on 256 = 294912; 1152 + 2304 on 64 = 221184; 4608 + 9216 on 16 = 221184; 32 * 85.
    # Parameters: 216 + 1152 + 3456 + 13824, 2 * (3 * 8 + 2 * 16 + 2 * 32) of normalisation,
    # 32 * 85 + 85.
    space = spaces.get("mobilenet_v2_32")
    assert controller_size(controllers.get("small", 32), space) == Size(795_296, 21_693)


def test_size_of_the_half_controller():
    # All maps are a quarter of those of the small one, in area; the last layer is the same.
    space = spaces.get("mobilenet_v2_32")
    expected = Size((795_296 - 2720) // 4 + 2720, 21_693)
    assert controller_size(controllers.get("half", 32), space) == expected


def test_size_of_the_wide_controller():
    # 3 -> 16 on 16 * 16: 432 * 256; 2 * 2304 on 256; 4608 + 9216 on 64; 18432 + 36864 on 16;
    # 64 * 85. Parameters: those weights, 2 * (3 * 16 + 2 * 32 + 2 * 64), 64 * 85 + 85.
    space = spaces.get("mobilenet_v2_32")
    expected = Size(110_592 + 1_179_648 + 884_736 + 884_736 + 5440, 80_165)
    assert controller_size(controllers.get("wide", 32), space) == expected


@pytest.mark.parametrize("image_size", [8, 16, 32, 64, 224])
def test_kinds_are_in_order_of_their_cost(image_size):
    macs = [trunk_size(controllers.get(k, image_size), image_size).macs for k in controllers.KINDS]
    assert macs == sorted(macs)


@pytest.mark.parametrize(
    ("kind", "image_size", "pool"),
    [
        ("small", 8, 1),
        ("small", 32, 1),
        ("small", 64, 2),
        ("small", 224, 7),
        ("half", 8, 2),
        ("half", 64, 4),
        ("half", 224, 14),
        ("wide", 32, 1),
        ("wide", 224, 7),
        ("published", 64, 1),
        ("published", 224, 2),
    ],
)
def test_by_how_much_the_image_is_pooled(kind, image_size, pool):
    assert controllers.get(kind, image_size).input_pool == pool


@pytest.mark.parametrize(
    ("kind", "image_size", "widths", "stem_kernel"),
    [
        ("small", 8, (8, 16, 32), 3),
        ("small", 224, (8, 16, 32), 3),
        ("half", 8, (8, 16, 32), 3),
        ("wide", 224, (16, 32, 64), 3),
        ("published", 32, (16, 32, 64), 3),
        ("published", 64, (16, 32, 64), 3),
        ("published", 224, (16, 32, 64, 128), 7),
    ],
)
def test_kind_and_size_choose_the_controller(kind, image_size, widths, stem_kernel):
    spec = controllers.get(kind, image_size)
    assert (spec.widths, spec.stem_kernel) == (widths, stem_kernel)
    assert len(spec.strides) == len(widths)


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="`kind` must be one of .* Received: kind='large'"):
        controllers.get("large", 32)
