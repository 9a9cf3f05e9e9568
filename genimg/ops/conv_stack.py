"""A run of convolution blocks as one op."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from genimg import reference
from genimg.backends import Op, choose
from genimg.ops.checks import check_channels, check_together
from genimg.reference.conv_stack import CASES, Activation, BatchNorm, ConvBlock, Direction
from genimg.testing import CONVOLUTION_ERROR_FACTOR

__all__ = ["Activation", "BatchNorm", "ConvBlock", "Direction", "conv_stack"]


def conv_stack(
    x: Tensor,
    blocks: Sequence[ConvBlock],
    *,
    training: bool,
    backend: str | None = None,
) -> Tensor:
    r"""Run blocks of {convolution or transposed convolution, batch norm or none, activation}.

    .. math:: x_{b+1} = \mathrm{act}_b(\mathrm{norm}_b(\mathrm{conv}_b(x_b)))

    The op behind generators, discriminators, encoders and decoders: as one op, an inner activation
    need never exist in memory, since the next contraction can apply norm and activation as it
    loads.

    Args:
        x: ``[N, C, H, W]``, any strides, any floating dtype.
        blocks: of :class:`ConvBlock`, whose weights have their own op's layout; at least one.
        training: of every batch norm that does not say its own; running statistics are written.
        backend: see :func:`genimg.backends.choose`.

    Returns:
        The last block's output, in ``x``'s memory format.

    Kept for backward: per block its raw convolution output and mean and rstd (the reference keeps
    what the separate ops do). Autocast: as the convolutions'.

    Raises:
        ValueError: no block.
        TypeError: something else than a :class:`ConvBlock` among the blocks.
        RuntimeError: shapes, devices or dtypes do not fit, with the block's number.
        BackendError: the named backend cannot serve the call.

    Source: Radford, Metz, Chintala, "Unsupervised representation learning with deep convolutional
    generative adversarial networks", 2016, section 3.
    """
    if not blocks:
        raise ValueError("conv_stack: expected at least one block, but got none")
    if not isinstance(x, Tensor):
        raise TypeError(f"conv_stack: expected x to be a Tensor, but got {type(x).__name__}")
    channels = x.shape[-3] if x.dim() > 2 else None
    for i, block in enumerate(blocks):
        if not isinstance(block, ConvBlock):
            raise TypeError(
                f"conv_stack: expected block {i} to be a ConvBlock, but got {type(block).__name__}"
            )
        channels = _check_block(f"conv_stack: block {i}", x, channels, block)
    choose(CONV_STACK, backend, x, blocks, training)
    return reference.conv_stack(x, blocks, training=training)


def _check_block(name: str, x: Tensor, channels: int | None, block: ConvBlock) -> int:
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


CONV_STACK = Op(
    "conv_stack", conv_stack, reference.conv_stack, CASES, error_factor=CONVOLUTION_ERROR_FACTOR
)
