"""Turning an ordinary PyTorch model over to genimg, and back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch

from genimg.nn import declaration, declared, subclasses
from genimg.nn.alone import alone
from genimg.nn.batch_norm import BatchNorm2d
from genimg.nn.conv import Conv2d, ConvTranspose2d
from genimg.nn.conv_stack import (
    BatchNormAct2d,
    FusedSequential,
    inner_stacks,
    neighbours,
    plan,
    set_folding,
    why_unfolded,
)
from genimg.nn.drop_in import replaced_method
from genimg.nn.leaky_relu import LeakyReLU
from genimg.nn.reparam_kl import ReparamKL
from genimg.nn.weights import class_of, is_parametrized_class, with_base

_LAYERS: dict[type[torch.nn.Module], tuple[str, type[torch.nn.Module]]] = {
    torch.nn.Conv2d: ("conv2d", Conv2d),
    torch.nn.ConvTranspose2d: ("conv_transpose2d", ConvTranspose2d),
    torch.nn.BatchNorm2d: ("batch_norm_act", BatchNorm2d),
    torch.nn.LeakyReLU: ("leaky_relu", LeakyReLU),
}
_PLAIN: dict[type[torch.nn.Module], type[torch.nn.Module]] = {
    ours: theirs for theirs, (_, ours) in _LAYERS.items()
}
_PLAIN |= declared.TORCHS | dict.fromkeys((FusedSequential, BatchNormAct2d), torch.nn.Sequential)
_OPS = (*(op for op, _ in _LAYERS.values()), "conv_stack")

# Relatives that a reader of the report would look for.
_RELATED: tuple[type[torch.nn.Module], ...] = (
    torch.nn.modules.conv._ConvNd,
    torch.nn.modules.batchnorm._BatchNorm,
    torch.nn.LeakyReLU,
)


class ConversionError(ValueError):
    """``convert(strict=True)`` met layers that it cannot convert; the model is untouched."""


@dataclass(frozen=True)
class Change:
    """A module that changed its class."""

    name: str
    before: str
    after: str


@dataclass(frozen=True)
class Fusion:
    """Modules that run as one op."""

    name: str
    layers: str
    op: str


@dataclass(frozen=True)
class Skip:
    """A module that was left alone, and why."""

    name: str
    layer: str
    reason: str


@dataclass(frozen=True)
class Report:
    """The changes that :func:`convert` or :func:`restore` made; prints as text.

    Attributes:
        changed: modules that changed their class.
        fused: layers that run as one op.
        skipped: modules that were left alone, and why.
        folded: those of ``fused`` whose upsampling or pooling is part of a convolution's weight.
        unfolded: neighbours that stay two layers, named by the first, and why.
        alone: converted convolutions and batch norms that no fused run holds, and why.
    """

    changed: tuple[Change, ...]
    fused: tuple[Fusion, ...]
    skipped: tuple[Skip, ...]
    folded: tuple[Fusion, ...] = ()
    unfolded: tuple[Skip, ...] = ()
    alone: tuple[Skip, ...] = ()

    def __str__(self) -> str:
        lines = [f"{len(self.changed)} modules changed, {len(self.skipped)} left alone"]
        lines += [f"  {c.name or '(model)'}: {c.before} -> {c.after}" for c in self.changed]
        lines += [f"  {f.name or '(model)'}: {f.layers} run as one {f.op}" for f in self.fused]
        lines += [
            f"  {f.name or '(model)'}: {f.layers} folded into one {f.op}" for f in self.folded
        ]
        lines += [
            f"  {s.name or '(model)'}: {s.layer} left alone: {s.reason}" for s in self.skipped
        ]
        lines += [f"  {s.name}: {s.layer} not folded: {s.reason}" for s in self.unfolded]
        lines += [f"  {s.name}: {s.layer} runs by itself: {s.reason}" for s in self.alone]
        return "\n".join(lines)


def convert(
    model: torch.nn.Module,
    *,
    ops: Iterable[str] | str | None = None,
    fuse: declaration.Fuse = True,
    fold: bool = True,
    strict: bool = False,
) -> Report:
    """Turn a model's layers into genimg's, in place; :func:`restore` undoes it.

    Modules keep their identity and everything they hold (parameters, buffers, hooks, mode, places
    where they are shared): they only change their class, ``torch.nn.Conv2d`` to
    ``genimg.nn.Conv2d`` and so on, and an ``nn.Sequential`` with a run of convolution, batch norm,
    activation to :class:`genimg.nn.FusedSequential`, which fuses it. ``state_dict`` keys do not
    change, optimisers go on.

    In such a Sequential, nearest upsampling by a whole factor before a convolution of stride 1, and
    average pooling of whole windows behind one, are folded into the convolution's weight: one
    strided convolution computes both, with about half the products
    (:func:`genimg.ops.upsample_conv2d`, :func:`genimg.ops.conv2d_avg_pool`). Parameters stay those
    of the layer, whose weight each forward folds; its gradient is the layer's. A fold sums taps
    before it multiplies, so that results differ from PyTorch's by rounding, within the tolerance
    of every kernel of genimg; FLOP counters count what is left. Where images are so small that
    folding costs more, the layers run one after the other. A folded Upsample keeps its input for
    the backward, which PyTorch's does not: editing that tensor in place in between is an error.

    Left alone, with the reason in the report: subclasses of torch's layers (lazy and user-defined
    ones among them), layers of other dimensions, modules with a method of their own (``forward``,
    ``_conv_forward``) on the instance. Layers with hooks are converted but not fused, so that their
    hooks run. Layers under ``spectral_norm``, ``weight_norm`` or another parametrization are fused
    with the weight that these compute, once in each forward.

    Subclasses of Sequential whose forward is Sequential's own are fused under their own names.
    Neighbours in a ModuleList are not: only the model's forward knows how it calls them.

    Code that asks for the exact class, ``type(m) is torch.nn.Conv2d``, does not find a converted
    layer: call it before, or ask by ``isinstance``. ``torch.jit.trace`` and ``torch.fx`` record
    PyTorch's own ops and layers; ``torch.jit.script`` scripts torch's, and leaves the model
    restored.

    Args:
        model: any module.
        ops: the ops to use, or one, of ``conv2d``, ``conv_transpose2d``, ``batch_norm_act``,
            ``leaky_relu`` and ``conv_stack`` (the fusion in a Sequential); None is all.
        fuse: False leaves every Sequential as it is. Lists of names, such as
            ``[["conv1", "bn1", "relu1"], ["conv2", "bn2"]]``, declare runs of layers that the
            model's forward calls one after the other, as ``torch.ao.quantization.fuse_modules``
            takes them; Sequentials are fused as well. The first layer of a run computes all of it,
            and updates the running statistics; the others return their input. Names with dots
            reach submodules, and one run may be given alone. Nothing but the next layer may use
            an output inside the run, and every layer has to be called: a layer that the forward
            calls with another tensor, or with an edited one, raises RuntimeError. A run with a
            hook or a replaced method on any of its layers is not fused, so that it runs.
        fold: False leaves upsampling and pooling to their layers.
        strict: raise instead of leaving a layer alone.

    Returns:
        What changed, what will run fused and folded, and what was left alone, and why.

    Raises:
        TypeError: ``model`` is no module, ``fuse`` has no names.
        ValueError: an unknown op; ``fuse`` names a layer that the model does not have or that no
            run supports, one layer twice, or layers in an order that is no run's.
        ConversionError: ``strict``, and something would be left alone; nothing was changed.
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"convert: expected a torch.nn.Module, but got {type(model).__name__}")
    wanted = _OPS if ops is None else (ops,) if isinstance(ops, str) else tuple(ops)
    unknown = [op for op in wanted if op not in _OPS]
    if unknown:
        raise ValueError(f"convert: unknown op {unknown[0]!r}; there are {', '.join(_OPS)}")
    runs = declaration.read(model, fuse, _why_not)
    if runs and "conv_stack" not in wanted:
        raise ValueError("convert: fuse names runs, but ops leaves out conv_stack, which fuses")
    in_runs = {id(layer) for run in runs for layer in run.layers}
    changes: list[tuple[str, torch.nn.Module, type[torch.nn.Module]]] = []
    skipped = []
    for name, module in model.named_modules():
        kind = class_of(module)
        if id(module) in in_runs:
            changes.append((name, module, declared.kind_of(module) or kind))
            continue
        if kind in _LAYERS and _LAYERS[kind][0] not in wanted:
            continue
        reason = _why_not(module)
        if reason is not None:
            skipped.append(Skip(name, kind.__name__, reason))
        elif kind in _LAYERS:
            changes.append((name, module, _LAYERS[kind][1]))
        elif fuse and "conv_stack" in wanted and _runs(module, fold):
            own = replaced_method(module, torch.nn.Sequential)
            if own is not None:
                skipped.append(Skip(name, kind.__name__, _why_replaced(own)))
            else:
                after = FusedSequential if kind is torch.nn.Sequential else subclasses.fused(kind)
                changes.append((name, module, after))
    if strict and skipped:
        reasons = "; ".join(f"{s.name or '(model)'} ({s.layer}): {s.reason}" for s in skipped)
        raise ConversionError(f"convert: {len(skipped)} layers cannot be converted: {reasons}")
    changed = _apply(changes)
    for module in model.modules():
        if _is_fused(module):
            set_folding(module, fold)
    for run in runs:
        run.attach()
    fused, members = _fusions(model)
    by_itself = (
        Skip(name, class_of(layer).__name__, reason)
        for name, layer, reason in alone(model, members)
    )
    report = Report(changed, fused, tuple(skipped), alone=tuple(by_itself) if fuse else ())
    if not (fold and fuse and "conv_stack" in wanted):
        return report
    folded, unfolded = _foldings(model)
    return replace(report, folded=folded, unfolded=unfolded)


def restore(model: torch.nn.Module) -> Report:
    """Give a model's modules torch's classes back, in place; the reverse of :func:`convert`.

    Works on models built from ``genimg.nn`` as well. ``BatchNormAct2d`` becomes the Sequential that
    it is; ``ReparamKL`` has no counterpart in torch, and stays; the report says so.

    Returns:
        What changed and what was left alone, and why.

    Raises:
        TypeError: ``model`` is no module.
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"restore: expected a torch.nn.Module, but got {type(model).__name__}")
    changes = []
    skipped = []
    for name, module in model.named_modules():
        kind = class_of(module)
        plain = _PLAIN.get(kind) or subclasses.plain_of(kind)
        if plain is not None:
            declared.leave(module)
            changes.append((name, module, plain))
            set_folding(module, True)
        elif isinstance(module, ReparamKL):
            skipped.append(Skip(name, kind.__name__, "torch has no such layer"))
        elif any(isinstance(module, layer) for layer in _PLAIN):
            skipped.append(Skip(name, kind.__name__, _why_subclass(module)))
    return Report(_apply(changes), (), tuple(skipped))


def is_ours(module: torch.nn.Module) -> bool:
    """Whether a module runs genimg's ops."""
    return isinstance(module, (*_PLAIN, ReparamKL))


def _apply(
    changes: list[tuple[str, torch.nn.Module, type[torch.nn.Module]]],
) -> tuple[Change, ...]:
    made = []
    for name, module, kind in changes:
        before = type(module)
        module.__class__ = with_base(before, kind)
        made.append(Change(name, _title(before), _title(module.__class__)))
    return tuple(made)


def _title(kind: type[torch.nn.Module]) -> str:
    if is_parametrized_class(kind):
        return f"parametrized {_title(kind.__bases__[0])}"
    if subclasses.plain_of(kind) is not None:
        return f"fused {kind.__name__}"
    room = kind.__module__.split(".")[0]
    return f"{room}.nn.{kind.__name__}" if room in ("genimg", "torch") else kind.__name__


def _runs(module: torch.nn.Module, fold: bool) -> bool:
    """Whether it is a Sequential, by its forward, with something to fuse."""
    kind = type(module)
    if kind is not torch.nn.Sequential and not subclasses.is_sequential(kind):
        return False
    assert isinstance(module, torch.nn.Sequential)
    return any(isinstance(step, list) for step in plan(module, fold, in_eval=True))


def _is_fused(module: torch.nn.Module) -> bool:
    return isinstance(module, FusedSequential) and not isinstance(module, BatchNormAct2d)


def _outermost(
    model: torch.nn.Module, with_plain: bool = False
) -> Iterator[tuple[str, torch.nn.Sequential]]:
    """The fused stacks of a model, and plain ones if wanted, that no other one looks into."""
    inner: set[int] = set()
    for name, module in model.named_modules():
        is_plain = with_plain and type(module) is torch.nn.Sequential
        if (_is_fused(module) or is_plain) and id(module) not in inner:
            assert isinstance(module, torch.nn.Sequential)
            inner |= {id(child) for child in inner_stacks(module)}
            yield name, module


def _fusions(model: torch.nn.Module) -> tuple[tuple[Fusion, ...], set[int]]:
    """What runs fused, and the ids of the layers in these runs."""
    names = {id(module): name for name, module in model.named_modules()}
    found = []
    fused: set[int] = set()
    for module in model.modules():
        run, place = declared.place_of(module)
        layers = None if run is None or place > 0 else run.layers()
        if layers is not None:
            op = "batch_norm_act" if isinstance(layers[0], torch.nn.BatchNorm2d) else "conv_stack"
            found.append(Fusion("", _layers(layers, names, ""), op))
            fused |= set(map(id, layers))
    for name, stack in _outermost(model):
        for step in plan(stack):
            if isinstance(step, list):
                members = [member for block in step for member in block.modules()]
                op = step[0].op() if len(step) == 1 else "conv_stack"
                found.append(Fusion(name, _layers(members, names, name), op))
                fused |= set(map(id, members))
    return tuple(found), fused


def _foldings(model: torch.nn.Module) -> tuple[tuple[Fusion, ...], tuple[Skip, ...]]:
    """The neighbours in a model's stacks that fold, and those that do not."""
    names = {id(module): name for name, module in model.named_modules()}
    folded, unfolded = [], []
    for name, stack in _outermost(model, with_plain=True):
        taken = set()
        for step in plan(stack) if _is_fused(stack) else ():
            for block in step if isinstance(step, list) else ():
                if members := block.folded():
                    taken |= set(map(id, members))
                    op = "conv2d" if block.upsample is None else "conv_transpose2d"
                    folded.append(Fusion(name, _layers(members, names, name), op))
        for first, second in neighbours(stack):
            if id(first) in taken and id(second) in taken:
                continue
            reason = why_unfolded(first, second)
            if reason is None and id(first) in taken:
                reason = "an upsampling is folded into the convolution"
            if reason is not None:
                layers = f"{type(first).__name__} + {type(second).__name__}"
                unfolded.append(Skip(names[id(first)], layers, reason))
    return tuple(folded), tuple(unfolded)


def _layers(members: Iterable[torch.nn.Module], names: dict[int, str], stack: str) -> str:
    return " + ".join(
        f"{names[id(member)].removeprefix(stack).lstrip('.')} {type(member).__name__}"
        for member in members
    )


def _why_not(module: torch.nn.Module) -> str | None:
    kind = class_of(module)
    if kind in _LAYERS:
        own = replaced_method(module, kind)
        if own is not None:
            return _why_replaced(own)
        if getattr(module, "padding_mode", "zeros") != "zeros":
            return f"padding_mode={module.padding_mode!r} is not supported, only zeros"
        return None
    if kind in _PLAIN or not isinstance(module, _RELATED):
        return None
    if any(isinstance(module, layer) for layer in _LAYERS):
        return _why_subclass(module)
    return "genimg supports the 2-D layers Conv2d, ConvTranspose2d, BatchNorm2d and LeakyReLU"


def _why_replaced(method: str) -> str:
    return f"its {method} was replaced on the instance"


def _why_subclass(module: torch.nn.Module) -> str:
    kind = class_of(module)
    if isinstance(module, torch.nn.modules.lazy.LazyModuleMixin):
        return "it is lazy; run one batch first"
    return f"{kind.__name__} is a subclass, which may compute something else"
