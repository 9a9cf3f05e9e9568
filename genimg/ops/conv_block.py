"""One block of conv_stack: what it is made of, what leaves it, and why a kernel cannot serve it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from genimg.backends import InvalidCall
from genimg.memory_format import fits_both_formats, suggested_format
from genimg.ops.batch_norm_act import needs_gradients, refuse_norm
from genimg.ops.checks import check_channels, check_together, goes_to_torch
from genimg.ops.convolution import Geometry, pair
from genimg.reference.conv_stack import Activation, BatchNorm, ConvBlock, Direction

PARAMETERS = 6  # weight, bias, gamma, beta, running mean, running variance
TRAINED = 4  # of them
Layout = tuple[tuple[int, ...], tuple[float, ...]]
"""Nine integers and two numbers a block, in the order of :func:`flatten`."""


def flatten(blocks: Sequence[ConvBlock], training: bool) -> tuple[list[Tensor | None], Layout]:
    """Parameters, integers and numbers of the blocks, as a kernel's op takes them."""
    parameters: list[Tensor | None] = []
    options: list[int] = []
    numbers: list[float] = []
    for block in blocks:
        assert not isinstance(block.padding, str)
        norm = block.norm
        parameters += [block.weight, block.bias]
        parameters += (
            [None] * 4
            if norm is None
            else [norm.weight, norm.bias, norm.running_mean, norm.running_var]
        )
        options.append(block.direction is Direction.UP)
        for option in (block.stride, block.padding, block.output_padding):
            options += pair(option)
        options.append(0 if norm is None else 1 if norm.takes_statistics(training) else 2)
        options.append(_ACTIVATIONS.index(block.activation))
        numbers += [0.0 if norm is None else norm.eps, float(block.negative_slope)]
    return parameters, (tuple(options), tuple(numbers))


_ACTIVATIONS = (Activation.NONE, Activation.LEAKY_RELU, Activation.TANH, Activation.SIGMOID)


def restore(parameters: Sequence[Tensor | None], layout: Layout) -> list[ConvBlock]:
    """The blocks that :func:`flatten` took apart."""
    options, numbers = layout
    blocks = []
    for b in range(len(numbers) // 2):
        weight, bias, gamma, beta, mean, var = parameters[PARAMETERS * b : PARAMETERS * (b + 1)]
        up, *pairs, norm, activation = options[9 * b : 9 * (b + 1)]
        eps, negative_slope = numbers[2 * b : 2 * (b + 1)]
        assert weight is not None
        blocks.append(
            ConvBlock(
                Direction.UP if up else Direction.DOWN,
                weight,
                bias,
                (pairs[0], pairs[1]),
                (pairs[2], pairs[3]),
                (pairs[4], pairs[5]),
                norm=BatchNorm(mean, var, gamma, beta, 0.0, eps, norm == 1) if norm else None,
                activation=_ACTIVATIONS[activation],
                negative_slope=negative_slope,
            )
        )
    return blocks


def block_geometry(block: ConvBlock) -> Geometry:
    """The block's convolution."""
    return Geometry(
        block.direction is Direction.UP,
        block.stride,
        block.padding,
        block.output_padding,
        block.groups,
        block.dilation,
    )


def out_shape(shape: Sequence[int], block: ConvBlock) -> tuple[int, ...]:
    """What leaves the block, for an input of ``shape``."""
    up = block.direction is Direction.UP
    return (
        shape[0],
        block.weight.shape[1 if up else 0],
        *block_geometry(block).out_size(shape, block.weight),
    )


def formats_of(
    x: Tensor, blocks: Sequence[ConvBlock]
) -> tuple[list[torch.memory_format], torch.memory_format]:
    """The formats of each convolution's output and gradients, and of the stack's output."""
    formats = []
    shape: Sequence[int] = x.shape
    layout = suggested_format(x)
    for block in blocks:
        if layout == torch.contiguous_format:
            layout = suggested_format(block.weight)
        formats.append(layout)
        shape = out_shape(shape, block)
        elementwise = block.norm is not None or block.activation is not Activation.NONE
        if fits_both_formats(shape) and (elementwise or max(shape[1:]) == 1):
            layout = torch.contiguous_format
    return formats, layout


def check_type(name: str, block: object) -> None:
    """Raise TypeError unless ``block`` is a :class:`ConvBlock` of parts of the right types."""
    if not isinstance(block, ConvBlock):
        raise TypeError(f"{name} to be a ConvBlock, but got {type(block).__name__}")
    for part, kind in (("direction", Direction), ("activation", Activation), ("norm", BatchNorm)):
        value = getattr(block, part)
        if not isinstance(value, kind) and not (part == "norm" and value is None):
            raise TypeError(
                f"{name} to have as {part} a {kind.__name__}, but got {type(value).__name__}"
            )


def block_goes_to_torch(block: ConvBlock) -> bool:
    """Whether PyTorch takes the block as it stands; see :func:`goes_to_torch`."""
    norm = block.norm
    padding = 0 if isinstance(block.padding, str) else block.padding
    sizes = (block.stride, padding, block.output_padding, block.dilation, block.groups)
    optional: tuple[object, ...] = (block.bias,)
    numbers: tuple[object, ...] = (block.negative_slope,)
    if norm is not None:
        optional += (norm.running_mean, norm.running_var, norm.weight, norm.bias)
        optional += (norm.num_batches_tracked,)
        numbers += (norm.eps, norm.eps if norm.momentum is None else norm.momentum)
    return (
        goes_to_torch((block.weight,), optional, sizes, numbers)
        or min(pair(block.stride)) < 1  # leaves no size for the blocks behind
        or (norm is not None and needs_gradients(norm.running_mean, norm.running_var))
    )


def check_block(name: str, x: Tensor, channels: int | None, block: ConvBlock) -> int:
    """Check a block against what enters it; returns the channels that leave it."""
    up = block.direction is Direction.UP
    if block.norm is not None and x.dim() != 4:
        raise ValueError(f"{name}: expected 4D input (got {x.dim()}D input) before a batch norm")
    check_together(name, input=x, weight=block.weight, bias=block.bias)
    check_channels(name, channels, block.weight, block.bias, block.groups, up)
    if not up and block.output_padding not in (0, (0, 0)):
        raise ValueError(
            f"{name}: output_padding belongs to transposed convolutions, but got "
            f"{block.output_padding} on a {block.direction.value}"
        )
    return block.weight.shape[1] * block.groups if up else block.weight.shape[0]


def refuse_blocks(
    x: Tensor,
    blocks: Sequence[ConvBlock],
    training: bool,
    refuse: Callable[[Sequence[int], torch.dtype, Tensor, Geometry], str | None],
) -> str | None:
    """Why no kernel can serve a block; ``refuse`` says it of a convolution."""
    shape: Sequence[int] = x.shape
    for b, block in enumerate(blocks):
        inner = b + 1 < len(blocks)
        reason = _refuse_dilation(block) or refuse(
            shape, x.dtype, block.weight, block_geometry(block)
        )
        if reason is None:
            shape = out_shape(shape, block)
            reason = _refuse_block(block, inner, training, shape)
        if reason is not None:
            return type(reason)(f"block {b}: {reason}")
    return None


def _refuse_dilation(block: ConvBlock) -> str | None:
    if pair(block.dilation) == (1, 1):
        return None
    return f"dilation={block.dilation} is not served in a stack, only 1"


def _refuse_block(
    block: ConvBlock, inner: bool, training: bool, shape: Sequence[int]
) -> str | None:
    norm = block.norm
    if inner and block.activation in (Activation.TANH, Activation.SIGMOID):
        return f"{block.activation.value} is served at the end of a stack only"
    if block.activation is Activation.LEAKY_RELU and not block.negative_slope >= 0:
        return f"a negative slope of {block.negative_slope}: only 0 and more is served"
    if block.bias is not None and block.bias.dtype != block.weight.dtype:
        return f"a bias of {block.bias.dtype} for a weight of {block.weight.dtype} is not served"
    if norm is None:
        return None
    taking = norm.takes_statistics(training)
    if taking and shape[0] * shape[2] * shape[3] == 1:
        return InvalidCall("a batch norm over one value per channel is invalid in training")
    if not taking and (norm.running_mean is None or norm.running_var is None):
        return InvalidCall("a batch norm outside training has no running statistics")
    if not norm.eps > 0:
        return InvalidCall(f"eps={norm.eps} is invalid")
    statistics = (norm.running_mean, norm.running_var)
    return refuse_norm(block.weight, shape[1], *statistics, norm.weight, norm.bias)
