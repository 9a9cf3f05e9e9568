"""Drop-in LeakyReLU."""

import torch
from torch import Tensor

from genimg import ops
from genimg.nn.drop_in import as_scriptable, computes, forward_as_torch


class LeakyReLU(torch.nn.LeakyReLU):
    """:class:`torch.nn.LeakyReLU` over :func:`genimg.ops.leaky_relu`.

    Same signature, state and repr; ``y = x if x > 0 else negative_slope x``, any shape.
    """

    __prepare_scriptable__ = as_scriptable

    def forward(self, input: Tensor) -> Tensor:
        """Like torch's."""
        if not computes(self, torch.nn.LeakyReLU, input):
            return forward_as_torch(self, torch.nn.LeakyReLU, input)
        return ops.leaky_relu(input, self.negative_slope, self.inplace)
