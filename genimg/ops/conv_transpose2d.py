"""Transposed convolution."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from genimg import _native, reference
from genimg.backends import REFERENCE, Op, choose
from genimg.cases.conv_transpose2d import CASES
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


def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrPair = 1,
    padding: IntOrPair = 0,
    output_padding: IntOrPair = 0,
    groups: int = 1,
    dilation: IntOrPair = 1,
    *,
    backend: str | None = None,
) -> Tensor:
    r"""2-D transposed convolution: a drop-in for :func:`torch.nn.functional.conv_transpose2d`.

    .. math:: y_{n,o,\,s i - p + d k,\,s j - p + d l} \mathrel{+}= w_{c,o,k,l}\; x_{n,c,i,j},
              \qquad y_{n,o,\cdot,\cdot} \mathrel{+}= b_o

    It is the adjoint of :func:`genimg.ops.conv2d` in its input: its forward is the contraction
    dgrad, its input gradient fprop, its weight gradient wgrad.

    Args:
        input: ``[N, Ci, H, W]`` or ``[Ci, H, W]``, any strides, any floating dtype.
        weight: ``[Ci, Co / groups, KH, KW]``.
        bias: ``[Co]`` or None.
        stride, padding, output_padding, groups, dilation: as torch's.
        backend: see :func:`genimg.backends.choose`.

    Returns:
        ``[N, Co, (H - 1) s - 2p + d (KH - 1) + output_padding + 1, ...]`` in ``input``'s memory
        format.

    Kept for backward: ``input`` and ``weight``. Autocast: the lower precision, as torch's.

    Raises:
        TypeError: as torch's, for arguments of other types.
        RuntimeError: shapes, devices or dtypes do not fit; stricter than torch where torch computes
            garbage (a weight on another device) or casts silently (a bias of another dtype).
        BackendError: the named backend does not support the call.

    Source: Dumoulin, Visin, "A guide to convolution arithmetic for deep learning", 2016, section 4.
    """
    args = (input, weight, bias, stride, padding, output_padding, groups, dilation)
    sizes = (stride, padding, output_padding, groups, dilation)
    if goes_to_torch((input, weight), (bias,), sizes):
        return reference.conv_transpose2d(*args)
    check_convolution("conv_transpose2d", input, weight, bias, groups, transposed=True)
    input, weight, bias = autocast(input, weight, bias)  # type: ignore[assignment]
    args = (input, weight, bias, *args[3:])
    name = choose(CONV_TRANSPOSE2D, backend, *args)
    if name == REFERENCE:
        return reference.conv_transpose2d(*args)
    options = (pair(stride), pair(padding), pair(output_padding), 1, pair(dilation))
    return ConvolutionFunction.apply(input, weight, bias, "conv_transpose2d", name, options)


def _cpp_fwd(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair,
    padding: Pair,
    output_padding: Pair,
    groups: int,
    dilation: Pair,
) -> Tensor:
    return torch.ops.genimg.conv_transpose2d_fwd(x, weight, bias, stride, padding, output_padding)


def _cpp_bwd(
    grad_y: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: Pair,
    padding: Pair,
    output_padding: Pair,
    groups: int,
    dilation: Pair,
    needs_x: bool,
    needs_weight: bool,
) -> tuple[Tensor, Tensor]:
    return torch.ops.genimg.conv_transpose2d_bwd(
        grad_y, x, weight, stride, padding, output_padding, needs_x, needs_weight
    )


if _native.available():

    @torch.library.register_fake("genimg::conv_transpose2d_fwd")
    def _(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: list[int],
        padding: list[int],
        output_padding: list[int],
    ) -> Tensor:
        geometry = _geometry(tuple(stride), tuple(padding), tuple(output_padding), 1, 1)
        size = geometry.out_size(x.shape, weight)
        return empty_output(x, weight, (x.shape[0], weight.shape[1], *size))

    @torch.library.register_fake("genimg::conv_transpose2d_bwd")
    def _(
        grad_y: Tensor,
        x: Tensor,
        weight: Tensor,
        stride: list[int],
        padding: list[int],
        output_padding: list[int],
        needs_x: bool,
        needs_weight: bool,
    ) -> tuple[Tensor, Tensor]:
        return fake_grads(grad_y, x, weight, needs_x, needs_weight)


def _geometry(
    stride: IntOrPair,
    padding: IntOrPair,
    output_padding: IntOrPair,
    groups: int,
    dilation: IntOrPair,
) -> Geometry:
    return Geometry(True, stride, padding, output_padding, groups, dilation)


def _work(
    mode: str,
    grad: Sequence[str],
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrPair = 1,
    padding: IntOrPair = 0,
    output_padding: IntOrPair = 0,
    groups: int = 1,
    dilation: IntOrPair = 1,
) -> list[Work]:
    geometry = _geometry(stride, padding, output_padding, groups, dilation)
    return convolution_work(mode, grad, input, weight, geometry)


CONV_TRANSPOSE2D = Op(
    "conv_transpose2d",
    conv_transpose2d,
    reference.conv_transpose2d,
    CASES,
    impls=conv_impls(_geometry, _cpp_fwd, _cpp_bwd),
    work=_work,
    error_factor=CONVOLUTION_ERROR_FACTOR,
    bilinear=True,
)
