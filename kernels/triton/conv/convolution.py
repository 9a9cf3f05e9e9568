"""The two convolutions as contractions: images in any memory in, channels_last ones out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from genimg.kernels.triton.conv.dgrad import dgrad
from genimg.kernels.triton.conv.epilogue import Epilogue
from genimg.kernels.triton.conv.fprop import fprop
from genimg.kernels.triton.conv.geometry import Geometry, Pair, geometry_of, to_channels_last
from genimg.kernels.triton.conv.prologue import FusedInput
from genimg.kernels.triton.conv.wgrad import wgrad


class Convolution(NamedTuple):
    """Which of the two, and its options; ``output_padding`` is the transposed one's."""

    transposed: bool
    stride: Pair
    padding: Pair
    output_padding: Pair = (0, 0)
    dilation: Pair = (1, 1)

    def out_shape(self, shape: Sequence[int], weight: Tensor) -> tuple[int, ...]:
        """The shape of the output for an input of ``shape``."""
        sizes = []
        for axis in range(2):
            reach = self.dilation[axis] * (weight.shape[2 + axis] - 1)
            room = 2 * self.padding[axis] - reach
            if self.transposed:
                steps = (shape[2 + axis] - 1) * self.stride[axis]
                sizes.append(steps - room + self.output_padding[axis] + 1)
            else:
                sizes.append((shape[2 + axis] + room - 1) // self.stride[axis] + 1)
        return (shape[0], weight.shape[1 if self.transposed else 0], sizes[0], sizes[1])

    def geometry(self, x: Sequence[int], y: Sequence[int], weight: Tensor) -> Geometry:
        """Between an input and an output of these shapes."""
        small, large = (x, y) if self.transposed else (y, x)
        kernel = weight.shape[2:]
        return geometry_of(small, large, kernel, self.stride, self.padding, self.dilation)

    def forward(
        self, x: FusedInput, weight: Tensor, epilogue: Epilogue
    ) -> tuple[Tensor, Tensor | None]:
        """The output, and the partial results of the epilogue."""
        geometry = self.geometry(x.x.shape, self.out_shape(x.x.shape, weight), weight)
        contract = dgrad if self.transposed else fprop
        return contract(x, to_channels_last(weight), geometry, epilogue)

    def input_gradient(
        self, grad_y: FusedInput, x_shape: Sequence[int], weight: Tensor, epilogue: Epilogue
    ) -> tuple[Tensor, Tensor | None]:
        """The gradient of the input, and the partial results of the epilogue."""
        geometry = self.geometry(x_shape, grad_y.x.shape, weight)
        contract = fprop if self.transposed else dgrad
        return contract(grad_y, to_channels_last(weight), geometry, epilogue)

    def weight_gradient(
        self,
        grad_y: FusedInput,
        x: FusedInput,
        weight: Tensor,
        memory_format: torch.memory_format,
    ) -> Tensor:
        """The gradient of the weight, in ``memory_format``."""
        geometry = self.geometry(x.x.shape, grad_y.x.shape, weight)
        small, large = (x, grad_y) if self.transposed else (grad_y, x)
        return wgrad(small, large, weight, geometry, memory_format)


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, convolution: Convolution) -> Tensor:
    """The output, in channels_last memory."""
    return convolution.forward(FusedInput(to_channels_last(x)), weight, Epilogue(bias=bias))[0]


def convolve_backward(
    grad_y: Tensor,
    x: Tensor,
    weight: Tensor,
    convolution: Convolution,
    memory_format: torch.memory_format,
    needs_x: bool,
    needs_weight: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of input (in channels_last memory) and weight (in ``memory_format``)."""
    grad = FusedInput(to_channels_last(grad_y))
    grad_x = grad_weight = None
    if needs_x:
        grad_x, _ = convolution.input_gradient(grad, x.shape, weight, Epilogue())
    if needs_weight:
        image = FusedInput(to_channels_last(x))
        grad_weight = convolution.weight_gradient(grad, image, weight, memory_format)
    return grad_x, grad_weight
