"""The microseconds that a decided call costs beyond the kernel's op.

``python benchmarks/dispatch.py``. Tensors are tiny, so that the call is all there is. Each row's
calls compute the same: ``torch.ops.genimg`` on packed arguments, the op or layer that selects, and
PyTorch's. Medians of runs in turn, in CPU time of the one thread, which other programs do not
disturb much.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

import genimg
from genimg import tuning
from genimg.budget import Budget
from genimg.decisions import DecisionStore, Kind, fastest
from genimg.ops.conv_block import pack
from genimg.ops.conv_stack import CONV_STACK

CALLS, ROUNDS = 200, 30


def microseconds(calls: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Median time of each call."""
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            start = time.thread_time()
            for _ in range(CALLS):
                call()
            samples[name].append((time.thread_time() - start) / CALLS * 1e6)
    return {name: statistics.median(times) for name, times in samples.items()}


def decide_for_the_kernel(run: Callable[[], Any]) -> None:
    """Install a tuner for which the CPU kernel has won every call in ``run``."""
    tuner = tuning.Tuner(DecisionStore(None), Budget(), measures=False)
    tuning.install(tuner)
    with tuner.recording() as met:
        run()
    for call in met:
        times = {name: float(name != "cpu") for name in call.names}
        tuner.store.keep(call.device, {Kind(*call.kind): fastest(times)})
    tuner.forget()


def leaky_relu() -> dict[str, Callable[[], Any]]:
    x = torch.randn(8)
    decide_for_the_kernel(lambda: genimg.ops.leaky_relu(x, 0.2))
    return {
        "kernel's op": lambda: torch.ops.genimg.leaky_relu_fwd(x, 0.2),
        "genimg.ops": lambda: genimg.ops.leaky_relu(x, 0.2),
        "PyTorch": lambda: torch.nn.functional.leaky_relu(x, 0.2),
    }


def conv_stack() -> dict[str, Callable[[], Any]]:
    layers: list[torch.nn.Module] = []
    for _ in range(4):
        layers += [torch.nn.ConvTranspose2d(2, 2, 4, 2, 1, bias=False), torch.nn.BatchNorm2d(2)]
        layers += [torch.nn.LeakyReLU(0.2)]
    model = torch.nn.Sequential(*layers, torch.nn.ConvTranspose2d(2, 2, 4, 2, 1), torch.nn.Tanh())
    genimg.convert(model.eval())
    x = torch.randn(1, 2, 1, 1)
    seen: list[Any] = []
    before = CONV_STACK.parts
    object.__setattr__(CONV_STACK, "parts", lambda *args: seen.append(args) or before(*args))
    decide_for_the_kernel(lambda: model(x))
    object.__setattr__(CONV_STACK, "parts", before)
    _, blocks, training = seen[0]
    packed = pack(blocks, training).pack()
    plain = torch.nn.Sequential(*layers)
    return {
        "kernel's op": lambda: torch.ops.genimg.conv_stack_fwd(x, *packed, training, False),
        "genimg.ops": lambda: genimg.ops.conv_stack(x, blocks, training=training),
        "FusedSequential": lambda: model(x),
        "layers": lambda: plain(x),
    }


def main() -> None:
    torch.set_num_threads(1)
    for make in (leaky_relu, conv_stack):
        with torch.no_grad():
            times = microseconds(make())
        least = times["kernel's op"]
        for name, us in times.items():
            print(f"{make.__name__:<12}{name:<18}{us:>8.1f} us{us - least:>+8.1f}")


if __name__ == "__main__":
    main()
