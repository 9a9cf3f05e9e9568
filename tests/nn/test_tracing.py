"""Tracers meet PyTorch's ops and layers in a converted model; meta tensors go through it."""

import copy
import pickle
import subprocess
import sys
import warnings

import pytest
import torch
from nn.ordinary_models import VAE, UNet, dcgan_generator
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.fx.passes.shape_prop import ShapeProp

import genimg
from genimg.ops import BatchNorm, ConvBlock, Direction

MODELS = {
    "dcgan": (dcgan_generator, (2, 10, 1, 1)),
    "unet": (UNet, (2, 3, 8, 12)),
    "vae": (VAE, (2, 3, 16, 16)),
}
each_model = pytest.mark.parametrize("name", MODELS)
each_mode = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning"
)


def twins(name, training=True):
    make, shape = MODELS[name]
    plain = make().train(training)
    model = copy.deepcopy(plain)
    genimg.convert(model)
    return model, plain, torch.randn(shape)


def seeded(function, *args, **options):
    torch.manual_seed(0)
    return function(*args, **options)


def run(model, x):
    y = seeded(model, x)
    return y[0] if isinstance(y, tuple) else y


def assert_same(model, plain, x):
    torch.testing.assert_close(run(model, x), run(plain, x), rtol=1e-4, atol=1e-5)


def ops_of(traced):
    return [node.kind() for node in traced.inlined_graph.nodes()]


@each_mode
@each_model
def test_jit_trace(name, training, tmp_path):
    """The same ops as from the plain model, its buffers counted, in a file that needs no genimg."""
    model, plain, x = twins(name, training)
    traced, expected = (
        seeded(torch.jit.trace, each, x, check_trace=False) for each in (model, plain)
    )
    assert ops_of(traced) == ops_of(expected)
    torch.testing.assert_close(traced.state_dict(), plain.state_dict())
    more = torch.randn(3, *x.shape[1:])  # any batch
    assert_same(traced, plain, more if name != "vae" else x)
    torch.testing.assert_close(traced.state_dict(), plain.state_dict())
    path = tmp_path / "traced.pt"
    torch.jit.save(traced, path)
    script = (
        "import sys; sys.modules['genimg'] = None; import torch;"
        f"torch.jit.load({str(path)!r})(torch.zeros({tuple(x.shape)}))"
    )
    if name == "dcgan":
        subprocess.run([sys.executable, "-c", script], check=True)


def test_jit_trace_warns_as_torch():
    counts = []
    for model in twins("dcgan")[:2]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.jit.trace(model, torch.randn(2, 10, 1, 1), check_trace=False)
        counts.append(len([w for w in caught if w.category is torch.jit.TracerWarning]))
    assert counts[0] == counts[1]


@pytest.mark.parametrize("backend", ["auto", "cpu"])
def test_jit_trace_of_ops(backend):
    """Whatever is named."""
    weight = torch.randn(4, 3, 4, 4)
    block = ConvBlock(Direction.DOWN, weight, None, 2, 1, norm=BatchNorm(None, None))

    def function(x):
        y = genimg.ops.conv2d(x, weight, None, 2, 1, backend=backend)
        y = genimg.ops.batch_norm_act(y, None, None, training=True, backend=backend)
        y = genimg.ops.conv_transpose2d(y, weight, None, 2, 1, backend=backend)
        y = genimg.ops.conv_stack(y, [block], training=True, backend=backend)
        y = genimg.ops.leaky_relu(y, 0.2, backend=backend)
        z, kl = genimg.ops.reparam_kl(y, y, backend=backend)
        return z.sum() + kl

    traced = torch.jit.trace(function, torch.randn(2, 3, 8, 8), check_trace=False)
    assert not [kind for kind in ops_of(traced) if kind.startswith("genimg")]
    assert traced(torch.randn(5, 3, 8, 8)).shape == (5,)


@each_mode
@each_model
def test_fx(name, training):
    """The same graph as of the plain model: layers are leaves, containers are not."""
    model, plain, x = twins(name, training)
    traced, expected = torch.fx.symbolic_trace(model), torch.fx.symbolic_trace(plain)
    described = [
        [(node.op, str(node.target), node.name) for node in graph.graph.nodes]
        for graph in (traced, expected)
    ]
    assert described[0] == described[1]
    for graph in (traced, expected):
        seeded(ShapeProp(graph).propagate, x)
    assert_same(traced, plain, x)
    torch.testing.assert_close(model.state_dict(), expected.state_dict(), rtol=1e-4, atol=1e-4)
    # An annotation that is a string, as a __future__ import makes it, would be in the graph's code.
    assert_same(pickle.loads(pickle.dumps(traced)), plain, x)


@pytest.mark.parametrize(
    "layer",
    [
        genimg.nn.Conv2d(3, 4, 3),
        genimg.nn.LeakyReLU(0.2),
        genimg.nn.BatchNormAct2d(3).eval(),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_fx_of_a_single_layer(layer):
    """The root is traced through; torch's other two refuse that themselves."""
    traced = torch.fx.symbolic_trace(layer)
    x = torch.randn(2, 3, 8, 8)
    assert_same(pickle.loads(pickle.dumps(traced)), layer, x)


class Latent(nn.Module):
    def __init__(self):
        super().__init__()
        self.draw = genimg.nn.ReparamKL()
        self.up = genimg.nn.ConvTranspose2d(4, 3, 4, 2, 1)

    def forward(self, mu, logvar):
        z, kl = self.draw(mu, logvar=logvar)
        return self.up(z, [9, 9]) + kl.sum()


def test_fx_keeps_what_a_call_says():
    model = Latent()
    traced = torch.fx.symbolic_trace(model)
    calls = [str(node.target) for node in traced.graph.nodes if node.op == "call_module"]
    assert calls == ["draw", "up"]
    mu, logvar = torch.randn(2, 2, 4, 4, 4)
    assert torch.equal(seeded(model, mu, logvar), seeded(traced, mu, logvar))


def test_fx_of_ops():
    weight = torch.randn(4, 3, 3, 3)
    traced = torch.fx.symbolic_trace(
        lambda x: genimg.ops.leaky_relu(genimg.ops.conv2d(x, weight, backend="cpu"), 0.2)
    )
    x = torch.randn(2, 3, 8, 8)
    expected = nn.functional.leaky_relu(nn.functional.conv2d(x, weight), 0.2)
    torch.testing.assert_close(traced(x), expected)


@each_mode
@each_model
def test_jit_script(name, training):
    """torch's layers are scripted, and left in the model's places; it goes on with them."""
    model, plain, x = twins(name, training)
    parameters = list(model.parameters())
    scripted = torch.jit.script(model)
    assert_same(scripted, plain, x)
    torch.testing.assert_close(scripted.state_dict(), plain.state_dict())
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert_same(model, plain, x)
    assert genimg.convert(model).changed


@each_mode
@each_model
def test_meta(name, training):
    make, shape = MODELS[name]
    with torch.device("meta"):
        model = make().train(training)
        genimg.convert(model)
        y = run(model, torch.randn(shape))
    assert y.device.type == "meta"
    y.sum().backward()
    assert next(model.parameters()).grad.device.type == "meta"
    plain = make().to("meta").train(training)
    expected = run(plain, torch.randn(shape, device="meta"))
    assert (y.shape, y.stride(), y.dtype) == (expected.shape, expected.stride(), expected.dtype)


def test_empty_weights():
    """As accelerate makes them: parameters alone on meta, buffers where they were."""
    model, plain, x = twins("dcgan", training=False)
    for each in (model, plain):
        for module in each.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    module._parameters[name] = nn.Parameter(parameter.to("meta"))
    with pytest.raises(RuntimeError):
        run(model, x)
    with pytest.raises(Exception) as theirs:
        run(plain, x.to("meta"))
    with pytest.raises(theirs.type):
        run(model, x.to("meta"))
    for each in (model, plain):
        each.to("meta")
    assert run(model, x.to("meta")).shape == run(plain, x.to("meta")).shape


@pytest.mark.parametrize("autocast", [False, True])
def test_layers_on_meta(autocast):
    image = torch.randn(2, 3, 8, 8, device="meta")
    with torch.device("meta"), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        for layer in (
            genimg.nn.Conv2d(3, 4, 4, 2, 1),
            genimg.nn.ConvTranspose2d(3, 4, 4, 2, 1),
            genimg.nn.BatchNorm2d(3),
            genimg.nn.BatchNormAct2d(3),
            genimg.nn.LeakyReLU(0.2),
        ):
            assert layer(image).device.type == "meta"
        z, kl = genimg.nn.ReparamKL()(image, image)
        assert (z.shape, kl.shape) == (image.shape, (2,))
        z, kl = genimg.nn.ReparamKL().eval()(image, image)
        assert (z.device.type, kl.device.type) == ("meta", "meta")


@each_mode
@each_model
def test_fake_tensors(name, training):
    make, shape = MODELS[name]
    with FakeTensorMode():
        model = make().train(training)
        genimg.convert(model)
        y = run(model, torch.randn(shape))
        y.sum().backward()
    _, plain, x = twins(name, training)
    expected = run(plain, x)
    assert (y.shape, y.stride(), y.dtype) == (expected.shape, expected.stride(), expected.dtype)
    assert all(p.grad.shape == p.shape for p in model.parameters() if p.grad is not None)


def test_fake_tensors_of_reparam_kl():
    with FakeTensorMode():
        z, kl = genimg.nn.ReparamKL()(torch.randn(3, 4), torch.randn(3, 4))
    assert (z.shape, kl.shape) == ((3, 4), (3,))
