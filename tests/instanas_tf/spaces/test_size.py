"""Golden sizes of the published spaces, and hand-made ones of single ops."""

import numpy as np
import pytest

from instanas_tf import spaces
from instanas_tf.spaces import size
from instanas_tf.spaces.size import Size
from instanas_tf.spaces.space import CellSpec, OpSpec


def in_millions(macs):
    return np.round(np.asarray(macs) / 1e6, 1).tolist()


# Every published space must have its golden numbers here: millions of MACs of each op over
# its 17 cells, of all ops, of stem and head; and trainable parameters.
GOLDEN = {
    ("mobilenet_v2_32", 10): ([90.9, 45.5, 104.0, 52.0, 130.6], 423.0, 7.5, 9_572_970),
    ("mobilenet_v2_64", 200): ([129.3, 64.6, 151.8, 75.9, 151.9], 573.4, None, 9_816_360),
    ("mobilenet_v2_224", 1000): ([395.8, 197.9, 464.8, 232.4, 465.1], 1756.0, 32.2, 10_841_160),
}


@pytest.mark.parametrize(("name", "classes"), GOLDEN)
def test_published_spaces_have_the_published_sizes(name, classes):
    ops, all_ops, stem_and_head, params = GOLDEN[name, classes]
    space = spaces.get(name, num_classes=classes)
    macs = size.op_macs(space)
    assert macs.shape == (17, 5)
    assert in_millions(macs.sum(axis=0)) == ops
    assert in_millions(macs.sum()) == all_ops
    assert size.supernet_params(space) == params
    outside = size.stem_size(space).macs + size.head_size(space).macs
    if stem_and_head is not None:
        assert in_millions(outside) == stem_and_head
    assert size.policy_macs(space, np.ones((17, 5))) == macs.sum() + outside


def test_a_convolution_with_normalisation():
    # 3 * 3 * 4 * 5 = 180 weights on 2 * 2 positions; 2 * 5 of the normalisation.
    assert size.conv_bn(2, 3, 4, 5) == Size(macs=720, params=190)


def test_an_inverted_residual():
    # 4 px to 2 px, 2 -> 12 -> 3 channels.
    # expand:    2 * 12 = 24 on 16 positions = 384;  24 + 24 parameters
    # depthwise: 9 * 12 = 108 on 4 = 432;            108 + 24
    # project:   12 * 3 = 36 on 4 = 144;             36 + 6
    op = OpSpec("ir3_e6", "inverted_residual", 3, 6)
    assert size.op_size(CellSpec(2, 3, 2, 4), op) == Size(macs=960, params=222)


def test_a_basic_block():
    # 9 * 2 * 3 = 54 on 4 positions = 216 and 54 + 6; then 9 * 3 * 3 = 81 on 4 = 324 and 81 + 6.
    assert size.op_size(CellSpec(2, 3, 2, 4), OpSpec("b", "basic")) == Size(macs=540, params=147)


def test_stem_head_and_policies_of_the_tiny_space(tiny):
    # Stem 9 * 3 * 8 = 216 on 64 positions. Head 16 * 16 = 256 on 16, then 16 * 3, 3 biases.
    assert size.stem_size(tiny) == Size(macs=13_824, params=216 + 16)
    assert size.head_size(tiny) == Size(macs=4096 + 48, params=256 + 32 + 48 + 3)
    # An empty policy still runs ir3_e3 in cell 1: 8 -> 24 -> 16 channels, 8 px to 4 px:
    # 8 * 24 on 64 + 9 * 24 on 16 + 24 * 16 on 16 = 12288 + 3456 + 6144 = 21888.
    assert size.policy_macs(tiny, np.zeros((3, 3))) == 13_824 + 4144 + 21_888
    assert size.policy_macs(tiny, tiny.single_op_policy("basic")) == (
        # Cell 0: 2 * 9 * 8 * 8 on 64; cell 1: 9 * 8 * 16 + 9 * 16 * 16 on 16; cell 2 on 16.
        13_824 + 4144 + 73_728 + 55_296 + 73_728
    )
