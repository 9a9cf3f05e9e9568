"""The work of a convolution's contractions: fprop, dgrad, wgrad."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from genimg.ops.geometry import Geometry, multiplications
from genimg.work import FORWARD_BACKWARD, Work


@dataclass(frozen=True)
class Contraction:
    """A convolution: shapes of input, weight and output, and the bytes of an element."""

    x: tuple[int, ...]
    weight: tuple[int, ...]
    y: tuple[int, ...]
    multiplications: int
    size: int

    @property
    def operations(self) -> float:
        """The same forward and for each gradient."""
        return 2.0 * self.multiplications

    def _work(self, elements: float, more_bytes: float = 0) -> Work:
        return Work(self.operations, elements * self.size + more_bytes)

    def forward(self) -> Work:
        """Reads input and weight, writes the output."""
        return self._work(prod(self.x) + prod(self.weight) + prod(self.y))

    def x_gradient(self) -> Work:
        """Reads the output's gradient and the weight, writes the input's gradient."""
        return self.forward()

    def weight_gradient(self) -> Work:
        """Reads the input and the output's gradient, writes the weight's gradient."""
        return self.forward()

    def fused_x_gradient(self, normed: bool, previous: bool) -> Work:
        """As ``conv_stack`` has it.

        Args:
            normed: batch norm's backward is applied on load, so that the raw output is read too.
            previous: there is a norm or an activation before, whose backward ends the kernel, so
                that its raw input is read too.
        """
        outputs, inputs = (2 if normed else 1), (2 if previous else 1)
        return self._work(outputs * prod(self.y) + inputs * prod(self.x) + prod(self.weight))

    def fused_weight_gradient(self, normed: bool) -> Work:
        """The same for the weight, whose gradient is in float32."""
        outputs = 2 if normed else 1
        return self._work(outputs * prod(self.y) + prod(self.x), 4.0 * prod(self.weight))


def contraction(
    shape: Sequence[int], dtype: torch.dtype, weight: Tensor, geometry: Geometry
) -> Contraction:
    """The contraction of an input of ``shape``: ``[N, C, H, W]``, or ``[C, H, W]``."""
    shape = tuple(shape) if len(shape) == 4 else (1, *shape)
    channels = weight.shape[1] * geometry.groups if geometry.transposed else weight.shape[0]
    return Contraction(
        shape,
        tuple(weight.shape),
        (shape[0], channels, *geometry.out_size(shape, weight)),
        multiplications(shape, weight, geometry),
        dtype.itemsize,
    )


def convolution_work(
    mode: str, grad: Sequence[str], x: Tensor, weight: Tensor, geometry: Geometry
) -> list[Work]:
    """The work of conv2d or conv_transpose2d: :attr:`genimg.backends.Op.work`."""
    passes = contraction(x.shape, x.dtype, weight, geometry)
    gradients = {"x": passes.x_gradient, "weight": passes.weight_gradient}
    if mode.endswith("_gradient"):
        return [gradients[mode.removesuffix("_gradient")]()]
    kernels = [passes.forward()]
    if mode == FORWARD_BACKWARD:
        kernels += [gradients[name]() for name in gradients if name in grad]
    return kernels
