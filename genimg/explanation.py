"""``genimg.explain``: the backend that a call uses, why it uses no other, and active switches."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from genimg import environment, priors
from genimg.backends import (
    BACKENDS,
    FROM_ENVIRONMENT,
    OPS,
    BackendError,
    Op,
    asked,
    choose,
    dtype_name,
)
from genimg.decisions import BY_TUNE
from genimg.kernels.triton import runtime as triton_runtime
from genimg.transforms import refuse_transforms
from genimg.tuning import current


@dataclass(frozen=True)
class Row:
    """One line of :class:`Explanation`."""

    backend: str
    selected: bool
    reason: str


@dataclass(frozen=True)
class Explanation:
    """What auto, or the selected backend, does with a call; prints as a table."""

    op: str
    rows: tuple[Row, ...]
    decided: str = ""
    """Who decides: a name, a measurement, or the priors, and why nothing was measured."""
    switches: tuple[str, ...] = ()
    """The settings that change which kernel runs, where they are not at their defaults."""

    @property
    def selected(self) -> str:
        """The backend that the call uses."""
        return next((row.backend for row in self.rows if row.selected), "none")

    def __str__(self) -> str:
        lines = [f"{self.op}: {self.selected}"]
        lines += [
            f"  {'->' if row.selected else '  '} {row.backend:<10} {row.reason}"
            for row in self.rows
        ]
        lines += [f"     decided by {self.decided}"] if self.decided else []
        lines += [f"     switch: {switch}" for switch in self.switches]
        return "\n".join(lines)


def explain(op: str | Callable[..., Any], *args: Any, **kwargs: Any) -> Explanation:
    """The table of backends for a call: which one it uses, and why it uses none of the others.

    Below it a line for each active switch: an argument, a setting or an environment variable that
    changes which kernel runs.

    >>> print(genimg.explain("leaky_relu", torch.randn(8)))

    Args:
        op: the op's name or its function (``genimg.ops.leaky_relu``).
        args, kwargs: the call's own arguments, ``backend=`` included.

    Raises:
        ValueError: there is no such op.
        TypeError: the arguments do not fit the op's signature.
    """
    name = op if isinstance(op, str) else getattr(op, "__name__", repr(op))
    if name not in OPS:
        raise ValueError(f"no op {name!r}; there are {', '.join(OPS)}")
    entry = OPS[name]
    bound = inspect.signature(entry.function).bind(*args, **kwargs)
    bound.apply_defaults()
    backend = bound.arguments.pop("backend")
    call = tuple(bound.arguments.values())
    try:
        selected = choose(entry, backend, *call)
    except BackendError:
        selected = "none"
    is_auto = asked(backend) in (None, "auto")
    decides = is_auto and isinstance(call[0], Tensor) and refuse_transforms(call) is None
    decision = current().decision(entry, call) if decides else None
    times = {} if decision is None else decision.milliseconds
    rows = []
    for candidate in BACKENDS:
        reason = entry.why_not(candidate, *call)
        if reason is None and decision is not None and candidate in times:
            taken_back = decision.note and candidate == min(times, key=lambda name: times[name])
            note = f"; {decision.note}" if taken_back else ""
            reason = f"measured: {times[candidate]:.3g} ms{note}"
        elif reason is None and candidate in entry.by_backend:
            slower = entry.by_backend[candidate].why_slower(*call)
            reason = f"supported; auto passes it over: {slower}" if slower else "supported"
        elif reason is None:
            reason = "plain PyTorch, always supported"
        rows.append(Row(candidate, candidate == selected, reason))
    decided = "name"
    if decision is not None:
        by = "genimg.tune" if decision.by == BY_TUNE else "the first calls"
        decided = f"measurement, by {by}"
    elif is_auto:
        why = current().why_undecided(entry, call) if decides else "nothing is measured here"
        decided = f"the priors of {_machines(call[0])}; {why}"
    return Explanation(name, tuple(rows), decided, tuple(_switches(entry, backend, call[0])))


def _machines(x: Any) -> str:
    on_gpu = isinstance(x, Tensor) and x.device.type == "cuda"
    return "a GPU" if on_gpu else priors.CPU.name


def _switches(op: Op, backend: str | None, x: Any) -> Iterator[str]:
    """A sentence for each switch that is not at its default."""
    if backend is not None:
        yield f"backend={backend!r} of this call selects the backend"
    elif (named := asked(None)) is not None:
        source = (
            f"GENIMG_BACKEND={named}"
            if named == FROM_ENVIRONMENT
            else f"genimg.use_backend({named!r})"
        )
        yield f"{source} selects the backend"
    if not current().measures:
        by = (
            "GENIMG_AUTOTUNE=0"
            if environment.value("GENIMG_AUTOTUNE") == "0"
            else "genimg.autotune(False)"
        )
        yield f"{by}: nothing is measured; stored decisions and priors select"
    if (level := environment.value("GENIMG_CPU_ISA")) is not None:
        yield f"GENIMG_CPU_ISA={level}: the instruction-set level of the CPU kernels"
    if environment.is_on("GENIMG_CUDA_SM90"):
        yield "GENIMG_CUDA_SM90=1: the CUDA convolutions use their kernels for Hopper"
    if triton_runtime.INTERPRETED:
        yield "TRITON_INTERPRET=1: the Triton kernels run in the interpreter, on any device"
    if torch.are_deterministic_algorithms_enabled():
        yield "torch.use_deterministic_algorithms: PyTorch's own kernels are deterministic ones"
    if torch.backends.cudnn.deterministic:
        yield "torch.backends.cudnn.deterministic: cuDNN's kernels are deterministic ones"
    if not isinstance(x, Tensor) or "conv" not in op.name:
        return
    if x.device.type == "cuda" and x.dtype == torch.float32:
        precision = torch.backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]
        yield f"torch.backends.cudnn.conv.fp32_precision={precision!r}: products of float32"
    if x.device.type != "meta" and torch.is_autocast_enabled(x.device.type):
        dtype = dtype_name(torch.get_autocast_dtype(x.device.type))
        yield f"autocast casts to {dtype} before the choice; the table is for the tensors given"
