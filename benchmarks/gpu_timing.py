"""Times on a GPU: replays of a captured graph, between two events, with a cold L2 cache.

Both sides are timed alike, so that what the events and the replay cost falls on both. Where nothing
can be captured, the launches are timed as they are, and the sample says so. On the CPU, where the
runner is only tried out, it is a wall clock.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

_FLUSHED = 256 * 2**20  # bytes, twice any L2 cache and more
_SAMPLES = 20
_MOST = 200


@dataclass(frozen=True)
class Sample:
    """Percentiles in microseconds, of how many runs, and whether a graph was replayed."""

    p20: float
    p50: float
    p80: float
    runs: int
    graph: bool

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def sample(run: Callable[[], Any], device: str, seconds: float, graph: bool = True) -> Sample:
    """Time a closure.

    Args:
        run: what is timed; called before, to warm up.
        device: ``cuda`` or ``cpu``.
        seconds: how long to go on, after at least 20 runs.
        graph: capture it first, if that is possible.
    """
    if device == "cpu":
        return _percentiles(_wall_clock(run, seconds), False)
    stream = torch.cuda.current_stream()
    if stream == torch.cuda.default_stream():  # where nothing can be captured
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.default_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
        torch.cuda.synchronize()
        captured = _capture(run, stream) if graph else None
        times = _events(captured.replay if captured else run, seconds)
    torch.cuda.synchronize()
    return _percentiles(times, captured is not None)


def _capture(run: Callable[[], Any], stream: torch.cuda.Stream) -> torch.cuda.CUDAGraph | None:
    captured = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(captured, stream=stream):
            run()
    except RuntimeError:  # it waits for the host, or draws from a generator that is not registered
        torch.cuda.synchronize()
        return None
    return captured


def _events(run: Callable[[], Any], seconds: float) -> list[float]:
    flushed = torch.empty(_FLUSHED, dtype=torch.uint8, device="cuda")
    pairs = []
    deadline = time.perf_counter() + seconds
    while len(pairs) < _SAMPLES or (time.perf_counter() < deadline and len(pairs) < _MOST):
        flushed.zero_()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        pairs.append((begin, end))
        if len(pairs) % _SAMPLES == 0:
            torch.cuda.synchronize()
    torch.cuda.synchronize()
    return [begin.elapsed_time(end) * 1e3 for begin, end in pairs]


def _wall_clock(run: Callable[[], Any], seconds: float) -> list[float]:
    run()
    times: list[float] = []
    deadline = time.perf_counter() + seconds
    while len(times) < 3 or (time.perf_counter() < deadline and len(times) < _MOST):
        begin = time.perf_counter()
        run()
        times.append((time.perf_counter() - begin) * 1e6)
    return times


def _percentiles(times: list[float], graph: bool) -> Sample:
    ordered = sorted(times)
    p20, p50, p80 = (ordered[round(q * (len(ordered) - 1))] for q in (0.2, 0.5, 0.8))
    return Sample(p20, p50, p80, len(ordered), graph)


def clocks() -> str:
    """The current clocks of multiprocessors and memory; empty on the CPU."""
    if not torch.cuda.is_available():
        return ""
    command = ["nvidia-smi", "--query-gpu=clocks.sm,clocks.mem", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def kernel_names(run: Callable[[], Any]) -> list[str]:
    """The GPU kernels that a closure launches, in order; none on the CPU."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    if not torch.cuda.is_available():
        return []
    run()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=activities) as profile:
        run()
        torch.cuda.synchronize()
    on_gpu = torch.autograd.DeviceType.CUDA
    events = [event for event in profile.events() if event.device_type == on_gpu]
    return [event.name for event in sorted(events, key=lambda event: event.time_range.start)]
