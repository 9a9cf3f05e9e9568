"""Transposed convolution."""

from __future__ import annotations

from torch import Tensor

from genimg import reference
from genimg.backends import Op, choose
from genimg.ops.checks import check_convolution
from genimg.reference.conv2d import IntOrPair
from genimg.reference.conv_transpose2d import CASES


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
        RuntimeError: shapes, devices or dtypes do not fit; stricter than torch where torch computes
            garbage (a weight on another device) or casts silently (a bias of another dtype).
        BackendError: the named backend cannot serve the call.

    Source: Dumoulin, Visin, "A guide to convolution arithmetic for deep learning", 2016, section 4.
    """
    check_convolution("conv_transpose2d", input, weight, bias, groups, transposed=True)
    choose(
        CONV_TRANSPOSE2D,
        backend,
        input,
        weight,
        bias,
        stride,
        padding,
        output_padding,
        groups,
        dilation,
    )
    return reference.conv_transpose2d(
        input, weight, bias, stride, padding, output_padding, groups, dilation
    )


CONV_TRANSPOSE2D = Op("conv_transpose2d", conv_transpose2d, reference.conv_transpose2d, CASES)
