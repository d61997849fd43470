"""Golden layouts of the spaces, and MobileNetV2's rule for their widths."""

import pytest

from instanas_tf import spaces
from instanas_tf.spaces.mobilenet_v2 import LAYOUTS, round_channels


@pytest.mark.parametrize(
    ("channels", "rounded"),
    [
        (1, 8),
        (8, 8),
        (8.4, 8),
        (11.2, 16),  # 8 would be less than 0.9 * 11.2.
        (12, 16),
        (17, 16),
        (18, 24),  # 16 would be less than 0.9 * 18.
        (33.6, 32),
        (44.8, 48),
        (89.6, 88),
    ],
)
def test_round_channels(channels, rounded):
    assert round_channels(channels) == rounded


# Stem, stages, head; those of 0.35 and 1.4 are what the MobileNetV2 authors published.
@pytest.mark.parametrize(
    ("width", "stem", "stages", "head"),
    [
        (1.0, 32, [16, 24, 32, 64, 96, 160, 320], 1280),
        (0.35, 16, [8, 8, 16, 24, 32, 56, 112], 1280),
        (1.4, 48, [24, 32, 48, 88, 136, 224, 448], 1792),
    ],
)
def test_width_multiplies_channels(width, stem, stages, head):
    space = spaces.get("mobilenet_v2_224", width=width)
    first = [space.cells[t].out_channels for t in (0, 1, 3, 6, 10, 13, 16)]
    assert (space.stem_channels, first, space.head_channels) == (stem, stages, head)


@pytest.mark.parametrize(
    ("name", "image_size", "sizes"),
    [
        ("mobilenet_v2_32", 32, [32] * 3 + [16] * 3 + [8] * 7 + [4] * 4),
        ("mobilenet_v2_64", 64, [64] + [32] * 2 + [16] * 3 + [8] * 7 + [4] * 4),
        ("mobilenet_v2_224", 224, [112] + [56] * 2 + [28] * 3 + [14] * 7 + [7] * 4),
        ("mobilenet_v2_16", 16, [16] + [8] * 2 + [4] * 4),
        ("tiny", 8, [8] + [4] * 2),
    ],
)
def test_sizes_of_the_maps_that_leave_the_cells(name, image_size, sizes):
    space = spaces.get(name)
    assert [cell.out_size for cell in space.cells] == sizes
    assert space.image_size == image_size


@pytest.mark.parametrize("name", ["mobilenet_v2_32", "mobilenet_v2_64", "mobilenet_v2_224"])
def test_the_published_spaces_have_17_cells_of_5_ops(name):
    space = spaces.get(name)
    assert (space.num_cells, space.num_ops) == (17, 5)
    assert space.op_names == ("ir3_e6", "ir3_e3", "ir5_e6", "ir5_e3", "basic")
    assert (space.default_op, space.reference_op) == ("basic", "ir3_e6")
    assert [(op.kernel, op.expansion) for op in space.ops] == [
        (3, 6),
        (3, 3),
        (5, 6),
        (5, 3),
        (3, 1),
    ]
    assert [t for t, cell in enumerate(space.cells) if not cell.keeps_shape] == [
        0, 1, 3, 6, 10, 13, 16,
    ]  # fmt: skip


def test_every_space_can_be_had_by_its_name():
    assert len(LAYOUTS) == 5
    for name in LAYOUTS:
        assert spaces.get(name, num_classes=7).num_classes == 7
        assert spaces.get(name).name == name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet"}, "`name` must be one of .* Received: name='resnet'"),
        ({"name": "tiny", "width": 0.0}, "`width` must be above 0 .* Received: width=0.0"),
        ({"name": "tiny", "width": -1.0}, "Received: width=-1.0"),
        ({"name": "tiny", "width": float("nan")}, "Received: width=nan"),
        ({"name": "tiny", "width": 9.0}, "Received: width=9.0"),
        ({"name": "tiny", "num_classes": 1}, "Received: num_classes=1"),
        ({"name": "tiny", "merge": "product"}, "Received: merge='product'"),
    ],
)
def test_get_refuses_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        spaces.get(**arguments)
