"""One NaN or Inf spreads no further than in torch: the CPU's kernels leave such data to it.

Forward it stands just where torch has it; a gradient may hold fewer.
"""

from __future__ import annotations

import pytest
import torch

import genimg
from genimg import _native
from genimg.ops import Activation, BatchNorm, ConvBlock, Direction

pytestmark = pytest.mark.skipif(not _native.available(), reason=f"no _C: {_native.why_not()}")

values = pytest.mark.parametrize("value", [float("nan"), -float("inf")], ids=str)
formats = pytest.mark.parametrize(
    "memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"]
)


def results(function, leaves, spoiled, value, backend):
    """Output and gradients; ``spoiled`` is the leaf, or the output's gradient, with the value."""
    leaves = [x.clone(memory_format=torch.preserve_format) for x in leaves]
    middle = [tuple(size // 2 for size in x.shape) for x in leaves]
    if spoiled != "grad":
        leaves[spoiled][middle[spoiled]] = value
    leaves = [x.requires_grad_() for x in leaves]
    with genimg.use_backend(backend):
        y = function(*leaves)
        grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(5))
        if spoiled == "grad":
            grad[tuple(size // 2 for size in y.shape)] = value
        return y.detach(), torch.autograd.grad(y, leaves, grad)


def assert_contained(function, leaves, spoiled, value):
    y, grads = results(function, leaves, spoiled, value, "cpu")
    own, own_grads = results(function, leaves, spoiled, value, "reference")
    torch.testing.assert_close(y, own, rtol=1e-3, atol=1e-3, equal_nan=True)
    for grad, own_grad in zip(grads, own_grads, strict=True):
        finite = torch.isfinite(own_grad)
        torch.testing.assert_close(grad[finite], own_grad[finite], rtol=1e-3, atol=1e-3)


def draw(*shapes):
    generator = torch.Generator().manual_seed(4)
    return [torch.randn(shape, generator=generator) for shape in shapes]


CONVOLUTIONS = {
    "winograd_f3x2": ("down", (2, 20, 16, 16), (24, 20, 4, 4), 2, 1),
    "winograd_f2x2": ("down", (2, 20, 8, 8), (24, 20, 4, 4), 2, 1),
    "direct": ("down", (2, 20, 9, 9), (24, 20, 3, 3), 1, 1),
    "few_channels": ("down", (2, 3, 16, 16), (24, 3, 4, 4), 2, 1),
    "winograd3_up": ("up", (2, 20, 8, 8), (20, 24, 4, 4), 2, 1),
    "winograd2_up": ("up", (2, 20, 4, 4), (20, 24, 4, 4), 2, 1),
    "few_pixels_up": ("up", (4, 20, 1, 1), (20, 24, 4, 4), 1, 0),
    "few_channels_up": ("up", (2, 20, 8, 8), (20, 3, 4, 4), 2, 1),
}


@values
@formats
@pytest.mark.parametrize("spoiled", [0, 1, "grad"], ids=["input", "weight", "grad"])
@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_convolution(case, spoiled, memory_format, value):
    direction, x_shape, weight_shape, *options = CONVOLUTIONS[case]
    op = genimg.ops.conv2d if direction == "down" else genimg.ops.conv_transpose2d
    x, weight = draw(x_shape, weight_shape)
    leaves = [x.contiguous(memory_format=memory_format), weight * 0.1]
    assert_contained(lambda x, w: op(x, w, None, *options), leaves, spoiled, value)


@values
@formats
@pytest.mark.parametrize("spoiled", [0, 2, "grad"], ids=["input", "bias", "grad"])
@pytest.mark.parametrize("slope", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("training", [False, True])
def test_batch_norm_act(training, slope, spoiled, memory_format, value):
    x, weight, bias, mean, var = draw((4, 5, 6, 7), 5, 5, 5, 5)

    def function(x, weight, bias):
        statistics = (mean.clone(), var.abs() + 0.5, weight, bias)
        return genimg.ops.batch_norm_act(x, *statistics, training, negative_slope=slope)

    leaves = [x.contiguous(memory_format=memory_format), weight, bias]
    assert_contained(function, leaves, spoiled, value)


@values
@formats
@pytest.mark.parametrize("spoiled", [0, 1, 2, "grad"], ids=["input", "first", "second", "grad"])
@pytest.mark.parametrize("norm", [None, "batch", "running"])
@pytest.mark.parametrize(("slope", "last"), [(0.0, "leaky_relu"), (0.2, "tanh")])
def test_conv_stack(slope, last, norm, spoiled, memory_format, value):
    x, first, second, mean, var = draw((3, 6, 8, 8), (20, 6, 4, 4), (20, 7, 4, 4), 20, 20)

    def function(x, first, second):
        statistics = BatchNorm(
            mean.clone(), var.abs() + 0.5, training=None if norm == "batch" else False
        )
        blocks = [
            ConvBlock(
                Direction.DOWN,
                first,
                None,
                2,
                1,
                norm=statistics if norm else None,
                activation=Activation.LEAKY_RELU,
                negative_slope=slope,
            ),
            ConvBlock(
                Direction.UP,
                second,
                None,
                2,
                1,
                activation=Activation(last),
                negative_slope=slope,
            ),
        ]
        return genimg.ops.conv_stack(x, blocks, training=True)

    leaves = [x.contiguous(memory_format=memory_format), first * 0.15, second * 0.1]
    assert_contained(function, leaves, spoiled, value)
