"""One block of conv_stack: its packed form, checks and output, and why no kernel supports it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from genimg.backends import InvalidCall
from genimg.conv_blocks import BlockOptions, BlockParameters, NormMode, PackedBlocks
from genimg.memory_format import fits_both_formats, suggested_format
from genimg.ops.batch_norm_act import needs_gradients, refuse_norm
from genimg.ops.checks import check_channels, check_together, goes_to_torch
from genimg.ops.geometry import Geometry, pair
from genimg.reference.conv_stack import Activation, BatchNorm, ConvBlock, Direction


def pack(blocks: Sequence[ConvBlock], training: bool) -> PackedBlocks:
    """The blocks as the kernels read them, in a stack of mode ``training``."""
    return PackedBlocks(
        tuple(_parameters(block) for block in blocks),
        tuple(_options(block, training) for block in blocks),
    )


def _parameters(block: ConvBlock) -> BlockParameters:
    norm = block.norm
    if norm is None:
        return BlockParameters(block.weight, block.bias, None, None)
    return BlockParameters(
        block.weight, block.bias, norm.weight, norm.bias, norm.running_mean, norm.running_var
    )


def _options(block: ConvBlock, training: bool) -> BlockOptions:
    assert not isinstance(block.padding, str)
    norm = block.norm
    mode = NormMode.NONE
    if norm is not None:
        mode = NormMode.BATCH if norm.takes_statistics(training) else NormMode.RUNNING
    return BlockOptions(
        direction=block.direction,
        stride=pair(block.stride),
        padding=pair(block.padding),
        output_padding=pair(block.output_padding),
        norm=mode,
        activation=block.activation,
        eps=0.0 if norm is None else norm.eps,
        negative_slope=float(block.negative_slope),
    )


def restore(packed: PackedBlocks) -> list[ConvBlock]:
    """The blocks that :func:`pack` has packed; their norms have no momentum and no counter."""
    return [
        ConvBlock(
            options.direction,
            parameters.weight,
            parameters.bias,
            options.stride,
            options.padding,
            options.output_padding,
            norm=_norm(parameters, options),
            activation=options.activation,
            negative_slope=options.negative_slope,
        )
        for parameters, options in zip(packed.parameters, packed.options, strict=True)
    ]


def _norm(parameters: BlockParameters, options: BlockOptions) -> BatchNorm | None:
    if options.norm is NormMode.NONE:
        return None
    return BatchNorm(
        parameters.running_mean,
        parameters.running_var,
        parameters.gamma,
        parameters.beta,
        momentum=0.0,
        eps=options.eps,
        training=options.norm is NormMode.BATCH,
    )


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
    """The shape of the block's output, for an input of ``shape``."""
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


def stack_parts(x: Tensor, blocks: Sequence[ConvBlock], training: bool) -> Sequence[Any]:
    """The tensors and options of a stack in a row, as ``Op.parts`` gives them."""
    parts: list[Any] = [x, training]
    for block in blocks:
        parts += (block.direction.value, block.weight, block.bias, block.stride, block.padding)
        parts += (block.output_padding, block.dilation, block.groups)
        parts += (block.activation.value, block.negative_slope)
        norm = block.norm
        if norm is not None:
            parts += (norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.momentum)
            parts += (norm.eps, norm.training, norm.num_batches_tracked)
    return parts


def check_type(name: str, block: object) -> None:
    """Raise TypeError unless ``block`` is a :class:`ConvBlock` whose parts have the right types."""
    if not isinstance(block, ConvBlock):
        raise TypeError(f"{name} to be a ConvBlock, but got {type(block).__name__}")
    for part, kind in (("direction", Direction), ("activation", Activation), ("norm", BatchNorm)):
        value = getattr(block, part)
        if not isinstance(value, kind) and not (part == "norm" and value is None):
            raise TypeError(
                f"{name} to have as {part} a {kind.__name__}, but got {type(value).__name__}"
            )


def block_goes_to_torch(block: ConvBlock) -> bool:
    """Whether the block is passed to PyTorch unchanged; see :func:`goes_to_torch`."""
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
        or min(pair(block.stride)) < 1  # the next blocks would have no size
        or (norm is not None and needs_gradients(norm.running_mean, norm.running_var))
    )


def check_block(name: str, x: Tensor, channels: int | None, block: ConvBlock) -> int:
    """Check a block against its input of so many channels; return the channels of its output."""
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
    """Why no kernel supports a block; ``refuse`` gives the reason for a convolution."""
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
    return f"dilation is {block.dilation}; a stack supports 1"


def _refuse_block(
    block: ConvBlock, inner: bool, training: bool, shape: Sequence[int]
) -> str | None:
    norm = block.norm
    if inner and block.activation in (Activation.TANH, Activation.SIGMOID):
        return f"{block.activation.value} is supported only at the end of a stack"
    if block.activation is Activation.LEAKY_RELU and not block.negative_slope >= 0:
        return f"negative_slope is {block.negative_slope}; a stack supports 0 and more"
    if block.bias is not None and block.bias.dtype != block.weight.dtype:
        return f"the bias is {block.bias.dtype}, the weight {block.weight.dtype}; a stack needs one"
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
