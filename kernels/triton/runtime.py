"""Shared by all Triton kernels: whether Triton can run, and the device of a launch."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from genimg import versions
from genimg.memory_format import elementwise_format

VERSION: str | None = (
    importlib.metadata.version("triton") if importlib.util.find_spec("triton") else None
)


def _find_triton() -> str | None:
    if VERSION is None:
        return 'Triton is not installed: pip install "genimg[triton]"'
    oldest = versions.TESTED["Triton"][0]
    if versions.release(VERSION) < oldest:
        needed = ".".join(map(str, oldest))
        return f"Triton {VERSION} is too old, {needed} is needed: pip install -U triton"
    return None


MISSING: str | None = _find_triton()
"""Why Triton cannot be used at all, or None."""

# Triton reads the variable when a kernel is defined, so it cannot change later either.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

DEVICES = ("cuda", "cpu") if INTERPRETED else ("cuda",)
"""The types of device whose tensors Triton takes."""


def why_not(x: Tensor) -> str | None:
    """Why Triton cannot run on ``x``, or None."""
    if MISSING is None and INTERPRETED and x.dtype == torch.bfloat16:
        return "Triton's interpreter computes bfloat16 wrongly"
    return MISSING


def empty_elementwise(x: Tensor) -> Tensor:
    """A result of ``x`` with the strides that torch's elementwise ops give it."""
    return torch.empty_like(x, memory_format=elementwise_format(x))


def in_order_of(like: Tensor, x: Tensor) -> Tensor:
    """``x``'s values in the memory order of ``like``, which is dense."""
    return x if x.stride() == like.stride() else torch.empty_like(like).copy_(x)


def width_for(n: int, most: int) -> int:
    """The power of two that ``n`` fits into, but no more than ``most``, which is one.

    By comparisons: where ``n`` is symbolic, as torch.compile has it under dynamic shapes, they are
    guards on its range, and the graph serves every size that has the same width.
    """
    width = 1
    while width < most and width < n:
        width *= 2
    return width


def on_device_of(x: Tensor) -> AbstractContextManager[object]:
    """Launch on ``x``'s device: Triton takes the current one, which may be another."""
    # Compiled code guards its device itself.
    if x.device.type != "cuda" or torch.compiler.is_compiling():
        return nullcontext()
    return torch.cuda.device(x.device)
