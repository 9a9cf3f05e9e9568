"""A block of layers that runs as one, and its arguments for conv_stack."""

from dataclasses import dataclass

import torch
from torch import Tensor

from genimg import ops
from genimg.nn.batch_norm import norm_arguments
from genimg.ops.fold import Fold


@dataclass
class Block:
    """Modules that run as one block: if it has no convolution, a norm and its activation.

    ``upsample`` or ``pool`` is folded into the convolution.
    """

    convolution: torch.nn.Module | None
    norm: torch.nn.BatchNorm2d | None = None
    activation: torch.nn.Module | None = None
    upsample: torch.nn.Module | None = None
    pool: torch.nn.Module | None = None

    def modules(self) -> list[torch.nn.Module]:
        members = (self.upsample, self.convolution, self.pool, self.norm, self.activation)
        return [module for module in members if module is not None]

    def folded(self) -> list[torch.nn.Module]:
        """The layers that one convolution computes."""
        return self.modules()[:2] if self.upsample is not None or self.pool is not None else []

    def op(self) -> str:
        """The op that runs it, alone in its run."""
        if self.convolution is None:
            return "batch_norm_act"
        if self.modules() == self.folded():
            return "conv2d_avg_pool" if self.upsample is None else "upsample_conv2d"
        return "conv_stack"


def slope_of(activation: torch.nn.Module | None) -> float:
    if activation is None:
        return 1.0
    return 0.0 if isinstance(activation, torch.nn.ReLU) else float(activation.negative_slope)  # type: ignore[arg-type]


def arguments_of(block: Block, fold: Fold | None, x: Tensor) -> ops.ConvBlock:
    """The arguments of a block, folded or not, in a run on ``x``."""
    conv = block.convolution
    assert isinstance(conv, (torch.nn.Conv2d, torch.nn.ConvTranspose2d))
    up = isinstance(conv, torch.nn.ConvTranspose2d)
    activation = ops.Activation.NONE
    negative_slope = 1.0
    if isinstance(block.activation, torch.nn.Tanh):
        activation = ops.Activation.TANH
    elif isinstance(block.activation, torch.nn.Sigmoid):
        activation = ops.Activation.SIGMOID
    elif block.activation is not None:
        activation = ops.Activation.LEAKY_RELU
        negative_slope = slope_of(block.activation)
    norm = None if block.norm is None else norm_arguments(block.norm)
    if fold is not None:
        return ops.ConvBlock(
            ops.Direction.UP if fold.transposed else ops.Direction.DOWN,
            fold.weight(conv.weight, x),
            conv.bias,
            fold.stride,
            fold.padding,
            norm=norm,
            activation=activation,
            negative_slope=negative_slope,
        )
    return ops.ConvBlock(
        ops.Direction.UP if up else ops.Direction.DOWN,
        conv.weight,
        conv.bias,
        conv.stride,
        conv.padding,  # type: ignore[arg-type]
        conv.output_padding if up else 0,
        conv.dilation,
        conv.groups,
        norm,
        activation,
        negative_slope,
    )
