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


def output_padding_of(
    module: torch.nn.ConvTranspose2d, x: Tensor, output_size: list[int] | None
) -> tuple[int, ...]:
    """The output padding of a call that asks for an output of this size, None for the layer's."""
    padding = module._output_padding(
        x,
        output_size,
        module.stride,  # type: ignore[arg-type]
        module.padding,  # type: ignore[arg-type]
        module.kernel_size,  # type: ignore[arg-type]
        2,
        module.dilation,  # type: ignore[arg-type]
    )
    return tuple(padding)


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
        return ops.conv_transpose2d(
            input,
            self.weight,
            self.bias,
            self.stride,
            self.padding,  # type: ignore[arg-type]
            output_padding_of(self, input, output_size),
            self.groups,
            self.dilation,
        )
