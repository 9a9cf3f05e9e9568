"""Which implementation a call uses, and why no other.

Every op keeps a table of kernels (:class:`Impl`) beside its reference. A kernel answers two
questions in one readable sentence each: ``why_not`` (it does not support this call) and
``why_slower`` (it does, but by genimg/priors.py PyTorch is expected to be as fast). Auto takes what
was measured to be the fastest (genimg/tuning.py), and where nothing was measured the first kernel
with neither answer; a backend that is named runs unless ``why_not`` speaks, and then that sentence
is raised.
``why_not`` is one sequence for every op (:meth:`Op.why_not`, :meth:`Impl.why_not`): device,
transforms, availability, dtype, and then the op's own predicate.
The reference is plain PyTorch, never refuses, and is thereby also the vendor path (oneDNN, cuDNN).

The choice is plain Python over shape, dtype, layout and device, so ``torch.compile`` traces
through it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from genimg import _native, environment
from genimg.kernels.triton import runtime as triton_runtime
from genimg.testing import ERROR_FACTOR, Case, Error, compare
from genimg.transforms import refuse_transforms
from genimg.work import Work

BACKENDS = ("cuda", "cpu", "triton", "reference")
"""Every backend, in the order in which auto asks."""

REFERENCE = "reference"

CPU_DTYPES = (torch.float32, torch.bfloat16)
GPU_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


_log = logging.getLogger("genimg")
_logged: set[tuple[str, str, str]] = set()  # each refusal is told once

# Process-wide, like torch.backends' flags: torch.compile guards on a module global, and cannot
# guard on a ContextVar or a threading.local.
FROM_ENVIRONMENT = environment.value("GENIMG_BACKEND")
_selected = FROM_ENVIRONMENT


class Tuner(Protocol):
    """Decides by measurement, before auto asks the priors: ``genimg/tuning.py``."""

    def selected(self, op: Op, args: Sequence[Any]) -> str | None:
        """The backend that is decided for a call in eager mode; None leaves it to the priors."""

    def compiled(self, op: Op, args: Sequence[Any]) -> str | None:
        """The same for a call that is being compiled or exported; nothing is measured for it."""


_tuner: Tuner | None = None


def set_tuner(tuner: Tuner | None) -> None:
    """Let ``tuner`` decide what auto takes; None leaves all to the priors."""
    global _tuner
    _tuner = tuner


class BackendError(RuntimeError):
    """The named backend does not support the call; the message is its ``why_not`` sentence."""


class InvalidCall(str):
    """A reason that holds for every backend: PyTorch takes the call, and raises its own error."""


def _no_reason(*args: Any) -> str | None:
    return None


def _as_they_are(*args: Any) -> Sequence[Any]:
    return args


def _cuda_is_missing(x: Tensor) -> str | None:
    return _native.why_not_cuda()


def _cpu_is_missing(x: Tensor) -> str | None:
    return _native.why_not()


_MISSING: dict[str, Callable[[Tensor], str | None]] = {
    "cuda": _cuda_is_missing,
    "cpu": _cpu_is_missing,
    "triton": triton_runtime.why_not,
}


@dataclass(frozen=True)
class Impl:
    """One kernel of an op.

    ``refuse`` and ``why_slower`` take the op's arguments, without ``backend``, in the order of its
    signature. ``fwd`` and ``bwd`` are called by the op's ``autograd.Function``.

    Attributes:
        backend: a name of :data:`BACKENDS`.
        devices: the types of device whose tensors it takes.
        refuse: the op's own predicate: why the kernel does not support a call, or None.
        why_slower: why PyTorch is expected to be as fast where nothing was measured, or None.
        dtypes: the dtypes of the first tensor that it supports.
        missing: why the backend cannot run here; by default its own answer.
    """

    backend: str
    devices: tuple[str, ...]
    fwd: Callable[..., Any]
    bwd: Callable[..., Any]
    refuse: Callable[..., str | None] = _no_reason
    why_slower: Callable[..., str | None] = _no_reason
    dtypes: tuple[torch.dtype, ...] = field(kw_only=True)
    missing: Callable[[Tensor], str | None] = field(kw_only=True, default=_no_reason)

    def __post_init__(self) -> None:
        if self.missing is _no_reason:
            object.__setattr__(self, "missing", _MISSING[self.backend])

    def why_not(self, *args: Any) -> str | None:
        """Why it does not support a call on its device: availability, dtype, own predicate."""
        x = args[0]
        reason = self.missing(x)
        if reason is None and x.dtype not in self.dtypes:
            supported = ", ".join(map(dtype_name, self.dtypes))
            reason = f"dtype is {dtype_name(x.dtype)}; this kernel supports {supported}"
        return self.refuse(*args) if reason is None else reason


def dtype_name(dtype: torch.dtype) -> str:
    """``float32`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")


@dataclass(frozen=True, eq=False)
class Op:
    """An op: public function, definition in plain PyTorch, cases, kernels in auto's order.

    Attributes:
        work: ``work(mode, grad, *args, **kwargs)`` gives the kernels of a call and what each must
            compute and move (:class:`genimg.work.Work`). ``mode`` is ``forward``,
            ``forward_backward``, or ``<input>_gradient`` for that one alone; ``grad`` names the
            inputs that gradients are taken for; the rest are the call's own arguments.
        error_factor: how many times PyTorch's own error its kernels' may be.
        bilinear: the op is linear in its first input and in its weight, as convolutions are.
        composed: its reference backend composes PyTorch's ops in another way than the definition,
            so that it has an error of its own to judge.
        parts: the call's tensors and options as a flat sequence, of which ``genimg/kinds.py`` makes
            the kind of the call; the first is the tensor that has the batch.
    """

    name: str
    function: Callable[..., Any]
    reference: Callable[..., Any]
    cases: tuple[Case, ...]
    impls: tuple[Impl, ...] = ()
    work: Callable[..., list[Work]] = field(kw_only=True)
    error_factor: float = ERROR_FACTOR
    bilinear: bool = False
    composed: bool = False
    parts: Callable[..., Sequence[Any]] = _as_they_are
    by_backend: dict[str, Impl] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.by_backend.update({impl.backend: impl for impl in self.impls})
        OPS[self.name] = self

    def why_not(self, backend: str, *args: Any) -> str | None:
        """Why ``backend`` does not support these arguments, or None if it does."""
        if backend == REFERENCE:
            return None
        impl = self.by_backend.get(backend)
        if impl is None:
            return f"{self.name} has no {backend} kernel"
        if not isinstance(args[0], Tensor):
            return "the input is no tensor"
        device = args[0].device
        if device.type not in impl.devices:
            supported = " or ".join(impl.devices)
            return f"the tensor is on {device}; this kernel supports {supported} tensors"
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
            BackendError: the backend does not support the case.
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
    """The backend that this call uses.

    ``backend``: None or ``"auto"`` for the fastest that supports it; a name, or several separated
    by commas, for the first of these that does, and :class:`BackendError` if none does. None defers
    to :func:`use_backend` and the environment variable ``GENIMG_BACKEND``.
    """
    spec = _selected if backend is None else backend
    if spec is None or spec == "auto":
        # What is not a tensor is PyTorch's to refuse, in PyTorch's words.
        if isinstance(args[0], Tensor) and refuse_transforms(args) is None:
            if _tuner is not None:
                compiling = torch.compiler.is_compiling()
                decided = _tuner.compiled(op, args) if compiling else _tuner.selected(op, args)
                if decided is not None:
                    return decided
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
    if not environment.is_on("GENIMG_LOG"):
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
        backend: a name, several separated by commas (the first that supports a call),
            or ``"auto"``.

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


def asked(backend: str | None) -> str | None:
    """The backend that a call asks for: its own argument, or the process-wide one."""
    return _selected if backend is None else backend
