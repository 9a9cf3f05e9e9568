"""Which implementation serves a call, and why another does not.

Every op keeps a table of kernels (:class:`Impl`) beside its reference. A kernel answers two
questions in one readable sentence each: ``why_not`` (it cannot serve this call) and ``why_slower``
(it can, but PyTorch was measured to be at least as fast here). Auto takes the first kernel with
neither; a backend that is named runs unless ``why_not`` speaks, and then that sentence is raised.
``genimg.autotune`` has auto decide by measurement instead.
The reference is plain PyTorch, never refuses, and is thereby also the vendor path (oneDNN, cuDNN).

The choice is plain Python over shape, dtype, layout and device, so ``torch.compile`` traces
through it.
"""

from __future__ import annotations

import dataclasses
import inspect
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd import forward_ad

from genimg import versions
from genimg.testing import ERROR_FACTOR, Case, Error, compare

BACKENDS = ("cuda", "cpu", "triton", "reference")
"""Every backend, in the order in which auto asks."""

REFERENCE = "reference"

_interpreter = versions.private("_functorch.peek_interpreter_stack", lambda: versions.UNKNOWN)
_engine_runs = versions.private("_will_engine_execute_node", lambda node: True)
_is_batched = versions.private("_functorch.is_legacy_batchedtensor", lambda x: True)

_log = logging.getLogger("genimg")
_logged: set[tuple[str, str, str]] = set()  # each refusal is told once

# Process-wide, like torch.backends' flags: torch.compile guards on a module global, and cannot
# guard on a ContextVar or a threading.local.
_selected: str | None = os.environ.get("GENIMG_BACKEND") or None


class Tuner(Protocol):
    """Decides by measurement in place of auto's rules: ``genimg/tuning.py``."""

    def selected(self, op: Op, args: Sequence[Any]) -> str | None:
        """The fastest backend for a call, or None where the rules decide."""

    def times(self, op: Op, args: Sequence[Any]) -> dict[str, float] | None:
        """Milliseconds by backend."""


_tuner: Tuner | None = None


def set_tuner(tuner: Tuner | None) -> None:
    """Let ``tuner`` decide what auto takes; None returns to the rules."""
    global _tuner
    _tuner = tuner


class BackendError(RuntimeError):
    """A backend was named that cannot serve the call; the message is its ``why_not`` sentence."""


class InvalidCall(str):
    """A reason that holds for every backend: PyTorch takes the call, and raises its own error."""


def _no_reason(*args: Any) -> str | None:
    return None


@dataclass(frozen=True)
class Impl:
    """One kernel of an op.

    ``devices`` are the types of device whose tensors it takes. ``why_not`` and ``why_slower`` take
    the op's arguments, without ``backend``, in the order of its signature. ``fwd`` and ``bwd`` are
    what the op's ``autograd.Function`` calls.
    """

    backend: str
    devices: tuple[str, ...]
    fwd: Callable[..., Any]
    bwd: Callable[..., Any]
    why_not: Callable[..., str | None]
    why_slower: Callable[..., str | None] = _no_reason


@dataclass(frozen=True, eq=False)
class Op:
    """An op: public function, definition in plain PyTorch, cases, kernels in auto's order.

    ``error_factor``: how many times PyTorch's own error its kernels' may be. ``bilinear``: the op
    is linear in its first input and in its weight, as convolutions are.
    """

    name: str
    function: Callable[..., Any]
    reference: Callable[..., Any]
    cases: tuple[Case, ...]
    impls: tuple[Impl, ...] = ()
    error_factor: float = ERROR_FACTOR
    bilinear: bool = False
    by_backend: dict[str, Impl] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.by_backend.update({impl.backend: impl for impl in self.impls})
        OPS[self.name] = self

    def why_not(self, backend: str, *args: Any) -> str | None:
        """Why ``backend`` cannot serve these arguments, or None if it can."""
        if backend == REFERENCE:
            return None
        impl = self.by_backend.get(backend)
        if impl is None:
            return f"{self.name} has no {backend} kernel"
        if not isinstance(args[0], Tensor):
            return "the input is no tensor"
        device = args[0].device
        if device.type not in impl.devices:
            served = " or ".join(impl.devices)
            return f"the tensor is on {device}, this kernel serves {served} tensors"
        return refuse_transforms(args) or impl.why_not(*args)

    def compare(
        self,
        case: Case,
        backend: str,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> list[Error]:
        """Judge a case on a backend: :func:`genimg.testing.compare`.

        Raises:
            BackendError: the backend cannot serve the case.
        """
        return compare(
            case,
            self.function,
            self.reference,
            backend,
            dtype,
            device,
            self.error_factor,
            self.bilinear,
        )


OPS: dict[str, Op] = {}
"""Every op by name; an op enters when its module is imported."""


def _names(spec: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in spec.split(","))
    unknown = [name for name in names if name not in BACKENDS]
    if unknown:
        raise ValueError(
            f"unknown backend {', '.join(map(repr, unknown))}: expected 'auto', one of "
            f"{', '.join(BACKENDS)}, or several of them separated by commas"
        )
    return names


def choose(op: Op, backend: str | None, *args: Any) -> str:
    """The backend that serves this call.

    ``backend``: None or ``"auto"`` for the fastest that can serve; a name, or several separated by
    commas, for the first of these that can, and :class:`BackendError` if none can. None defers to
    :func:`use_backend` and the environment variable ``GENIMG_BACKEND``.
    """
    spec = _selected if backend is None else backend
    if spec is None or spec == "auto":
        # What is not a tensor is PyTorch's to refuse, in PyTorch's words.
        if isinstance(args[0], Tensor) and refuse_transforms(args) is None:
            if _tuner is not None and not torch.compiler.is_compiling():
                measured = _tuner.selected(op, args)
                if measured is not None:
                    return measured
            device = args[0].device.type
            for impl in op.impls:
                if device not in impl.devices:
                    continue
                # The cheaper question first: this stands before every call of the op.
                reason = impl.why_slower(*args) or impl.why_not(*args)
                if reason is None:
                    return impl.backend
                if _log_refusals:
                    _log_refusal(op.name, impl.backend, reason)
        return REFERENCE
    reasons = []
    for name in _names(spec):
        reason = op.why_not(name, *args)
        if reason is None:
            return name
        if isinstance(reason, InvalidCall):
            return REFERENCE
        reasons.append(f"{name}: {reason}")
    raise BackendError(f"{op.name} cannot run as asked. " + "; ".join(reasons))


def _log_refusal(op: str, backend: str, reason: str) -> None:
    if not torch.compiler.is_compiling() and (op, backend, reason) not in _logged:
        _logged.add((op, backend, reason))
        _log.info("%s: not on %s: %s", op, backend, reason)


def _configure_logging() -> bool:
    """Print refusals to stderr, if ``GENIMG_LOG=1``."""
    if os.environ.get("GENIMG_LOG", "") in ("", "0"):
        return False
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("[genimg] %(message)s"))
    _log.addHandler(handler)
    _log.setLevel(logging.INFO)
    _log.propagate = False
    return True


_log_refusals = _configure_logging()


@contextmanager
def use_backend(backend: str | None) -> Iterator[None]:
    """Take ``backend`` for every call inside, unless the call names its own.

    Process-wide, as ``torch.backends`` flags are: do not use it from two threads at once.

    Args:
        backend: a name, several separated by commas (the first that can serve), or ``"auto"``.

    Raises:
        ValueError: the name is unknown.
    """
    global _selected
    if backend is not None and backend != "auto":
        _names(backend)
    before = _selected
    _selected = backend
    try:
        yield
    finally:
        _selected = before


def recompute_grads(
    reference: Callable[..., Any],
    args: tuple[Any, ...],
    grad_outputs: tuple[Tensor | None, ...],
    needs_grad: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    """Gradients of ``reference(*args)``, which under ``create_graph=True`` can be differentiated.

    Every op's backward returns them where :func:`needs_reference`.
    """
    create_graph = torch.is_grad_enabled()
    wanted = [arg for arg, needed in zip(args, needs_grad, strict=True) if needed]
    if not wanted:
        return (None,) * len(needs_grad)
    with torch.enable_grad():
        outputs = reference(*args)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        pairs = [(y, g) for y, g in zip(outputs, grad_outputs, strict=True) if g is not None]
        found = iter(
            torch.autograd.grad(
                [y for y, _ in pairs],
                wanted,
                [g for _, g in pairs],
                create_graph=create_graph,
                allow_unused=True,
            )
        )
    return tuple(next(found) if needed else None for needed in needs_grad)


def needs_reference(*grads: Tensor | None) -> bool:
    """Whether a backward is the reference's: the kernels compute plain first derivatives only.

    Under ``create_graph=True`` the gradients are to be differentiated; under
    ``is_grads_batched=True``, in ``torch.func`` transforms and in forward mode each gradient stands
    for several, or has a tangent.
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return torch.is_grad_enabled()
    return refuse_transforms(grads) is not None or any(map(_is_batched, _tensors(grads)))


def needed_grads(ctx: Any) -> tuple[bool, ...]:
    """Which inputs of an ``autograd.Function`` want their gradient in this very backward.

    ``ctx.needs_input_grad`` says which could: under ``autograd.grad(y, x)`` also the weight, whose
    gradient nobody would take.
    """
    needs: tuple[bool, ...] = ctx.needs_input_grad
    if torch.compiler.is_compiling():
        return needs
    nodes = (node for node, _ in ctx.next_functions if node is not None)
    return tuple(needed and _runs(next(nodes)) for needed in needs)


def _runs(node: Any) -> bool:
    try:
        return bool(_engine_runs(node))
    except RuntimeError:  # a leaf that autograd.grad was asked for
        return True


def is_below(size: int, limit: int) -> bool:
    """Whether a call is too small for a kernel; an exported graph is for every size."""
    return not torch.compiler.is_exporting() and size < limit


def not_measured(*args: Any) -> str | None:
    """``why_slower`` of a kernel that no GPU has timed yet: auto passes it over, a name runs it."""
    return "not yet measured on a GPU, where PyTorch's kernels may be faster"


def refuse_dtype(x: Tensor, dtypes: tuple[torch.dtype, ...]) -> str | None:
    """Refuse a dtype that the kernel is not written for."""
    if x.dtype in dtypes:
        return None
    names = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
    return f"{str(x.dtype).removeprefix('torch.')} is not served, only {names}"


def refuse_transforms(args: Sequence[Any]) -> str | None:
    """Refuse what only PyTorch's own ops have rules for, in ``args`` and in what they hold.

    ``torch.func`` transforms (vmap, jvp, ...) and the dual tensors of forward mode.
    """
    if torch.compiler.is_compiling():
        return None
    active = _interpreter()
    if active is versions.UNKNOWN:
        return "this torch does not tell whether a torch.func transform is active: genimg info"
    if active is not None:
        return "inside a torch.func transform, whose rules only PyTorch's own ops have"
    if getattr(forward_ad, "_current_level", 0) >= 0 and any(map(_is_dual, _tensors(args))):
        return "a tensor has a forward-mode tangent, whose rules only PyTorch's own ops have"
    return None


def _tensors(args: Sequence[Any]) -> Iterator[Tensor]:
    for arg in args:
        if isinstance(arg, Tensor):
            yield arg
        elif isinstance(arg, (list, tuple)):
            yield from _tensors(arg)
        elif dataclasses.is_dataclass(arg):
            yield from _tensors([getattr(arg, each.name) for each in dataclasses.fields(arg)])


def _is_dual(x: Tensor) -> bool:
    return forward_ad.unpack_dual(x).tangent is not None


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

    @property
    def selected(self) -> str:
        """The backend that serves the call."""
        return next((row.backend for row in self.rows if row.selected), "none")

    def __str__(self) -> str:
        lines = [f"{self.op}: {self.selected}"]
        lines += [
            f"  {'->' if row.selected else '  '} {row.backend:<10} {row.reason}"
            for row in self.rows
        ]
        return "\n".join(lines)


def _measured(op: Op, backend: str | None, args: Sequence[Any]) -> dict[str, float]:
    spec = _selected if backend is None else backend
    if _tuner is None or spec not in (None, "auto"):
        return {}
    return _tuner.times(op, args) or {}


def explain(op: str | Callable[..., Any], *args: Any, **kwargs: Any) -> Explanation:
    """The table of backends for a call: which one serves it, and why each other one does not.

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
    times = _measured(entry, backend, call)
    rows = []
    for candidate in BACKENDS:
        reason = entry.why_not(candidate, *call)
        if reason is None and candidate in times:
            reason = f"measured: {times[candidate]:.3g} ms"
        elif reason is None and candidate in entry.by_backend:
            slower = entry.by_backend[candidate].why_slower(*call)
            reason = f"can serve; auto passes it over: {slower}" if slower else "can serve"
        elif reason is None:
            reason = "plain PyTorch, always can serve"
        rows.append(Row(candidate, candidate == selected, reason))
    return Explanation(name, tuple(rows))
