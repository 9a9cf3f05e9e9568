"""Folded weights: a resampling by whole factors beside a convolution, as one strided convolution.

Nearest upsampling by s repeats every pixel s times, and average pooling by s sums s pixels: along
an axis both are a convolution with a box of s ones. The box is folded into the weight, so that one
contraction with ``k + s - 1`` taps replaces the resampling and the convolution of k. For each
output pixel and axis, upsampling takes ``(k + s - 1) / s`` products instead of k, and pooling
``k + s - 1`` instead of ``s k``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from genimg import priors
from genimg.backends import REFERENCE, Impl, InvalidCall, Op, asked, dtype_name
from genimg.ops.contraction import convolution_work
from genimg.ops.convolution import autocast_dtype, memory_format_of
from genimg.ops.geometry import Geometry, Pair, pair
from genimg.reference.conv2d import IntOrPair
from genimg.work import Work

MAX_FACTOR = 8
"""PyTorch finds the pixel to repeat by a rounded product with 1 / s, which is exact up to here.

It is not for 41 and above, in float32.
"""


@dataclass(frozen=True)
class Fold:
    """The strided convolution that equals a convolution and its resampling.

    Attributes:
        transposed: whether it is a transposed one, which upsamples.
        kernel: its taps in height and width.
        stride: the factors of the resampling.
        padding: its own.
    """

    transposed: bool
    kernel: Pair
    stride: Pair
    padding: Pair

    def geometry(self) -> Geometry:
        """Its options."""
        return Geometry(self.transposed, self.stride, self.padding, 0, 1, 1)

    def out_size(self, shape: Sequence[int]) -> Pair:
        """Height and width of its output."""
        taps: Any = WeightShape(torch.Size((1, 1, *self.kernel)), torch.float32, False)
        return self.geometry().out_size(shape, taps)

    def weight(self, weight: Tensor, x: Tensor) -> Tensor:
        """The folded weight of a call whose input is ``x``."""
        if not self.transposed:
            return fold_avg_pool(weight, self.stride)
        return fold_upsample(weight, self.stride, memory_format_of(x, weight))

    def call(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Any, ...]:
        """The arguments of the convolution's op, for its questions: the weight has no values."""
        channels = weight.shape[:2]
        shape = (*(channels[::-1] if self.transposed else channels), *self.kernel)
        folded = WeightShape(torch.Size(shape), autocast_dtype(weight, x), weight.requires_grad)
        options = (0, 1, 1) if self.transposed else (1, 1)
        return (x, folded, bias, self.stride, self.padding, *options)


@dataclass(frozen=True)
class WeightShape:
    """A weight that is not computed yet, as the rules of a convolution look at it."""

    shape: torch.Size
    dtype: torch.dtype
    requires_grad: bool

    def numel(self) -> int:
        """The number of its elements."""
        return self.shape.numel()


def fold_upsample(weight: Tensor, scale: Pair, layout: torch.memory_format) -> Tensor:
    r"""Weight of the transposed convolution that equals nearest upsampling, then a convolution.

    .. math:: W_{c,o,q} = \sum_{j=0}^{s-1} w_{o,c,\,k - 1 - q + j}

    along each axis. Its stride is s and its padding k - 1 - p, where p is the convolution's.

    Args:
        weight: ``[Co, Ci, KH, KW]``.
        scale: factors of height and width.
        layout: the memory format of the result and of the gradient.

    Returns:
        ``[Ci, Co, KH + sh - 1, KW + sw - 1]`` in ``weight``'s dtype, differentiable; summed in
        float32 at least.
    """
    folded = _with_box(weight.flip(2, 3), scale).to(weight.dtype)
    # The gradient of a transposition is a transposed view; that of a flattened tensor is a copy.
    if layout == torch.channels_last:
        pixels = folded.permute(0, 2, 3, 1)
        folded = pixels.flatten(1).unflatten(1, pixels.shape[1:]).permute(0, 3, 1, 2)
    else:
        folded = folded.flatten(0, 1).unflatten(0, folded.shape[:2])
    return folded.transpose(0, 1).contiguous(memory_format=layout)


def fold_avg_pool(weight: Tensor, size: Pair) -> Tensor:
    r"""Weight of the strided convolution that equals a convolution, then average pooling.

    .. math:: W_{o,c,q} = \frac{1}{s} \sum_{j=0}^{s-1} w_{o,c,\,q - j}

    along each axis. Its stride is s, its padding the convolution's.

    Args:
        weight: ``[Co, Ci, KH, KW]``.
        size: window and stride of the pooling, in height and width.

    Returns:
        ``[Co, Ci, KH + sh - 1, KW + sw - 1]`` in the dtype and memory format of ``weight``,
        differentiable; summed in float32 at least.
    """
    return (_with_box(weight, size) / (size[0] * size[1])).to(weight.dtype)


def _with_box(weight: Tensor, size: Pair) -> Tensor:
    """Full convolution with a box of ones; in float32 for narrower dtypes, to round once."""
    if weight.dtype in (torch.float16, torch.bfloat16):
        weight = weight.float()
    for count, rest in zip(size, ((0, 0), ()), strict=True):
        shifted = [F.pad(weight, (*rest, j, count - 1 - j)) for j in range(count)]
        weight = sum(shifted[1:], shifted[0])
    return weight


def find_fold(
    transposed: bool,
    shape: Sequence[int],
    weight: Tensor,
    factors: Pair,
    padding: IntOrPair | str,
) -> Fold | str:
    """The fold of a convolution of stride 1, or why there is none.

    Args:
        transposed: whether upsampling comes before; else average pooling comes behind.
        shape: of the input, ``[N, C, H, W]`` or ``[C, H, W]``.
        weight: of the convolution.
        factors: of the resampling, in height and width.
        padding: of the convolution.
    """
    kernel = (weight.shape[2], weight.shape[3])
    reason = refuse_fold(transposed, kernel, factors, padding)
    if reason is not None:
        return reason
    if not weight.is_floating_point():
        return f"dtype is {dtype_name(weight.dtype)}; a folded kernel supports floats"
    pad = same_or_pair(kernel, padding)
    if transposed:
        pad = (kernel[0] - 1 - pad[0], kernel[1] - 1 - pad[1])
    taps = (kernel[0] + factors[0] - 1, kernel[1] + factors[1] - 1)
    fold = Fold(transposed, taps, factors, pad)
    if min(*fold.out_size(shape), *shape[-3:]) < 1:
        return InvalidCall(f"an input of {tuple(shape)} leaves no output")
    return fold


def refuse_fold(
    transposed: bool, kernel: Pair, factors: Pair, padding: IntOrPair | str
) -> str | None:
    """Why a convolution of stride 1 and a resampling have no fold, whatever the input."""
    if not 1 <= min(factors) <= max(factors) <= MAX_FACTOR:
        what = "scale_factor" if transposed else "kernel_size"
        return f"{what} is {factors}; a folded kernel supports 1 to {MAX_FACTOR}"
    if isinstance(padding, str):
        if padding not in ("same", "valid"):
            return InvalidCall(f"a padding of {padding!r} is invalid")
        if padding == "same" and not (kernel[0] % 2 and kernel[1] % 2):
            return f"padding is 'same', the kernel {kernel}; a folded kernel supports odd ones"
    pad = same_or_pair(kernel, padding)
    if min(pad) < 0:
        return InvalidCall(f"a padding of {padding} is invalid")
    if transposed and (pad[0] >= kernel[0] or pad[1] >= kernel[1]):
        return f"padding is {padding}, the kernel {kernel}; a folded kernel supports less padding"
    return None


def same_or_pair(kernel: Pair, padding: IntOrPair | str) -> Pair:
    """The padding in numbers; ``"same"`` is that of an odd kernel."""
    if isinstance(padding, str):
        half = ((kernel[0] - 1) // 2, (kernel[1] - 1) // 2)
        return half if padding == "same" else (0, 0)
    return pair(padding)


def is_worth_folding(fold: Fold, x: Tensor, weight: Tensor, name: str, backend: str | None) -> bool:
    """Whether a call folds: always with a kernel, or a backend that is named.

    Args:
        fold: the call's.
        x: its input.
        weight: its weight.
        name: the backend that was selected.
        backend: the call's own argument.
    """
    if name != REFERENCE or asked(backend) not in (None, "auto"):
        return True
    return is_gain(folding_gain(fold, x.device, x.shape, weight))


def is_gain(gain: int) -> bool:
    """Whether folding gains; an exported graph, which is for every size, folds."""
    return not priors.is_below(gain, 0)


def folding_gain(fold: Fold, device: torch.device, shape: Sequence[int], weight: Tensor) -> int:
    """Multiplications of the unfolded convolution, about, above those that pay for folding."""
    pixels = shape[-2] * shape[-1]
    if fold.transposed:
        pixels *= fold.stride[0] * fold.stride[1]
    images = shape[0] if len(shape) == 4 else 1
    return images * pixels * weight.numel() - folding_cost(device, weight)


def folding_cost(device: torch.device, weight: Tensor) -> int:
    """The multiplications from which on folding a weight pays: a prior, not measured here."""
    return priors.of_folding(device.type, weight.numel())


def folded_work(
    mode: str, grad: Sequence[str], x: Tensor, weight: Tensor, fold: Fold | str
) -> list[Work]:
    """:attr:`genimg.backends.Op.work` of a folded op; the folding itself does not count.

    Raises:
        ValueError: there is no fold.
    """
    if isinstance(fold, str):
        raise ValueError(f"PyTorch's two ops run: {fold}")
    _, folded, *_ = fold.call(x, weight, None)
    return convolution_work(mode, grad, x, folded, fold.geometry())


def folded_impls(op: Op, fold_of: Callable[..., Fold | str]) -> tuple[Impl, ...]:
    """The kernels of a folded op: those of the convolution ``op``, with its questions.

    ``fold_of`` takes the folded op's arguments.
    """

    def of(impl: Impl) -> Impl:
        def ask(question: Callable[..., str | None]) -> Callable[..., str | None]:
            def why(*args: Any) -> str | None:
                fold = fold_of(*args)
                if isinstance(fold, str):
                    return fold
                x, weight, bias = args[:3]
                return question(*fold.call(x, weight, bias))

            return why

        return Impl(
            impl.backend,
            impl.devices,
            impl.fwd,
            impl.bwd,
            ask(impl.refuse),
            ask(impl.why_slower),
            dtypes=impl.dtypes,
            missing=impl.missing,
        )

    return tuple(map(of, op.impls))
