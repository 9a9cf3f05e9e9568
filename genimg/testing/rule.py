"""The one tolerance rule, and the comparison of a backend with PyTorch and with float64.

Against a float64 truth, on the same (rounded) inputs, a result passes if its largest error is
inside either of two bounds:

- ``factor`` times PyTorch's own error in the same dtype, plus one ulp of the truth's scale;
- ``factor`` times what the problem itself allows (:mod:`genimg.testing.rounding`), which no library
  and no CPU can change: for a convolution and its gradients ``PROBLEM_ULPS eps (|x| * |w| + |b|)``
  for each element, for every other op the deviation that rounding each operation causes.

``factor`` is :data:`ERROR_FACTOR`, and :data:`CONVOLUTION_ERROR_FACTOR` for ops whose kernels may
use Winograd forms. Kinks of the truth lie where the judged result has put them
(:mod:`genimg.testing.kinks`). Data of small integers, whose every partial sum is exact, leave no
room: there the result must equal the truth to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from genimg.testing.cases import Case, Tensors, prepare, run
from genimg.testing.kinks import RecordSides, TakeSides, assignments, kinks_of, same_sides
from genimg.testing.rounding import DRAWS, magnitudes, perturbed

ERROR_FACTOR = 2.0
"""How many times PyTorch's own error, or the problem's, a kernel's may be."""

CONVOLUTION_ERROR_FACTOR = 3.0
"""The same for ops whose kernels may add and subtract neighbours before they multiply.

The growth of F(3,2): the transforms of input and output sum at most three terms each.
"""

PROBLEM_ULPS = 1.0
"""Float32 ulps of ``|x| * |w| + |b|`` that summing in any order may cost an element."""


@dataclass(frozen=True)
class Error:
    """The largest error of one result, beside PyTorch's own, and the largest true value.

    ``allowed`` is what PyTorch's own error allows; ``bound`` what the problem does, at the element
    that uses most of it.
    """

    result: str
    error: float
    torch_error: float
    allowed: float
    scale: float
    note: str = ""
    bound: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether the rule holds; a NaN error does not pass."""
        return not self.note and (self.error <= self.allowed or self.error <= self.bound)

    @property
    def relative(self) -> tuple[float, float, float]:
        """Error, PyTorch's error, and the problem's bound as shares of the scale."""
        scale = self.scale or 1.0
        return self.error / scale, self.torch_error / scale, self.bound / scale

    @property
    def share(self) -> float:
        """How much of what the rule allows is used: above 1 it is broken."""
        if self.note:
            return float("inf")
        most = max(self.allowed, self.bound)
        return self.error / most if most else (0.0 if self.error == 0 else float("inf"))


def judge(
    name: str,
    got: Tensor,
    own: Tensor,
    truth: Tensor,
    exact: bool = False,
    factor: float = ERROR_FACTOR,
    own_truth: Tensor | None = None,
    bound: Tensor | None = None,
) -> Error:
    """Compare one result with the truth by the rule above.

    Args:
        name: of the result; gradients may hold other non-finite values than PyTorch's do.
        got: the backend's result.
        own: PyTorch's result in the same dtype.
        truth: the float64 result, whose kinks lie where ``got``'s do.
        exact: leave no room.
        factor: how many times PyTorch's own error is allowed.
        own_truth: the float64 result whose kinks lie where PyTorch's do; None is ``truth``.
        bound: the error that the problem allows each element.
    """
    nan = float("nan")
    for what, given, expected in (
        ("shape", got.shape, own.shape),
        ("dtype", got.dtype, own.dtype),
        ("device", got.device, own.device),
        ("strides", dense_strides(got), dense_strides(own)),
    ):
        if given != expected:
            note = f"{what} {given}, PyTorch gives {expected}"
            return Error(name, nan, nan, nan, nan, note)
    if not name.startswith("grad_"):
        same = (torch.isnan(got) == torch.isnan(own)) & (torch.isinf(got) == torch.isinf(own))
        if not same.all():
            note = f"{int((~same).sum())} NaN or Inf stand where PyTorch has none, or the reverse"
            return Error(name, nan, nan, nan, nan, note)
    truth = truth.to(got.device)
    own_truth = truth if own_truth is None else own_truth.to(got.device)
    finite = torch.isfinite(own) & torch.isfinite(truth) & torch.isfinite(own_truth)
    if not finite.any():
        return Error(name, 0.0, 0.0, 0.0, 0.0)
    reference = truth[finite]
    errors = (got[finite].double() - reference).abs()
    error = float(errors.max())
    torch_error = float((own[finite].double() - own_truth[finite]).abs().max())
    scale = float(reference.abs().max())
    ulp = torch.finfo(own.dtype).eps * scale
    allowed = 0.0 if exact else factor * torch_error + ulp
    most = 0.0 if bound is None else _at_the_worst(errors, bound.to(got.device)[finite])
    return Error(name, error, torch_error, allowed, scale, bound=most)


def _at_the_worst(errors: Tensor, bounds: Tensor) -> float:
    """The bound of all errors together, from that of the element that uses most of its own."""
    shares = torch.where(errors == 0, 0.0, errors / bounds)
    worst = float(shares.max())
    if worst == 0 or worst != worst:
        return float(bounds.max()) if worst == 0 else 0.0
    return float(errors.max()) / worst


def dense_strides(x: Tensor) -> tuple[int, ...]:
    """Strides of the dimensions that have more than one element; those of others mean nothing."""
    if x.numel() == 0:
        return ()
    return tuple(stride for stride, size in zip(x.stride(), x.shape, strict=True) if size > 1)


def compare(
    case: Case,
    op: Callable[..., Any],
    reference: Callable[..., Any],
    backend: str,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    factor: float = ERROR_FACTOR,
    bilinear: bool = False,
) -> list[Error]:
    """Run a case on a backend and judge every output, written state and gradient.

    ``bilinear``: the op is linear in its first input and in its weight, so that the problem's bound
    is known for each element.
    """
    tensors = prepare(case, dtype, device)
    wide = {name: x.double() for name, x in tensors.items()}
    own_sides, got_sides = RecordSides(), RecordSides()
    kinks: list[Any] = []
    with own_sides:
        own, grad_outputs = run(case, reference, tensors)
    with got_sides:
        got, _ = run(
            case,
            partial(op, backend=backend),
            tensors,
            grad_outputs,
            lambda outputs: kinks.append(kinks_of(outputs)),
        )

    def truth_of(sides: Sequence[Tensor] | None) -> Tensors:
        with TakeSides(sides) if sides else nullcontext():
            return run(case, reference, wide, grad_outputs)[0]

    own_truth = truth_of(own_sides.sides)
    likely: list[Error] | None = None
    for sides in [got_sides.sides] if kinks[0] is None else assignments(kinks[0]):
        truth = own_truth if same_sides(sides, own_sides.sides) else truth_of(sides)
        bounds: dict[str, Tensor] = {}
        if bilinear and not case.exact:
            sizes = magnitudes(case, reference, wide, grad_outputs)
            bounds = {name: factor * _rounding(truth[name], sizes[name], dtype) for name in truth}
        elif not case.exact:
            draws = 1 if case.speed else DRAWS
            moved = perturbed(partial(truth_of, sides), truth, dtype, draws)
            bounds = {name: factor * moved[name] for name in truth}
        errors = [
            judge(
                name,
                got[name],
                own[name],
                truth[name],
                case.exact,
                factor,
                own_truth[name],
                bounds.get(name),
            )
            for name in own
        ]
        likely = errors if likely is None else likely
        if all(error.ok or error.note for error in errors):
            return errors
    assert likely is not None
    return likely


def _rounding(truth: Tensor, size: Tensor, dtype: torch.dtype) -> Tensor:
    """The error that float32 sums, and storage in ``dtype``, may cause in each element."""
    summing = PROBLEM_ULPS * torch.finfo(torch.float32).eps * size
    return summing + torch.finfo(dtype).eps / 2 * truth.abs()
