"""Shared by every ``bench_<op>.py``: checks the result, warms up, times a provider."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import roofline
import torch
from layers import LAYERS

from genimg import tuning
from genimg.backends import OPS, BackendError, Op
from genimg.bench import PROVIDERS, make_step
from genimg.check import devices, selected, told, worst
from genimg.testing import Case, Error, prepare
from genimg.timing import synchronize
from genimg.work import Work

WRONG = "WRONG:"
"""How the reason begins why a result that breaks the tolerance rule has no time."""

DEVICE = devices()[0]
DTYPE = torch.bfloat16 if DEVICE == "cuda" else torch.float32
GENIMG = ("genimg", "genimg_channels_last")
LONE = ("genimg", "genimg_channels_last", "eager", "eager_channels_last")
"""The modes that time a lone convolution's gradients: torch.compile calls eager's kernels."""


def parametrize(op: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Every case worth timing x pass x provider, a kernel by its backend's name included."""
    entry = OPS[op]
    rows = [
        pytest.param(entry, case, provider, mode, id=f"{case.name}-{mode}-{provider}")
        for case, modes in _cases(entry)
        for mode in modes
        for provider in _providers(entry, mode)
    ]
    return pytest.mark.parametrize(("op", "case", "provider", "mode"), rows)


def _cases(op: Op) -> list[tuple[Case, tuple[str, ...]]]:
    rows = [(case, ("forward", "forward_backward")) for case in op.cases if case.speed]
    for case in LAYERS.get(op.name, ()):
        lone = op.name != "conv_stack"
        modes = ("forward", "x_gradient", "weight_gradient") if lone else rows[0][1]
        rows.append((case, modes))
    return rows


def _providers(op: Op, mode: str) -> tuple[str, ...]:
    convolves = "conv" in op.name
    both = convolves or op.name == "batch_norm_act"
    # On the CPU a convolution's only kernel is what genimg takes.
    kernels = () if convolves and DEVICE == "cpu" else tuple(op.by_backend)
    if both and DEVICE != "cpu":
        kernels += tuple(f"{kernel}_channels_last" for kernel in kernels)
    if mode.endswith("_gradient"):
        return (*LONE, *kernels)
    return (*PROVIDERS, *(GENIMG[1:] if both else ()), *kernels)


@cache
def check(op: Op, case: Case, backend: str) -> Error:
    """The worst error of a case; a wrong result has no speed."""
    return worst(op.compare(case, backend, DTYPE, DEVICE))


@cache
def machine() -> roofline.Machine:
    """The speed of this machine, measured once."""
    return roofline.measure(DEVICE, DTYPE)


@cache
def bound_of(op: Op, case: Case, mode: str) -> dict[str, float]:
    """The least milliseconds of a case, and a convolution's operations."""
    found: list[list[Work]] = []

    def record(*args: Any, **kwargs: Any) -> Any:
        found.append(op.work(mode, case.grad, *args, **kwargs))
        return op.reference(*args, **kwargs)

    case.call(record, prepare(case, DTYPE, DEVICE))
    (kernels,) = found
    bound = {"bound_ms": roofline.bound(kernels, machine()) * 1e3}
    if "conv" in op.name:
        bound["flop"] = sum(kernel.operations for kernel in kernels)
    return bound


def time_provider(benchmark: Any, op: Op, case: Case, provider: str, mode: str) -> None:
    """Time one provider of one case; genimg's must be right first.

    conftest.py puts the reason of one that is wrong, or that fails otherwise, into the results.
    """
    benchmark.group = f"{op.name} {case.name} {mode}"
    describe(benchmark, op.name, case.name, mode, provider, provider)
    kernel = provider.removesuffix("_channels_last")
    backend = kernel
    if provider in GENIMG:
        one = (mode.removesuffix("_gradient"),)
        grad = {"forward": (), "forward_backward": case.grad}.get(mode, one)
        tuning.decide(lambda: selected(op, case, DTYPE, DEVICE, grad))
        backend = selected(op, case, DTYPE, DEVICE, grad)
    if backend in ("reference", *op.by_backend):
        try:
            error = check(op, case, backend)
        except BackendError as refusal:
            pytest.skip(str(refusal))
        if not error.ok:
            pytest.fail(f"{WRONG} {told(error)}", pytrace=False)
        benchmark.extra_info.update(
            error=error.error, torch_error=error.torch_error, error_bound=error.bound
        )
    benchmark.extra_info.update(bound_of(op, case, mode), backend=backend)
    torch._dynamo.reset()
    time_step(benchmark, make_step(op, case, provider, DTYPE, DEVICE, mode))


def describe(benchmark: Any, op: str, case: str, mode: str, provider: str, backend: str) -> None:
    """Describes a timing in the results file."""
    benchmark.extra_info.update(
        op=op,
        case=case,
        mode=mode,
        provider=provider,
        backend=backend,
        dtype=str(DTYPE).removeprefix("torch."),
        device=torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu",
        torch=torch.__version__,
        threads=torch.get_num_threads(),
    )


def time_step(benchmark: Any, run: Callable[[], Any], rounds: int = 15) -> None:
    """Median over rounds, warm and synchronised, after all that it chooses has been decided."""
    tuning.decide(run)

    def timed() -> None:
        run()
        synchronize(DEVICE)

    with tuning.current().still():
        benchmark.pedantic(timed, rounds=rounds, warmup_rounds=3)
