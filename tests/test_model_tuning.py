"""``genimg.tune`` on models whose steps take the time that the tests say."""

import copy

import pytest
import torch
from measured import Clock, Probe, processes

import genimg
from genimg import _native, trial
from genimg.backends import OPS
from genimg.decisions import BY_TUNE
from genimg.nn.conv_stack import has_folds

native = pytest.mark.skipif(not _native.available(), reason=f"no _C: {_native.why_not()}")
CPU = torch.device("cpu")


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def begin(tmp_path, clock, monkeypatch):
    monkeypatch.setattr(trial, "SECONDS", 0.0)
    monkeypatch.setattr(trial, "ROUNDS", 2)
    with processes(tmp_path / "cache", clock) as begin:
        yield begin


@pytest.fixture
def probe(clock):
    made = Probe(clock)
    yield made
    del OPS["probe"]


@pytest.fixture
def probed(probe):
    """A model of two layers that call the probe, the second with another kind."""

    class Layer(genimg.nn.LeakyReLU):
        def forward(self, x):
            return probe.op.function(x, self.negative_slope)

        def __deepcopy__(self, memo):
            return Layer(self.negative_slope)

    return torch.nn.Sequential(Layer(0.5), torch.nn.Linear(5, 7), Layer(1.0)).eval()


X = torch.randn(3, 5)


def generator():
    model = torch.nn.Sequential(
        torch.nn.ConvTranspose2d(6, 8, 4, 2, 1, bias=False),
        torch.nn.BatchNorm2d(8),
        torch.nn.LeakyReLU(0.2),
        torch.nn.ConvTranspose2d(8, 3, 4, 2, 1),
        torch.nn.Tanh(),
    )
    genimg.convert(model)
    return model


Z = torch.randn(4, 6, 4, 4)


def costing(clock, cost):
    """A step that takes ``cost(model)`` seconds."""

    def step(model, *inputs):
        with torch.no_grad():
            model(*inputs)
        clock.now += cost(model)

    return step


def is_fused(model):
    return type(model) is genimg.nn.FusedSequential


def is_pytorch(model):
    return type(model[0]) is torch.nn.ConvTranspose2d


def is_channels_last(model):
    return not model[0].weight.is_contiguous()


def test_decides_every_kind(begin, probe, probed):
    tuner = begin()
    report = genimg.tune(probed, X)
    assert [layer.chosen for layer in report.layers] == ["cpu", "cpu"]
    assert [layer.milliseconds for layer in report.layers] == [
        {"cpu": pytest.approx(1.0), "reference": pytest.approx(2.0)}
    ] * 2
    found = tuner.store.all(CPU)
    assert {decision.by for decision in found.values()} == {BY_TUNE}
    assert report.milliseconds["before"] == pytest.approx(4.0)  # both by the prior
    assert report.milliseconds["genimg, contiguous"] == pytest.approx(2.0)
    assert report.chosen == "genimg, contiguous"
    assert report.changes == ()
    assert "2.00 times as fast as before" in str(report)
    assert probe(X, 0.5) == ["cpu"]
    assert "decided by measurement, by genimg.tune" in str(genimg.explain("probe", X, 0.5))


def test_the_second_process_measures_nothing(begin, probe, probed):
    begin()
    genimg.tune(probed, X)
    begin()
    probe.ran.clear()
    report = genimg.tune(probed, X)
    assert report.is_stored
    assert set(probe.ran) == {"cpu"}
    assert len(probe.ran) < 12  # a few steps of two calls each, to see what is met
    assert "as measured earlier" in str(report)


def test_a_kernel_that_loses_in_the_model_is_taken_back(begin, probe, probed, clock):
    begin()
    probe.seconds["reference"] = 0.0011

    def cost(model):
        return 0.001 * probe.ran.count("cpu")  # after every kernel, something else is slow

    def step(model, x):
        probe.ran.clear()
        with torch.no_grad():
            model(x)
        clock.now += cost(model)

    report = genimg.tune(probed, X, step=step)
    assert [layer.chosen for layer in report.layers] == ["reference"] * 2
    assert "alone it is the fastest" in report.layers[0].note
    assert probe(X, 0.5) == ["reference"]
    assert "measured: 1 ms; alone it is the fastest, but the whole" in str(
        genimg.explain("probe", X, 0.5)
    )


@native
def test_layer_by_layer_where_that_is_faster(begin, clock):
    begin()
    model = generator().eval()
    step = costing(clock, lambda m: 0.02 if is_fused(m) or is_pytorch(m) else 0.01)
    report = genimg.tune(model, Z, step=step)
    assert report.chosen == "genimg layer by layer, contiguous"
    assert type(model) is torch.nn.Sequential
    assert type(model[0]) is genimg.nn.ConvTranspose2d
    assert "layer by layer" in report.changes[0]


@native
def test_the_other_memory_format(begin, clock):
    begin()
    model = generator()
    state = {name: x.clone() for name, x in model.state_dict().items()}
    parameters = [*model.parameters()]
    step = costing(clock, lambda m: 0.01 if is_channels_last(m) and not is_pytorch(m) else 0.02)
    report = genimg.tune(model, Z, step=step)
    assert report.chosen == "genimg, channels_last"
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert all(torch.equal(state[name], x) for name, x in model.state_dict().items())


@native
def test_a_small_win_changes_nothing(begin, clock):
    begin()
    model = generator()
    step = costing(clock, lambda m: 0.0199 if is_channels_last(m) else 0.02)
    assert genimg.tune(model, Z, step=step).changes == ()


@native
def test_plain_pytorch_takes_all_back(begin, clock):
    tuner = begin()
    model = generator()
    report = genimg.tune(model, Z, step=costing(clock, lambda m: 0.01 + 0.01 * (not is_pytorch(m))))
    assert report.chosen == "PyTorch, contiguous"
    assert is_fused(model)
    with tuner.recording() as met, torch.no_grad():
        model(Z)
    assert len(met) == 4  # the stack, and what it consists of
    assert {tuner.store.find(CPU, each.kind).chosen for each in met} == {"reference"}


@native
@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(begin, training):
    begin()
    model = generator().train(training)
    calls = []
    model.register_forward_hook(lambda *_: calls.append("forward"))
    model[1].register_full_backward_hook(lambda *_: None)
    model[0].weight.grad = torch.ones_like(model[0].weight)
    model[1].weight.requires_grad_(False)
    x = Z.clone().requires_grad_()
    before = copy.deepcopy(model.state_dict())
    hooks = [dict(m._forward_hooks) for m in model], dict(model[1]._backward_hooks)
    versions = [p._version for p in model.state_dict(keep_vars=True).values()]
    pointers = [p.data_ptr() for p in model.state_dict().values()]
    strides = [p.stride() for p in model.state_dict().values()]
    random = torch.get_rng_state()

    genimg.tune(model, x)

    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(before[name], p) for name, p in model.state_dict().items())
    assert versions == [p._version for p in model.state_dict(keep_vars=True).values()]
    if strides == [p.stride() for p in model.state_dict().values()]:
        assert pointers == [p.data_ptr() for p in model.state_dict().values()]
    assert hooks == ([dict(m._forward_hooks) for m in model], dict(model[1]._backward_hooks))
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    assert all(p.grad is None for p in [*model.parameters()][1:])
    assert x.grad is None
    assert all(m.training is training for m in model.modules())
    assert not model[1].weight.requires_grad


def test_what_cannot_be_tuned(begin):
    begin()
    with pytest.raises(TypeError, match=r"expected a torch.nn.Module, but got int"):
        genimg.tune(3)
    with pytest.raises(ValueError, match="genimg.convert"):
        genimg.tune(torch.nn.Linear(2, 2), X)
    torch.use_deterministic_algorithms(True)
    with pytest.raises(RuntimeError, match="use_deterministic_algorithms is on"):
        genimg.tune(generator(), Z)


@native
def test_without_folding_where_that_is_faster(begin, clock):
    begin()
    model = torch.nn.Sequential(
        torch.nn.Upsample(scale_factor=2), torch.nn.Conv2d(6, 8, 3, 1, 1), torch.nn.ReLU()
    )
    genimg.convert(model)
    assert has_folds(model)

    def cost(m):
        return 0.01 if is_fused(m) and not has_folds(m) else 0.02

    report = genimg.tune(model, Z, step=costing(clock, cost))
    assert report.chosen == "genimg without folding, contiguous"
    assert is_fused(model)
    assert not has_folds(model)
