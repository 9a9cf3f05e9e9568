"""The options of a convolution, the sizes that follow from them, and its multiplications."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from genimg.reference.conv2d import IntOrPair

Pair = tuple[int, int]


def pair(value: IntOrPair) -> Pair:
    """One number for both dimensions, or one for each."""
    if isinstance(value, int):
        return (value, value)
    first, second = value if len(value) == 2 else (value[0], value[0])
    return (first, second)


@dataclass(frozen=True)
class Geometry:
    """A convolution's options; ``output_padding`` is a transposed one's."""

    transposed: bool
    stride: IntOrPair
    padding: IntOrPair | str
    output_padding: IntOrPair
    groups: int
    dilation: IntOrPair

    def in_pairs(self) -> tuple[bool, Pair, Pair, Pair, Pair]:
        """All but groups, of one that no kernel refused."""
        assert not isinstance(self.padding, str)
        options = (self.stride, self.padding, self.output_padding, self.dilation)
        stride, padding, output_padding, dilation = map(pair, options)
        return self.transposed, stride, padding, output_padding, dilation

    def out_size(self, shape: Sequence[int], weight: Tensor) -> Pair:
        """Height and width of the output."""
        if self.padding == "same":  # of stride 1
            return shape[-2], shape[-1]
        padding = 0 if isinstance(self.padding, str) else self.padding
        (stride_h, stride_w), (pad_h, pad_w) = pair(self.stride), pair(padding)
        # The pixels that a kernel of this dilation spans.
        kernel_h, kernel_w = (
            d * (size - 1) + 1
            for d, size in zip(pair(self.dilation), weight.shape[2:], strict=True)
        )
        height, width = shape[-2:]
        if self.transposed:
            more_h, more_w = pair(self.output_padding)
            return (
                (height - 1) * stride_h - 2 * pad_h + kernel_h + more_h,
                (width - 1) * stride_w - 2 * pad_w + kernel_w + more_w,
            )
        return (
            (height + 2 * pad_h - kernel_h) // stride_h + 1,
            (width + 2 * pad_w - kernel_w) // stride_w + 1,
        )


def multiplications(shape: Sequence[int], weight: Tensor, geometry: Geometry) -> int:
    """Multiplications of the convolution as it is defined, padding included."""
    sizes = tuple(shape[2:]) if geometry.transposed else geometry.out_size(shape, weight)
    return shape[0] * sizes[0] * sizes[1] * weight.numel()
