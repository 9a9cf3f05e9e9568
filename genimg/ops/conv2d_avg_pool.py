"""A convolution of stride 1 and average pooling, as one strided convolution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from genimg import reference
from genimg.backends import Op, choose
from genimg.cases.conv2d_avg_pool import CASES
from genimg.ops.checks import check_convolution, goes_to_torch
from genimg.ops.conv2d import CONV2D, conv2d
from genimg.ops.convolution import autocast
from genimg.ops.fold import Fold, find_fold, folded_impls, folded_work, is_worth_folding
from genimg.ops.geometry import pair
from genimg.reference.conv2d import IntOrPair
from genimg.testing import CONVOLUTION_ERROR_FACTOR
from genimg.work import Work


def conv2d_avg_pool(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    kernel_size: IntOrPair = 2,
    padding: IntOrPair | str = "same",
    backend: str | None = None,
) -> Tensor:
    r"""Convolution of stride 1, then average pooling, in one contraction.

    .. math:: y_{n,o,i,j} = b_o + \frac{1}{s^2} \sum_{a,b=0}^{s-1} \sum_{c,k,l} w_{o,c,k,l}\;
              x_{n,c,\,s i + a - p + k,\,s j + b - p + l}

    It equals ``avg_pool2d(conv2d(input, weight, bias, padding=padding), kernel_size)`` up to
    rounding, and is computed as :func:`genimg.ops.conv2d` with a folded weight of ``K + s - 1``
    taps along an axis, stride s and the same padding: a 3x3 kernel before windows of 2x2 takes 16
    products for each output pixel and input channel instead of 36. Rows and columns that fill no
    window are left out.

    A tap of the folded weight is a sum of taps, rounded once. Where such taps are finite and an
    input pixel is infinite, the output is infinite, where PyTorch's two ops give NaN if the taps
    differ in sign.

    PyTorch's two ops run instead where there is no fold: windows above 8, ``"same"`` with an even
    kernel. So they do where auto finds no faster kernel and the call is so small that folding the
    weight costs more.

    Args:
        input: ``[N, Ci, H, W]`` or ``[Ci, H, W]``, any strides, any floating dtype.
        weight: ``[Co, Ci, KH, KW]``.
        bias: ``[Co]`` or None.
        kernel_size: the pooling's window and stride, for both axes or for each.
        padding: of the convolution; the pooling has none.
        backend: see :func:`genimg.backends.choose`. ``"reference"`` is PyTorch's convolution of the
            folded weight.

    Returns:
        ``[N, Co, (H + 2p - KH + 1) // s, ...]`` in ``input``'s memory format.

    Kept for backward: ``input`` and the folded weight. Autocast: the lower precision,
    as torch's convolutions; the weight is folded before it is cast.

    Raises:
        TypeError: as torch's, for arguments of other types.
        RuntimeError: shapes, devices or dtypes do not fit, as in :func:`genimg.ops.conv2d`.
        BackendError: the named backend does not support the call.

    Source: Dumoulin, Visin, "A guide to convolution arithmetic for deep learning", 2016, sections 2
    and 3: pooling by averages is a convolution with equal weights, and convolutions compose.
    """
    options: dict[str, Any] = {"kernel_size": kernel_size, "padding": padding}
    pad = 0 if isinstance(padding, str) else padding
    if goes_to_torch((input, weight), (bias,), (pad, kernel_size)):
        return reference.conv2d_avg_pool(input, weight, bias, **options)
    check_convolution("conv2d_avg_pool", input, weight, bias, 1, transposed=False)
    input, bias = autocast(input, bias)  # type: ignore[assignment]
    name = choose(CONV2D_AVG_POOL, backend, input, weight, bias, *options.values())
    fold = _fold_of(input, weight, bias, *options.values())
    if isinstance(fold, str) or not is_worth_folding(fold, input, weight, name, backend):
        return reference.conv2d_avg_pool(input, weight, bias, **options)
    folded = fold.weight(weight, input)
    return conv2d(input, folded, bias, fold.stride, fold.padding, backend=name)


def _fold_of(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    kernel_size: IntOrPair,
    padding: IntOrPair | str,
) -> Fold | str:
    return find_fold(False, x.shape, weight, pair(kernel_size), padding)


def _work(
    mode: str,
    grad: Sequence[str],
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    kernel_size: IntOrPair = 2,
    padding: IntOrPair | str = "same",
) -> list[Work]:
    fold = _fold_of(input, weight, bias, kernel_size, padding)
    return folded_work(mode, grad, input, weight, fold)


CONV2D_AVG_POOL = Op(
    "conv2d_avg_pool",
    conv2d_avg_pool,
    reference.conv2d_avg_pool,
    CASES,
    impls=folded_impls(CONV2D, _fold_of),
    work=_work,
    error_factor=CONVOLUTION_ERROR_FACTOR,
    bilinear=True,
    composed=True,
)
