"""The drop-in layers are torch's, to the signature, the state and the bit."""

import copy
import inspect
import pickle

import numpy as np
import pytest
import torch

import genimg

LAYERS = {
    "Conv2d": ((3, 4, 4), {"stride": 2, "padding": 1}),
    "ConvTranspose2d": ((3, 4, 3), {"stride": 2, "padding": 1, "output_padding": 1}),
    "BatchNorm2d": ((3,), {"eps": 1e-3, "momentum": 0.01}),
    "LeakyReLU": ((0.3,), {}),
}


def pair(name):
    args, options = LAYERS[name]
    torch.manual_seed(1)
    ours = getattr(genimg.nn, name)(*args, **options)
    torch.manual_seed(1)
    return ours, getattr(torch.nn, name)(*args, **options)


@pytest.mark.parametrize("name", LAYERS)
def test_signature_repr_state(name):
    ours, theirs = pair(name)
    assert inspect.signature(type(ours)) == inspect.signature(type(theirs))
    assert inspect.signature(ours.forward).parameters.keys() == (
        inspect.signature(theirs.forward).parameters.keys()
    )
    assert repr(ours) == repr(theirs)
    assert str(ours) == str(theirs)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for key, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[key], value), key
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("training", [True, False])
def test_computes_the_same(name, training):
    ours, theirs = pair(name)
    ours.train(training)
    theirs.train(training)
    for _ in range(2):  # batch norm's second call starts from other statistics
        x = torch.randn(4, 3, 8, 8) * 2 + 1
        torch.testing.assert_close(ours(x), theirs(x))
    for key, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[key], value)


@pytest.mark.parametrize("name", LAYERS)
def test_pickle_and_deepcopy(name):
    ours, _ = pair(name)
    x = torch.randn(2, 3, 8, 8)
    for twin in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert type(twin) is type(ours)
        assert torch.equal(twin.eval()(x), ours.eval()(x))


@pytest.mark.parametrize("name", ["Conv2d", "ConvTranspose2d", "BatchNorm2d"])
def test_factory_arguments(name):
    args, options = LAYERS[name]
    layer = getattr(genimg.nn, name)(*args, **options, device="meta", dtype=torch.float64)
    assert layer.weight.device.type == "meta"
    assert layer.weight.dtype == torch.float64


@pytest.mark.parametrize(
    "options", [{"momentum": None}, {"affine": False}, {"track_running_stats": False}]
)
def test_batch_norm_options(options):
    ours = genimg.nn.BatchNorm2d(3, **options)
    theirs = torch.nn.BatchNorm2d(3, **options)
    for training in (True, True, False):
        ours.train(training)
        theirs.train(training)
        x = torch.randn(4, 3, 5, 5) + 2
        torch.testing.assert_close(ours(x), theirs(x))
    for key, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[key], value)


def test_conv2d_padding_modes():
    for mode in ("reflect", "replicate", "circular", "zeros"):
        ours = genimg.nn.Conv2d(3, 4, 3, padding=1, padding_mode=mode)
        theirs = torch.nn.Conv2d(3, 4, 3, padding=1, padding_mode=mode)
        theirs.load_state_dict(ours.state_dict())
        x = torch.randn(2, 3, 6, 6)
        assert torch.equal(ours(x), theirs(x))


def test_conv_transpose2d_output_size():
    ours = genimg.nn.ConvTranspose2d(3, 4, 3, stride=2, padding=1)
    theirs = torch.nn.ConvTranspose2d(3, 4, 3, stride=2, padding=1)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 3, 5, 5)
    for size in ([9, 9], [10, 9], [2, 4, 10, 10]):
        torch.testing.assert_close(ours(x, size), theirs(x, output_size=size))
    with pytest.raises(ValueError, match="output size"):
        ours(x, [12, 12])


@pytest.mark.parametrize(
    ("layer", "shape"),
    [(genimg.nn.BatchNorm2d(3), (2, 3)), (genimg.nn.Conv2d(3, 4, 3), (2, 5, 4, 4))],
)
def test_refuses_as_torch(layer, shape):
    plain = copy.deepcopy(layer)
    genimg.restore(plain)
    with pytest.raises(Exception) as theirs:
        plain(torch.randn(shape))
    with pytest.raises(type(theirs.value)):
        layer(torch.randn(shape))


@pytest.mark.parametrize("bad", [np.ones((2, 3, 8, 8)), [1.0], None], ids=["numpy", "list", "None"])
@pytest.mark.parametrize("training", [True, False])
def test_no_tensor_is_refused_as_by_torch(bad, training):
    layers = [pair(name) for name in LAYERS]
    both = [theirs for _, theirs in layers]
    layers += [
        (genimg.nn.FusedSequential(ours), torch.nn.Sequential(theirs)) for ours, theirs in layers
    ]
    layers.append((genimg.nn.BatchNormAct2d(3), torch.nn.Sequential(both[2])))
    layers.append((genimg.nn.FusedSequential(*both), torch.nn.Sequential(*both)))
    for ours, theirs in layers:
        with pytest.raises((TypeError, AttributeError)) as expected:
            theirs.train(training)(bad)
        with pytest.raises((TypeError, AttributeError)) as got:
            ours.train(training)(bad)
        assert got.type is expected.type
    for args in ((bad, torch.ones(2, 3)), (torch.ones(2, 3), bad)):
        with pytest.raises(TypeError):
            genimg.nn.ReparamKL()(*args)


@pytest.mark.parametrize("size", [8, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norms_of_another_dtype_as_torch(size, dtype):
    """Below and above the sizes from which on a kernel serves, alone and in a fused Sequential."""
    plain = torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 4, 2, 1),
        torch.nn.BatchNorm2d(16),
        torch.nn.ReLU(),
        torch.nn.ConvTranspose2d(16, 16, 4, 2, 1),
        torch.nn.BatchNorm2d(16),
    )
    for norm in (plain[1], plain[4]):
        norm.to(dtype)
    model = copy.deepcopy(plain)
    genimg.convert(model)
    x = torch.randn(4, 3, size, size)
    if dtype == torch.float32:
        torch.testing.assert_close(model(x), plain(x), rtol=1e-4, atol=1e-4)
    else:
        for each in (plain, model, plain[1], model[1]):
            with pytest.raises(RuntimeError):
                each(x if len(list(each.children())) else plain[0](x))


def test_batch_norm_act():
    fused = genimg.nn.BatchNormAct2d(3, 1e-3, 0.01, negative_slope=0.3)
    plain = torch.nn.Sequential(torch.nn.BatchNorm2d(3, 1e-3, 0.01), torch.nn.LeakyReLU(0.3))
    plain.load_state_dict(fused.state_dict())
    x = torch.randn(4, 3, 5, 5)
    torch.testing.assert_close(fused(x), plain(x))
    torch.testing.assert_close(fused.eval()(x), plain.eval()(x))
    assert "negative_slope=0.3" in repr(fused)
    assert torch.equal(pickle.loads(pickle.dumps(fused))(x), fused(x))


def test_reparam_kl():
    layer = genimg.nn.ReparamKL()
    mu, logvar = torch.randn(3, 4), torch.randn(3, 4)
    z, kl = layer(mu, logvar)
    assert not torch.equal(z, mu)
    assert kl.shape == (3,)
    z, _ = layer.eval()(mu, logvar)
    assert torch.equal(z, mu)
    z, _ = layer(mu, logvar, sample=True, generator=torch.Generator().manual_seed(1))
    again, _ = layer(mu, logvar, sample=True, generator=torch.Generator().manual_seed(1))
    assert torch.equal(z, again)
    assert not torch.equal(z, mu)
    assert not layer.state_dict()


def test_batch_norm_act_loads_the_checkpoint_of_the_batch_norm_that_it_replaces():
    class Model(torch.nn.Module):
        def __init__(self, norm):
            super().__init__()
            self.norm = norm

    plain, ours = (
        Model(torch.nn.BatchNorm2d(3)),
        Model(genimg.nn.BatchNormAct2d(3, negative_slope=0.2)),
    )
    plain.norm(torch.randn(4, 3, 5, 5))
    torch.nn.init.normal_(plain.norm.weight)
    ours.load_state_dict(plain.state_dict())
    for name, value in plain.norm.state_dict().items():
        assert torch.equal(ours.norm[0].state_dict()[name], value)
    again = Model(genimg.nn.BatchNormAct2d(3))
    again.load_state_dict(ours.state_dict())
    with pytest.raises(RuntimeError, match="size mismatch"):
        Model(genimg.nn.BatchNormAct2d(4)).load_state_dict(plain.state_dict())
    with pytest.raises(RuntimeError, match="Missing key"):
        again.load_state_dict({})
