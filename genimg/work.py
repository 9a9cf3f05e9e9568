"""The work of a kernel: operations, and bytes that it moves.

The count follows the design of the kernels: what is fused is neither written nor read again. A
product and its addition are two operations; taps outside the image count.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

FORWARD, FORWARD_BACKWARD = "forward", "forward_backward"


@dataclass(frozen=True)
class Work:
    """Floating-point operations of one kernel, and the bytes that it reads and writes."""

    operations: float
    moved: float


def passes(x: Tensor, operations: float, times: float, more_bytes: float = 0) -> Work:
    """An elementwise kernel: operations per element, and how often it moves all of ``x``."""
    n = x.numel()
    return Work(operations * n, times * n * x.element_size() + more_bytes)
