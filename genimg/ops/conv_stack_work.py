"""The work of a stack: its contractions, with the backward of norm and activation fused in."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from genimg.ops.contraction import Contraction, contraction
from genimg.ops.conv_block import block_geometry, out_shape
from genimg.reference.conv_stack import Activation, ConvBlock
from genimg.work import FORWARD, Work


def stack_contractions(x: Tensor, blocks: Sequence[ConvBlock]) -> list[Contraction]:
    """The contraction of each block."""
    found = []
    shape: Sequence[int] = x.shape
    for block in blocks:
        found.append(contraction(shape, x.dtype, block.weight, block_geometry(block)))
        shape = out_shape(shape, block)
    return found


def conv_stack_work(
    mode: str, grad: Sequence[str], x: Tensor, blocks: Sequence[ConvBlock], training: bool
) -> list[Work]:
    """:attr:`genimg.backends.Op.work`; every weight needs its gradient."""
    contractions = stack_contractions(x, blocks)
    kernels = [passes.forward() for passes in contractions]
    if mode == FORWARD:
        return kernels
    for i, (block, passes) in enumerate(zip(blocks, contractions, strict=True)):
        normed = block.norm is not None
        if i > 0 or "x" in grad:
            previous = i > 0 and (
                blocks[i - 1].norm is not None or blocks[i - 1].activation is not Activation.NONE
            )
            kernels.append(passes.fused_x_gradient(normed, previous))
        kernels.append(passes.fused_weight_gradient(normed))
    return kernels
