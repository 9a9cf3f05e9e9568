"""Subclasses of Sequential, and modules in it that do nothing: fused, and otherwise as before."""

import copy
import pickle

import pytest
import torch
from nn.model_judge import judged
from nn.test_declared import stacks_in
from torch import nn

import genimg


class Down(nn.Sequential):
    """As MONAI and torchvision write blocks."""

    def __init__(self, channels_in, channels_out):
        super().__init__(
            nn.Conv2d(channels_in, channels_out, 4, 2, 1, bias=False),
            nn.Dropout2d(0.5),
            nn.BatchNorm2d(channels_out),
            nn.Identity(),
            nn.LeakyReLU(0.2),
        )
        self.channels = channels_out

    def describe(self):
        return f"to {self.channels} channels"


class Named(nn.Sequential):
    def __init__(self):
        super().__init__()
        self.add_module("first", Down(3, 6))
        self.add_module("second", Down(6, 4))
        self.add_module("last", nn.Conv2d(4, 2, 3, padding=1))


class Counting(nn.Sequential):
    """Its forward is no Sequential's."""

    def forward(self, input):
        return super().forward(input) * 2


X = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_same_as_plain(training, layout):
    model, report = judged(Named, X, training=training, layout=layout)
    assert not report.skipped
    assert stacks_in(model) == (0 if training else 1)


def test_a_subclass_stays_one():
    model = Named().eval()
    report = genimg.convert(model)
    assert "(model): Named -> fused Named" in str(report)
    assert isinstance(model, Named)
    assert isinstance(model[0], Down)
    assert model.first.describe() == "to 6 channels"
    assert repr(model) == repr(Named())
    assert type(model).__module__ == Named.__module__
    assert not genimg.convert(model).changed
    expected = model(X)
    for twin in (copy.deepcopy(model), copy.copy(model), pickle.loads(pickle.dumps(model))):
        assert type(twin) is type(model)
        assert torch.equal(twin(X), expected)
    with pytest.warns(DeprecationWarning, match="jit.script"):
        scripted = torch.jit.script(copy.deepcopy(model))
    torch.testing.assert_close(scripted(X), expected)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(X), expected)
    genimg.restore(model)
    assert type(model) is Named
    assert type(model[0]) is Down
    torch.testing.assert_close(model(X), expected)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Counting(*Down(3, 4)),
        lambda: nn.Sequential(Counting(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4)),
    ],
    ids=["outside", "inside"],
)
def test_a_forward_of_its_own_runs(make):
    model, _ = judged(make, X, training=False)
    assert stacks_in(model) == 0


def test_classes_that_others_make_are_left_alone():
    """A metaclass, a class that keeps track of its subclasses, and one that copies in its way."""
    known = []

    class Registered(nn.Sequential):
        def __init_subclass__(cls):
            known.append(cls)

    class Copied(nn.Sequential):
        def __deepcopy__(self, memo):
            return self

    for kind in (Registered, Copied):
        model = kind(*Down(3, 4))
        genimg.convert(model)
        assert type(model) is kind
    assert known == []


def test_dropout_is_left_out_in_eval_alone():
    model = nn.Sequential(nn.Conv2d(3, 4, 4, 2, 1), nn.Dropout(0.5), nn.ReLU())
    plain = copy.deepcopy(model)
    assert genimg.convert(model).changed  # converted in training, where there is nothing to fuse
    assert stacks_in(model) == 0
    for each in (model, plain):
        each.eval()
    assert stacks_in(model) == 1
    torch.testing.assert_close(model(X), plain(X))
    for each in (model, plain):
        each.train()
        each[1].p = 0.0
    assert stacks_in(model) == 1
    torch.testing.assert_close(model(X), plain(X))
    model[1].p = 1.5
    with pytest.raises(ValueError, match="dropout probability has to be between 0 and 1"):
        model(X)
    model[1].p = 0.0
    model[1].register_forward_hook(lambda module, args, output: output + 1)
    plain[1].register_forward_hook(lambda module, args, output: output + 1)
    torch.testing.assert_close(model(X), plain(X))


def test_random_numbers_are_drawn_as_before():
    def make():
        return nn.Sequential(nn.Dropout(0.0), nn.Dropout(0.5), *Down(3, 4))

    judged(make, X)


def test_neighbours_in_a_module_list_are_called_by_the_model():
    class Listed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(Down(3, 4))

        def forward(self, x):
            for layer in self.layers:
                x = layer(x)
            return x

    model, report = judged(Listed, X, training=False)
    assert not report.fused
    assert stacks_in(model) == 0
    names = ["layers.0", "layers.2", "layers.4"]
    model = Listed()
    genimg.convert(model, fuse=names)
    with pytest.raises(RuntimeError, match="'layers.2' was declared to follow 'layers.0'"):
        model(X)  # in training, where the dropout between them makes another tensor
    assert torch.is_tensor(model.eval()(X))
