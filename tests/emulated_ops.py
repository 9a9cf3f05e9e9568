"""The CUDA kernels as a backend of the ops: what ``csrc/`` does on a GPU, around the emulator.

One host function per op and pass. Each runs under every schedule, and all must give the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from emulator import SCHEDULES, Read, Update, Write, call, library
from torch import Tensor

from genimg import _native
from genimg.backends import OPS

NAMES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}


def launch(function: str, dtype: torch.dtype, *args: Any) -> None:
    """Call a launcher under every schedule, from the same state, and compare what it writes."""
    written = [
        arg.tensor for arg in args if isinstance(arg, (Write, Update)) and arg.tensor is not None
    ]
    before = [x.clone() for x in written]
    first: list[Tensor] = []
    for schedule in SCHEDULES:
        for x, start in zip(written, before, strict=True):
            x.copy_(start)
        call(library("genimg_emulated"), f"{function}_{NAMES[dtype]}", *args, schedule=schedule)
        first = first or [x.clone() for x in written]
        for x, expected in zip(written, first, strict=True):
            assert torch.equal(_bits(x), _bits(expected)), f"{function} differs under {schedule}"


def _bits(x: Tensor) -> Tensor:
    kinds = {2: torch.int16, 4: torch.int32}
    return x.view(kinds[x.element_size()]) if x.is_floating_point() else x


def _in_order_of(like: Tensor, x: Tensor) -> Tensor:
    return x if x.stride() == like.stride() else torch.empty_like(like).copy_(x)


def _leaky_relu_fwd(x: Tensor, negative_slope: float) -> Tensor:
    y = torch.empty_like(x)
    args = (Read(_in_order_of(y, x)), Write(y), x.numel(), float(negative_slope))
    launch("leaky_relu_fwd", x.dtype, *args)
    return y


def _leaky_relu_bwd(grad_y: Tensor, x: Tensor, negative_slope: float) -> Tensor:
    grad_x = torch.empty_like(x)
    args = (Read(_in_order_of(grad_x, grad_y)), Read(_in_order_of(grad_x, x)), Write(grad_x))
    launch("leaky_relu_bwd", x.dtype, *args, x.numel(), float(negative_slope))
    return grad_x


HOSTS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "leaky_relu": (_leaky_relu_fwd, _leaky_relu_bwd),
}
"""Forward and backward of each op that has CUDA kernels."""


@contextmanager
def emulated(op: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """``backend="cuda"`` of an op takes CPU tensors, by its own ``why_not``, to the emulator."""
    entry = OPS[op]
    fwd, bwd = HOSTS[op]
    impl = replace(entry.by_backend["cuda"], devices=("cpu",), fwd=fwd, bwd=bwd)
    with monkeypatch.context() as patch:
        patch.setitem(entry.by_backend, "cuda", impl)
        patch.setattr(_native, "_why_not_cuda", None)
        yield
