"""The least time that a machine needs for the work of a kernel (:mod:`genimg.work`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch

from genimg.work import Work


@dataclass(frozen=True)
class Machine:
    """Operations a second in one dtype, and bytes a second, as measured."""

    operations: float
    bandwidth: float


def seconds(kernel: Work, machine: Machine) -> float:
    """The least time: the arithmetic's or the memory's, whichever is longer."""
    return max(kernel.operations / machine.operations, kernel.moved / machine.bandwidth)


def bound(kernels: Iterable[Work], machine: Machine) -> float:
    """Seconds of kernels that run one after the other."""
    return sum(seconds(kernel, machine) for kernel in kernels)


def measure(device: str, dtype: torch.dtype, copies: int = 10) -> Machine:
    """The machine's own rates: the best of several products of matrices, and of several copies."""
    gpu = device == "cuda"
    side, elements = (8192, 2**29) if gpu else (1024, 2**24)
    a = torch.randn(side, side, device=device).to(dtype)
    b, product = torch.randn_like(a), torch.empty_like(a)
    source = torch.zeros(elements, device=device, dtype=torch.uint8)
    target = torch.zeros_like(source)

    def best(run: Callable[[], Any]) -> float:
        times = []
        for _ in range(copies):
            if gpu:
                torch.cuda.synchronize()
            start = perf_counter()
            run()
            if gpu:
                torch.cuda.synchronize()
            times.append(perf_counter() - start)
        return min(times)

    return Machine(
        2.0 * side**3 / best(lambda: torch.mm(a, b, out=product)),
        2.0 * elements / best(lambda: target.copy_(source)),
    )
