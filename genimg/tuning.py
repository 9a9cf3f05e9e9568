"""Choice by measurement, which auto follows wherever it has been taken: ``genimg.autotune``."""

from __future__ import annotations

import functools
import inspect
import logging
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from genimg import backends, environment, isolation, priors
from genimg.backends import REFERENCE, Op
from genimg.budget import Budget
from genimg.decisions import Decision, Decisions, DecisionStore, Kind, cache_folder
from genimg.kernels.triton import runtime as triton_runtime
from genimg.kernels.triton.conv import tile_tuner
from genimg.kinds import DYNAMIC, call_of, quick_key
from genimg.trial import Trial

if TYPE_CHECKING:
    from genimg.kernels.triton.conv.tile_sizes import Tile

OFTEN = 8
"""Calls of a kind for whose neighbours in batch size a decision is known, until it is measured."""

_MOST_KNOWN = 4096

_log = logging.getLogger("genimg")

BUDGET = Budget()
"""Of this process: it began when genimg was imported."""


def autotune(enabled: bool = True) -> None:
    """Measure in eager mode what is not decided yet (the default), or measure nothing.

    The first calls of a kind (op, shapes, dtypes, memory format, options, gradients or none, number
    of threads; batches up to a power of two together) time every kernel that supports them, and
    PyTorch, on copies of their arguments: forward, and backward where a gradient is wanted. All of
    it may take one second at the start of a process and 5 % of its running time after that. The
    fastest is selected from then on, and until then auto follows the priors (genimg/priors.py).
    Decisions are kept in ``$GENIMG_CACHE`` (default ``~/.cache/genimg``), in a file for each build
    of genimg, version of torch, and machine, so that the next program measures nothing;
    :func:`genimg.explain` shows the times. :func:`genimg.tune` decides a whole model beforehand.

    Decisions are read, and nothing is measured: inside ``torch.compile``, ``torch.export`` and the
    capture of a CUDA graph, and where ``torch.use_deterministic_algorithms`` is on. Neither happens
    for a backend that is named, by argument, :func:`genimg.use_backend` or ``GENIMG_BACKEND``, nor
    in ``torch.func`` transforms and for subclasses of tensors. Measuring changes no random state,
    no buffer and no ``.grad``.

    A convolution that runs in Triton, named or not, measures each of its contractions as well: in
    the tile sizes that ship for the GPU, once for all batches up to a power of two. Kernels
    that have not run on a GPU yet (genimg/priors.py) are no candidates there: who wants one names
    it.

    Args:
        enabled: False measures nothing, in all threads, until it is True again; decisions on disk
            stay, and are read. ``GENIMG_AUTOTUNE=0`` begins a process with that.
    """
    install(Tuner(DecisionStore(cache_folder()), BUDGET, measures=enabled))


def install(tuner: Tuner) -> None:
    """Let ``tuner`` decide, in place of the one before."""
    global _current
    _current = tuner
    backends.set_tuner(tuner)
    tile_tuner.set_tuner(tuner)


def current() -> Tuner:
    """The tuner that decides."""
    return _current


def decide(run: Callable[[], Any]) -> None:
    """Run something and measure all that is met in it, however long it takes.

    Nothing is measured where ``autotune(False)`` has said so: it runs all the same.
    """
    tuner = _current
    with tuner.deciding() if tuner.measures else nullcontext():
        run()


class _Here(threading.local):
    """What this thread measures; calls of other threads do not see it."""

    def __init__(self) -> None:
        self.candidates: dict[str, str] = {}  # op -> candidate that its calls take
        self.timing = False  # a candidate is being timed, and nothing else may be
        self.is_open = False  # a call was met that is not decided


class Met(NamedTuple):
    """A call that was met while a model was tuned."""

    op: str
    device: torch.device
    kind: Kind
    names: tuple[str, ...]
    tensors: tuple[Tensor, ...]


class Overlay:
    """Choices that hold for a while in place of the stored ones; None leaves one to the priors."""

    def __init__(self, chosen: Mapping[Kind, str | None]) -> None:
        self.chosen = dict(chosen)
        self.known: dict[Hashable, _Known] = {}


class _Known:
    """A call that was met before, by its quick key."""

    __slots__ = ("backend", "is_closed", "kind", "met", "names", "near")

    def __init__(self, kind: Kind, names: list[str]) -> None:
        self.kind = kind
        self.names = names  # the candidates: kernels, and the reference
        self.backend: str | None = None  # decided
        self.near: str | None = None  # for other batches
        self.is_closed = len(names) == 1  # nothing to decide
        self.met = 0


class Tuner:
    """Decides for calls, by what is stored and by what it measures.

    Args:
        store: the decisions.
        budget: of all measuring.
        measures: False only reads the store.
    """

    def __init__(self, store: DecisionStore, budget: Budget, *, measures: bool = True) -> None:
        self.store = store
        self.budget = budget
        self.measures = measures
        self.used: dict[str, Decisions] = {}  # device -> decisions that calls have taken
        self._known: dict[Hashable, _Known] = {}
        self._overlay: Overlay | None = None
        self._record: list[Met] | None = None
        self._trials: dict[Kind, Trial] = {}
        self._tiles: dict[Any, Tile] = {}
        self._here = _Here()
        self._progress = 0  # decisions that were measured
        self._measuring = threading.RLock()  # one thread measures; others go by what is known

    def selected(self, op: Op, args: Sequence[Any]) -> str | None:
        """The backend decided for a call, measured first if that is due; None if there is none."""
        candidates = self._here.candidates
        if candidates and op.name in candidates:
            return candidates[op.name]
        known = self._meet(op, args)
        if known is None:
            return None
        if self._record is not None and not self._here.candidates:
            tensors = tuple(x for x in op.parts(*args) if isinstance(x, Tensor))
            met = Met(op.name, args[0].device, known.kind, tuple(known.names), tensors)
            self._record.append(met)
        if known.is_closed:
            return None
        return known.backend or self._decide(op, args, known)

    def compiled(self, op: Op, args: Sequence[Any]) -> str | None:
        """The backend decided for a call that is compiled or exported: traced, nothing measured."""
        x = args[0]
        found = call_of(op.name, op.parts(*args))
        if found is None:
            return None
        name = _stored_backend(op.name, *found, str(x.device))
        return None if name is None or op.why_not(name, *args) is not None else name

    def decision(self, op: Op, args: Sequence[Any]) -> Decision | None:
        """What is known of a call's candidates."""
        known = self._meet(op, args)
        return None if known is None else self._stored(args[0].device, known)

    def why_undecided(self, op: Op, args: Sequence[Any]) -> str:
        """Why there is no decision for a call."""
        known = self._meet(op, args)
        if known is None:
            return "calls such as this one are not measured"
        if len(known.names) == 1:
            return "there is one candidate"
        trial = self._trials.get(known.kind)
        if trial is not None and (trial.failure or trial.rounds):
            return trial.told()
        reason = self._why_not_measured(args)
        return "nothing was measured" + ("" if reason is None else f": {reason}")

    def forget(self) -> None:
        """Look every call up again: the store has changed."""
        self._known = {}

    @contextmanager
    def recording(self) -> Iterator[list[Met]]:
        """The calls that are met inside, but for those inside their candidates."""
        found: list[Met] = []
        self._record = found
        try:
            yield found
        finally:
            self._record = None

    @contextmanager
    def under(self, overlay: Overlay) -> Iterator[None]:
        """Let the choices of ``overlay`` hold inside; they are not stored."""
        before = self._known, self._overlay
        self._known, self._overlay = overlay.known, overlay
        try:
            yield
        finally:
            self._known, self._overlay = before

    @contextmanager
    def deciding(self) -> Iterator[None]:
        """Measure inside whatever is met, for as long as it takes."""
        before, self.measures = self.measures, True
        try:
            with self.budget.unlimited():
                yield
        finally:
            self.measures = before

    @contextmanager
    def still(self) -> Iterator[None]:
        """Measure nothing inside: what is timed there is the program alone."""
        before, self.measures = self.measures, False
        try:
            yield
        finally:
            self.measures = before

    def tile(
        self,
        key: tuple[Hashable, ...],
        x: Tensor,
        tiles: Sequence[Tile],
        run: Callable[[Tile], Any],
    ) -> Tile:
        """The fastest of a Triton contraction's tiles, or the first where that is not known."""
        if key in self._tiles:
            return self._tiles[key]
        if triton_runtime.INTERPRETED or not isolation.is_plain((x,)):
            return tiles[0]
        by_name = {tile.name: tile for tile in tiles}
        kind = Kind(repr(key), 1)
        decision = self.store.find(x.device, kind)
        if decision is None or set(decision.milliseconds) != set(by_name):
            trial = self._trials.setdefault(kind, Trial(list(by_name)))
            if trial.failure or self._why_not_measured((x,)) is not None:
                return tiles[0]
            if trial.needs > self.budget.left:
                self._here.is_open = True
                return tiles[0]
            steps = {name: functools.partial(run, tile) for name, tile in by_name.items()}
            decision = self._race(str(key[0]), x.device, kind, trial, steps)
            if decision is None:
                self._here.is_open = self._here.is_open or not trial.failure
                return tiles[0]
        self._use(x.device, kind, decision)
        self._tiles[key] = by_name[decision.chosen]
        return self._tiles[key]

    def _meet(self, op: Op, args: Sequence[Any]) -> _Known | None:
        """The entry of a call; None for one that is not for decisions."""
        parts = op.parts(*args)
        key = quick_key(op.name, parts)
        if key is None:
            return None
        try:
            known = self._known.get(key)
        except TypeError:
            return None
        if known is None:
            found = call_of(op.name, parts)
            if found is None or not args[0].numel():
                return None
            facts, batch = found
            kernels = [name for name in op.by_backend if _is_candidate(op, name, args)]
            kind = Kind(_told(facts, args[0].device), batch)
            known = _Known(kind, [*kernels, REFERENCE])
            if len(self._known) >= _MOST_KNOWN:
                self._known = {}
            self._known[key] = known
        return known

    def _stored(self, device: torch.device, known: _Known) -> Decision | None:
        decision = self.store.find(device, known.kind)
        if decision is not None and set(decision.milliseconds) != set(known.names):
            return None  # of other kernels
        return decision

    def _decide(self, op: Op, args: Sequence[Any], known: _Known) -> str | None:
        """What the store has, else what measuring gives, else what holds for a near batch."""
        device = args[0].device
        if self._overlay is not None and known.kind in self._overlay.chosen:
            known.backend = self._overlay.chosen[known.kind]
            return known.backend
        decision = self._stored(device, known)
        if decision is None:
            known.met += 1
            if known.met == 1:
                known.near = self._near(device, known)
            if known.near is None or known.met > OFTEN or self.budget.is_unlimited:
                decision = self._measured(op, args, known)
        if decision is not None:
            self._use(device, known.kind, decision)
            known.backend = decision.chosen
            return known.backend
        if known.near is None and not known.is_closed:
            self._here.is_open = True
        return known.near

    def _near(self, device: torch.device, known: _Known) -> str | None:
        decision = self.store.near(device, known.kind)
        if decision is None or set(decision.milliseconds) != set(known.names):
            return None
        return decision.chosen

    def _measured(self, op: Op, args: Sequence[Any], known: _Known) -> Decision | None:
        if self._why_not_measured(args) is not None:
            return None
        trial = self._trials.setdefault(known.kind, Trial(known.names))
        if list(trial.samples) != known.names or trial.needs > self.budget.left:
            return None
        steps = _Steps(op, args, self._here)
        try:
            return self._race(op.name, args[0].device, known.kind, trial, steps)
        finally:
            self._here.candidates.pop(op.name, None)
            known.is_closed = bool(trial.failure)

    def _race(
        self,
        what: str,
        device: torch.device,
        kind: Kind,
        trial: Trial,
        steps: Any,
    ) -> Decision | None:
        """Go on with a trial while the budget lasts; the decision, if that is enough."""
        if self._here.timing or not self._measuring.acquire(blocking=False):
            return None
        before = self.budget.spent, self._progress + trial.rounds
        try:
            with self.budget.spending(), isolation.apart(device):
                return self._rounds(what, device, kind, trial, steps)
        except Exception as error:
            # Any exception, a compiler's too: the call itself will raise it again.
            trial.failure = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            _log.info("%s: not measured: %s", what, trial.failure)
            return None
        finally:
            self._here.timing = False
            self._measuring.release()
            # Copies and first runs must leave time for a round, or they are all that ever happens.
            took = self.budget.spent - before[0]
            stuck = before[1] == self._progress + trial.rounds
            trial.needs = 2 * max(took, trial.needs) if stuck else took

    def _rounds(
        self, what: str, device: torch.device, kind: Kind, trial: Trial, steps: Any
    ) -> Decision | None:
        # The ops inside one candidate, such as a stack's layers, are decided before it is timed.
        outside, self._here.is_open = self._here.is_open, False
        for name in reversed(trial.racing()):
            steps[name]()
        is_open, self._here.is_open = self._here.is_open, outside
        if is_open:
            return None
        self._here.timing = True

        def seconds(name: str) -> float:
            isolation.synchronize(device)
            start = self.budget.clock()
            steps[name]()
            isolation.synchronize(device)
            return self.budget.clock() - start

        decision = trial.decision()
        while decision is None and self.budget.left > 0:
            trial.round(seconds)
            decision = trial.decision()
        if decision is not None:
            self.store.keep(device, {kind: decision})
            self._progress += 1
            del self._trials[kind]
            _log.info("%s: measured %s", what, describe(decision.milliseconds))
        return decision

    def _why_not_measured(self, args: Sequence[Any]) -> str | None:
        if not self.measures:
            return "autotune is off"
        if self.budget.left <= 0:
            return "the time for measuring is used up for now"
        return isolation.why_not(args)

    def _use(self, device: torch.device, kind: Kind, decision: Decision) -> None:
        self.used.setdefault(device.type, {})[kind] = decision


class _Steps:
    """Candidate -> a run of the op by it on copies of its arguments, with its backward, if any."""

    def __init__(self, op: Op, args: Sequence[Any], here: _Here) -> None:
        self._op, self._args, self._here = op, args, here
        self._made: dict[str, Callable[[], None]] = {}

    def __getitem__(self, name: str) -> Callable[[], None]:
        if name not in self._made:
            self._made[name] = self._make(name)
        return self._made[name]

    def _make(self, name: str) -> Callable[[], None]:
        op, here = self._op, self._here
        given = dict(zip(_parameters(op), map(isolation.copy, self._args), strict=True))
        leaves = [x for x in isolation.tensors(given) if x.requires_grad]
        grads: list[Tensor] = []

        def run() -> None:
            here.candidates[op.name] = name  # for this op alone: those inside it are on their own
            outputs = op.function(**given)
            every = outputs if isinstance(outputs, tuple) else (outputs,)
            wanted = [y for y in every if y.requires_grad]
            if wanted:
                grads.extend(torch.rand_like(y) for y in wanted[len(grads) :])
                torch.autograd.grad(wanted, leaves, grads, allow_unused=True)

        return run


def _parameters(op: Op) -> list[str]:
    return [name for name in inspect.signature(op.function).parameters if name != "backend"]


def _stored_backend(op: str, facts: tuple[Any, ...], batch: int, device: str) -> str | None:
    """The stored choice for a call; a graph keeps it, whatever is decided later."""
    where = torch.device(device)
    call = _told(facts, where)
    store = _current.store
    decision = (
        store.agreed(where, call) if batch == DYNAMIC else store.near(where, Kind(call, batch))
    )
    return None if decision is None else decision.chosen


# As torch.compiler.assume_constant_result does, which would import all of Dynamo for it.
_stored_backend._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _told(facts: tuple[Any, ...], device: torch.device) -> str:
    """The facts of a call and the settings that its speed depends on, as one line."""
    if device.type != "cuda":
        return repr((*facts, f"{torch.get_num_threads()} threads"))
    cudnn = torch.backends.cudnn
    settings = (cudnn.benchmark, cudnn.deterministic, torch.get_float32_matmul_precision())
    return repr((*facts, *settings, str(getattr(cudnn, "allow_tf32", None))))


def _is_candidate(op: Op, name: str, args: Sequence[Any]) -> bool:
    if name == "triton" and triton_runtime.INTERPRETED:
        return False
    if not priors.is_proved(args[0].device.type):
        return False
    return op.why_not(name, *args) is None


def describe(milliseconds: dict[str, float]) -> str:
    """The times in words, the fastest first."""
    ordered = sorted(milliseconds.items(), key=lambda item: item[1])
    return ", ".join(f"{name} {ms:.3g} ms" for name, ms in ordered)


_current: Tuner
autotune(environment.value("GENIMG_AUTOTUNE") != "0")
