"""dgrad's kernel for Hopper, which auto does not take yet: all four phases from one halo.

Its prologues, gates and sums are tested in ``test_cuda_conv_fused``.
"""

import emulated_conv as conv
import pytest
import torch
import torch.nn.functional as F
from emulator import library, statistics

from genimg.testing import integers

DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
PAIRS = (2, 2), (1, 1)


def draw(*shape, dtype=torch.bfloat16):
    return integers(torch.Generator().manual_seed(len(shape)), *shape, limit=2).to(dtype)


def products(large_c, tiles, small_c):
    """wgmma that a launch makes: of two groups, in 16 taps, for each 16 channels."""
    return 2 * 16 * tiles * -(-large_c // 64) * -(-small_c // 32) * 2


# small image, channels, what is added to the large one's size, tiles: within one tile and over its
# edges; depth and columns that are not full; one step, two, and more than there are stages
SHAPES = {
    "one_tile": ((1, 32, 8, 16), 64, 0, 1),
    "small_map": ((2, 16, 4, 4), 64, 0, 2),
    "odd_map": ((1, 40, 5, 5), 72, 0, 1),
    "ragged_tiles": ((1, 8, 9, 17), 8, 0, 4),
    "three_steps": ((1, 72, 3, 2), 24, 0, 1),
    "one_row_more": ((1, 24, 8, 16), 40, 1, 4),
}


@DTYPES
@pytest.mark.parametrize("name", SHAPES)
def test_exact(name, dtype):
    """Small integers; equal to the bit under every schedule."""
    shape, large_c, more, tiles = SHAPES[name]
    small, weight = draw(*shape, dtype=dtype), draw(shape[1], large_c, 4, 4, dtype=dtype)
    expected = F.conv_transpose2d(small.double(), weight.double(), None, 2, 1, more)
    got = conv.dgrad(small, weight, None, expected.shape, *PAIRS, tile="halo")
    assert torch.equal(got.double(), expected.to(dtype).double())
    assert statistics(library("genimg_emulated"))["products"] == products(large_c, tiles, shape[1])


def test_bias_and_activation():
    small, weight = draw(1, 16, 4, 5), draw(16, 24, 4, 4) / 16
    bias = torch.linspace(-1, 1, 24)
    y = F.conv_transpose2d(small.double(), weight.double(), bias.double(), 2, 1)
    options = {"activation": "leaky_relu", "slope": 0.25, "tile": "halo"}
    got = conv.dgrad(small, weight, bias, y.shape, *PAIRS, **options)
    expected = F.leaky_relu(y, 0.25)
    torch.testing.assert_close(got.double(), expected, rtol=2**-8, atol=2**-8)


@pytest.mark.parametrize(
    ("channels", "kernel", "stride", "padding"),
    [((12, 16), 4, 2, 1), ((16, 12), 4, 2, 1), ((16, 16), 3, 2, 1), ((16, 16), 4, 2, 2)],
    ids=str,
)
def test_what_it_does_not_serve_goes_the_portable_way(channels, kernel, stride, padding):
    small_c, large_c = channels
    small, weight = draw(1, small_c, 4, 5), draw(small_c, large_c, kernel, kernel)
    expected = F.conv_transpose2d(small.double(), weight.double(), None, stride, padding)
    pairs = (stride, stride), (padding, padding)
    got = conv.dgrad(small, weight, None, expected.shape, *pairs, tile="halo")
    assert torch.equal(got.double(), expected.bfloat16().double())


def test_nan_and_infinity_stay_in_their_taps():
    """What is outside the image, or beyond the channels, multiplies nothing but zeros."""
    small, weight = draw(1, 8, 4, 5), draw(8, 8, 4, 4)
    small[0, 3, 0, 0], small[0, 5, 3, 4] = float("nan"), float("inf")
    expected = F.conv_transpose2d(small.double(), weight.double(), None, 2, 1)
    got = conv.dgrad(small, weight, None, expected.shape, *PAIRS, tile="halo")
    assert torch.equal(torch.isfinite(got), torch.isfinite(expected))
