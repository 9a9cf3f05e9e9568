"""Cases of reparam_kl."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from genimg.testing import Case, Tensors, normal


def make(*shape: int, spread: float = 1.0) -> Callable[[torch.Generator], Tensors]:
    return lambda g: {"mu": normal(g, *shape), "logvar": normal(g, *shape, std=spread)}


def call(op: Callable[..., tuple[Tensor, Tensor]], t: Tensors) -> tuple[Tensor, Tensor]:
    return op(t["mu"], t["logvar"])


def _extremes(generator: torch.Generator) -> Tensors:
    logvar = torch.linspace(-60, 60, 77, dtype=torch.float64).expand(2, 77).contiguous()
    return {"mu": normal(generator, 2, 77), "logvar": logvar}


def _tiny_logvar(generator: torch.Generator) -> Tensors:
    return {"mu": torch.zeros(5, 16).double(), "logvar": normal(generator, 5, 16, std=1.0) * 1e-4}


def _float16_range(generator: torch.Generator) -> Tensors:
    return {"mu": normal(generator, 3, 8) * 1e4, "logvar": normal(generator, 3, 8, mean=11.0)}


ALL = ("mu", "logvar")


CASES = (
    Case("one_element", "one sample of one latent", make(1, 1), call, ALL),
    Case("primes", "rows that are no multiple of four words", make(7, 13), call, ALL),
    Case("feature_map", "latents of four dimensions", make(3, 2, 5, 3), call, ALL),
    Case("sliced", "every second latent, NaN between", make(6, 10), call, ALL, layout="sliced"),
    Case("expanded", "stride 0 over the batch", make(6, 10), call, ALL, layout="expanded"),
    Case("extreme_logvar", "-60 to 60: clamped, finite, no gradient outside", _extremes, call, ALL),
    Case("tiny_logvar", "1 + lv - exp(lv) would cancel", _tiny_logvar, call, ALL),
    Case("float16_range", "mu^2 and exp(logvar) overflow float16", _float16_range, call, ALL),
    Case(
        "mean_only",
        "sample=False: z is mu",
        make(5, 9),
        lambda op, t: op(t["mu"], t["logvar"], sample=False),
        ALL,
    ),
    Case("empty_batch", "no sample", make(0, 8), call, ALL),
    Case("vae_step", "a batch of the VAE: 64x128", make(64, 128), call, ALL, speed=True),
    Case("large", "4096x128", make(4096, 128), call, ALL, speed=True),
)
