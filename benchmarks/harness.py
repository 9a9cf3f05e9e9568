"""What every ``bench_<op>.py`` does: check the result, warm up, time a provider."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from genimg.backends import OPS, BackendError, Op
from genimg.bench import PROVIDERS, make_step, synchronize
from genimg.check import devices, taken, worst
from genimg.testing import Case, compare

DEVICE = devices()[0]
DTYPE = torch.bfloat16 if DEVICE == "cuda" else torch.float32
PASSES = {"forward": False, "forward_backward": True}


def parametrize(op: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Every case worth timing x pass x provider, a kernel by its backend's name included."""
    entry = OPS[op]
    rows = [
        pytest.param(entry, case, provider, backward, id=f"{case.name}-{name}-{provider}")
        for case in entry.cases
        if case.speed
        for name, backward in PASSES.items()
        for provider in (*PROVIDERS, *entry.by_backend)
    ]
    return pytest.mark.parametrize(("op", "case", "provider", "backward"), rows)


def time_provider(benchmark: Any, op: Op, case: Case, provider: str, backward: bool) -> None:
    """Time one provider of one case; genimg's must be right first."""
    name = "forward_backward" if backward else "forward"
    benchmark.group = f"{op.name} {case.name} {name}"
    backend = provider
    if provider == "genimg":
        backend = taken(op, case, DTYPE, DEVICE)
    if backend in ("reference", *op.by_backend):
        try:
            error = worst(
                compare(case, op.function, op.reference, backend, DTYPE, DEVICE, op.error_factor)
            )
        except BackendError as refusal:
            pytest.skip(str(refusal))
        assert error.ok, error
        benchmark.extra_info.update(error=error.error, torch_error=error.torch_error)
    benchmark.extra_info.update(
        op=op.name,
        case=case.name,
        mode=name,
        provider=provider,
        backend=backend,
        dtype=str(DTYPE).removeprefix("torch."),
        device=torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu",
        torch=torch.__version__,
        threads=torch.get_num_threads(),
    )
    torch._dynamo.reset()
    run = make_step(op, case, provider, DTYPE, DEVICE, backward)

    def timed() -> None:
        run()
        synchronize(DEVICE)

    benchmark.pedantic(timed, rounds=15, warmup_rounds=3)
