"""How a kernel is judged: named cases, one tolerance rule, one comparison.

Tests, benchmarks and ``genimg check`` all come through here, so that they agree on what is right.

The rule: against a float64 truth, on the same (rounded) inputs, a backend's largest error may be at
most :data:`ERROR_FACTOR` times PyTorch's own in the same dtype, plus one ulp of the truth's scale.
Convolutions may use forms of fewer multiplications: :data:`CONVOLUTION_ERROR_FACTOR` is theirs.
Data of small integers, whose every partial sum is exact, leave no room at all: there the result
must equal the truth to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

ERROR_FACTOR = 2.0
"""How many times PyTorch's own error a kernel's may be."""

CONVOLUTION_ERROR_FACTOR = 3.0
"""The same, for ops whose kernels may add and subtract neighbours before they multiply."""

SEEDS = 5
"""Draws of the data that decide where the first one breaks the rule."""

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """A named call of an op, and the reason why it is there.

    Attributes:
        name: identifies it in test ids and tables.
        why: what it would catch.
        tensors: makes the inputs in float64 on the CPU, ``x`` (or whatever comes first) the one
            that ``layout`` is applied to. They are rounded to the dtype under test.
        call: ``call(op, tensors)`` runs the op.
        grad: the inputs that gradients are taken for.
        state: the inputs that the op writes to (running statistics), compared after the call.
        keep: the inputs that stay float32 where the dtype under test is a half one.
        layout: ``contiguous``, ``channels_last``, ``sliced``, ``expanded`` or ``offset``.
        exact: the data are small integers, so that results must equal float64 to the bit.
        speed: worth timing.
        slow: takes gigabytes or many seconds.
    """

    name: str
    why: str
    tensors: Callable[[torch.Generator], Tensors]
    call: Callable[[Callable[..., Any], Tensors], Any]
    grad: tuple[str, ...] = ("x",)
    state: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    layout: str = "contiguous"
    exact: bool = False
    speed: bool = False
    slow: bool = False


@dataclass(frozen=True)
class Error:
    """The largest error of one result, beside PyTorch's own, and the largest true value."""

    result: str
    error: float
    torch_error: float
    allowed: float
    scale: float
    note: str = ""

    @property
    def ok(self) -> bool:
        """Whether the rule holds; a NaN error does not pass."""
        return not self.note and self.error <= self.allowed

    @property
    def relative(self) -> tuple[float, float]:
        """Error and PyTorch's error as shares of the scale."""
        scale = self.scale or 1.0
        return self.error / scale, self.torch_error / scale


def normal(generator: torch.Generator, *shape: int, mean: float = 0.5, std: float = 2.0) -> Tensor:
    """Normal data with mean not 0 and variance not 1: N(0, 1) hides wrong BN gradients."""
    draw = torch.randn(shape, generator=generator, dtype=torch.float64, device=generator.device)
    return draw * std + mean


def integers(generator: torch.Generator, *shape: int, limit: int = 3) -> Tensor:
    """Integers in [-limit, limit]: their products and sums are exact in every float dtype."""
    drawn = torch.randint(-limit, limit + 1, shape, generator=generator, device=generator.device)
    return drawn.double()


def place(x: Tensor, layout: str) -> Tensor:
    """``x``'s values in memory as ``layout`` says."""
    if layout == "contiguous":
        return x.contiguous()
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "sliced":  # every second channel of a wider tensor, NaN between
        wide = x.new_full((x.shape[0], 2 * x.shape[1], *x.shape[2:]), float("nan"))
        wide[:, ::2] = x
        return wide[:, ::2]
    if layout == "expanded":  # one image for the whole batch, stride 0
        return x[:1].expand_as(x)
    if layout == "offset":  # one element past an aligned address
        flat = x.new_full((x.numel() + 1,), float("nan"))
        flat[1:] = x.flatten()
        return flat[1:].view(x.shape)
    raise ValueError(f"unknown layout {layout!r}")


def prepare(case: Case, dtype: torch.dtype, device: str | torch.device, seed: int = 0) -> Tensors:
    """The case's inputs, rounded to ``dtype``, on ``device``, laid out as the case says."""
    made = case.tensors(torch.Generator().manual_seed(seed))
    half = dtype in (torch.float16, torch.bfloat16)
    tensors = {
        name: x.to(device, torch.float32 if half and name in case.keep else dtype)
        for name, x in made.items()
    }
    first = next(iter(tensors))
    tensors[first] = place(tensors[first], case.layout)
    return tensors


def seeded(function: Callable[..., Any], *args: Any) -> Any:
    """Call with torch's generators at a fixed seed, and leave them as they were."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return function(*args)


def run(
    case: Case,
    op: Callable[..., Any],
    tensors: Tensors,
    grad_outputs: list[Tensor] | None = None,
) -> tuple[Tensors, list[Tensor]]:
    """Run a case: its results, and the grad_outputs that its gradients were taken under.

    Results are outputs, written state, and the gradient of every ``case.grad``. ``grad_outputs``
    None draws some, neither 1 nor of mean 0.
    """
    leaves = {name: x.detach() for name, x in tensors.items()}
    for name in case.state:
        leaves[name] = leaves[name].clone()
    for name in case.grad:
        leaves[name].requires_grad_()
    outputs = seeded(case.call, op, leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    if grad_outputs is None:
        generator = torch.Generator().manual_seed(1)
        draw = integers if case.exact else normal
        grad_outputs = [draw(generator, *y.shape).to(y.device, y.dtype) for y in outputs]
    results = {f"y{i}" if len(outputs) > 1 else "y": y.detach() for i, y in enumerate(outputs)}
    results |= {name: leaves[name] for name in case.state}
    wanted = [leaves[name] for name in case.grad]
    grads = torch.autograd.grad(
        outputs, wanted, [g.to(y.dtype) for g, y in zip(grad_outputs, outputs, strict=True)]
    )
    results |= {f"grad_{name}": g for name, g in zip(case.grad, grads, strict=True)}
    return results, grad_outputs


def judge(
    name: str,
    got: Tensor,
    own: Tensor,
    truth: Tensor,
    exact: bool = False,
    factor: float = ERROR_FACTOR,
) -> Error:
    """Compare one result with the truth by the rule above.

    Args:
        name: of the result; gradients may hold other non-finite values than PyTorch's do.
        got: the backend's result.
        own: PyTorch's result in the same dtype.
        truth: the float64 result.
        exact: leave no room.
        factor: how many times PyTorch's own error is allowed.
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
    finite = torch.isfinite(own) & torch.isfinite(truth)
    if not finite.any():
        return Error(name, 0.0, 0.0, 0.0, 0.0)
    reference = truth[finite]
    error = float((got[finite].double() - reference).abs().max())
    torch_error = float((own[finite].double() - reference).abs().max())
    scale = float(reference.abs().max())
    ulp = torch.finfo(own.dtype).eps * scale
    allowed = 0.0 if exact else factor * torch_error + ulp
    return Error(name, error, torch_error, allowed, scale)


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
) -> list[Error]:
    """Run a case on a backend and judge every output, written state and gradient.

    PyTorch's own error is a random number, for a result of few values now and then a very small
    one; and behind a ReLU an error is large wherever rounding has changed a sign. A result that
    breaks the rule is therefore judged once more, by the medians over :data:`SEEDS` draws of the
    data: what luck did goes under in them, a fault does not.
    """

    def errors(seed: int) -> list[Error]:
        tensors = prepare(case, dtype, device, seed)
        wide = {name: x.double() for name, x in tensors.items()}
        own, grad_outputs = run(case, reference, tensors)
        got, _ = run(case, partial(op, backend=backend), tensors, grad_outputs)
        truth, _ = run(case, reference, wide, grad_outputs)
        return [judge(name, got[name], own[name], truth[name], case.exact, factor) for name in own]

    first = errors(0)
    if case.exact or all(error.ok or error.note for error in first):
        return first
    draws = [first, *(errors(seed) for seed in range(1, SEEDS))]
    return [_median(same) for same in zip(*draws, strict=True)]


def _median(draws: tuple[Error, ...]) -> Error:
    def median(values: Iterable[float]) -> float:
        return sorted(values)[len(draws) // 2]

    return Error(
        draws[0].result,
        median(e.error for e in draws),
        median(e.torch_error for e in draws),
        median(e.allowed for e in draws),
        median(e.scale for e in draws),
        next((e.note for e in draws if e.note), ""),
    )
