"""Turning ordinary models over, and back."""

import copy
import pickle

import pytest
import torch
from nn.ordinary_models import VAE, UNet, dcgan_generator
from torch import nn

import genimg

MODELS = {
    "dcgan": (dcgan_generator, (4, 10, 1, 1)),
    "vae": (VAE, (4, 3, 16, 16)),
    "unet": (UNet, (2, 3, 8, 12)),
}

NEAR = {"rtol": 1e-3, "atol": 1e-4}
"""Roundings that several steps and batch norms of few values have magnified."""


def first(outputs):
    return outputs[0] if isinstance(outputs, tuple) else outputs


def train_steps(model, x, steps=3):
    """A few steps; returns the losses. Adam would make steps of mere rounding noise."""
    optimizer = torch.optim.SGD(model.parameters(), 1e-2, momentum=0.9)
    losses = []
    for step in range(steps):
        torch.manual_seed(step)
        loss = first(model(x)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("name", MODELS)
def test_trains_as_before(name):
    make, shape = MODELS[name]
    plain = make()
    model = copy.deepcopy(plain)
    keys = list(model.state_dict())
    parameters = list(model.parameters())
    report = genimg.convert(model)
    assert report.changed
    assert report.fused
    assert not report.skipped
    assert list(model.state_dict()) == keys
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    x = torch.randn(shape)
    torch.testing.assert_close(train_steps(model, x), train_steps(plain, x), **NEAR)
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(model.state_dict()[key], value, **NEAR)


@pytest.mark.parametrize("name", MODELS)
def test_restore_is_the_way_back(name):
    make, shape = MODELS[name]
    model = make()
    expected = repr(model)
    state = copy.deepcopy(model.state_dict())
    genimg.convert(model)
    assert "genimg" in str({type(m).__module__ for m in model.modules()})
    report = genimg.restore(model)
    assert not report.skipped
    assert repr(model) == expected
    assert {type(m).__module__.split(".")[0] for m in model.modules()} <= {"torch", "nn"}
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key])
    model(torch.randn(shape))


@pytest.mark.parametrize("name", MODELS)
def test_compile_and_export(name):
    make, shape = MODELS[name]
    torch._dynamo.reset()
    model = make()
    genimg.convert(model)
    x = torch.randn(shape)
    first(torch.compile(model, fullgraph=True, backend="aot_eager")(x)).sum().backward()
    model.eval()
    exported = torch.export.export(model, (x,)).module()
    torch.manual_seed(0)
    expected = first(model(x))
    torch.manual_seed(0)
    torch.testing.assert_close(first(exported(x)), expected)


@pytest.mark.parametrize("name", MODELS)
def test_twice_changes_nothing_more(name):
    model = MODELS[name][0]()
    genimg.convert(model)
    again = genimg.convert(model)
    assert not again.changed
    assert not again.skipped


def test_what_runs_fused():
    model = dcgan_generator()
    report = genimg.convert(model)
    assert [f.op for f in report.fused] == ["conv_stack"]
    assert report.fused[0].layers.startswith("0 ConvTranspose2d + 1 BatchNorm2d + 2 ReLU + 3 Conv")
    assert "run as one conv_stack" in str(report)
    assert "torch.nn.ConvTranspose2d -> genimg.nn.ConvTranspose2d" in str(report)


def test_nested_stacks_are_reported_once():
    report = genimg.convert(VAE())
    assert [f.name for f in report.fused] == ["encoder", "decoder", "final_layer"]


def test_ops_and_fuse_limit_it():
    model = dcgan_generator()
    report = genimg.convert(model, ops=["batch_norm_act"])
    assert {c.after for c in report.changed} == {"genimg.nn.BatchNorm2d"}
    assert type(model) is nn.Sequential
    model = dcgan_generator()
    report = genimg.convert(model, fuse=False)
    assert type(model) is nn.Sequential
    assert not report.fused
    assert type(model[0]) is genimg.nn.ConvTranspose2d
    with pytest.raises(ValueError, match="unknown op 'conv3d'; there are conv2d"):
        genimg.convert(model, ops=["conv3d"])


def test_one_op_may_be_named_without_a_list():
    model = dcgan_generator()
    genimg.convert(model, ops="conv_transpose2d")
    assert type(model[0]) is genimg.nn.ConvTranspose2d
    assert type(model[1]) is nn.BatchNorm2d
    with pytest.raises(ValueError, match="unknown op 'conv3d'; there are conv2d"):
        genimg.convert(model, ops="conv3d")


def test_a_single_layer_is_a_model():
    layer = nn.Conv2d(3, 4, 3)
    genimg.convert(layer)
    assert type(layer) is genimg.nn.Conv2d


def test_no_module_is_refused():
    for function in (genimg.convert, genimg.restore):
        with pytest.raises(TypeError, match=r"expected a torch.nn.Module, but got list"):
            function([])


class MyConv(nn.Conv2d):
    def forward(self, input):
        return super().forward(input) * 2


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (MyConv(3, 4, 3), "MyConv is a subclass, which may compute something else"),
        (nn.LazyConv2d(4, 3), "it is lazy; run one batch first"),
        (nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), "padding_mode='reflect'"),
        (nn.Conv1d(3, 4, 3), "genimg supports the 2-D layers"),
        (nn.SyncBatchNorm(3), "genimg supports the 2-D layers"),
    ],
    ids=["subclass", "lazy", "padding_mode", "1d", "sync"],
)
def test_left_alone_with_the_reason(layer, reason):
    model = nn.ModuleDict({"odd": layer, "plain": nn.Conv2d(3, 4, 3)})
    kind = type(layer)
    with pytest.raises(genimg.nn.ConversionError, match="odd"):
        genimg.convert(model, strict=True)
    assert type(model["plain"]) is nn.Conv2d  # strict changes nothing
    report = genimg.convert(model)
    assert [(s.name, s.layer) for s in report.skipped] == [("odd", kind.__name__)]
    assert reason in report.skipped[0].reason
    assert type(layer) is kind
    assert reason in str(report)


def test_replaced_forward_is_left_alone():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    model[0].forward = lambda x: torch.zeros(1)
    report = genimg.convert(model)
    assert "forward was replaced" in report.skipped[0].reason
    assert torch.equal(model(torch.randn(1, 3, 5, 5)), torch.zeros(1))


def test_hooks_survive():
    model = dcgan_generator()
    seen = []
    model[3].register_forward_hook(lambda module, args, output: seen.append(type(module)))
    genimg.convert(model)
    model(torch.randn(2, 10, 1, 1))
    assert seen == [genimg.nn.ConvTranspose2d]


def test_shared_layers_stay_shared():
    shared = nn.Conv2d(4, 4, 3, padding=1)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    report = genimg.convert(model)
    assert model[0] is model[2]
    assert len([c for c in report.changed if "Conv2d" in c.after]) == 1
    plain = nn.Sequential(shared, nn.ReLU(), shared)
    x = torch.randn(1, 4, 5, 5)
    torch.testing.assert_close(model(x), plain(x))


def test_tied_weights_stay_tied():
    down, up = nn.Conv2d(3, 4, 4, 2, 1), nn.ConvTranspose2d(4, 3, 4, 2, 1)
    up.weight = down.weight
    model = nn.Sequential(down, nn.ReLU(), up)
    genimg.convert(model)
    assert model[2].weight is model[0].weight
    model(torch.randn(1, 3, 8, 8)).sum().backward()
    assert model[0].weight.grad is not None


def test_eval_mode_stays():
    model = dcgan_generator().eval()
    genimg.convert(model)
    assert not any(module.training for module in model.modules())
    before = copy.deepcopy(model.state_dict())
    model(torch.randn(2, 10, 1, 1))
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])


def test_optimizer_goes_on():
    """Momentum gathered before the conversion counts after it."""
    torch.manual_seed(0)
    plain = dcgan_generator()
    model = copy.deepcopy(plain)
    x = torch.randn(8, 10, 1, 1)
    results = []
    for candidate in (plain, model):
        optimizer = torch.optim.SGD(candidate.parameters(), 0.02, momentum=0.9)
        for step in range(4):
            if step == 2 and candidate is model:
                genimg.convert(candidate)
            optimizer.zero_grad()
            candidate(x).square().sum().backward()
            optimizer.step()
        results.append([p.detach().clone() for p in candidate.parameters()])
    torch.testing.assert_close(results[0], results[1], **NEAR)


def test_checkpoints_load_both_ways():
    plain, model = dcgan_generator(), dcgan_generator()
    genimg.convert(model)
    model.load_state_dict(plain.state_dict())
    x = torch.randn(2, 10, 1, 1)
    torch.testing.assert_close(model.eval()(x), plain.eval()(x), **NEAR)
    dcgan_generator().load_state_dict(model.state_dict())


def test_copies_of_a_converted_model():
    model = dcgan_generator()
    genimg.convert(model)
    x = torch.randn(2, 10, 1, 1)
    expected = model.eval()(x)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(x), expected)


def test_gradient_penalty():
    """WGAN-GP through a converted discriminator: second derivatives as before."""
    torch.manual_seed(0)
    plain = nn.Sequential(
        nn.Conv2d(3, 6, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(6, 1, 4), nn.Flatten()
    )
    model = copy.deepcopy(plain)
    genimg.convert(model)
    x = torch.randn(4, 3, 8, 8, requires_grad=True)
    for candidate in (plain, model):
        (grad,) = torch.autograd.grad(candidate(x).sum(), x, create_graph=True)
        ((grad.flatten(1).norm(dim=1) - 1) ** 2).mean().backward()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_restore_names_what_torch_lacks():
    model = nn.Sequential(genimg.nn.ReparamKL(), genimg.nn.Conv2d(3, 3, 3))
    report = genimg.restore(model)
    assert [(s.layer, s.reason) for s in report.skipped] == [
        ("ReparamKL", "torch has no such layer")
    ]
    assert type(model[1]) is nn.Conv2d


def test_the_report_says_why_a_layer_runs_by_itself():
    class Calls(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.norm = nn.BatchNorm2d(4)

        def forward(self, x):
            return self.norm(self.conv(x))

    model = nn.ModuleDict(
        {
            "calls": Calls(),
            "list": nn.ModuleList([nn.Conv2d(3, 4, 3)]),
            "lonely": nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU()),
            "hooked": nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()),
            "fused": nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()),
        }
    )
    model["hooked"][0].register_forward_hook(lambda module, args, output: None)
    report = genimg.convert(model)
    reasons = {skip.name: skip.reason for skip in report.alone}
    assert reasons.keys() == {"calls.conv", "calls.norm", "list.0", "lonely.0", "hooked.0"}
    assert reasons["calls.conv"].startswith("the forward of Calls calls it; declare")
    assert reasons["list.0"].startswith("a ModuleList says nothing of the order of calls")
    assert reasons["lonely.0"] == "nothing stands next to it that a run can hold"
    assert reasons["hooked.0"].startswith("it has hooks")
    assert "calls.norm: BatchNorm2d runs by itself: the forward of Calls" in str(report)
    again = genimg.convert(model, fuse=["calls.conv", "calls.norm"])
    assert [skip.name for skip in again.alone] == ["list.0", "lonely.0", "hooked.0"]
