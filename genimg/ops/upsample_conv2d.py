"""Nearest upsampling and a convolution of stride 1, as one transposed convolution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from genimg import reference
from genimg.backends import Op, choose
from genimg.cases.upsample_conv2d import CASES
from genimg.ops.checks import check_convolution, goes_to_torch
from genimg.ops.conv_transpose2d import CONV_TRANSPOSE2D, conv_transpose2d
from genimg.ops.convolution import autocast
from genimg.ops.fold import Fold, find_fold, folded_impls, folded_work, is_worth_folding
from genimg.ops.geometry import Pair, pair
from genimg.reference.conv2d import IntOrPair
from genimg.reference.upsample_conv2d import Factors
from genimg.testing import CONVOLUTION_ERROR_FACTOR
from genimg.work import Work

MODES = ("nearest", "nearest-exact")
"""The modes of interpolation that repeat pixels; for whole factors they are the same."""


def upsample_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    scale_factor: Factors = 2,
    size: IntOrPair | None = None,
    mode: str = "nearest",
    padding: IntOrPair | str = "same",
    backend: str | None = None,
) -> Tensor:
    r"""Nearest upsampling by whole factors, then a convolution of stride 1, in one contraction.

    .. math:: y_{n,o,i,j} = b_o + \sum_{c,k,l} w_{o,c,k,l}\;
              x_{n,c,\lfloor (i + k - p) / s \rfloor, \lfloor (j + l - p) / s \rfloor}

    where a pixel outside the upsampled image is 0. It equals
    ``conv2d(interpolate(input, size, scale_factor, mode), weight, bias, padding=padding)`` up to
    rounding, and is computed as :func:`genimg.ops.conv_transpose2d` with a folded weight of
    ``K + s - 1`` taps along an axis, stride s and padding ``K - 1 - p``: a 3x3 kernel behind a
    factor of 2 takes 4 products for each output pixel and input channel instead of 9.

    A tap of the folded weight is a sum of taps, rounded once. Where such taps are finite and an
    input pixel is infinite, the output is infinite, where PyTorch's two ops give NaN if the taps
    differ in sign.

    PyTorch's two ops run instead where there is no fold: factors that are not whole or above 8,
    padding of the kernel's size or more, ``"same"`` with an even kernel. So they do where auto
    finds no faster kernel and the call is so small that folding the weight costs more.

    Args:
        input: ``[N, Ci, H, W]`` or ``[Ci, H, W]``, any strides, any floating dtype.
        weight: ``[Co, Ci, KH, KW]``.
        bias: ``[Co]`` or None.
        scale_factor: how often a pixel is repeated, for both axes or for each.
        size: the upsampled height and width, in place of ``scale_factor``.
        mode: ``"nearest"`` or ``"nearest-exact"``, which differ where a factor is not whole.
        padding: of the convolution.
        backend: see :func:`genimg.backends.choose`. ``"reference"`` is PyTorch's transposed
            convolution of the folded weight.

    Returns:
        ``[N, Co, s H + 2p - KH + 1, ...]`` in ``input``'s memory format.

    Kept for backward: ``input`` and the folded weight, so that ``input`` must not be edited before
    it, as PyTorch's upsampling would allow. Autocast: the lower precision,
    as torch's convolutions; the weight is folded before it is cast.

    Raises:
        TypeError, AttributeError: as torch's, for arguments of other types.
        ValueError: another mode.
        RuntimeError: shapes, devices or dtypes do not fit, as in :func:`genimg.ops.conv2d`.
        BackendError: the named backend does not support the call.

    Source: the phases of a transposed convolution: Dumoulin, Visin, "A guide to convolution
    arithmetic for deep learning", 2016, section 4; resize-convolution: Odena, Dumoulin, Olah,
    "Deconvolution and Checkerboard Artifacts", 2016.
    """
    options: dict[str, Any] = {
        "scale_factor": scale_factor,
        "size": size,
        "mode": mode,
        "padding": padding,
    }
    pad = 0 if isinstance(padding, str) else padding
    if isinstance(mode, str) and mode not in MODES:
        raise ValueError(f"upsample_conv2d: mode is {mode!r}; supported are {' and '.join(MODES)}")
    sizes = (pad, 1 if size is None else size)
    if goes_to_torch((input, weight), (bias,), sizes) or not isinstance(mode, str):
        return reference.upsample_conv2d(input, weight, bias, **options)
    check_convolution("upsample_conv2d", input, weight, bias, 1, transposed=False)
    input, bias = autocast(input, bias)  # type: ignore[assignment]
    name = choose(UPSAMPLE_CONV2D, backend, input, weight, bias, *options.values())
    fold = _fold_of(input, weight, bias, *options.values())
    if isinstance(fold, str) or not is_worth_folding(fold, input, weight, name, backend):
        return reference.upsample_conv2d(input, weight, bias, **options)
    folded = fold.weight(weight, input)
    return conv_transpose2d(input, folded, bias, fold.stride, fold.padding, backend=name)


def _fold_of(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale_factor: Factors,
    size: IntOrPair | None,
    mode: str,
    padding: IntOrPair | str,
) -> Fold | str:
    factors = whole_factors(x.shape, scale_factor, size)
    if isinstance(factors, str):
        return factors
    return find_fold(True, x.shape, weight, factors, padding)


def whole_factors(
    shape: Sequence[int], scale_factor: Factors, size: IntOrPair | None
) -> Pair | str:
    """How often rows and columns of an image are repeated, or why they are not."""
    if size is not None:
        height, width = pair(size)
        if min(shape[-2:]) < 1 or height % shape[-2] or width % shape[-1]:
            return f"size is {size}; a folded kernel supports multiples of {tuple(shape[-2:])}"
        return height // shape[-2], width // shape[-1]
    both = scale_factor if isinstance(scale_factor, (tuple, list)) else (scale_factor,) * 2
    if len(both) != 2 or not all(type(each) in (int, float) and each == each // 1 for each in both):
        return f"scale_factor is {scale_factor}; a folded kernel supports whole numbers"
    return int(both[0]), int(both[1])


def _work(
    mode: str,
    grad: Sequence[str],
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    **options: Any,
) -> list[Work]:
    given = {"scale_factor": 2, "size": None, "mode": "nearest", "padding": "same", **options}
    fold = _fold_of(input, weight, bias, **given)
    return folded_work(mode, grad, input, weight, fold)


UPSAMPLE_CONV2D = Op(
    "upsample_conv2d",
    upsample_conv2d,
    reference.upsample_conv2d,
    CASES,
    impls=folded_impls(CONV_TRANSPOSE2D, _fold_of),
    work=_work,
    error_factor=CONVOLUTION_ERROR_FACTOR,
    bilinear=True,
    composed=True,
)
