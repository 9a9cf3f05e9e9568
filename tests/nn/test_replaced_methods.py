"""A method that a program has replaced runs: in a fused Sequential and alone, set at any time."""

import copy
import subprocess
import sys
from types import MethodType

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import genimg

LAYERS = {
    "conv": lambda: nn.Conv2d(3, 3, 3, padding=1),
    "up": lambda: nn.ConvTranspose2d(3, 3, 4, 2, 1),
    "norm": lambda: nn.BatchNorm2d(3),
    "leaky": lambda: nn.LeakyReLU(0.2),
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
}
PLACES = {
    "alone": lambda layer: layer,
    "in_stack": lambda layer: nn.Sequential(nn.Conv2d(3, 3, 1), layer, nn.BatchNorm2d(3)),
    "nested": lambda layer: nn.Sequential(nn.Sequential(nn.Conv2d(3, 3, 1), layer), nn.ReLU()),
}
FIND = {
    "alone": lambda model: model,
    "in_stack": lambda model: model[1],
    "nested": lambda model: model[0][1],
}
each_place = pytest.mark.parametrize("place", PLACES)


def tiled(self, input, weight, bias):
    """Seamless tiling: convolutions that wrap around."""
    return F.conv2d(F.pad(input, (1, 1, 1, 1), "circular"), weight, bias)


def twins(kind, place):
    """Two equal models, each with its layer of that kind."""
    model = PLACES[place](LAYERS[kind]())
    return [(m, FIND[place](m)) for m in (model, copy.deepcopy(model))]


def assert_same(model, plain):
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(model(x), plain(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    ("kind", "name", "method"),
    [
        ("conv", "_conv_forward", tiled),
        ("conv", "forward", lambda self, input: tiled(self, input, self.weight, None)),
        ("up", "_output_padding", lambda self, *args: [1, 1]),
        ("norm", "_check_input_dim", lambda self, input: None),
        ("norm", "forward", lambda self, input: input * 2),
        ("leaky", "forward", lambda self, input: input + 1),
        ("relu", "forward", lambda self, input: input - 1),
        ("tanh", "_call_impl", lambda self, input: input * 3),
    ],
)
@each_place
def test_on_an_instance(kind, name, method, after, place):
    (model, layer), (plain, theirs) = twins(kind, place)
    calls = []
    if after:
        genimg.convert(model)

    def counted(self, *args):
        calls.append(name)
        return method(self, *args)

    setattr(layer, name, MethodType(counted, layer))
    setattr(theirs, name, MethodType(method, theirs))
    genimg.convert(model)
    assert_same(model, plain)
    assert calls == [name]


def test_the_report_names_the_method():
    model = nn.Sequential(LAYERS["conv"](), nn.ReLU())
    model[0]._conv_forward = MethodType(tiled, model[0])
    (skip,) = genimg.convert(model).skipped
    assert skip.reason == "its _conv_forward was replaced on the instance"
    assert type(model[0]) is nn.Conv2d


@each_place
def test_padding_mode_set_later(place):
    """The other way to seamless tiles."""
    (model, layer), (plain, theirs) = twins("conv", place)
    genimg.convert(model)
    layer.padding_mode = theirs.padding_mode = "circular"
    assert_same(model, plain)


@each_place
def test_transposed_convolutions_refuse_other_padding_modes(place):
    (model, layer), _ = twins("up", place)
    genimg.convert(model)
    layer.padding_mode = "circular"
    with pytest.raises(ValueError, match="padding mode"):
        model(torch.randn(2, 3, 8, 8))


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_on_a_sequential(after):
    """One that is nested is not looked into, one that has it already is not converted."""
    inner = nn.Sequential(nn.Conv2d(3, 3, 3), nn.ReLU())
    model = nn.Sequential(inner, nn.ReLU())
    if after:
        genimg.convert(model)
    inner.forward = lambda x: x * 2 + 1
    report = genimg.convert(model)
    assert ("0" in [skip.name for skip in report.skipped]) == (not after)
    x = torch.randn(2, 3, 5, 5)
    assert torch.equal(model(x), (x * 2 + 1).relu())


def test_a_method_that_forward_does_not_call_changes_nothing():
    """Code of diffusion models replaces ``train`` where a model is frozen."""
    model = nn.Sequential(nn.Conv2d(3, 3, 4, 2, 1), nn.BatchNorm2d(3), nn.ReLU()).eval()
    for module in model.modules():
        module.train = lambda mode=True, module=module: module
    report = genimg.convert(model)
    assert report.fused
    assert not report.skipped


@pytest.mark.parametrize("name", ["forward", "_conv_forward"])
@each_place
def test_on_the_class_of_torch(name, place, monkeypatch):
    """Adapters reach every layer of a kind so."""
    (model, _), (plain, _) = twins("conv", place)
    genimg.convert(model)
    original = getattr(nn.Conv2d, name)
    monkeypatch.setattr(nn.Conv2d, name, lambda self, *args: original(self, *args) + 1)
    assert_same(model, plain)


@pytest.mark.parametrize("kind", ["up", "norm", "leaky", "relu"])
@each_place
def test_on_other_classes_of_torch(kind, place, monkeypatch):
    (model, _), (plain, theirs) = twins(kind, place)
    genimg.convert(model)
    original = type(theirs).forward
    monkeypatch.setattr(type(theirs), "forward", lambda self, *args: original(self, *args) + 1)
    assert_same(model, plain)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("conv", "conv2d"),
        ("up", "conv_transpose2d"),
        ("norm", "batch_norm"),
        ("leaky", "leaky_relu"),
        ("relu", "relu"),
    ],
)
@each_place
def test_functions_of_torch(kind, name, place, monkeypatch):
    """Counters of operations, ptflops and DeepSpeed's, replace them while a model runs."""
    (model, _), (plain, _) = twins(kind, place)
    genimg.convert(model)
    original, calls = getattr(F, name), []
    monkeypatch.setattr(F, name, lambda *args, **more: calls.append(1) or original(*args, **more))
    plain(torch.randn(2, 3, 8, 8))
    expected = len(calls)
    model(torch.randn(2, 3, 8, 8))
    assert len(calls) == 2 * expected > 0


def test_before_genimg_is_imported():
    script = """
import torch
original = torch.nn.Conv2d.forward
torch.nn.Conv2d.forward = lambda self, x: original(self, x) + 1
import genimg
model = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 3), torch.nn.ReLU())
x = torch.randn(1, 3, 8, 8)
expected = model(x)
genimg.convert(model)
assert torch.equal(model(x), expected)
assert torch.equal(model[0](x), original(model[0], x) + 1)
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_in_a_subclass_of_ours():
    class Tiled(genimg.nn.Conv2d):
        _conv_forward = tiled

    layer = Tiled(3, 4, 3, padding=1)
    x = torch.randn(2, 3, 8, 8)
    expected = tiled(layer, x, layer.weight, layer.bias)
    assert torch.equal(layer(x), expected)
    assert torch.equal(genimg.nn.FusedSequential(layer, nn.ReLU())(x), expected.relu())


def test_a_compiled_child_is_called():
    """``layer.compile()`` keeps the compiled call on the instance."""
    model = nn.Sequential(nn.Conv2d(3, 3, 3), nn.ReLU())
    genimg.convert(model)
    seen = []
    model[0]._compiled_call_impl = lambda x: seen.append(1) or x
    model(torch.randn(2, 3, 5, 5))
    assert seen == [1]
