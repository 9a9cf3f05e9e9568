"""Drop-in convolution layers."""

from __future__ import annotations

import torch
from torch import Tensor

from genimg import ops


class Conv2d(torch.nn.Conv2d):
    """:class:`torch.nn.Conv2d` over :func:`genimg.ops.conv2d`: same signature, state and repr.

    ``y[n, o, i, j] = bias[o] + sum weight[o, c, k, l] x[n, c, s i - p + d k, s j - p + d l]``, over
    ``c, k, l``, for ``x`` ``[N, Ci, H, W]``. Other padding modes than zeros are PyTorch's.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.padding_mode != "zeros":
            return super()._conv_forward(input, weight, bias)
        return ops.conv2d(
            input, weight, bias, self.stride, self.padding, self.dilation, self.groups
        )


class ConvTranspose2d(torch.nn.ConvTranspose2d):
    """:class:`torch.nn.ConvTranspose2d` over :func:`genimg.ops.conv_transpose2d`.

    Same signature, state and repr, ``output_size`` at the call included. Input pixel ``(i, j)``
    adds ``weight[c, o, k, l] x[n, c, i, j]`` to output pixel ``(s i - p + d k, s j - p + d l)``.
    """

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Like torch's; ``output_size`` settles which of the possible output sizes it is."""
        output_padding = self._output_padding(
            input,
            output_size,
            self.stride,  # type: ignore[arg-type]
            self.padding,  # type: ignore[arg-type]
            self.kernel_size,  # type: ignore[arg-type]
            2,
            self.dilation,  # type: ignore[arg-type]
        )
        return ops.conv_transpose2d(
            input,
            self.weight,
            self.bias,
            self.stride,
            self.padding,  # type: ignore[arg-type]
            tuple(output_padding),
            self.groups,
            self.dilation,
        )
