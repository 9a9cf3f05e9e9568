"""Strided convolution."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from genimg import _native, reference
from genimg.backends import REFERENCE, Op, choose
from genimg.cases.conv2d import CASES
from genimg.ops.checks import check_convolution, goes_to_torch
from genimg.ops.contraction import convolution_work
from genimg.ops.convolution import (
    ConvolutionFunction,
    autocast,
    conv_impls,
    empty_output,
    fake_grads,
)
from genimg.ops.geometry import Geometry, Pair, pair
from genimg.reference.conv2d import IntOrPair
from genimg.testing import CONVOLUTION_ERROR_FACTOR
from genimg.work import Work


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrPair = 1,
    padding: IntOrPair | str = 0,
    dilation: IntOrPair = 1,
    groups: int = 1,
    *,
    backend: str | None = None,
) -> Tensor:
    r"""2-D convolution: a drop-in for :func:`torch.nn.functional.conv2d`.

    .. math:: y_{n,o,i,j} = b_o + \sum_{c,k,l} w_{o,c,k,l}\; x_{n,c,\,s i - p + d k,\,s j - p + d l}

    Its forward is the contraction fprop, its input gradient dgrad, its weight gradient wgrad.

    Args:
        input: ``[N, Ci, H, W]`` or ``[Ci, H, W]``, any strides, any floating dtype.
        weight: ``[Co, Ci / groups, KH, KW]``.
        bias: ``[Co]`` or None.
        stride, padding, dilation, groups: as torch's.
        backend: see :func:`genimg.backends.choose`.

    Returns:
        ``[N, Co, (H + 2p - d (KH - 1) - 1) // s + 1, ...]`` in ``input``'s memory format.

    Kept for backward: ``input`` and ``weight``. Autocast: the lower precision, as torch's.

    Raises:
        TypeError: as torch's, for arguments of other types.
        RuntimeError: shapes, devices or dtypes do not fit; stricter than torch where torch computes
            garbage (a weight on another device) or casts silently (a bias of another dtype).
        BackendError: the named backend does not support the call.

    Source: Dumoulin, Visin, "A guide to convolution arithmetic for deep learning", 2016, section 2.
    """
    args = (input, weight, bias, stride, padding, dilation, groups)
    sizes = (stride, 0 if isinstance(padding, str) else padding, dilation, groups)
    if goes_to_torch((input, weight), (bias,), sizes):
        return reference.conv2d(*args)
    check_convolution("conv2d", input, weight, bias, groups, transposed=False)
    input, weight, bias = autocast(input, weight, bias)  # type: ignore[assignment]
    args = (input, weight, bias, *args[3:])
    name = choose(CONV2D, backend, *args)
    if name == REFERENCE:
        return reference.conv2d(*args)
    options = (pair(stride), pair(padding), pair(dilation))  # type: ignore[arg-type]
    return ConvolutionFunction.apply(input, weight, bias, "conv2d", name, options)


def _cpp_fwd(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair, dilation: Pair
) -> Tensor:
    return torch.ops.genimg.conv2d_fwd(x, weight, bias, stride, padding)


def _cpp_bwd(
    grad_y: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    needs_x: bool,
    needs_weight: bool,
) -> tuple[Tensor, Tensor]:
    return torch.ops.genimg.conv2d_bwd(grad_y, x, weight, stride, padding, needs_x, needs_weight)


if _native.available():

    @torch.library.register_fake("genimg::conv2d_fwd")
    def _(
        x: Tensor, weight: Tensor, bias: Tensor | None, stride: list[int], padding: list[int]
    ) -> Tensor:
        geometry = _geometry(tuple(stride), tuple(padding), 1)
        size = geometry.out_size(x.shape, weight)
        return empty_output(x, weight, (x.shape[0], weight.shape[0], *size))

    @torch.library.register_fake("genimg::conv2d_bwd")
    def _(
        grad_y: Tensor,
        x: Tensor,
        weight: Tensor,
        stride: list[int],
        padding: list[int],
        needs_x: bool,
        needs_weight: bool,
    ) -> tuple[Tensor, Tensor]:
        return fake_grads(grad_y, x, weight, needs_x, needs_weight)


def _geometry(
    stride: IntOrPair, padding: IntOrPair | str, dilation: IntOrPair, groups: int = 1
) -> Geometry:
    return Geometry(False, stride, padding, 0, groups, dilation)


def _work(
    mode: str,
    grad: Sequence[str],
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrPair = 1,
    padding: IntOrPair | str = 0,
    dilation: IntOrPair = 1,
    groups: int = 1,
) -> list[Work]:
    geometry = _geometry(stride, padding, dilation, groups)
    return convolution_work(mode, grad, input, weight, geometry)


CONV2D = Op(
    "conv2d",
    conv2d,
    reference.conv2d,
    CASES,
    impls=conv_impls(_geometry, _cpp_fwd, _cpp_bwd),
    work=_work,
    error_factor=CONVOLUTION_ERROR_FACTOR,
    bilinear=True,
)
