"""``genimg.tune``: everything in a model decided beforehand, and confirmed by whole steps of it."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from genimg import isolation
from genimg.backends import REFERENCE
from genimg.decisions import BY_TUNE, Decision, Decisions, Kind
from genimg.nn import FusedSequential, restore
from genimg.nn.conv_stack import has_folds, set_folding
from genimg.nn.convert import is_ours
from genimg.trial import Trial
from genimg.tuning import Met, Overlay, Tuner, current, describe

Step = Callable[..., Any]

BEFORE, FUSED, UNFOLDED = "before", "genimg", "genimg without folding"
LAYERS, PYTORCH = "genimg layer by layer", "PyTorch"

_GAIN = 1.02  # by which a choice for the whole model must win against the model as it is
_DOUBTFUL = 1.25  # a kernel that won by less, alone, is confirmed by whole steps
_MOST_DOUBTS = 8
_NOTE = "alone it is the fastest, but the whole model takes longer with it"


@dataclass(frozen=True)
class Layer:
    """What was decided for one kind of call in a model."""

    name: str
    op: str
    chosen: str
    milliseconds: dict[str, float]
    note: str = ""

    def __str__(self) -> str:
        note = f" ({self.note})" if self.note else ""
        return f"{self.name} {self.op}: {self.chosen}{note}; {describe(self.milliseconds)}"


@dataclass(frozen=True)
class TuneReport:
    """What :func:`tune` measured and chose; prints as text.

    Attributes:
        layers: per kind of call the candidates' times, each by itself, and the choice.
        milliseconds: a whole step: ``before``, and each way in which the model can run.
        chosen: the way that was taken, a key of ``milliseconds``.
        changes: what was changed in the model; empty if nothing was.
        is_stored: an earlier call has measured whole steps of such a model, and this one none.
    """

    layers: tuple[Layer, ...]
    milliseconds: dict[str, float]
    chosen: str
    changes: tuple[str, ...]
    is_stored: bool = False

    @property
    def speedup(self) -> float:
        """The time of a step before, by the time after."""
        return self.milliseconds[BEFORE] / self.milliseconds[self.chosen]

    def __str__(self) -> str:
        lines = [f"{len(self.layers)} kinds of calls decided"]
        lines += [f"  {layer}" for layer in self.layers]
        lines += ["a whole step" + (", as measured earlier" if self.is_stored else "")]
        for name, ms in self.milliseconds.items():
            mark = "->" if name == self.chosen else "  "
            lines.append(f"  {mark} {name:<40} {ms:.3g} ms")
        lines.append(f"{self.speedup:.2f} times as fast as before")
        lines += self.changes or ["the model was not changed"]
        return "\n".join(lines)


def tune(model: torch.nn.Module, *inputs: Any, step: Step | None = None) -> TuneReport:
    """Decide by measurement everything in a model, on this machine, and confirm it by whole steps.

    Every call of genimg's ops in a step of the model is decided as :func:`genimg.autotune` would,
    however long that takes, and kept on disk. Then whole steps are timed in turn: of the model as
    it was, with what was decided, in the other memory format, with its stacks unfolded and layer by
    layer, and of plain PyTorch. The fastest is chosen; kernels that won by little alone and do not
    win in the model are taken back, and so are all where plain PyTorch is faster. Do it before
    ``torch.compile``, which reads the decisions.

    All of it runs on copies of the model and of the inputs, with the global random state given
    back. ``model`` itself keeps weights, buffers, ``.grad``, modes and hooks; what changes is the
    choice: the memory format of its weights, and the class of a :class:`genimg.nn.FusedSequential`
    that is faster layer by layer. Hooks of the model do run on the copies.

    Args:
        model: converted by :func:`genimg.convert`, or made of ``genimg.nn``.
        inputs: of one call, of the shapes, dtypes and device that it will have.
        step: ``step(model, *inputs)`` runs what matters: forward, loss, backward. By default the
            forward, and in training mode the gradients of all parameters.

    Returns:
        The times and the choices.

    Raises:
        TypeError: ``model`` is no module.
        ValueError: nothing in the model is genimg's.
        RuntimeError: nothing can be measured here, and why: ``torch.use_deterministic_algorithms``,
            a profiler, a graph that is being captured.
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"tune: expected a torch.nn.Module, but got {type(model).__name__}")
    if not any(map(is_ours, model.modules())):
        raise ValueError("tune: nothing in the model is genimg's: genimg.convert(model) first")
    tensors = [*isolation.tensors(inputs), *model.parameters(), *model.buffers()]
    reason = isolation.why_not([tensors[0].detach()]) if tensors else "there is no tensor"
    if reason is not None:
        raise RuntimeError(f"tune: nothing can be measured: {reason}")
    devices = {x.device.index or 0 for x in tensors if x.device.type == "cuda"}
    with torch.random.fork_rng(sorted(devices)):
        session = _Session(model, inputs, step or default_step, current(), tensors[0].device)
        return session.run()


def default_step(model: torch.nn.Module, *inputs: Any) -> None:
    """The forward, and in training mode the gradients of all parameters."""
    if not (model.training and torch.is_grad_enabled()):
        with torch.no_grad():
            model(*inputs)
        return
    outputs = [y for y in isolation.tensors(model(*inputs)) if y.requires_grad]
    leaves = [*model.parameters(), *isolation.tensors(inputs)]
    wanted = [x for x in leaves if x.requires_grad and x.is_leaf]
    if outputs and wanted:
        torch.autograd.grad(outputs, wanted, [*map(torch.ones_like, outputs)], allow_unused=True)


class _Session:
    """One call of :func:`tune`."""

    def __init__(
        self,
        model: torch.nn.Module,
        inputs: tuple[Any, ...],
        step: Step,
        tuner: Tuner,
        device: torch.device,
    ) -> None:
        self.model, self.inputs, self.step = model, inputs, step
        self.tuner, self.device = tuner, device
        self.format = _format(model)
        self.ways = dict(_ways(model, self.format))
        self.steps: dict[str, Callable[[], Any]] = {}
        self.met: dict[str, list[Met]] = {}
        self.taken_back: set[Kind] = set()
        self.names_of_parameters: dict[int, str] = {}

    def run(self) -> TuneReport:
        self._begin()
        signature = self._signature()
        with self.tuner.deciding():
            for name in self.ways:
                if name != BEFORE:
                    self._decide(name)
        stored = self.tuner.store.find(self.device, signature)
        is_stored = stored is not None and set(stored.milliseconds) == set(self.ways)
        if stored is not None and is_stored:
            chosen, times = stored.chosen, stored.milliseconds
        else:
            with self.tuner.still():
                times = self._race(self.ways)
                chosen = self._chosen(times)
                self._confirm(chosen)
        self._keep(chosen, signature, times)
        changes = _apply(self.model, chosen, self.format)
        return TuneReport(self._layers(chosen), times, chosen, tuple(changes), is_stored)

    def _begin(self) -> None:
        """The model as it is, and the choices that hold for it now."""
        with self.tuner.still():
            run = self._made(BEFORE)
            with self.tuner.recording() as met:
                run()
            self.met[BEFORE] = met
            now = {each.kind: self._now(each) for each in met}
        overlay = Overlay(now)

        def before() -> None:
            with self.tuner.under(overlay):
                run()

        self.steps[BEFORE] = before

    def _now(self, met: Met) -> str | None:
        """The choice that holds for a call, None if it is left to the priors."""
        decision = self.tuner.store.near(met.device, met.kind)
        return None if decision is None else decision.chosen

    def _signature(self) -> Kind:
        """The kind of the whole model: all that was met in it."""
        kinds = sorted({f"{each.kind}" for each in self.met[BEFORE]})
        text = repr((kinds, sorted(self.ways), getattr(self.step, "__qualname__", "")))
        return Kind(f"model {hashlib.sha256(text.encode()).hexdigest()}", 1)

    def _made(self, name: str) -> Callable[[], Any]:
        """A step on a copy of the model that runs in one of the ways."""
        made = self.ways[name](copy.deepcopy(self.model))
        inputs = isolation.copy(self.inputs)
        for path, parameter in made.named_parameters():
            self.names_of_parameters[id(parameter)] = path.rpartition(".")[0] or "(model)"
        return lambda: self.step(made, *inputs)

    def _decide(self, name: str) -> None:
        run = self.steps[name] = self._made(name)
        run()
        with self.tuner.recording() as met:
            run()
        self.met[name] = met

    def _race(self, names: Iterable[str]) -> dict[str, float]:
        return _race({name: self.steps[name] for name in names}, self.tuner, self.device)

    def _chosen(self, times: Mapping[str, float]) -> str:
        """The fastest way, or the model as it is where that is as good."""
        ways = {name: ms for name, ms in times.items() if name != BEFORE}
        best = min(ways, key=lambda name: ways[name])
        as_it_is = _way(FUSED, self.format)
        return as_it_is if ways[as_it_is] <= _GAIN * ways[best] else best

    def _confirm(self, chosen: str) -> None:
        """Take back the kernels that win alone by little and do not win in the model."""
        if chosen.startswith(PYTORCH):
            self._take_all_back(chosen.replace(PYTORCH, FUSED), chosen)
            return
        doubts: dict[Kind, float] = {}
        for met in self.met[chosen]:
            decision = self.tuner.store.find(met.device, met.kind)
            if decision is not None and decision.chosen != REFERENCE:
                times = decision.milliseconds
                gain = times[REFERENCE] - times[decision.chosen]
                if times[REFERENCE] < _DOUBTFUL * times[decision.chosen]:
                    doubts[met.kind] = gain
        for kind in sorted(doubts, key=lambda kind: doubts[kind])[:_MOST_DOUBTS]:
            without = {**dict.fromkeys(self.taken_back, REFERENCE), kind: REFERENCE}
            overlays = {
                "with": Overlay(dict.fromkeys(self.taken_back, REFERENCE)),
                "without": Overlay(without),
            }
            times = _race(
                {name: self._under(overlay, chosen) for name, overlay in overlays.items()},
                self.tuner,
                self.device,
            )
            if times["without"] * _GAIN < times["with"]:
                self.taken_back.add(kind)

    def _take_all_back(self, way: str, chosen: str) -> None:
        """Leave every op to PyTorch, those that a stack consists of too, which are met then."""
        met = self.met[way]
        while not {each.kind for each in met} <= self.taken_back:
            self.taken_back |= {each.kind for each in met}
            overlay = Overlay(dict.fromkeys(self.taken_back, REFERENCE))
            self.met[chosen] = [*self.met[chosen], *met]
            with self.tuner.under(overlay), self.tuner.recording() as met:
                self.steps[way]()

    def _under(self, overlay: Overlay, name: str) -> Callable[[], None]:
        run = self.steps[name]

        def step() -> None:
            with self.tuner.under(overlay):
                run()

        return step

    def _keep(self, chosen: str, signature: Kind, times: dict[str, float]) -> None:
        """Store what holds, as decided by tuning a model."""
        by_device: dict[torch.device, Decisions] = {}
        for met in (met for name in self.met for met in self.met[name]):
            decision = self.tuner.store.find(met.device, met.kind)
            if decision is None:
                continue
            decision = replace(decision, by=BY_TUNE)
            if met.kind in self.taken_back and decision.chosen != REFERENCE:
                decision = replace(decision, chosen=REFERENCE, note=_NOTE)
            by_device.setdefault(met.device, {})[met.kind] = decision
        by_device.setdefault(self.device, {})[signature] = Decision(chosen, times, BY_TUNE)
        for device, decisions in by_device.items():
            self.tuner.store.keep(device, decisions)
        self.tuner.forget()

    def _layers(self, chosen: str) -> tuple[Layer, ...]:
        """A line for each kind that was met, in the order of the calls."""
        found: dict[Kind, Layer] = {}
        for met in self.met[chosen] or self.met[BEFORE]:
            decision = self.tuner.store.find(met.device, met.kind)
            if decision is not None:
                found[met.kind] = Layer(
                    self._name(met), met.op, decision.chosen, decision.milliseconds, decision.note
                )
        return tuple(found.values())

    def _name(self, met: Met) -> str:
        owners = [self.names_of_parameters.get(id(x)) for x in met.tensors]
        names = [name for name in owners if name is not None]
        if not names:
            return f"{tuple(met.tensors[0].shape)}"
        return names[0] if names[0] == names[-1] else f"{names[0]} to {names[-1]}"


def _race(
    steps: Mapping[str, Callable[[], Any]], tuner: Tuner, device: torch.device
) -> dict[str, float]:
    """Milliseconds of each step, in turns."""
    for run in steps.values():
        run()

    def seconds(name: str) -> float:
        isolation.synchronize(device)
        start = tuner.budget.clock()
        steps[name]()
        isolation.synchronize(device)
        return tuner.budget.clock() - start

    trial = Trial(list(steps))
    while trial.decision() is None:
        trial.round(seconds)
    return trial.milliseconds


def _format(model: torch.nn.Module) -> str:
    """The memory format of a model: that of its first weight that is in one alone."""
    for x in model.parameters():
        if x.dim() == 4 and not x.is_contiguous():
            return "channels_last"
    return "contiguous"


def _way(base: str, memory_format: str) -> str:
    return f"{base}, {memory_format}"


def _ways(
    model: torch.nn.Module, memory_format: str
) -> Iterator[tuple[str, Callable[[torch.nn.Module], torch.nn.Module]]]:
    """Name -> what makes a copy of the model run in that way."""
    yield BEFORE, lambda made: made
    other = "contiguous" if memory_format == "channels_last" else "channels_last"
    images = any(x.dim() == 4 for x in model.parameters())
    stacks = [module for module in model.modules() if type(module) is FusedSequential]
    bases = [FUSED]
    bases += [UNFOLDED] if any(map(has_folds, stacks)) else []
    bases += [LAYERS, PYTORCH] if stacks else [PYTORCH]
    for layout in (memory_format, other) if images else (memory_format,):
        for base in bases:
            yield _way(base, layout), _made_by(base, layout, memory_format)


def _made_by(base: str, layout: str, before: str) -> Callable[[torch.nn.Module], torch.nn.Module]:
    def make(made: torch.nn.Module) -> torch.nn.Module:
        if base == LAYERS:
            _unfuse(made)
        elif base == UNFOLDED:
            _unfold(made)
        elif base == PYTORCH:
            restore(made)
        return made if layout == before else _to(made, layout)

    return make


def _to(model: torch.nn.Module, layout: str) -> torch.nn.Module:
    formats = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
    return model.to(memory_format=formats[layout])  # type: ignore[call-overload]


def _unfuse(model: torch.nn.Module) -> None:
    for module in model.modules():
        if type(module) is FusedSequential:
            module.__class__ = torch.nn.Sequential  # type: ignore[assignment]


def _unfold(model: torch.nn.Module) -> None:
    for module in model.modules():
        if type(module) is FusedSequential:
            set_folding(module, enabled=False)


def _apply(model: torch.nn.Module, chosen: str, before: str) -> list[str]:
    """Change the model to the chosen way; what was changed, in words."""
    base, layout = chosen.rsplit(", ", 1)
    changes = []
    if base == LAYERS:
        _unfuse(model)
        changes.append("its stacks run layer by layer: FusedSequential became Sequential")
    if base == UNFOLDED:
        _unfold(model)
        changes.append("its stacks fold no upsampling and no pooling into convolutions")
    if layout != before:
        _to(model, layout)
        changes.append(f"its weights are in {layout} memory")
    return changes
