"""Times of things that compute the same, beside each other."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

_ROUNDS = 5


def synchronize(device: str) -> None:
    """Wait for the device, where it works by itself."""
    if device == "cuda":
        torch.cuda.synchronize()


def interleaved_medians(
    steps: dict[str, Callable[[], Any]], device: str, seconds: float
) -> dict[str, float]:
    """Median milliseconds of each step over rounds that run every step in turn.

    A slow phase of the machine thereby affects all of them. At least five rounds, then as many as
    fit in ``seconds``.
    """
    samples: dict[str, list[float]] = {name: [] for name in steps}
    for run in steps.values():  # warm: allocator, caches, compilation
        run()
        run()
    deadline = time.perf_counter() + seconds
    rounds = 0
    while rounds < _ROUNDS or time.perf_counter() < deadline:
        for name, run in steps.items():
            synchronize(device)
            start = time.perf_counter()
            run()
            synchronize(device)
            samples[name].append(time.perf_counter() - start)
        rounds += 1
    return {name: statistics.median(times) * 1e3 for name, times in samples.items()}
