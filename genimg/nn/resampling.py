"""Upsampling and pooling layers beside a convolution: which fold into its weight, and into what."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from genimg.backends import asked
from genimg.nn.weights import is_parametrized_class
from genimg.ops.fold import (
    Fold,
    find_fold,
    folding_gain,
    is_gain,
    refuse_fold,
)
from genimg.ops.geometry import Geometry, Pair, pair
from genimg.ops.upsample_conv2d import MODES, whole_factors

UPSAMPLES = (torch.nn.Upsample, torch.nn.UpsamplingNearest2d)
POOLS = (torch.nn.AvgPool2d,)


def refuse_upsample(upsample: torch.nn.Module, conv: torch.nn.Module) -> str | None:
    """Why an Upsample does not fold into the Conv2d behind it, whatever the input."""
    assert isinstance(upsample, torch.nn.Upsample)
    if upsample.mode not in MODES or upsample.align_corners is not None:
        return f"mode is {upsample.mode!r}; a fold supports {' and '.join(MODES)}"
    factors: Pair | str | None = None
    if upsample.size is None:
        factors = whole_factors((), upsample.scale_factor, None)  # type: ignore[arg-type]
    return _refuse(True, factors, conv)


def refuse_pool(conv: torch.nn.Module, pool: torch.nn.Module) -> str | None:
    """Why an AvgPool2d does not fold into the Conv2d before it, whatever the input."""
    assert isinstance(pool, torch.nn.AvgPool2d)
    window = pair(pool.kernel_size)
    if pair(pool.stride) != window:
        return f"the pooling's stride is {pool.stride}; a fold supports its window's {window}"
    if pair(pool.padding) != (0, 0):
        return f"the pooling's padding is {pool.padding}; a fold supports 0"
    if pool.ceil_mode:
        return "the pooling's ceil_mode is on; a fold supports whole windows"
    if pool.divisor_override is not None:
        return f"divisor_override is {pool.divisor_override}; a fold supports None"
    return _refuse(False, window, conv)


def _refuse(transposed: bool, factors: Pair | str | None, conv: torch.nn.Module) -> str | None:
    assert isinstance(conv, torch.nn.Conv2d)
    if isinstance(factors, str):
        return factors
    for option in ("stride", "dilation"):
        if getattr(conv, option) != (1, 1):
            return f"the convolution's {option} is {getattr(conv, option)}; a fold supports 1"
    if conv.groups != 1:
        return f"the convolution's groups is {conv.groups}; a fold supports 1"
    kernel = (conv.weight.shape[2], conv.weight.shape[3])
    if kernel == (1, 1) or factors == (1, 1):
        return f"the kernel is {kernel}, the factor {factors}; a fold saves no products"
    return refuse_fold(transposed, kernel, factors or (1, 1), conv.padding)


def find_folds(
    x: Tensor,
    layers: Sequence[tuple[torch.nn.Module | None, torch.nn.Module, torch.nn.Module | None]],
) -> list[Fold | None] | None:
    """The folds of a run of convolutions on ``x``; None where the run is better left unfolded.

    It is for images that are no batch, which an Upsample takes for a batch of rows, for sizes
    without a fold, and where folding the weights costs more than it saves.

    Args:
        x: the input of the run.
        layers: upsampling or None, convolution, pooling or None.
    """
    if all(upsample is None and pool is None for upsample, _, pool in layers):
        return [None] * len(layers)
    if not isinstance(x, Tensor) or x.dim() != 4 or not x.is_floating_point():
        return None
    folds: list[Fold | None] = []
    shape: Sequence[int] = x.shape
    gain = 0
    for upsample, conv, pool in layers:
        assert isinstance(conv, (torch.nn.Conv2d, torch.nn.ConvTranspose2d))
        fold = None
        if upsample is not None or pool is not None:
            fold = _fold_of(shape, upsample, conv, pool)
            if fold is None:
                return None
            gain += folding_gain(fold, x.device, shape, conv.weight)
        size = _out_size(conv, shape) if fold is None else fold.out_size(shape)
        folds.append(fold)
        shape = (shape[0], conv.out_channels, *size)
    named = asked(None) not in (None, "auto")
    return folds if named or is_gain(gain) else None


def _fold_of(
    shape: Sequence[int],
    upsample: torch.nn.Module | None,
    conv: torch.nn.Conv2d | torch.nn.ConvTranspose2d,
    pool: torch.nn.Module | None,
) -> Fold | None:
    if isinstance(upsample, torch.nn.Upsample):
        factors = whole_factors(shape, upsample.scale_factor, upsample.size)  # type: ignore[arg-type]
    else:
        assert isinstance(pool, torch.nn.AvgPool2d)
        factors = pair(pool.kernel_size)
    if isinstance(factors, str):
        return None
    found = find_fold(upsample is not None, shape, conv.weight, factors, conv.padding)
    return None if isinstance(found, str) else found


def _out_size(
    conv: torch.nn.Conv2d | torch.nn.ConvTranspose2d, shape: Sequence[int]
) -> Sequence[int]:
    if not is_parametrized_class(type(conv)):
        return _geometry(conv).out_size(shape, conv.weight)
    # To read a parametrized weight is to compute it, which is done once in a forward.
    weight = torch.empty((1, 1, *conv.kernel_size), device="meta")
    return _geometry(conv).out_size(shape, weight)


def _geometry(conv: torch.nn.Conv2d | torch.nn.ConvTranspose2d) -> Geometry:
    transposed = isinstance(conv, torch.nn.ConvTranspose2d)
    more = conv.output_padding if transposed else 0
    return Geometry(transposed, conv.stride, conv.padding, more, conv.groups, conv.dilation)
