"""Drop-in LeakyReLU."""

from __future__ import annotations

import torch
from torch import Tensor

from genimg import ops


class LeakyReLU(torch.nn.LeakyReLU):
    """:class:`torch.nn.LeakyReLU` over :func:`genimg.ops.leaky_relu`.

    Same signature, state and repr; ``y = x if x > 0 else negative_slope x``, any shape.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Like torch's."""
        return ops.leaky_relu(input, self.negative_slope, self.inplace)
