"""Strided convolution."""

from __future__ import annotations

from torch import Tensor

from genimg import reference
from genimg.backends import Op, choose
from genimg.ops.checks import check_convolution
from genimg.reference.conv2d import CASES, IntOrPair


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
        RuntimeError: shapes, devices or dtypes do not fit; stricter than torch where torch computes
            garbage (a weight on another device) or casts silently (a bias of another dtype).
        BackendError: the named backend cannot serve the call.

    Source: Dumoulin, Visin, "A guide to convolution arithmetic for deep learning", 2016, section 2.
    """
    check_convolution("conv2d", input, weight, bias, groups, transposed=False)
    choose(CONV2D, backend, input, weight, bias, stride, padding, dilation, groups)
    return reference.conv2d(input, weight, bias, stride, padding, dilation, groups)


CONV2D = Op("conv2d", conv2d, reference.conv2d, CASES)
