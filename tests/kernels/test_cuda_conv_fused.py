"""Prologues, gates and sums of the convolutions' CUDA kernels, of which a stack is made."""

import ctypes
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from emulator import NAMES, Read, Update, Write, conv, last_kernel, launch, library
from torch import Tensor

from genimg.testing import judge

EPS, SLOPE, GATE_SLOPE = 1e-5, 0.125, 0.25
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
# Wide and narrow loads; several tiles of either image, and several pieces of sums, the last not
# full.
CHANNELS = pytest.mark.parametrize(("small_c", "large_c"), [(16, 72), (72, 16), (5, 7)], ids=str)
# sm90 names the kernels for Hopper, which leave float32 and odd channels to the others.
CONTRACTIONS = pytest.mark.parametrize(
    ("direction", "dtype"),
    [
        *(
            (name, dtype)
            for name in ("fprop", "dgrad")
            for dtype in (torch.float32, torch.bfloat16)
        ),
        *(
            (f"sm90_{name}", dtype)
            for name in ("fprop", "dgrad")
            for dtype in (torch.bfloat16, torch.float16)
        ),
    ],
    ids=str,
)


@dataclass
class Layer:
    """A normalisation's numbers, one a channel."""

    mean: Tensor
    scale: Tensor
    shift: Tensor
    slope: Tensor

    @classmethod
    def of(cls, channels):
        return cls(*(torch.randn(channels) * 0.5 + 0.25 for _ in range(4)))

    def affine(self, x, negative_slope):
        return F.leaky_relu(self._z(x), negative_slope)

    def two_tensor(self, x, y):
        return x * _c(self.scale) + (y - _c(self.mean)) * _c(self.slope) + _c(self.shift)

    def gate(self, y):
        return torch.where(self._z(y) > 0, 1.0, GATE_SLOPE)

    def _z(self, x):
        return (x - _c(self.mean)) * _c(self.scale) + _c(self.shift)

    def reads(self):
        return Read(self.mean), Read(self.scale), Read(self.shift)


def _c(parameter):
    return parameter.view(-1, 1, 1).double()


def image(*shape, dtype):
    return (torch.randn(shape) + 0.5).to(dtype).contiguous(memory_format=torch.channels_last)


def wgrad_scratch(sizes, dtype):
    count = getattr(library("genimg_emulated"), f"conv_wgrad_scratch_{NAMES[dtype]}")
    count.restype = ctypes.c_int64
    return torch.empty(count(ctypes.c_void_p(sizes.data_ptr())))


def sums_workspace(direction, sizes):
    room = torch.empty(2, dtype=torch.int64)
    address = ctypes.c_void_p(sizes.data_ptr())
    small = ctypes.c_int64(direction == "fprop")
    library("genimg_emulated").conv_sums(address, small, ctypes.c_void_p(room.data_ptr()))
    floats, tickets = room.tolist()
    return torch.empty(floats), torch.zeros(tickets, dtype=torch.int32)


NONE, BATCH, RUNNING = range(3)  # of a ConvNormGrads


@dataclass
class Gate:
    """The image and the norm of a gate, and what becomes of the sums behind it."""

    y: Tensor
    layer: Layer | None
    norm: int = BATCH
    rstd: Tensor | None = None


def fused(
    direction,
    sizes,
    x,
    weight,
    shape,
    *,
    prologue,
    gate=None,
    tile="auto",
    gamma=None,
    beta=None,
    summed=True,
):
    """The result; and of its channels mean, rstd, var, scale, shift, or with a gate the
    gradients of bias, gamma, beta, and slope and shift of what goes on.
    """
    if direction.startswith("sm90_"):
        direction, tile = direction.removeprefix("sm90_"), "sm90"
    kind, layer, other = prologue
    y = torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)
    sums = [torch.full((shape[1],), float("nan")) for _ in range(5)]
    scratch, tickets = sums_workspace(direction, sizes) if summed else (None, None)
    none = (Read(None),) * 3
    launch(
        f"conv_{direction}_fused",
        x.dtype,
        Read(sizes),
        Read(x),
        Read(weight.contiguous(memory_format=torch.channels_last)),
        Write(y),
        conv.TILES.index(tile),
        kind,
        Read(other),
        *(layer.reads() if layer else none),
        Read(layer.slope if layer else None),
        SLOPE,
        Read(None),
        Read(gate.y if gate else None),
        *(gate.layer.reads() if gate and gate.layer else none),
        GATE_SLOPE,
        Write(scratch),
        Update(tickets),
        EPS,
        gate.norm if gate else NONE,
        Read(gate.rstd if gate else None),
        Read(gamma),
        Read(beta),
        *(Update(x) for x in sums),
    )
    assert tickets is None or not tickets.any()
    if tile == "sm90" and prologue[0] > 0:  # without, a test has more pieces than there is room for
        is_wide = x.shape[1] % 8 == 0 == shape[1] % 8
        assert ("sm90" in last_kernel(library("genimg_emulated"))) == is_wide
    return y, sums


def near(got, expected, dtype, room=1.0):
    ulp = {torch.float32: 2**-19, torch.bfloat16: 2**-7, torch.float16: 2**-10}[dtype]
    scale = expected.abs().max().item()
    torch.testing.assert_close(got.double(), expected, rtol=ulp, atol=ulp * room * scale)


def contraction(direction, small_c, large_c, dtype, batch=2, height=6, width=7):
    weight = (torch.randn(small_c, large_c, 4, 4) / 8).to(dtype)
    small, large = (batch, small_c, height, width), (batch, large_c, 2 * height, 2 * width)
    sizes = conv.geometry(small, large, weight, (2, 2), (1, 1))
    to_small = direction.endswith("fprop")
    function = F.conv2d if to_small else F.conv_transpose2d
    given, wanted = (large, small) if to_small else (small, large)
    return weight, sizes, given, wanted, lambda x: function(x, weight.double(), None, 2, 1)


@CONTRACTIONS
@CHANNELS
def test_affine_prologue_and_statistics(direction, small_c, large_c, dtype):
    weight, sizes, given, wanted, convolve = contraction(direction, small_c, large_c, dtype)
    x, layer = image(*given, dtype=dtype), Layer.of(given[1])
    gamma, beta = torch.randn(2, wanted[1])
    parameters = {"gamma": gamma, "beta": beta} if dtype == torch.float32 else {}
    y, (mean, rstd, var, scale, shift) = fused(
        direction, sizes, x, weight, wanted, prologue=(1, layer, None), **parameters
    )
    near(y, convolve(layer.affine(x.double(), SLOPE).to(dtype).double()), dtype)
    stored = y.double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(mean.double(), stored.mean(1), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(var.double(), stored.var(1), rtol=1e-6, atol=0)
    expected = (stored.var(1, unbiased=False) + EPS).rsqrt()
    torch.testing.assert_close(rstd.double(), expected, rtol=1e-6, atol=0)
    assert torch.equal(scale, rstd * parameters.get("gamma", torch.ones(())))
    assert torch.equal(shift, parameters.get("beta", torch.zeros_like(rstd)))


@CONTRACTIONS
@CHANNELS
def test_two_tensor_prologue_and_gate(direction, small_c, large_c, dtype):
    weight, sizes, given, wanted, convolve = contraction(direction, small_c, large_c, dtype)
    x, other, layer = image(*given, dtype=dtype), image(*given, dtype=dtype), Layer.of(given[1])
    gate_y, norm, rstd = image(*wanted, dtype=dtype), Layer.of(wanted[1]), torch.rand(wanted[1])
    got, (bias, gamma, beta, slope, shift) = fused(
        direction,
        sizes,
        x,
        weight,
        wanted,
        prologue=(2, layer, other),
        gate=Gate(gate_y, norm, BATCH, rstd),
    )
    read = layer.two_tensor(x.double(), other.double()).to(dtype).double()
    near(got, convolve(read) * norm.gate(gate_y.double()), dtype)
    stored, centred = got.double(), gate_y.double() - _c(norm.mean)
    first, second = stored.sum((0, 2, 3)), (stored * centred).sum((0, 2, 3))
    near(beta, first, torch.float32, room=8)
    near(gamma, second * rstd, torch.float32, room=8)
    assert not bias.any()
    share = -norm.scale.double() / (stored.numel() / wanted[1])
    near(shift, share * first, torch.float32, room=8)
    near(slope, share * rstd.double().square() * second, torch.float32, room=8)


@pytest.mark.parametrize("direction", ["fprop", "dgrad"])
def test_scaled_prologue_and_gates_of_no_batch(direction):
    """Behind frozen statistics, and behind an activation that no norm stands before."""
    weight, sizes, given, wanted, convolve = contraction(direction, 5, 7, torch.float32)
    x, layer, rstd = image(*given, dtype=torch.float32), Layer.of(given[1]), torch.rand(wanted[1])
    y, norm = image(*wanted, dtype=torch.float32), Layer.of(wanted[1])
    call = (direction, sizes, x, weight, wanted)
    through = convolve(x.double() * _c(layer.scale))
    got, (bias, _, beta, *_) = fused(
        *call, prologue=(3, layer, None), gate=Gate(y, norm, RUNNING, rstd)
    )
    near(got, through * norm.gate(y.double()), torch.float32)
    near(beta, got.double().sum((0, 2, 3)), torch.float32, room=8)
    assert torch.equal(bias, norm.scale * beta)
    got, (bias, *_) = fused(*call, prologue=(3, layer, None), gate=Gate(y, None, NONE))
    near(got, through * torch.where(y > 0, 1.0, GATE_SLOPE), torch.float32)
    near(bias, got.double().sum((0, 2, 3)), torch.float32, room=8)


PROLOGUES = {
    "affine": (1, lambda layer, x, y: layer.affine(x, SLOPE)),
    "two_tensor": (2, lambda layer, x, y: layer.two_tensor(x, y)),
    "scaled": (3, lambda layer, x, y: x * _c(layer.scale)),
}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("prologue", PROLOGUES)
@pytest.mark.parametrize(
    ("small_c", "large_c", "kernel", "stride", "padding"),
    [(40, 3, 4, 2, 1), (136, 1, 4, 2, 1), (21, 3, 3, 2, 0), (8, 5, 3, 1, 1)],
    ids=["wide", "more_steps_than_stages", "narrow", "narrow_stride_1"],
)
def test_few_channels(small_c, large_c, kernel, stride, padding, prologue, dtype):
    """No tile or patch divides the sizes; what lies outside is 0, whatever the prologue shifts."""
    shape = (2, small_c, 11, 13)
    x, y, layer = image(*shape, dtype=dtype), image(*shape, dtype=dtype), Layer.of(small_c)
    weight = (torch.randn(small_c, large_c, kernel, kernel) / 8).to(dtype)
    kind, read = PROLOGUES[prologue]
    z = read(layer, x.double(), y.double())
    truth = F.conv_transpose2d(z, weight.double(), None, stride, padding)
    sizes = conv.geometry(shape, truth.shape, weight, (stride, stride), (padding, padding))
    call = ("dgrad", sizes, x, weight, truth.shape)
    got, _ = fused(*call, prologue=(kind, layer, y if kind == 2 else None), summed=False)
    assert "conv_dgrad_few_kernel" in last_kernel(library("genimg_emulated"))
    own = F.conv_transpose2d(z.to(dtype), weight, None, stride, padding)
    error = judge(prologue, got, own, truth)
    assert error.ok, error


def statistics_of(x):
    """Statistics of an image's channels, through a 1x1 convolution that is the identity."""
    channels = x.shape[1]
    weight = torch.eye(channels).view(channels, channels, 1, 1).to(x.dtype)
    sizes = conv.geometry(x.shape, x.shape, weight, (1, 1), (0, 0))
    pixels = x.contiguous(memory_format=torch.channels_last)
    y, sums = fused("fprop", sizes, pixels, weight, x.shape, prologue=(0, None, None))
    assert torch.equal(y, x)
    return sums


@pytest.mark.parametrize(
    ("shape", "mean", "std"),
    [((2, 4, 9, 9), 1000, 0.01), ((1, 2, 66, 64), 1000, 0.01), ((2, 4, 9, 9), -1e6, 1)],
    ids=["one_bundle", "two_bundles", "million"],
)
def test_statistics_of_a_large_mean(shape, mean, std):
    """Float has few digits left for the values' differences, and none for their squares."""
    x = mean + std * torch.randn(shape)
    got = statistics_of(x)
    own = torch.var_mean(x, (0, 2, 3))[::-1]
    truth = torch.var_mean(x.double(), (0, 2, 3))[::-1]
    eps, biased = EPS, x.double().var((0, 2, 3), unbiased=False)
    for name, ours, theirs, exact in (
        ("mean", got[0], own[0], truth[0]),
        ("var", got[2], own[1], truth[1]),
        ("rstd", got[1], (biased.float() + eps).rsqrt(), (biased + eps).rsqrt()),
    ):
        error = judge(name, ours, theirs, exact)
        assert error.ok, error


@pytest.mark.parametrize("place", [(0, 0, 0), (1, 3, 3)], ids=["first", "inside"])
def test_statistics_of_an_infinite_value(place):
    """The mean is what PyTorch's is, wherever the value stands."""
    image, row, column = place
    x = torch.randn(2, 1, 9, 9)
    x[image, 0, row, column] = -float("inf")
    mean, rstd, var, *_ = statistics_of(x)
    assert mean.item() == -float("inf")
    assert var.isnan()
    assert rstd.isnan()


def test_sums_of_one_pixel_in_the_large_tile():
    """A generator's first layer: 16 phases, of which each has the whole batch."""
    weight = (torch.randn(8, 72, 4, 4) / 8).bfloat16()
    x = image(5, 8, 1, 1, dtype=torch.bfloat16)
    shape = (5, 72, 4, 4)
    sizes = conv.geometry(x.shape, shape, weight, (1, 1), (0, 0))
    options = {"prologue": (0, None, None), "tile": "128x128"}
    y, (mean, *_) = fused("dgrad", sizes, x, weight, shape, **options)
    near(y, F.conv_transpose2d(x.double(), weight.double()), torch.bfloat16)
    torch.testing.assert_close(mean.double(), y.double().mean((0, 2, 3)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "shape", [(3, 8, 8), (1, 9, 17), (5, 4, 4)], ids=["odd_patches", "ragged", "too_many_pieces"]
)
@pytest.mark.parametrize("gated", [False, True], ids=["statistics", "gate"])
@pytest.mark.parametrize("direction", ["sm90_fprop", "sm90_dgrad"])
def test_sums_of_a_halos_blocks(direction, gated, shape):
    """Several blocks, some with pixels outside; too many for the sums' room go the portable way."""
    call = contraction(direction, 16, 8, torch.bfloat16, *shape)
    weight, sizes, given, wanted, convolve = call
    x, gate_y = (image(*of, dtype=torch.bfloat16) for of in (given, wanted))
    gate = Gate(gate_y, None, NONE) if gated else None
    y, (first, *_) = fused(direction, sizes, x, weight, wanted, prologue=(0, None, None), gate=gate)
    served = direction == "sm90_dgrad" or shape != (5, 4, 4)  # which dgrad has room for
    assert ("sm90" in last_kernel(library("genimg_emulated"))) == served
    expected = convolve(x.double())
    near(y, expected * torch.where(gate_y > 0, 1.0, GATE_SLOPE) if gated else expected, y.dtype)
    summed = y.double().sum((0, 2, 3))  # the gradient of bias, or the mean
    near(first, summed if gated else summed / (y.numel() / wanted[1]), torch.float32, room=8)


@DTYPES
@CHANNELS
def test_weight_gradient_of_fused_layers(small_c, large_c, dtype):
    weight, sizes, large, small, _ = contraction("fprop", small_c, large_c, dtype)
    x, grad = image(*small, dtype=dtype), image(*large, dtype=dtype)
    other, layer, norm = image(*large, dtype=dtype), Layer.of(small_c), Layer.of(large_c)
    got = torch.empty(weight.shape, dtype=dtype, memory_format=torch.channels_last)
    launch(
        "conv_wgrad_fused",
        dtype,
        Read(sizes),
        Read(x),
        Read(grad),
        Write(wgrad_scratch(sizes, dtype)),
        Write(got),
        *layer.reads(),
        SLOPE,
        Read(other),
        *norm.reads(),
        Read(norm.slope),
    )
    read = norm.two_tensor(grad.double(), other.double()).to(dtype).double()
    small_read = layer.affine(x.double(), SLOPE).to(dtype).double()
    expected = torch.nn.grad.conv2d_weight(read, weight.shape, small_read, 2, 1)
    near(got, expected, dtype)
