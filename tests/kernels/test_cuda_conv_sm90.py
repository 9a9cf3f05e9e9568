"""The contractions' kernels for Hopper, which auto does not take yet: all taps from one halo.

Their prologues, gates and sums are tested in ``test_cuda_conv_fused``.
"""

import pytest
import torch
import torch.nn.functional as F
from emulator import conv, library, statistics

from genimg.testing import integers, judge

DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
DIRECTIONS = pytest.mark.parametrize("direction", ["fprop", "dgrad"])
PAIRS = (2, 2), (1, 1)


def draw(*shape, dtype=torch.bfloat16):
    return integers(torch.Generator().manual_seed(len(shape)), *shape, limit=2).to(dtype)


def images(direction, small, large_c, more=0):
    """Shapes of what is given and what is wanted; the large image may have a row more."""
    large = (small[0], large_c, 2 * small[2] + more, 2 * small[3] + more)
    return (large, small) if direction == "fprop" else (small, large)


def convolve(direction, x, weight, bias, shape):
    """The result of PyTorch, in the dtype of the arguments."""
    if direction == "fprop":
        return F.conv2d(x, weight, bias, 2, 1)
    more = [size - 2 * given for size, given in zip(shape[2:], x.shape[2:], strict=True)]
    return F.conv_transpose2d(x, weight, bias, 2, 1, more)


def contract(direction, x, weight, bias, shape, **options):
    function = conv.fprop if direction == "fprop" else conv.dgrad
    return function(x, weight, bias, shape, *PAIRS, tile="sm90", **options)


def products(direction, small_c, large_c, tiles):
    """wgmma that a launch makes: of two groups, in 16 taps, for each 16 channels."""
    columns = 128 if small_c > 64 else 64
    if direction == "fprop":
        return 2 * 16 * tiles * -(-small_c // columns) * -(-large_c // 64) * 4
    return 2 * 16 * tiles * -(-large_c // 64) * -(-small_c // 32) * 2


# small image, channels, what is added to the large one's size, tiles: of fprop two patches of 8x8
# pixels, of dgrad 8x16; within one and over its edges; depth and columns that are not full; one
# step of channels, two, and more than there are stages
SHAPES = {
    "one_tile": ((1, 32, 8, 16), 64, 0, 1, 1),
    "small_map": ((2, 16, 4, 4), 64, 0, 1, 2),
    "odd_map": ((1, 40, 5, 5), 72, 0, 1, 1),
    "ragged_tiles": ((1, 8, 9, 17), 8, 0, 3, 4),
    "three_steps": ((1, 72, 3, 2), 24, 0, 1, 1),
    "one_row_more": ((1, 24, 8, 16), 40, 1, 1, 4),
    "odd_images": ((3, 8, 8, 7), 16, 0, 2, 3),
    "three_chunks": ((1, 8, 2, 3), 136, 0, 1, 1),
    "two_tiles_of_columns": ((1, 136, 2, 2), 8, 1, 1, 1),
}


@DTYPES
@pytest.mark.parametrize("name", SHAPES)
@DIRECTIONS
def test_exact(direction, name, dtype):
    """Small integers; equal to the bit under every schedule."""
    small, large_c, more, *tiles = SHAPES[name]
    given, wanted = images(direction, small, large_c, more)
    x, weight = draw(*given, dtype=dtype), draw(small[1], large_c, 4, 4, dtype=dtype)
    expected = convolve(direction, x.double(), weight.double(), None, wanted)
    got = contract(direction, x, weight, None, wanted)
    assert torch.equal(got.double(), expected.to(dtype).double())
    expected = products(direction, small[1], large_c, tiles[direction == "dgrad"])
    assert statistics(library("genimg_emulated"))["products"] == expected


@DTYPES
@DIRECTIONS
def test_forward(direction, dtype):
    """Random numbers, by the tolerance of every op."""
    given, wanted = images(direction, (2, 72, 5, 9), 40, 1)
    x = torch.randn(given).to(dtype, memory_format=torch.channels_last)
    weight = (torch.randn(72, 40, 4, 4) / 16).to(dtype)
    got = contract(direction, x, weight, None, wanted)
    own = convolve(direction, x, weight, None, wanted)
    exact = convolve(direction, x.double(), weight.double(), None, wanted)
    error = judge("y", got, own, exact)
    assert error.ok, error


@DIRECTIONS
def test_bias_and_activation(direction):
    given, wanted = images(direction, (1, 16, 4, 5), 24)
    x, weight = draw(*given), draw(16, 24, 4, 4) / 16
    bias = torch.linspace(-1, 1, wanted[1])
    y = convolve(direction, x.double(), weight.double(), bias.double(), wanted)
    got = contract(direction, x, weight, bias, wanted, activation="leaky_relu", slope=0.25)
    expected = F.leaky_relu(y, 0.25)
    torch.testing.assert_close(got.double(), expected, rtol=2**-8, atol=2**-8)


@pytest.mark.parametrize(
    ("channels", "kernel", "stride", "padding"),
    [((12, 16), 4, 2, 1), ((16, 12), 4, 2, 1), ((16, 16), 3, 2, 1), ((16, 16), 4, 2, 2)],
    ids=str,
)
@DIRECTIONS
def test_what_it_does_not_serve_goes_the_portable_way(direction, channels, kernel, stride, padding):
    small_c, large_c = channels
    small, weight = draw(1, small_c, 4, 5), draw(small_c, large_c, kernel, kernel)
    large = F.conv_transpose2d(small.double(), weight.double(), None, stride, padding)
    function, x, expected = conv.dgrad, small, large
    if direction == "fprop":
        function, x = conv.fprop, draw(*large.shape)
        expected = F.conv2d(x.double(), weight.double(), None, stride, padding)
    pairs = (stride, stride), (padding, padding)
    got = function(x, weight, None, expected.shape, *pairs, tile="sm90")
    assert torch.equal(got.double(), expected.bfloat16().double())


@DIRECTIONS
def test_pointers_between_vectors_go_the_portable_way(direction):
    given, wanted = images(direction, (1, 8, 4, 5), 16)
    weight, aligned = draw(8, 16, 4, 4), draw(*given).contiguous(memory_format=torch.channels_last)
    x = torch.empty(aligned.numel() + 1, dtype=aligned.dtype)[1:]
    x = x.as_strided(aligned.shape, aligned.stride()).copy_(aligned)
    expected = convolve(direction, x.double(), weight.double(), None, wanted)
    got = contract(direction, x, weight, None, wanted)
    assert torch.equal(got.double(), expected.bfloat16().double())


@DIRECTIONS
def test_nan_and_infinity_stay_in_their_taps(direction):
    """Values outside the image or beyond the channels are multiplied by zeros only."""
    given, wanted = images(direction, (1, 8, 4, 5), 8)
    x, weight = draw(*given), draw(8, 8, 4, 4)
    x[0, 3, 0, 0], x[0, 5, -1, -1] = float("nan"), float("inf")
    expected = convolve(direction, x.double(), weight.double(), None, wanted)
    got = contract(direction, x, weight, None, wanted)
    assert torch.equal(torch.isfinite(got), torch.isfinite(expected))
