"""Gives the float64 truth the same sides at kinks as the judged result.

A LeakyReLU's derivative jumps at 0. Behind a convolution, one pre-activation in a million is so
near 0 that rounding decides its side, and the gradient then jumps by a thousand times the rounding
error, in genimg or in PyTorch. So the truth takes the sides of the result that it is compared with.
:class:`RecordSides` records PyTorch's sides while it runs; a kernel's follow from the tensors that
it keeps for backward (:func:`kinks_of`); :class:`TakeSides` imposes them on the reference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

_ACTIVATIONS: tuple[Callable[..., Any], ...] = (F.leaky_relu, F.relu, torch.relu)

MOST_OPEN = 3
"""Open sites that are tried on either side."""


@dataclass(frozen=True)
class Kink:
    """An activation whose sides a kernel has decided.

    Attributes:
        sides: for each way to round the pre-activation, where it is above 0. A kernel takes one way
            for all of its activations.
        open: where a way of rounding that is not among them could take the other side.
    """

    sides: tuple[Tensor, ...]
    open: Tensor


def exact_kink(y: Tensor) -> Kink:
    """The kink of a kernel that keeps the activation itself, whose sign is the pre-activation's."""
    return Kink((y > 0,), torch.zeros_like(y, dtype=torch.bool))


def affine_kink(
    x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor | None, bias: Tensor | None
) -> Kink:
    """The kink behind a batch norm, ``z = weight rstd (x - mean) + bias`` per channel.

    Kernels evaluate it in float32 as ``(x - mean) a + bias`` or as ``x a + b``, each with or
    without fused multiply-add. In float64 the product of two float32 numbers is exact, so that
    the sum has the sign of the fused one.
    """

    def of_channels(values: Tensor) -> Tensor:
        return values.detach().float().view(1, -1, *[1] * (x.dim() - 2))

    x, centre, a = x.detach().float(), of_channels(mean), of_channels(rstd)
    if weight is not None:
        a = a * of_channels(weight)
    shift = torch.zeros_like(a) if bias is None else of_channels(bias)
    centred = x - centre
    ways = [centred.double() * a.double() + shift.double(), centred * a + shift]
    for b in (shift - centre * a, (shift.double() - centre.double() * a.double()).float()):
        ways += [x.double() * a.double() + b.double(), x * a + b]
    size = (x.abs() + centre.abs()) * a.abs() + shift.abs()
    return Kink(
        tuple(z > 0 for z in ways),
        ways[0].abs() <= 4 * torch.finfo(torch.float32).eps * size,
    )


def kinks_of(outputs: Sequence[Tensor]) -> list[Kink] | None:
    """The kinks that a kernel's autograd node remembers, or None if it has no such method.

    The method is the ``autograd.Function``'s static ``kinks(ctx, y)``, in the order in which the
    reference calls its activations.
    """
    node = outputs[0].grad_fn
    function = getattr(type(node), "_forward_cls", None)
    kinks = getattr(function, "kinks", None)
    return None if kinks is None else kinks(node, outputs[0].detach())


def assignments(kinks: Sequence[Kink]) -> Iterator[list[Tensor]]:
    """Sides of every kink: each way of rounding, then the first with open sites flipped."""
    if not kinks:
        yield []
        return
    tried: list[list[Tensor]] = []
    for way in range(max(len(kink.sides) for kink in kinks)):
        sides = [kink.sides[min(way, len(kink.sides) - 1)] for kink in kinks]
        if not any(same_sides(sides, other) for other in tried):
            tried.append(sides)
            yield sides
    places = [kink.open.nonzero() for kink in kinks]
    sites = [(i, tuple(place)) for i, found in enumerate(places) for place in found.tolist()]
    if len(sites) > MOST_OPEN:
        return
    for flips in list(product((False, True), repeat=len(sites)))[1:]:
        flipped = [side.clone() for side in tried[0]]
        for (i, place), flip in zip(sites, flips, strict=True):
            flipped[i][place] ^= flip
        yield flipped


def same_sides(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    """Whether two assignments agree at every kink."""
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


class RecordSides(TorchFunctionMode):
    """Keeps the side of every element that PyTorch's activations see, call by call."""

    def __init__(self) -> None:
        super().__init__()
        self.sides: list[Tensor] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in _ACTIVATIONS:
            self.sides.append(args[0].detach() > 0)
        return func(*args, **(kwargs or {}))


class TakeSides(TorchFunctionMode):
    """Has PyTorch's activations take the given sides, call by call, whatever the sign."""

    def __init__(self, sides: Sequence[Tensor]) -> None:
        super().__init__()
        self.sides = list(sides)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        y = func(*args, **(kwargs or {}))
        if func not in _ACTIVATIONS or not self.sides:
            return y
        z, side = args[0], self.sides.pop(0)
        flips = (side != (z > 0)) & z.isfinite()
        if not flips.any():
            return y
        slope = _slope(func, args, kwargs or {})
        return torch.where(flips, torch.where(side, z, z * slope), y)


def _slope(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
    if func is not F.leaky_relu:
        return 0.0
    return float(args[1] if len(args) > 1 else kwargs.get("negative_slope", 0.01))
