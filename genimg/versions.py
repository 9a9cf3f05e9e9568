"""The versions that genimg is tested with, and the private functions of torch that it calls.

Another version is not refused. Triton's kernels are then launched by Triton alone, without the
shortcut of ``kernels/triton/launch.py``, and where torch lacks a private function, a default takes
its place that gives correct results more slowly. ``genimg info`` shows both.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch

TESTED: dict[str, tuple[tuple[int, int], ...]] = {
    "Python": ((3, 10), (3, 11), (3, 12), (3, 13), (3, 14)),
    "torch": ((2, 11), (2, 12), (2, 13), (2, 14), (2, 15)),
    "Triton": ((3, 6), (3, 7), (3, 8), (3, 9)),
}
"""Package -> (major, minor) of its tested releases, the oldest first; docs/building.md has how."""

PRIVATE = {
    "_functorch.is_legacy_batchedtensor": "PyTorch runs every backward in place of a kernel",
    "_functorch.peek_interpreter_stack": "PyTorch runs every call in place of a kernel",
    "_will_engine_execute_node": "backward computes gradients that are not asked for, too",
    "_len_torch_dispatch_stack": "autotune measures nothing",
    "_len_torch_function_stack": "autotune measures nothing",
    "_get_function_stack_at": "autotune measures nothing in the scope of a default device",
    "_autograd._top_saved_tensors_default_hooks": "autotune measures nothing",
    "_autograd._profiler_enabled": "autotune measures nothing",
}
"""Functions of ``torch._C`` -> what follows where one is missing."""

UNKNOWN = object()
"""What a default returns where only the missing function could tell."""

MISSING: list[str] = []
"""Those that the running torch lacks."""


def release(version: str) -> tuple[int, int]:
    """Major and minor number of ``"2.15.0+cu132"`` or ``"3.9.0rc1"``, (0, 0) without numbers."""
    found = re.match(r"(\d+)\.(\d+)", version)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def is_tested(package: str, version: str) -> bool:
    """Whether genimg is tested with this release of ``package``, a key of :data:`TESTED`."""
    return release(version) in TESTED[package]


def private(name: str, default: Callable[..., Any]) -> Callable[..., Any]:
    """The function ``torch._C.<name>``, or ``default`` where torch lacks it.

    ``default`` must give correct results for every call. ``name`` is a key of :data:`PRIVATE`.
    """
    consequence = PRIVATE[name]
    found: Any = torch._C
    for part in name.split("."):
        found = getattr(found, part, None)
    if found is None:
        MISSING.append(f"torch._C.{name} is missing: {consequence}")
        return default
    return found


def notes(versions: dict[str, str | None]) -> list[str]:
    """A sentence for each version that is not tested, and for each private function missing.

    Args:
        versions: package, a key of :data:`TESTED` -> its version, None where it is not installed.
    """
    consequences = {"Triton": "; every launch goes through Triton's own binder"}
    sentences = []
    for package, version in versions.items():
        if version is not None and not is_tested(package, version):
            oldest, newest = (".".join(map(str, TESTED[package][i])) for i in (0, -1))
            sentence = (
                f"{package} {version} is not tested with this genimg, {oldest} to {newest} are"
            )
            sentences.append(sentence + consequences.get(package, ""))
    return sentences + [f"torch {versions.get('torch')}: {missing}" for missing in MISSING]
