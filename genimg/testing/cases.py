"""Named cases of an op: their data, how they are called, and what a call returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

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
    look: Callable[[tuple[Tensor, ...]], None] | None = None,
) -> tuple[Tensors, list[Tensor]]:
    """Run a case: its results, and the grad_outputs that its gradients were taken under.

    Results are outputs, written state, and the gradient of every ``case.grad``. ``grad_outputs``
    None draws some, neither 1 nor of mean 0. ``look`` sees the outputs while their graph exists.
    """
    leaves = {name: x.detach() for name, x in tensors.items()}
    for name in case.state:
        leaves[name] = leaves[name].clone()
    for name in case.grad:
        leaves[name].requires_grad_()
    outputs = seeded(case.call, op, leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    if look is not None:
        look(outputs)
    if grad_outputs is None:
        generator = torch.Generator().manual_seed(1)
        draw = integers if case.exact else normal
        grad_outputs = [draw(generator, *y.shape).to(y.device, y.dtype) for y in outputs]
    results = {f"y{i}" if len(outputs) > 1 else "y": y.detach() for i, y in enumerate(outputs)}
    results |= {name: leaves[name] for name in case.state}
    wanted = [leaves[name] for name in case.grad]
    pairs = [(y, g.to(y.dtype)) for y, g in zip(outputs, grad_outputs, strict=True)]
    used = [(y, g) for y, g in pairs if y.requires_grad]
    grads = torch.autograd.grad(
        [y for y, _ in used], wanted, [g for _, g in used], allow_unused=True
    )
    results |= {
        f"grad_{name}": torch.zeros_like(leaves[name]) if g is None else g
        for name, g in zip(case.grad, grads, strict=True)
    }
    return results, grad_outputs
