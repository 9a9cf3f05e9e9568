"""Measured decisions, in memory and on disk: which backend a kind of call takes on this machine.

One JSON file per machine, device, build of genimg and version of torch. Processes share it: each
write merges what the others have written, under a lock, and replaces the file at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from genimg import _native, environment
from genimg.kernels.triton import runtime as triton_runtime
from genimg.machine import cpu_name

try:
    import fcntl
except ImportError:  # not POSIX: a file is still replaced at once, but not merged under a lock
    fcntl = None  # type: ignore[assignment]

FORMAT = 2
"""Of the file; another one is not read."""

MOST = 20_000
"""Decisions in a file: the newest."""

BY_CALLS, BY_TUNE = "calls", "genimg.tune"
"""Where a decision comes from: the first calls of its kind, or a whole model that was tuned."""

_LOCK_SECONDS = 5.0
_SWITCHES = (
    "ATEN_CPU_CAPABILITY",
    "DNNL_MAX_CPU_ISA",
    "MKL_ENABLE_INSTRUCTIONS",
    "ONEDNN_MAX_CPU_ISA",
)

_log = logging.getLogger("genimg")


class Kind(NamedTuple):
    """A kind of call: everything that its speed depends on, and its batch up to a power of two."""

    call: str
    batch: int


@dataclass(frozen=True)
class Decision:
    """The backend that a kind of call takes, and the times that it was chosen by.

    Attributes:
        chosen: a key of ``milliseconds``.
        milliseconds: the median time of each candidate.
        by: :data:`BY_CALLS` or :data:`BY_TUNE`.
        note: why a candidate that was faster by itself is not the chosen one.
    """

    chosen: str
    milliseconds: dict[str, float]
    by: str = BY_CALLS
    note: str = ""


Decisions = dict[Kind, Decision]


def fastest(milliseconds: Mapping[str, float], by: str = BY_CALLS) -> Decision:
    """The decision for the candidate with the least time."""
    return Decision(min(milliseconds, key=lambda name: milliseconds[name]), dict(milliseconds), by)


def signature(device: torch.device) -> dict[str, Any]:
    """The facts that a time depends on besides the call: machine, versions, build, switches."""
    module = _native.load()
    built = None
    if module is not None and module.__file__:
        stat = os.stat(module.__file__)
        built = [stat.st_size, stat.st_mtime_ns]
    on_gpu = device.type == "cuda"
    return {
        "torch": torch.__version__,
        "processor": torch.cuda.get_device_name(device) if on_gpu else cpu_name(),
        "cores": os.cpu_count(),
        "isa": _native.build_info().get("isa"),
        "triton": triton_runtime.VERSION,
        "built": built,
        "switches": {name: os.environ[name] for name in _SWITCHES if name in os.environ},
    }


def cache_folder() -> Path | None:
    """``$GENIMG_CACHE``, by default ``~/.cache/genimg``; None where there is no home."""
    given = environment.value("GENIMG_CACHE")
    if given:
        return Path(given)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "genimg"
    except RuntimeError:
        return None


class DecisionStore:
    """The decisions of this process, and the file of each device that they come from.

    Args:
        folder: where the files are; None keeps nothing on disk.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._files: dict[str, Decisions] = {}  # file name -> decisions
        self._pending: dict[str, Decisions] = {}  # not yet written
        self._signatures: dict[torch.device, dict[str, Any]] = {}
        self._names: dict[torch.device, str] = {}
        self._lock = threading.RLock()

    def find(self, device: torch.device, kind: Kind) -> Decision | None:
        """The decision for a kind of call on a device, if there is one."""
        return self.all(device).get(kind)

    def agreed(self, device: torch.device, call: str) -> Decision | None:
        """A decision for ``call`` whose backend every batch that was decided takes, if any."""
        found = [each for kind, each in self.all(device).items() if kind.call == call]
        return found[0] if len({decision.chosen for decision in found}) == 1 else None

    def near(self, device: torch.device, kind: Kind) -> Decision | None:
        """The decision for a kind of call, or else for the same call of the nearest batch."""
        every = self.all(device)
        if kind in every:
            return every[kind]
        batches = [other.batch for other in every if other.call == kind.call]
        if not batches or not kind.batch:
            return None
        nearest = min(batches, key=lambda batch: abs(math.log2(max(batch, 1) / kind.batch)))
        return every[Kind(kind.call, nearest)]

    def all(self, device: torch.device) -> Decisions:
        """Every decision for a device; not to be changed."""
        name = self._name(device)
        found = self._files.get(name)
        if found is None:
            with self._lock:
                if name not in self._files:
                    self._files[name] = self._read(name, device)
                found = self._files[name]
        return found

    def keep(self, device: torch.device, decisions: Decisions) -> None:
        """Take decisions into memory and, merged with what others have written, onto the disk."""
        name = self._name(device)
        with self._lock:
            # New dictionaries: other threads may be reading the old ones.
            self._files[name] = {**self.all(device), **decisions}
            if self.folder is None:
                return
            self._pending[name] = {**self._pending.get(name, {}), **decisions}
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                path = self.folder / name
                with _locked(path.with_suffix(".lock")):
                    there = self._read(name, device)
                    merged = {**there, **_newer(self._pending[name], there)}
                    merged = dict(list(merged.items())[-MOST:])
                    _replace(path, to_json(merged, self._signature(device)))
                self._files[name] = {**merged, **self._files[name]}
                del self._pending[name]
            except TimeoutError:  # the next decision takes these along
                _log.info("%s is locked by another process: not written now", self.folder / name)
            except OSError as error:
                _log.warning(
                    "measured decisions are not kept: %s: %s",
                    self.folder,
                    error.strerror or error,
                )
                self.folder = None

    def path(self, device: torch.device) -> Path | None:
        """The file of a device."""
        return None if self.folder is None else self.folder / self._name(device)

    def _signature(self, device: torch.device) -> dict[str, Any]:
        if device not in self._signatures:
            self._signatures[device] = signature(device)
        return self._signatures[device]

    def _name(self, device: torch.device) -> str:
        if device not in self._names:
            facts = json.dumps(self._signature(device), sort_keys=True).encode()
            name = f"decisions-{hashlib.sha256(facts).hexdigest()[:16]}.json"
            self._names[device] = name
        return self._names[device]

    def _read(self, name: str, device: torch.device) -> Decisions:
        if self.folder is None:
            return {}
        try:
            text = (self.folder / name).read_text(encoding="utf-8")
        except (OSError, ValueError):
            return {}
        return from_json(text, self._signature(device))


def _newer(ours: Decisions, theirs: Decisions) -> Decisions:
    """Ours, but for those of first calls where a tuned model has decided on the same candidates."""
    return {
        kind: decision
        for kind, decision in ours.items()
        if not (
            (other := theirs.get(kind)) is not None
            and other.by == BY_TUNE != decision.by
            and set(other.milliseconds) == set(decision.milliseconds)
        )
    }


def to_json(decisions: Decisions, facts: dict[str, Any]) -> str:
    """The text of a file: decisions by call and batch, and what they are for."""
    by_call: dict[str, dict[str, Any]] = {}
    for (call, batch), decision in decisions.items():
        entry = {key: value for key, value in asdict(decision).items() if value != ""}
        by_call.setdefault(call, {})[str(batch)] = entry
    return json.dumps({"format": FORMAT, "for": facts, "decisions": by_call}, indent=0)


def from_json(text: str, facts: dict[str, Any] | None) -> Decisions:
    """The decisions in a file's text; none of one that is broken, or for something else.

    Args:
        text: as :func:`to_json` gives it, or anything.
        facts: what they must be for; None takes any.
    """
    found: Decisions = {}
    try:
        content = json.loads(text)
        if content["format"] != FORMAT or facts not in (None, content["for"]):
            return {}
        for call, batches in content["decisions"].items():
            for batch, entry in batches.items():
                times = {str(name): float(ms) for name, ms in entry["milliseconds"].items()}
                chosen = str(entry["chosen"])
                if chosen in times and all(map(math.isfinite, times.values())):
                    decision = Decision(chosen, times, str(entry["by"]), str(entry.get("note", "")))
                    found[Kind(str(call), int(batch))] = decision
    except (ValueError, LookupError, AttributeError, TypeError, RecursionError):
        return {}
    return found


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file among processes.

    Raises:
        TimeoutError: another process holds it for seconds; a stopped one would forever.
    """
    with open(path, "ab") as file:
        deadline = time.monotonic() + _LOCK_SECONDS
        while fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{path} is locked") from None
                time.sleep(0.005)
        yield  # closing the file releases the lock


def _replace(path: Path, text: str) -> None:
    """Write all at once, for another process may be reading."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
