"""Providers and their timing, for ``genimg bench``, the demo and ``benchmarks/``.

A provider is a way to run a case: genimg (the backend that auto selects, or one by name), PyTorch
as a user would write it (eager), the same in channels_last, and both through ``torch.compile``.
Timing interleaves the providers, so that a slow phase of the machine affects all of them, and
reports medians.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from genimg import tuning
from genimg.backends import OPS, Op
from genimg.check import listed, reason, selected, told, worst
from genimg.testing import Case, Error, Tensors, prepare
from genimg.timing import interleaved_medians


def eager_function(op: Op) -> Callable[..., Any]:
    """The op as a PyTorch user would write it: the reference, but for reparam_kl's noise."""
    return eager_reparam_kl if op.name == "reparam_kl" else op.reference


def eager_reparam_kl(
    mu: Tensor,
    logvar: Tensor,
    *,
    generator: torch.Generator | None = None,
    sample: bool = True,
) -> tuple[Tensor, Tensor]:
    """The textbook's lines, with torch's own noise."""
    kl = -0.5 * (1 + logvar - mu.pow(2) - logvar.exp()).flatten(1).sum(1)
    if not sample:
        return mu, kl
    eps = torch.randn(mu.shape, generator=generator, dtype=mu.dtype, device=mu.device)
    return mu + torch.exp(0.5 * logvar) * eps, kl


@dataclass(frozen=True)
class Failure:
    """A case without times: its result is wrong, or it ended in an exception.

    ``error`` is None after an exception.
    """

    op: str
    case: str
    backend: str
    reason: str
    error: Error | None = None

    def __str__(self) -> str:
        return f"{self.op} {self.case} on {self.backend}: {self.reason}"


@dataclass(frozen=True)
class Timing:
    """Median milliseconds of a case, by provider, and the error of genimg's result."""

    op: str
    case: str
    backend: str
    milliseconds: dict[str, float]
    error: Error

    @property
    def ratio(self) -> float:
        """How many times faster genimg is than the best of the others."""
        others = [ms for name, ms in self.milliseconds.items() if name != "genimg"]
        return min(others) / self.milliseconds["genimg"]


def _to_channels_last(tensors: Tensors) -> Tensors:
    return {
        name: x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
        for name, x in tensors.items()
    }


def step(
    case: Case, function: Callable[..., Any], tensors: Tensors, backward: bool = True
) -> Callable[[], Any]:
    """A closure that runs a case once, forward or forward and backward."""
    leaves = {name: x.detach() for name, x in tensors.items()}
    if not backward:

        def forward() -> Any:
            with torch.no_grad():
                return case.call(function, leaves)

        return forward
    for name in case.grad:
        leaves[name].requires_grad_()
    wanted = [leaves[name] for name in case.grad]
    outputs = case.call(function, leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    grad_outputs = [torch.rand_like(y) for y in outputs]

    def forward_backward() -> Any:
        outputs = case.call(function, leaves)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return torch.autograd.grad(outputs, wanted, grad_outputs)

    return forward_backward


PROVIDERS = ("genimg", "eager", "eager_channels_last", "compile", "compile_channels_last")


def make_step(
    op: Op,
    case: Case,
    provider: str,
    dtype: torch.dtype,
    device: str,
    mode: str = "forward_backward",
) -> Callable[[], Any]:
    """The closure to time.

    Args:
        op, case, dtype, device: what is run.
        provider: one of :data:`PROVIDERS`, ``genimg_channels_last``, or a backend's name, with or
            without ``_channels_last``.
        mode: ``forward``, ``forward_backward``, or ``<input>_gradient`` for that gradient alone.
    """
    tensors = prepare(case, dtype, device)
    eager = eager_function(op)
    if provider.endswith("channels_last"):
        tensors = _to_channels_last(tensors)
    if provider.startswith("genimg"):
        function = op.function
    elif provider.startswith("eager"):
        function = eager
    elif provider.startswith("compile"):
        function = torch.compile(eager)
    else:
        function = partial(op.function, backend=provider.removesuffix("_channels_last"))
    if mode.endswith("_gradient"):
        return gradient_step(case, function, tensors, mode.removesuffix("_gradient"))
    return step(case, function, tensors, mode == "forward_backward")


def gradient_step(
    case: Case, function: Callable[..., Any], tensors: Tensors, name: str
) -> Callable[[], Any]:
    """A closure that takes the gradient of one input, of a forward that ran before."""
    leaves = {key: x.detach() for key, x in tensors.items()}
    leaves[name].requires_grad_()
    y = case.call(function, leaves)
    grad = torch.rand_like(y)
    return lambda: torch.autograd.grad(y, leaves[name], grad, retain_graph=True)


def measure(
    op: Op,
    case: Case,
    providers: Iterable[str] = ("genimg", "eager"),
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    backward: bool = True,
    seconds: float = 1.0,
) -> Timing | Failure:
    """Check a case, then time it; a wrong result has no speed, and is not timed.

    What auto selects is decided by measurement before, as :func:`genimg.tune` decides it.
    """
    backend, doing = "-", "choosing a backend"
    try:
        grad = case.grad if backward else ()
        tuning.decide(partial(selected, op, case, dtype, device, grad))
        backend = selected(op, case, dtype, device, grad)
        doing = "the check"
        judged = worst(op.compare(case, backend, dtype, device))
        if not judged.ok:
            return Failure(op.name, case.name, backend, told(judged), judged)
        mode = "forward_backward" if backward else "forward"
        steps = {}
        for doing in providers:
            steps[doing] = make_step(op, case, doing, dtype, device, mode)
            tuning.decide(steps[doing])  # compiles, so that what cannot be compiled is named
        doing = "the timing"
        with tuning.current().still():
            milliseconds = interleaved_medians(steps, device, seconds)
    except Exception as error:  # one case, whatever happens in it, must not cost the others
        return Failure(op.name, case.name, backend, f"{doing} ended in {reason(error)}")
    return Timing(op.name, case.name, backend, milliseconds, judged)


def report(cases: Iterable[tuple[Op, Case]], say: Callable[[str], None], **how: Any) -> int:
    """Measure cases, say a row for each as it is done, and at the end what failed.

    Args:
        cases: as :func:`timed_cases` gives them.
        say: is told each line.
        how: for :func:`measure`.

    Returns:
        How many failed.
    """
    say(HEADER)
    failures = []
    rows = 0
    for op, case in cases:
        result = measure(op, case, **how)
        say(row(result))
        rows += 1
        if isinstance(result, Failure):
            failures.append(result)
    if failures:
        say("")
        for failure in failures:
            say(f"FAILED: {failure}")
        say(
            f"{len(failures)} of {rows} cases failed; to report them, attach this table and the "
            "output of `genimg info --json`"
        )
    return len(failures)


def timed_cases(ops: Iterable[str] | str | None = None) -> list[tuple[Op, Case]]:
    """The cases worth timing.

    Raises:
        ValueError: an unknown op.
    """
    names = list(OPS) if ops is None else listed(ops)
    unknown = [name for name in names if name not in OPS]
    if unknown:
        raise ValueError(f"unknown op {unknown[0]!r}; there are {', '.join(OPS)}")
    return [(OPS[name], case) for name in names for case in OPS[name].cases if case.speed]


HEADER = (
    f"{'op':<17}{'case':<21}{'backend':<11}{'genimg':>10}{'PyTorch':>12}{'faster':>9}"
    f"{'error':>10}{'PyTorch':>10}{'bound':>10}"
)


def row(result: Timing | Failure) -> str:
    """Op, case, backend selected, times, ratio, relative error beside PyTorch's and the bound."""
    where = f"{result.op:<17}{result.case:<21}{result.backend:<11}"
    if isinstance(result, Failure):
        blank = f"{'-':>10}{'-':>12}"
        if result.error is None:
            return f"{where}{blank}{'FAILED':>9}{'-':>10}{'-':>10}{'-':>10}"
        return f"{where}{blank}{'WRONG':>9}{_figures(result.error)}"
    others = {n: ms for n, ms in result.milliseconds.items() if n != "genimg"}
    return (
        f"{where}{result.milliseconds['genimg']:>7.2f} ms{min(others.values()):>9.2f} ms"
        f"{result.ratio:>8.2f}x{_figures(result.error)}"
    )


def _figures(error: Error) -> str:
    return "".join(f"{share:>10.1e}" for share in error.relative)
