"""The stochastic layer of a VAE."""

import torch
from torch import Tensor
from torch.fx import Proxy

from genimg import ops
from genimg.nn.drop_in import call_module, is_inside


class ReparamKL(torch.nn.Module):
    """Sample ``z ~ N(mu, exp(logvar))`` and give the KL divergence from N(0, 1) with it.

    See :func:`genimg.ops.reparam_kl`. In eval mode ``z`` is ``mu``.
    """

    def forward(
        self,
        mu: Tensor,
        logvar: Tensor,
        *,
        generator: torch.Generator | None = None,
        sample: bool | None = None,
    ) -> tuple[Tensor, Tensor]:
        """``mu`` and ``logvar`` ``[N, ...]`` to ``z`` like ``mu`` and KL ``[N]``.

        ``sample`` None follows the module's mode.
        """
        if isinstance(mu, Proxy) and is_inside(self, mu):
            return call_module(self, mu, logvar, generator=generator, sample=sample)
        sample = self.training if sample is None else sample
        return ops.reparam_kl(mu, logvar, generator=generator, sample=sample)
