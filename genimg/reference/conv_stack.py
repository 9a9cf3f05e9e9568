"""A run of convolution blocks as one op: the definition."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from genimg.conv_blocks import Activation, Direction
from genimg.reference.batch_norm_act import batch_norm_act
from genimg.reference.conv2d import IntOrPair, conv2d
from genimg.reference.conv_transpose2d import conv_transpose2d


@dataclass(frozen=True)
class BatchNorm:
    """A block's batch norm: :func:`genimg.ops.batch_norm_act`'s tensors and numbers.

    ``training`` None follows the stack's; True uses the batch's statistics, False the running ones.
    """

    running_mean: Tensor | None
    running_var: Tensor | None
    weight: Tensor | None = None
    bias: Tensor | None = None
    momentum: float | None = 0.1
    eps: float = 1e-5
    training: bool | None = None
    num_batches_tracked: Tensor | None = None

    def takes_statistics(self, training: bool) -> bool:
        """Whether it uses the batch's statistics, in a stack of mode ``training``."""
        return training if self.training is None else self.training


@dataclass(frozen=True)
class ConvBlock:
    """Convolution, batch norm or none, activation or none.

    ``output_padding`` belongs to direction UP alone.
    """

    direction: Direction
    weight: Tensor
    bias: Tensor | None = None
    stride: IntOrPair = 1
    padding: IntOrPair = 0
    output_padding: IntOrPair = 0
    dilation: IntOrPair = 1
    groups: int = 1
    norm: BatchNorm | None = None
    activation: Activation = Activation.NONE
    negative_slope: float = 0.01


class Layers(NamedTuple):
    """The ops that a stack consists of."""

    conv2d: Callable[..., Tensor]
    conv_transpose2d: Callable[..., Tensor]
    batch_norm_act: Callable[..., Tensor]


def _contract(x: Tensor, block: ConvBlock, layers: Layers) -> Tensor:
    if block.direction is Direction.DOWN:
        return layers.conv2d(
            x,
            block.weight,
            block.bias,
            block.stride,
            block.padding,
            block.dilation,
            block.groups,
        )
    return layers.conv_transpose2d(
        x,
        block.weight,
        block.bias,
        block.stride,
        block.padding,
        block.output_padding,
        block.groups,
        block.dilation,
    )


def _activate(y: Tensor, block: ConvBlock) -> Tensor:
    if block.activation is Activation.TANH:
        return torch.tanh(y)
    if block.activation is Activation.SIGMOID:
        return torch.sigmoid(y)
    if block.activation is Activation.LEAKY_RELU:
        if block.negative_slope == 0:
            return torch.relu(y)
        return torch.nn.functional.leaky_relu(y, block.negative_slope)
    return y


def conv_stack(x: Tensor, blocks: Sequence[ConvBlock], *, training: bool) -> Tensor:
    """Each block's ``activation(norm(convolution(x)))``, one after the other."""
    return layer_by_layer(x, blocks, training, Layers(conv2d, conv_transpose2d, batch_norm_act))


def layer_by_layer(
    x: Tensor, blocks: Sequence[ConvBlock], training: bool, layers: Layers
) -> Tensor:
    """A stack as single ops, which are those of ``layers``."""
    for block in blocks:
        x = _contract(x, block, layers)
        norm = block.norm
        if norm is None:
            x = _activate(x, block)
            continue
        leaky = block.activation is Activation.LEAKY_RELU
        x = layers.batch_norm_act(
            x,
            norm.running_mean,
            norm.running_var,
            norm.weight,
            norm.bias,
            norm.takes_statistics(training),
            norm.momentum,
            norm.eps,
            block.negative_slope if leaky else 1.0,
            norm.num_batches_tracked,
        )
        if not leaky:
            x = _activate(x, block)
    return x
