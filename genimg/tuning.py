"""Choice by measurement: ``genimg.autotune(True)``."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import json
import logging
import os
import tempfile
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from genimg import _native, backends, environment, versions
from genimg.backends import REFERENCE, Op
from genimg.kernels.triton import runtime as triton_runtime
from genimg.kernels.triton.conv import tile_tuner
from genimg.machine import cpu_name
from genimg.timing import interleaved_medians
from genimg.transforms import refuse_transforms

if TYPE_CHECKING:
    from genimg.kernels.triton.conv.tile_sizes import Tile

_dispatch_modes = versions.private("_len_torch_dispatch_stack", lambda: 1)

SECONDS = 0.2
"""Spent on one call's candidates, or five rounds of them if that takes longer."""

_log = logging.getLogger("genimg")

Milliseconds = dict[str, float]


def autotune(enabled: bool = True) -> None:
    """Choose backends by measurement instead of by rule, from now on.

    The first call of an op with new shapes, strides, dtypes, options or number of threads times
    every kernel that supports it, and PyTorch, on copies of its arguments: forward, and backward
    where a gradient is wanted; a fifth of a second or five rounds. The fastest runs this call and
    all later ones. Decisions are kept in ``$GENIMG_CACHE`` (default ``~/.cache/genimg``), in a file
    for each build of genimg, version of torch, and processor, so that the next program need not
    measure again; :func:`genimg.explain` shows the times.

    Only what auto would decide is measured: a backend that is named, by argument,
    :func:`genimg.use_backend` or ``GENIMG_BACKEND``, is selected as ever. So are the rules inside
    ``torch.compile``, ``torch.export``, ``torch.func`` transforms, dispatch modes, and for
    subclasses of tensors. The capture of a CUDA graph takes what is known and measures nothing.
    Which kernel is fastest, and with it the last bits of a result, then depends on the machine and
    the moment.

    A convolution that runs in Triton, named or not, measures each of its contractions for as long:
    in the tile sizes that ship for the GPU, once for all batches up to a power of two. Triton then
    stands beside the others with its best. At most eight candidates decide: six tiles, the CUDA
    kernel and PyTorch.

    Args:
        enabled: False returns to the rules; decisions stay on disk. Process-wide.
    """
    tuner = _Tuner(_folder()) if enabled else None
    backends.set_tuner(tuner)
    tile_tuner.set_tuner(tuner)


def _folder() -> Path:
    given = environment.value("GENIMG_CACHE")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "genimg"
    return Path(given) if given else cache


class _Trial(threading.local):
    """The candidates that this thread times; calls of other threads do not see them."""

    def __init__(self) -> None:
        self.candidates: dict[str, str] = {}  # op -> candidate


class _Tuner:
    """Decisions of this process, and the file of each kind of device that they come from."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[Any, Milliseconds | None] = {}
        self._tiles: dict[Any, Tile] = {}
        self._files: dict[str, dict[str, Milliseconds]] = {}
        self._trial = _Trial()
        self._lock = threading.RLock()  # of the files; never held while a candidate runs

    def selected(self, op: Op, args: Sequence[Any]) -> str | None:
        """The fastest backend, or None where the rules decide."""
        if op.name in self._trial.candidates:
            return self._trial.candidates[op.name]
        times = self.times(op, args)
        return _fastest(times) if times else None

    def times(self, op: Op, args: Sequence[Any]) -> Milliseconds | None:
        """The measured times for such a call; measures them if needed."""
        if not _is_plain(args):
            return None
        grad = torch.is_grad_enabled()
        key = (op.name, grad, torch.get_num_threads(), *map(_key, args))
        if key not in self._known:
            if _is_capturing(args[0]):
                return None
            self._known[key] = self._decide(op, args, repr(key))
        return self._known[key]

    def tile(
        self,
        key: tuple[Hashable, ...],
        x: Tensor,
        tiles: Sequence[Tile],
        run: Callable[[Tile], Any],
    ) -> Tile:
        """The fastest of a Triton contraction's tiles, or the first where that cannot be known."""
        if key not in self._tiles:
            if triton_runtime.INTERPRETED or not _is_plain((x,)) or _is_capturing(x):
                return tiles[0]
            by_name = {tile.name: tile for tile in tiles}

            def step(name: str) -> Callable[[], Any]:
                return functools.partial(run, by_name[name])

            times = self._times(str(key[0]), x.device, repr(key), list(by_name), step)
            self._tiles[key] = by_name[_fastest(times)] if times else tiles[0]
        return self._tiles[key]

    def _decide(self, op: Op, args: Sequence[Any], key: str) -> Milliseconds | None:
        names = [name for name in op.by_backend if _is_candidate(op, name, args)]
        if not names:
            return None
        step = functools.partial(self._step, op, args)
        try:
            return self._times(op.name, args[0].device, key, [*names, REFERENCE], step)
        finally:
            self._trial.candidates.pop(op.name, None)

    def _times(
        self,
        what: str,
        device: torch.device,
        key: str,
        names: Sequence[str],
        step: Callable[[str], Callable[[], Any]],
    ) -> Milliseconds | None:
        """The time of each candidate, stored or measured by its step; None if one cannot run."""
        times = self._stored(device).get(key)
        if times is None or set(times) != set(names):
            devices = [device] if device.type == "cuda" else []
            try:
                steps = {name: step(name) for name in names}
                with torch.random.fork_rng(devices), _current(device):
                    times = interleaved_medians(steps, device.type, SECONDS)
            except Exception as error:
                # Any exception, a compiler's too: the call itself will raise it again.
                _log.info("%s: not measured: %s", what, error)
                return None
            self._store(device, key, times)
        _log.info("%s: measured %s", what, describe(times))
        return times

    def _step(self, op: Op, args: Sequence[Any], name: str) -> Callable[[], Any]:
        """Runs the op by one backend on copies of its arguments, with its backward, if any."""
        parameters = [p for p in inspect.signature(op.function).parameters if p != "backend"]
        given = dict(zip(parameters, map(_copy, args), strict=True))
        leaves = [x for x in _tensors(given) if x.requires_grad]
        grads: list[Tensor] = []

        def run() -> None:
            # The ops in a stack are measured on their own, so that the trial is for this op alone.
            self._trial.candidates[op.name] = name
            outputs = op.function(**given)
            every = outputs if isinstance(outputs, tuple) else (outputs,)
            wanted = [y for y in every if y.requires_grad]
            if wanted:
                grads.extend(torch.rand_like(y) for y in wanted[len(grads) :])
                torch.autograd.grad(wanted, leaves, grads, allow_unused=True)

        return run

    def _path(self, device: torch.device) -> Path:
        facts = json.dumps(_facts(device)).encode()
        return self._folder / f"autotune-{hashlib.sha256(facts).hexdigest()[:16]}.json"

    def _stored(self, device: torch.device) -> dict[str, Milliseconds]:
        path = self._path(device)
        with self._lock:
            if path.name not in self._files:
                self._files[path.name] = _read(path)
            return self._files[path.name]

    def _store(self, device: torch.device, key: str, times: Milliseconds) -> None:
        path = self._path(device)
        with self._lock:
            # Keep the entries that another process has added. A new dict: threads read the old one.
            entries = {**_read(path), **self._stored(device), key: times}
            self._files[path.name] = entries
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                _write(path, json.dumps({"for": _facts(device), "milliseconds": entries}, indent=0))
            except OSError as error:
                _log.warning("decisions of autotune are not kept: %s: %s", path, error.strerror)


def _fastest(times: Milliseconds) -> str:
    return min(times, key=lambda name: times[name])


def describe(times: Milliseconds) -> str:
    """The times in words, the fastest first."""
    ordered = sorted(times.items(), key=lambda item: item[1])
    return ", ".join(f"{name} {ms:.3g} ms" for name, ms in ordered)


def _is_candidate(op: Op, name: str, args: Sequence[Any]) -> bool:
    if name == "triton" and triton_runtime.INTERPRETED:
        return False
    return op.why_not(name, *args) is None


def _is_plain(args: Sequence[Any]) -> bool:
    """Whether the call computes here and now, so that timing it tells its time."""
    if torch.jit.is_tracing() or _dispatch_modes() > 0:
        return False
    if refuse_transforms(args) is not None:
        return False
    if any(type(x) not in (Tensor, torch.nn.Parameter) for x in _tensors(args)):
        return False
    return bool(args[0].device.type != "meta" and args[0].numel())


def _current(device: torch.device) -> AbstractContextManager[object]:
    """Makes ``device`` current: synchronisation waits for the current device."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _is_capturing(x: Tensor) -> bool:
    return x.device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _parts(value: Any) -> Sequence[Any] | None:
    """The items of a container; None for anything else."""
    if isinstance(value, dict):
        return list(value.values())
    if isinstance(value, (list, tuple)):
        return value
    if dataclasses.is_dataclass(value):
        return [getattr(value, field.name) for field in dataclasses.fields(value)]
    return None


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    for part in _parts(value) or ():
        yield from _tensors(part)


def _key(value: Any) -> Any:
    if isinstance(value, Tensor):
        return (
            str(value.dtype),
            str(value.device),
            tuple(value.shape),
            value.stride(),
            value.requires_grad,
        )
    if isinstance(value, torch.Generator):
        return "generator"
    parts = _parts(value)
    if parts is not None:
        return (type(value).__name__, *map(_key, parts))
    return value if isinstance(value, (int, float, str, type(None))) else str(value)


def _copy(value: Any) -> Any:
    """A copy that may be written to, of the same strides, outside any graph."""
    if isinstance(value, Tensor):
        copy = value.detach()
        if 0 not in value.stride():  # an expanded one is never written to
            copy = torch.empty_strided(
                value.shape, value.stride(), dtype=value.dtype, device=value.device
            ).copy_(copy)
        return copy.requires_grad_(value.requires_grad)
    if isinstance(value, torch.Generator):
        return value.clone_state()
    if isinstance(value, (list, tuple)):
        return type(value)(map(_copy, value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return dataclasses.replace(value, **{f.name: _copy(getattr(value, f.name)) for f in fields})
    return value


def _facts(device: torch.device) -> dict[str, Any]:
    """The facts that a time depends on besides the call."""
    module = _native.load()
    built = None
    if module is not None and module.__file__:
        stat = os.stat(module.__file__)
        built = [stat.st_size, stat.st_mtime_ns]
    return {
        "torch": torch.__version__,
        "processor": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
        "isa": _native.build_info().get("isa"),
        "triton": triton_runtime.VERSION,
        "built": built,
    }


def _read(path: Path) -> dict[str, Milliseconds]:
    """The file's decisions; none if there is no such file, or it is broken."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["milliseconds"]
        return {
            str(key): {str(name): float(ms) for name, ms in times.items()}
            for key, times in entries.items()
        }
    except (OSError, ValueError, LookupError, AttributeError, TypeError):
        return {}


def _write(path: Path, text: str) -> None:
    """All at once, for another process may be reading."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


if environment.is_on("GENIMG_AUTOTUNE"):
    autotune(True)
