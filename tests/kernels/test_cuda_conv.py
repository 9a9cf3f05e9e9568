"""The convolutions' CUDA kernels beyond the ops' cases: every tile, every epilogue, many pieces."""

import pytest
import torch
import torch.nn.functional as F
from emulator import conv, last_kernel, library, statistics

from genimg.testing import integers

ACTIVATIONS = {
    "none": lambda y: y,
    "leaky_relu": lambda y: F.leaky_relu(y, 0.25),
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}


def draw(*shape, dtype=torch.bfloat16, limit=2):
    return integers(torch.Generator().manual_seed(len(shape)), *shape, limit=limit).to(dtype)


@pytest.mark.parametrize(
    ("tile", "channels"), [("64x16", 24), ("64x64", 72), ("128x64", 72), ("128x128", 136)]
)
def test_every_tile_is_exact(tile, channels):
    """Rows, columns and depth that no tile divides, and more steps than there are stages."""
    large, weight = draw(1, 16, 24, 22), draw(channels, 16, 3, 3)
    y = conv.fprop(large, weight, None, (1, channels, 12, 11), (2, 2), (1, 1), tile=tile)
    expected = F.conv2d(large.double(), weight.double(), None, 2, 1)
    assert torch.equal(y.double(), expected.bfloat16().double())
    assert statistics(library("genimg_emulated"))["row_conflicts"] == 0
    small, weight = draw(1, 40, 13, 12), draw(40, channels, 3, 3)
    x = conv.dgrad(small, weight, None, (1, channels, 25, 23), (2, 2), (1, 1), tile=tile)
    expected = F.conv_transpose2d(small.double(), weight.double(), None, 2, 1)
    assert torch.equal(x.double(), expected.bfloat16().double())
    assert statistics(library("genimg_emulated"))["row_conflicts"] == 0


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("channels", [(72, 8), (7, 5)], ids=str)
def test_weight_gradient_of_many_pieces(channels, layout):
    """More pixels than a piece has, the last piece not full; (72, 8) takes the large tile."""
    small_c, large_c = channels
    small, large = draw(3, small_c, 9, 21, limit=1), draw(3, large_c, 11, 23, limit=1)
    weight = torch.empty(small_c, large_c, 3, 3, dtype=torch.bfloat16)
    grad = conv.wgrad(small, large, weight, (1, 1), (0, 0), layout)
    expected = F.conv2d(large.transpose(0, 1).double(), small.transpose(0, 1).double())
    assert torch.equal(grad.double(), expected.transpose(0, 1).bfloat16().double())
    assert grad.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("activation", conv.ACTIVATIONS)
@pytest.mark.parametrize(
    ("small_c", "large_c", "kernel", "stride", "padding"),
    [(24, 3, 4, 2, 1), (20, 1, 4, 2, 1), (16, 2, 5, 2, 2), (8, 6, 3, 1, 1), (8, 5, 2, 3, 0)],
    ids=str,
)
def test_few_channels_with_bias_and_activation(
    small_c, large_c, kernel, stride, padding, activation
):
    """A last layer, in one kernel: more patches than one along each axis, the last not full."""
    small = draw(2, small_c, 12, 13, dtype=torch.float16)
    weight = draw(small_c, large_c, kernel, kernel, dtype=torch.float16) / 16
    bias = torch.linspace(-1, 1, large_c)
    large = F.conv_transpose2d(small.double(), weight.double(), bias.double(), stride, padding)
    expected = ACTIVATIONS[activation](large)
    pairs = (stride, stride), (padding, padding)
    options = {"activation": activation, "slope": 0.25}
    for tile in ("auto", "64x16"):
        got = conv.dgrad(small, weight, bias, large.shape, *pairs, **options, tile=tile)
        assert ("dgrad_few" in last_kernel(library("genimg_emulated"))) == (tile == "auto")
        torch.testing.assert_close(got.double(), expected, rtol=2**-10, atol=2**-12)


@pytest.mark.parametrize("activation", conv.ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_bias_and_activation(activation, dtype):
    large, weight, bias = draw(2, 8, 9, 9, dtype=dtype), draw(19, 8, 3, 3), torch.randn(19)
    weight = (weight / 16).to(dtype)
    y = F.conv2d(large.double(), weight.double(), bias.double(), 2)
    pairs = (2, 2), (0, 0)
    got = conv.fprop(large, weight, bias, y.shape, *pairs, activation=activation, slope=0.25)
    expected = ACTIVATIONS[activation](y)
    ulp = 2**-8 if dtype == torch.bfloat16 else 2**-21
    torch.testing.assert_close(got.double(), expected, rtol=ulp, atol=ulp)


def rounded_to_tf32(x):
    """10 bits of fraction, ties away from zero."""
    return ((x.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


@pytest.mark.parametrize(("small_c", "large_c"), [(16, 72), (5, 7)], ids=["wide", "narrow"])
def test_tf32_rounds_what_it_multiplies_and_sums_in_float(small_c, large_c):
    """Several tiles, that no channel number divides; the float path is the one that rounds not."""
    small, large = torch.randn(2, small_c, 6, 7), torch.randn(2, large_c, 12, 14)
    weight = torch.randn(small_c, large_c, 4, 4)
    pairs = (2, 2), (1, 1)
    layout = torch.channels_last

    def run(precision):
        return (
            conv.fprop(large, weight, None, small.shape, *pairs, precision=precision),
            conv.dgrad(small, weight, None, large.shape, *pairs, precision=precision),
            conv.wgrad(small, large, weight, *pairs, layout, precision=precision),
        )

    def truth(small, large, weight):
        return (
            F.conv2d(large, weight, None, 2, 1),
            F.conv_transpose2d(small, weight, None, 2, 1),
            torch.nn.grad.conv2d_weight(large, weight.shape, small, 2, 1),
        )

    exact = truth(small.double(), large.double(), weight.double())
    rounded = truth(*(rounded_to_tf32(x).double() for x in (small, large, weight)))
    for got, plain, expected, other in zip(run("tf32"), run("float"), rounded, exact, strict=True):
        room = 2**-18 * expected.abs().max()
        assert (got - expected).abs().max() < room
        assert (plain - other).abs().max() < room
        assert (got - other).abs().max() > 4 * room
