"""fprop, dgrad and wgrad in Triton: exact on integers, with what they read and write through.

Where every partial sum is an integer below 2**24, float32 must equal float64 to the bit.
"""

import pytest
import torch
import torch.nn.functional as F
from conv_fixtures import DEVICE, Data, behind, contract, draw, read

import genimg
from genimg.kernels.triton import runtime

pytestmark = pytest.mark.skipif(runtime.MISSING is not None, reason=f"{runtime.MISSING}")
if runtime.MISSING is None:
    from genimg.kernels.triton.conv.dgrad import dgrad
    from genimg.kernels.triton.conv.epilogue import Epilogue
    from genimg.kernels.triton.conv.fprop import fprop
    from genimg.kernels.triton.conv.wgrad import wgrad

# Large image [N, C, H, W], small channels, kernel, stride, padding, dilation.
GEOMETRIES = {
    "k4s2p1": ((2, 16, 8, 8), 8, (4, 4), (2, 2), (1, 1), (1, 1)),
    "primes": ((3, 11, 13, 11), 7, (4, 4), (2, 2), (1, 1), (1, 1)),
    "blocks_of_channels": ((1, 35, 6, 6), 37, (4, 4), (2, 2), (1, 1), (1, 1)),
    "parts_of_wgrad": ((9, 9, 20, 18), 5, (4, 4), (2, 2), (1, 1), (1, 1)),
    "few_channels": ((2, 3, 10, 14), 20, (4, 4), (2, 2), (1, 1), (1, 1)),
    "few_channels_parts": ((9, 3, 20, 18), 5, (4, 4), (2, 2), (1, 1), (1, 1)),
    "one_channel": ((2, 1, 7, 6), 1, (3, 3), (1, 1), (1, 1), (1, 1)),
    "folded": ((5, 9, 4, 4), 10, (4, 4), (1, 1), (0, 0), (1, 1)),
    "one_small_pixel": ((2, 9, 4, 5), 10, (4, 4), (2, 2), (0, 0), (1, 1)),
    "one_value": ((1, 1, 1, 1), 1, (1, 1), (1, 1), (0, 0), (1, 1)),
    "unread_edge": ((2, 9, 10, 9), 4, (3, 3), (4, 4), (0, 0), (1, 1)),
    "phases_without_tap": ((2, 9, 11, 11), 4, (2, 2), (3, 3), (0, 0), (1, 1)),
    "anisotropic": ((2, 9, 9, 12), 4, (3, 2), (2, 3), (1, 0), (1, 2)),
    "common_divisor": ((1, 9, 16, 18), 4, (2, 3), (6, 4), (0, 2), (4, 3)),
    "common_divisor_few": ((1, 2, 16, 18), 4, (2, 3), (6, 4), (0, 2), (4, 3)),
    "padding_above_kernel": ((1, 9, 5, 5), 3, (3, 3), (2, 2), (4, 3), (1, 1)),
}


@pytest.mark.parametrize("name", GEOMETRIES)
def test_exact(name):
    data = Data(*GEOMETRIES[name])
    small, large = (read(x, torch.float32) for x in (data.small, data.large))
    bias = draw(data.small.shape[1])
    y, _ = contract(fprop, large, data, Epilogue(bias=bias.float()))
    assert torch.equal(y.double(), data.fprop() + bias[:, None, None])
    grad_large, grad_weight = data.grads(data.small, data.large.clone())
    bias = draw(data.large.shape[1])
    y, _ = contract(dgrad, small, data, Epilogue(bias=bias.float()))
    assert torch.equal(y.double(), grad_large + bias[:, None, None])
    for memory_format in (torch.contiguous_format, torch.channels_last):
        weight = data.weight.float()
        got = wgrad(small, large, weight, data.geometry, memory_format)
        assert torch.equal(got.double(), grad_weight)
        assert got.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("name", ["k4s2p1", "few_channels"])
def test_half_is_rounded_once(name):
    """Products in float16 add up in float32: the result is the exact one, rounded."""
    data = Data(*GEOMETRIES[name])
    small, large = (read(x, torch.float16) for x in (data.small, data.large))
    grad_large, grad_weight = data.grads(data.small, data.large.clone())
    assert torch.equal(
        contract(fprop, large, data, Epilogue(), torch.float16)[0], data.fprop().half()
    )
    assert torch.equal(
        contract(dgrad, small, data, Epilogue(), torch.float16)[0], grad_large.half()
    )
    weight = data.weight.half()
    got = wgrad(small, large, weight, data.geometry, torch.channels_last)
    assert torch.equal(got, grad_weight.half())


@pytest.mark.parametrize("prologue", ["affine_leaky", "affine_relu", "two_tensor"])
@pytest.mark.parametrize("name", ["primes", "few_channels", "folded"])
def test_prologues(name, prologue):
    """Exact, and zero at the padding behind the prologue."""
    data = Data(*GEOMETRIES[name])
    small, small_value = behind(data.small, prologue)
    large, large_value = behind(data.large, prologue)
    grad_large, grad_weight = data.grads(small_value, large_value.clone())
    expected = F.conv2d(large_value, data.weight, None, *data.options)
    assert torch.equal(contract(fprop, large, data, Epilogue())[0].double(), expected)
    assert torch.equal(contract(dgrad, small, data, Epilogue())[0].double(), grad_large)
    got = wgrad(small, large, data.weight.float(), data.geometry, torch.channels_last)
    assert torch.equal(got.double(), grad_weight)


@pytest.mark.parametrize("activation", ["leaky", "relu", "tanh", "sigmoid"])
@pytest.mark.parametrize("name", ["primes", "few_channels"])
def test_activations(name, activation):
    data = Data(*GEOMETRIES[name])
    data.weight /= 64
    function = {
        "leaky": lambda z: F.leaky_relu(z, 0.2),
        "relu": torch.relu,
        "tanh": torch.tanh,
        "sigmoid": torch.sigmoid,
    }[activation]
    epilogue = Epilogue(activation=activation, slope=0.2)
    for kernel, image, raw in (
        (fprop, data.large, data.fprop()),
        (dgrad, data.small, data.grads(data.small, data.large.clone())[0]),
    ):
        got, _ = contract(kernel, read(image, torch.float32), data, epilogue)
        torch.testing.assert_close(got.double(), function(raw), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("unwanted", ["wgrad", "dgrad"])
def test_gradients_that_nobody_asks_for_are_not_computed(unwanted, monkeypatch):
    from genimg.kernels.triton.conv import convolution

    x = draw(2, 3, 8, 8).float().requires_grad_()
    weight = draw(4, 3, 4, 4).float().requires_grad_()
    y = genimg.ops.conv2d(x, weight, None, 2, 1, backend="triton")
    monkeypatch.setattr(convolution, unwanted, None)
    torch.autograd.grad(y.sum(), x if unwanted == "wgrad" else weight, retain_graph=True)
    with pytest.raises(TypeError):
        torch.autograd.grad(y.sum(), (x, weight))


def test_refuses_in_words():
    x, weight = torch.ones(2, 4, 8, 8, device=DEVICE), torch.ones(4, 2, 3, 3, device=DEVICE)
    for options, reason in (
        ({"groups": 2}, "groups is 2; this kernel supports 1"),
        ({"padding": "same", "groups": 2}, "groups is 2; this kernel supports 1"),
    ):
        with pytest.raises(genimg.BackendError, match=reason):
            genimg.ops.conv2d(x, weight, **options, backend="triton")
    with pytest.raises(genimg.BackendError, match="dtype is float64; this kernel supports float32"):
        genimg.ops.conv2d(x.double(), weight.double(), groups=2, backend="triton")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["primes", "few_channels", "common_divisor_few"])
def test_not_finite(name, value):
    """It reaches the outputs that it belongs to, and no other phase of the same tile."""
    data = Data(*GEOMETRIES[name])
    data.weight = data.weight.abs() + 1
    data.small[0, 0, 1, 1] = data.large[0, 0, 1, 2] = value
    for kernel, image, expected in (
        (fprop, data.large, data.fprop()),
        (dgrad, data.small, data.grads(data.small, data.large.clone())[0]),
    ):
        got, _ = contract(kernel, read(image, torch.float32), data, Epilogue())
        assert torch.equal(got.isfinite(), expected.isfinite())
        assert torch.equal(got[got.isfinite()].double(), expected[expected.isfinite()])
