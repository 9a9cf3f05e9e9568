"""``genimg check``: every case of every op, on every backend of this machine, beside PyTorch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from genimg import ops as _ops
from genimg.backends import BACKENDS, OPS, REFERENCE, BackendError, Op
from genimg.kernels.triton import runtime as triton_runtime
from genimg.testing import Case, Error, prepare

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

assert _ops  # importing it fills OPS


@dataclass(frozen=True)
class Row:
    """The worst result of a case: the one that comes nearest to what the rule allows."""

    op: str
    case: str
    backend: str
    dtype: str
    worst: Error

    @property
    def ok(self) -> bool:
        """Whether every result of the case keeps the rule."""
        return self.worst.ok

    def __str__(self) -> str:
        verdict = "ok" if self.ok else f"FAILED {self.worst.note}".rstrip()
        error, torch_error = self.worst.relative
        return (
            f"{self.op:<17}{self.case:<24}{self.backend:<10}{self.dtype:<9}"
            f"{self.worst.result:<16}{error:>9.1e} {torch_error:>9.1e}  "
            f"{verdict}"
        )


HEADER = (
    f"{'op':<17}{'case':<24}{'backend':<10}{'dtype':<9}{'worst result':<16}"
    f"{'error':>9} {'PyTorch':>9}"
)
"""Errors are shares of the largest true value."""


def devices() -> tuple[str, ...]:
    """The devices to check on."""
    return ("cuda", "cpu") if torch.cuda.is_available() else ("cpu",)


def worst(errors: Iterable[Error]) -> Error:
    """The error that breaks the rule, or else uses most of what it allows."""
    return max(errors, key=lambda error: error.share)


def check_case(op: Op, case: Case, backend: str, dtype: torch.dtype, device: str) -> Row | None:
    """One row, or None where the backend says that it cannot serve the case.

    Cases for timing are not for Triton's interpreter: it would take minutes.
    """
    if backend == "triton" and triton_runtime.INTERPRETED and case.speed:
        return None
    try:
        errors = op.compare(case, backend, dtype, device)
    except BackendError:
        return None
    return Row(op.name, case.name, backend, str(dtype).removeprefix("torch."), worst(errors))


def check(
    ops: Iterable[str] | None = None,
    backends: Iterable[str] | None = None,
    dtypes: Iterable[torch.dtype] = DTYPES,
    slow: bool = False,
) -> Iterator[Row]:
    """Rows for every op, case, device, dtype and backend that serves it.

    The reference is checked where no kernel serves a case, so that every case is seen to run.

    Args:
        ops: names; None is all.
        backends: names; None is every backend.
        dtypes: to check in.
        slow: also the cases that take gigabytes or many seconds.

    Raises:
        ValueError: an unknown op or backend.
    """
    names = list(OPS) if ops is None else list(ops)
    kinds = list(BACKENDS) if backends is None else list(backends)
    for given, known, what in ((names, list(OPS), "op"), (kinds, list(BACKENDS), "backend")):
        unknown = [name for name in given if name not in known]
        if unknown:
            raise ValueError(f"unknown {what} {unknown[0]!r}; there are {', '.join(known)}")
    return _rows(names, kinds, tuple(dtypes), slow, backends is not None)


def _rows(
    names: list[str], kinds: list[str], dtypes: tuple[torch.dtype, ...], slow: bool, named: bool
) -> Iterator[Row]:
    for name in names:
        op = OPS[name]
        for case in op.cases:
            if case.slow and not slow:
                continue
            for device in devices():
                for dtype in dtypes:
                    yield from _check_on(op, case, kinds, dtype, device, named)


def _check_on(
    op: Op, case: Case, kinds: list[str], dtype: torch.dtype, device: str, named: bool
) -> Iterator[Row]:
    kernels = [backend for backend in kinds if backend != REFERENCE]
    rows = [check_case(op, case, backend, dtype, device) for backend in kernels]
    served = [row for row in rows if row is not None]
    yield from served
    if REFERENCE in kinds and (named or not served):
        row = check_case(op, case, REFERENCE, dtype, device)
        if row is not None:
            yield row


def taken(op: Op, case: Case, dtype: torch.dtype, device: str) -> str:
    """The backend that auto takes for a case."""
    from genimg.backends import explain

    found: list[str] = []

    def record(*args: object, **kwargs: object) -> object:
        found.append(explain(op.name, *args, **kwargs).taken)
        return op.reference(*args, **kwargs)

    case.call(record, prepare(case, dtype, device))
    return found[0]
