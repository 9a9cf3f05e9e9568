"""Drop-in convolution layers."""

import torch
from torch import Tensor

from genimg import ops
from genimg.nn.drop_in import as_scriptable, computes, forward_as_torch


class Conv2d(torch.nn.Conv2d):
    """:class:`torch.nn.Conv2d` over :func:`genimg.ops.conv2d`: same signature, state and repr.

    ``y[n, o, i, j] = bias[o] + sum weight[o, c, k, l] x[n, c, s i - p + d k, s j - p + d l]``, over
    ``c, k, l``, for ``x`` ``[N, Ci, H, W]``. Other padding modes than zeros are PyTorch's.
    """

    __prepare_scriptable__ = as_scriptable

    def forward(self, input: Tensor) -> Tensor:
        """Like torch's."""
        if self.padding_mode != "zeros" or not computes(self, torch.nn.Conv2d, input):
            return forward_as_torch(self, torch.nn.Conv2d, input)
        return ops.conv2d(
            input, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups
        )


class ConvTranspose2d(torch.nn.ConvTranspose2d):
    """:class:`torch.nn.ConvTranspose2d` over :func:`genimg.ops.conv_transpose2d`.

    Same signature, state and repr, ``output_size`` at the call included. Input pixel ``(i, j)``
    adds ``weight[c, o, k, l] x[n, c, i, j]`` to output pixel ``(s i - p + d k, s j - p + d l)``.
    """

    __prepare_scriptable__ = as_scriptable

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Like torch's; ``output_size`` settles which of the possible output sizes it is."""
        if self.padding_mode != "zeros" or not computes(self, torch.nn.ConvTranspose2d, input):
            more = () if output_size is None else (output_size,)
            return forward_as_torch(self, torch.nn.ConvTranspose2d, input, *more)
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
