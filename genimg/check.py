"""``genimg check``: every case of every op, on every backend of this machine, beside PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import torch

from genimg import ops as _ops
from genimg.backends import BACKENDS, OPS, REFERENCE, BackendError, Op
from genimg.kernels.triton import runtime as triton_runtime
from genimg.testing import Case, Error, prepare

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

assert _ops  # importing it fills OPS


@dataclass(frozen=True)
class Row:
    """The worst result of a case: the one that comes nearest to what the rule allows.

    ``worst`` is None where the case ended in an exception, of which ``failure`` tells.
    """

    op: str
    case: str
    backend: str
    dtype: str
    worst: Error | None
    failure: str = ""

    @property
    def ok(self) -> bool:
        """Whether every result of the case keeps the rule."""
        return self.worst is not None and self.worst.ok

    @property
    def why(self) -> str:
        """The reason for a failure; empty if the row passed."""
        if self.worst is None:
            return self.failure
        return "" if self.worst.ok else told(self.worst)

    def __str__(self) -> str:
        where = f"{self.op:<17}{self.case:<24}{self.backend:<10}{self.dtype:<9}"
        if self.worst is None:
            return f"{where}{'-':<16}{'-':>9} {'-':>9} {'-':>9}  FAILED {self.failure}"
        verdict = "ok" if self.ok else f"FAILED {self.why}"
        figures = " ".join(f"{share:>9.1e}" for share in self.worst.relative)
        return f"{where}{self.worst.result:<16}{figures}  {verdict}"


HEADER = (
    f"{'op':<17}{'case':<24}{'backend':<10}{'dtype':<9}{'worst result':<16}"
    f"{'error':>9} {'PyTorch':>9} {'bound':>9}"
)
"""Errors, and the bound that the problem itself sets, are shares of the largest true value."""


def devices() -> tuple[str, ...]:
    """The devices to check on."""
    return ("cuda", "cpu") if torch.cuda.is_available() else ("cpu",)


def worst(errors: Iterable[Error]) -> Error:
    """The error that breaks the rule, or else uses most of what it allows."""
    return max(errors, key=lambda error: (not error.ok, error.share))  # a share may be NaN


def told(error: Error) -> str:
    """How a result breaks the rule."""
    if error.note:
        return f"{error.result}: {error.note}"
    allowed = max(error.allowed, error.bound)
    return f"{error.result} is off by {error.error:.1e}, {allowed:.1e} is allowed"


def reason(error: BaseException) -> str:
    """An exception in one line."""
    lines = str(error).strip().splitlines()
    return ": ".join([type(error).__name__, *(line.strip() for line in lines[:1])])


def check_case(op: Op, case: Case, backend: str, dtype: torch.dtype, device: str) -> Row | None:
    """One row, or None where the backend says that it does not support the case.

    Any other exception is a failure of this case alone: memory that is not there, a kernel that
    ends in an error.
    Cases for timing are not for Triton's interpreter: it would take minutes.
    """
    if backend == "triton" and triton_runtime.INTERPRETED and case.speed:
        return None
    row = partial(Row, op.name, case.name, backend, str(dtype).removeprefix("torch."))
    try:
        errors = op.compare(case, backend, dtype, device)
    except BackendError:
        return None
    except Exception as error:
        return row(None, reason(error))
    return row(worst(errors))


def check(
    ops: Iterable[str] | str | None = None,
    backends: Iterable[str] | str | None = None,
    dtypes: Iterable[torch.dtype] = DTYPES,
    slow: bool = False,
) -> Iterator[Row]:
    """Rows for every op, case, device, dtype and backend that supports it.

    The reference is checked where no kernel supports a case, so that every case is seen to run, and
    where it computes otherwise than the definition.

    Args:
        ops: names, or one; None is all.
        backends: names, or one; None is every backend.
        dtypes: to check in.
        slow: also the cases that take gigabytes or many seconds.

    Raises:
        ValueError: an unknown op or backend.
    """
    names = list(OPS) if ops is None else listed(ops)
    kinds = list(BACKENDS) if backends is None else listed(backends)
    for given, known, what in ((names, list(OPS), "op"), (kinds, list(BACKENDS), "backend")):
        unknown = [name for name in given if name not in known]
        if unknown:
            raise ValueError(f"unknown {what} {unknown[0]!r}; there are {', '.join(known)}")
    return _rows(names, kinds, tuple(dtypes), slow, backends is not None)


def listed(names: Iterable[str] | str) -> list[str]:
    """The names; a string is one, not its letters."""
    return [names] if isinstance(names, str) else list(names)


def report(rows: Iterable[Row], say: Callable[[str], None]) -> int:
    """Say each row as it comes, and once more at the end each that failed.

    Returns:
        How many failed; 1 where there was no row at all.
    """
    say(HEADER)
    seen: list[Row] = []
    for row in rows:
        seen.append(row)
        say(str(row))
    failed = [row for row in seen if not row.ok]
    for row in failed:
        say(f"FAILED: {row.op} {row.case} on {row.backend} in {row.dtype}: {row.why}")
    say(f"{len(seen) - len(failed)} passed, {len(failed)} failed")
    if not seen:
        say("nothing was checked: no backend that was asked for supports these ops on this machine")
    return len(failed) if seen else 1


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
    found = [row for row in rows if row is not None]
    yield from found
    if REFERENCE in kinds and (named or op.composed or not found):
        row = check_case(op, case, REFERENCE, dtype, device)
        if row is not None:
            yield row


def selected(op: Op, case: Case, dtype: torch.dtype, device: str, grad: Iterable[str] = ()) -> str:
    """The backend that auto takes for a case; ``grad`` names the inputs with gradients."""
    from genimg.explanation import explain

    found: list[str] = []

    def record(*args: object, **kwargs: object) -> object:
        found.append(explain(op.name, *args, **kwargs).selected)
        return op.reference(*args, **kwargs)

    tensors = prepare(case, dtype, device)
    for name in grad:
        tensors[name] = tensors[name].detach().requires_grad_()
    case.call(record, tensors)
    return found[0]
