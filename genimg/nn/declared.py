"""Runs of layers that a model's forward calls one after the other, as its user has declared.

The first layer of a run computes all of it, by one op; each of the others returns its input. They
keep their names, parameters and places. The run looks its layers up by name in every call, so that
hooks, modes and replaced layers take effect, and a layer of it checks that its input is what the
layer before has returned, unchanged: anything else would be computed twice, and is an error.
"""

import weakref
from typing import Any

import torch
from torch import Tensor

from genimg.nn import batch_norm, conv, leaky_relu
from genimg.nn.conv_stack import can_run_inside, run_blocks
from genimg.nn.drop_in import as_scriptable, computes, forward_as_torch
from genimg.nn.weights import class_of

_Places = tuple[int | None, int | None, int | None]
_Mark = tuple["weakref.ref[Tensor]", int | None, int]


class Run:
    """The layers of a run, known by their names below a module that holds them all.

    It holds no module: a deep copy of the owner has a run of its own, and a layer that was copied,
    or that outlives its owner, runs by itself.

    Args:
        owner: the module that holds the layers.
        paths: the names of each layer and its parents, from the owner on.
        blocks: convolution, norm and activation of each block, as places in the run.
        prefix: the owner's name in the model, for messages.
    """

    def __init__(
        self,
        owner: torch.nn.Module | None,
        paths: tuple[tuple[str, ...], ...],
        blocks: tuple[_Places, ...],
        prefix: tuple[str, ...] = (),
    ) -> None:
        self.paths = paths
        self.blocks = blocks
        self.prefix = prefix
        self._set_owner(owner)

    def _set_owner(self, owner: torch.nn.Module | None) -> None:
        self._owner = None if owner is None else weakref.ref(owner)
        # Outputs on their way through the run, with their version and the last layer's place: of
        # several calls, since threads may share a model. A compiler traces one at a time.
        self._marks: dict[int, _Mark] = {}
        self._traced: Tensor | None = None
        self._traced_place = 0

    def __getstate__(self) -> tuple[Any, ...]:
        return (self.owner(), self.paths, self.blocks, self.prefix)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        owner, self.paths, self.blocks, self.prefix = state
        self._set_owner(owner)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Run":
        twin = Run(memo.get(id(self.owner())), self.paths, self.blocks, self.prefix)
        memo[id(self)] = twin
        return twin

    def owner(self) -> torch.nn.Module | None:
        """The module that holds the layers, None if it is gone."""
        return None if self._owner is None else self._owner()

    def name(self, place: int) -> str:
        """A layer's name in the model that was converted."""
        return ".".join((*self.prefix, *self.paths[place]))

    def layers_in_place(self) -> list[torch.nn.Module] | None:
        """The layers, if none has been replaced."""
        found: list[torch.nn.Module] = []
        owner = self.owner()
        for place, path in enumerate(self.paths):
            module = owner
            for name in path:
                module = None if module is None else module._modules.get(name)
            if module is None or place_of(module) != (self, place):
                return None
            found.append(module)
        return found

    def layers(self) -> list[torch.nn.Module] | None:
        """The layers, if none has been replaced and all may run without being called."""
        found = self.layers_in_place()
        if found is None or not all(can_run_inside(each, TORCHS[class_of(each)]) for each in found):
            return None
        # A hook that computes a weight runs when its layer is called: too late behind the first.
        return None if any(layer._forward_pre_hooks for layer in found[1:]) else found

    def compute(
        self, layers: list[torch.nn.Module], input: Tensor, output_size: list[int] | None
    ) -> Tensor:
        """Run all layers on the first one's input; running statistics are updated here."""
        blocks = [
            tuple(None if place is None else layers[place] for place in places)
            for places in self.blocks
        ]
        y = run_blocks(blocks, input, layers[0].training, output_size)
        self._mark(y, 0)
        return y

    def has_computed(self, layer: torch.nn.Module, place: int, input: Tensor) -> bool:
        """Whether ``input`` is the run's output, which the layer at ``place`` passes on.

        Raises:
            RuntimeError: it is not, although the run computes this layer with the others.
        """
        if self._passes(place, input):
            return True
        layers = self.layers()
        if layers is None or layers[place] is not layer:
            return False
        raise RuntimeError(
            f"genimg: the layer {self.name(place)!r} was declared to follow "
            f"{self.name(place - 1)!r}, but the model calls it with another tensor than that "
            "layer's output, or with an edited one; leave it out of convert's fuse"
        )

    def _passes(self, place: int, input: Tensor) -> bool:
        is_last = place + 1 == len(self.paths)
        if torch.compiler.is_compiling():
            if self._traced is not input or self._traced_place != place - 1:
                return False
            self._traced, self._traced_place = (None, 0) if is_last else (input, place)
            return True
        mark = self._marks.get(id(input))
        if mark is None:
            return False
        reference, version, last = mark
        if reference() is not input or last != place - 1 or version != _version(input):
            return False
        if is_last:
            del self._marks[id(input)]
        else:
            self._marks[id(input)] = (reference, version, place)
        return True

    def _mark(self, y: Tensor, place: int) -> None:
        if torch.compiler.is_compiling():
            self._traced, self._traced_place = y, place
            return
        key, marks = id(y), self._marks

        def forget(_: object) -> None:
            marks.pop(key, None)

        marks[key] = (weakref.ref(y, forget), _version(y), place)


def _version(x: Tensor) -> int | None:
    return None if x.is_inference() else x._version


def place_of(module: torch.nn.Module) -> tuple[Run | None, int]:
    """The run that a layer belongs to, None if to none, and its place there."""
    own = module.__dict__
    run = own.get("_run") if class_of(module) in TORCHS else None
    return run, own.get("_place", 0)


class _Declared:
    """A layer of a run: the first one's ``forward`` computes all, the others' pass on."""

    _run: Run
    _place: int
    __prepare_scriptable__ = as_scriptable

    def forward(self: Any, input: Tensor) -> Tensor:
        """Like torch's."""
        kind = TORCHS[class_of(self)]
        if not computes(self, kind, input):
            return forward_as_torch(self, kind, input)
        if passes_on(self, input):
            return input
        y = compute_from(self, input)
        return super().forward(input) if y is None else y  # type: ignore[misc]


def passes_on(layer: torch.nn.Module, input: Tensor) -> bool:
    """Whether the run has computed this layer already; raises where that cannot be known."""
    run, place = place_of(layer)
    return run is not None and place > 0 and run.has_computed(layer, place, input)


def compute_from(
    layer: torch.nn.Module, input: Tensor, output_size: list[int] | None = None
) -> Tensor | None:
    """The output of the run that begins with this layer, None if none does or if it cannot run."""
    run, place = place_of(layer)
    layers = None if run is None or place > 0 else run.layers()
    if run is None or layers is None or layers[0] is not layer:
        return None
    return run.compute(layers, input, output_size)


class Conv2d(_Declared, conv.Conv2d):
    """:class:`genimg.nn.Conv2d` in a declared run."""


class ConvTranspose2d(_Declared, conv.ConvTranspose2d):
    """:class:`genimg.nn.ConvTranspose2d` in a declared run."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Like torch's; ``output_size`` as there."""
        if output_size is None:
            return super().forward(input)
        y = None
        if computes(self, torch.nn.ConvTranspose2d, input):
            y = compute_from(self, input, output_size)
        return conv.ConvTranspose2d.forward(self, input, output_size) if y is None else y


class BatchNorm2d(_Declared, batch_norm.BatchNorm2d):
    """:class:`genimg.nn.BatchNorm2d` in a declared run."""


class LeakyReLU(_Declared, leaky_relu.LeakyReLU):
    """:class:`genimg.nn.LeakyReLU` in a declared run."""


class ReLU(_Declared, torch.nn.ReLU):
    """:class:`torch.nn.ReLU` in a declared run."""


class Tanh(_Declared, torch.nn.Tanh):
    """:class:`torch.nn.Tanh` in a declared run."""


class Sigmoid(_Declared, torch.nn.Sigmoid):
    """:class:`torch.nn.Sigmoid` in a declared run."""


TORCHS: dict[type, type[torch.nn.Module]] = {
    Conv2d: torch.nn.Conv2d,
    ConvTranspose2d: torch.nn.ConvTranspose2d,
    BatchNorm2d: torch.nn.BatchNorm2d,
    LeakyReLU: torch.nn.LeakyReLU,
    ReLU: torch.nn.ReLU,
    Tanh: torch.nn.Tanh,
    Sigmoid: torch.nn.Sigmoid,
}
"""The torch class of each."""

_OURS = {theirs: ours for ours, theirs in TORCHS.items()}
_OURS |= {ours.__mro__[2]: ours for ours in TORCHS}


def kind_of(layer: torch.nn.Module) -> type[torch.nn.Module] | None:
    """The class of this layer in a run, None if no run can hold it."""
    return _OURS.get(class_of(layer))


def leave(layer: torch.nn.Module) -> None:
    """Take a layer out of its run; its class is changed by others."""
    for name in ("_run", "_place"):
        layer.__dict__.pop(name, None)
