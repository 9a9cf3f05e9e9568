"""Statistics from the epilogues of the Triton contractions, and the merging of their rows."""

import pytest
import torch
import torch.nn.functional as F

from genimg.kernels.triton import runtime

pytestmark = pytest.mark.skipif(runtime.MISSING is not None, reason=f"{runtime.MISSING}")
if runtime.MISSING is None:
    from genimg.kernels.triton import moments
    from genimg.kernels.triton.conv.convolution import Convolution
    from genimg.kernels.triton.conv.epilogue import Epilogue
    from genimg.kernels.triton.conv.geometry import to_channels_last
    from genimg.kernels.triton.conv.prologue import FusedInput

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

# Transposed, input, weight, stride, padding.
LAYERS = {
    "up": (True, (3, 5, 9, 7), (5, 7, 4, 4), (2, 2), (1, 1)),
    "up_few_channels": (True, (3, 5, 9, 7), (5, 3, 4, 4), (2, 2), (1, 1)),
    "up_from_one_pixel": (True, (5, 6, 1, 1), (6, 4, 4, 4), (1, 1), (0, 0)),
    "up_phases_without_tap": (True, (2, 5, 4, 4), (5, 4, 2, 2), (3, 3), (0, 0)),
    "down": (False, (3, 5, 14, 12), (7, 5, 4, 4), (2, 2), (1, 1)),
    "down_few_channels": (False, (3, 3, 14, 12), (37, 3, 4, 4), (2, 2), (1, 1)),
}


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def per_channel(x):
    return x.double().transpose(0, 1).flatten(1)


@pytest.mark.parametrize("name", LAYERS)
def test_statistics(name):
    """Statistics of the values as stored: half precision, mean 100, standard deviation about 1."""
    transposed, x, weight, *options = LAYERS[name]
    convolution = Convolution(transposed, *options)
    weight = (0.1 * draw(*weight)).half()
    bias = torch.full((weight.shape[1 if transposed else 0],), 100.0, device=DEVICE).half()
    epilogue = Epilogue(bias=bias, statistics=True)
    y, partial = convolution.forward(
        FusedInput(to_channels_last(draw(*x).half())), weight, epilogue
    )
    values = per_channel(y)
    count = values.shape[1]
    gamma, beta = draw(y.shape[1], seed=1).half(), draw(y.shape[1], seed=2)
    norm = moments.statistics(partial, y.shape[1], count, gamma, beta, 1e-5)
    var = values.var(1, correction=0)
    rstd = (var + 1e-5).rsqrt()
    torch.testing.assert_close(norm.mean.double(), values.mean(1), rtol=2e-7, atol=0)
    torch.testing.assert_close(norm.rstd.double(), rstd, rtol=2e-6, atol=0)
    torch.testing.assert_close(norm.var.double(), values.var(1), rtol=4e-6, atol=0)
    expected = torch.stack([values.mean(1), gamma.double() * rstd, beta.double(), 0 * rstd])
    torch.testing.assert_close(norm.coef.double(), expected, rtol=2e-6, atol=0)


@pytest.mark.parametrize("rows", [1, 64, 65, 1024, 1500])
def test_many_rows(rows):
    """Some of them empty: a tile may lie outside of its phase."""
    channels = 19
    count = torch.randint(0, 5, (rows, 1), generator=torch.Generator().manual_seed(3)).to(DEVICE)
    count[0] = 4
    count = count.double().expand(rows, channels)
    mean = 1e3 + draw(rows, channels).double()
    squares = draw(rows, channels).double().square()
    mean, squares = (torch.where(count > 0, x, 0.0) for x in (mean, squares))
    partial = torch.stack([count, mean, squares]).float()
    mean, squares = partial[1:].double()
    total = count.sum(0)
    expected = (count * mean).sum(0) / total
    norm = moments.statistics(partial, channels, int(total[0]), None, None, 1e-5)
    torch.testing.assert_close(norm.mean.double(), expected, rtol=2e-7, atol=0)
    apart = (squares + count * (mean - expected).square()).sum(0)
    torch.testing.assert_close(norm.var.double(), apart / (total - 1), rtol=1e-4, atol=0)
    sums = torch.stack([partial[0], partial[2]])
    torch.testing.assert_close(moments.bias_grad(sums, channels).double(), total, rtol=1e-6, atol=0)


@pytest.mark.parametrize("batch", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_gradient_through_a_norm(name, batch):
    """From the layer's input gradient, with the gate in its epilogue, to that of the raw output."""
    transposed, shape, weight, *options = LAYERS[name]
    convolution = Convolution(transposed, *options)
    channels, weight = shape[1], 0.1 * draw(*weight)
    raw = to_channels_last(3 + 2 * draw(*shape, seed=4)).requires_grad_()
    gamma, beta = (draw(channels, seed=s).requires_grad_() for s in (5, 6))
    mean, var = draw(channels, seed=7), draw(channels, seed=8).abs() + 0.5
    parameters = (x.double() for x in (mean, var, gamma, beta))
    z = F.batch_norm(raw.double(), *parameters, batch, 0.0, 1e-5)
    op = F.conv_transpose2d if transposed else F.conv2d
    y = op(F.leaky_relu(z, 0.2), weight.double(), None, *options)
    grad_y = draw(*y.shape, seed=9)
    expected = torch.autograd.grad(y, (raw, gamma, beta), grad_y.double())

    with torch.no_grad():
        values = per_channel(raw)
        if batch:
            mean, var = values.mean(1).float(), values.var(1, correction=0).float()
        norm = moments.running(mean, var, gamma, beta, 1e-5)
        epilogue = Epilogue(slope=0.2, gate="affine", gate_y=raw, gate_coef=norm.coef)
        grad = FusedInput(to_channels_last(grad_y))
        dz, partial = convolution.input_gradient(grad, shape, weight, epilogue)
        found = moments.norm_grads(partial, norm.coef, norm.rstd, values.shape[1], batch)
        centre, scale, shift, tilt = found.coef[:, :, None, None]
        got = (scale * dz + tilt * (raw - centre) + shift, found.gamma, found.beta)
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=2e-5 * float(theirs.abs().max()))
    bias = per_channel(expected[0]).sum(1)
    torch.testing.assert_close(
        found.bias.double(), 0 * bias if batch else bias, rtol=1e-4, atol=1e-4
    )
