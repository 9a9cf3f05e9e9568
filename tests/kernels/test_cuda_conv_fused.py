"""Prologues, gates and sums of the convolutions' CUDA kernels, of which a stack is made."""

import ctypes
from dataclasses import dataclass

import emulated_conv as conv
import pytest
import torch
import torch.nn.functional as F
from emulator import NAMES, Read, Update, Write, launch, library
from torch import Tensor

EPS, SLOPE, GATE_SLOPE = 1e-5, 0.125, 0.25
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
# Wide and narrow loads; several tiles, and several pieces of sums, the last not full.
CHANNELS = pytest.mark.parametrize(("small_c", "large_c"), [(16, 72), (5, 7)], ids=str)


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


def scratch_of(name, sizes):
    count = getattr(library("genimg_emulated"), name)
    count.restype = ctypes.c_int64
    return torch.empty(count(ctypes.c_void_p(sizes.data_ptr())))


def fused(direction, sizes, x, weight, shape, *, prologue, gate=None, tile="auto"):
    """The result, and the sums over its channels."""
    kind, layer, other = prologue
    y = torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)
    sums = [torch.full((shape[1],), float("nan")) for _ in range(3)]
    tickets = torch.zeros(shape[1], dtype=torch.int32)
    gate_layer, gate_y = gate or (None, None)
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
        Read(gate_y),
        *(gate_layer.reads() if gate_layer else none),
        GATE_SLOPE,
        Write(scratch_of(f"conv_{direction}_sums_scratch", sizes)),
        Update(tickets),
        EPS,
        *(Update(x) if gate else Write(x) for x in sums),
    )
    assert not tickets.any()
    return y, sums


def near(got, expected, dtype, room=1.0):
    ulp = {torch.float32: 2**-19, torch.bfloat16: 2**-7}[dtype]
    scale = expected.abs().max().item()
    torch.testing.assert_close(got.double(), expected, rtol=ulp, atol=ulp * room * scale)


def contraction(direction, small_c, large_c, dtype):
    weight = (torch.randn(small_c, large_c, 4, 4) / 8).to(dtype)
    small, large = (2, small_c, 6, 7), (2, large_c, 12, 14)
    sizes = conv.geometry(small, large, weight, (2, 2), (1, 1))
    function = F.conv2d if direction == "fprop" else F.conv_transpose2d
    given, wanted = (large, small) if direction == "fprop" else (small, large)
    return weight, sizes, given, wanted, lambda x: function(x, weight.double(), None, 2, 1)


@DTYPES
@CHANNELS
@pytest.mark.parametrize("direction", ["fprop", "dgrad"])
def test_affine_prologue_and_statistics(direction, small_c, large_c, dtype):
    weight, sizes, given, wanted, convolve = contraction(direction, small_c, large_c, dtype)
    x, layer = image(*given, dtype=dtype), Layer.of(given[1])
    y, (mean, rstd, var) = fused(direction, sizes, x, weight, wanted, prologue=(1, layer, None))
    near(y, convolve(layer.affine(x.double(), SLOPE).to(dtype).double()), dtype)
    stored = y.double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(mean.double(), stored.mean(1), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(var.double(), stored.var(1), rtol=1e-5, atol=0)
    expected = (stored.var(1, unbiased=False) + EPS).rsqrt()
    torch.testing.assert_close(rstd.double(), expected, rtol=1e-5, atol=0)


@DTYPES
@CHANNELS
@pytest.mark.parametrize("direction", ["fprop", "dgrad"])
def test_two_tensor_prologue_and_gate(direction, small_c, large_c, dtype):
    weight, sizes, given, wanted, convolve = contraction(direction, small_c, large_c, dtype)
    x, other, layer = image(*given, dtype=dtype), image(*given, dtype=dtype), Layer.of(given[1])
    gate_y, gate = image(*wanted, dtype=dtype), Layer.of(wanted[1])
    got, (first, second, _) = fused(
        direction, sizes, x, weight, wanted, prologue=(2, layer, other), gate=(gate, gate_y)
    )
    read = layer.two_tensor(x.double(), other.double()).to(dtype).double()
    near(got, convolve(read) * gate.gate(gate_y.double()), dtype)
    stored, centred = got.double(), gate_y.double() - _c(gate.mean)
    near(first, stored.sum((0, 2, 3)), torch.float32, room=8)
    near(second, (stored * centred).sum((0, 2, 3)), torch.float32, room=8)


def test_statistics_of_a_large_mean():
    """Mean 1000, deviation 0.01: a mean is only known to 0.00003, a sum of squares to nothing."""
    x = (1000 + torch.randn(2, 4, 9, 9) / 100).contiguous(memory_format=torch.channels_last)
    weight = torch.eye(4).view(4, 4, 1, 1)
    sizes = conv.geometry(x.shape, x.shape, weight, (1, 1), (0, 0))
    y, (mean, _, var) = fused("fprop", sizes, x, weight, x.shape, prologue=(0, None, None))
    assert torch.equal(y, x)
    stored = x.double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(mean.double(), stored.mean(1), rtol=2**-22, atol=0)
    torch.testing.assert_close(var.double(), stored.var(1), rtol=1e-2, atol=0)


def test_sums_of_one_pixel_in_the_large_tile():
    """A generator's first layer: 16 phases, of which each has the whole batch."""
    weight = (torch.randn(8, 72, 4, 4) / 8).bfloat16()
    x = image(5, 8, 1, 1, dtype=torch.bfloat16)
    shape = (5, 72, 4, 4)
    sizes = conv.geometry(x.shape, shape, weight, (1, 1), (0, 0))
    options = {"prologue": (0, None, None), "tile": "128x128"}
    y, (mean, _, _) = fused("dgrad", sizes, x, weight, shape, **options)
    near(y, F.conv_transpose2d(x.double(), weight.double()), torch.bfloat16)
    torch.testing.assert_close(mean.double(), y.double().mean((0, 2, 3)), rtol=1e-5, atol=1e-6)


@DTYPES
@CHANNELS
def test_weight_gradient_of_fused_layers(small_c, large_c, dtype):
    weight, sizes, large, small, _ = contraction("fprop", small_c, large_c, dtype)
    x, grad = image(*small, dtype=dtype), image(*large, dtype=dtype)
    other, layer, norm = image(*large, dtype=dtype), Layer.of(small_c), Layer.of(large_c)
    got = torch.empty(weight.shape, dtype=dtype, memory_format=torch.channels_last)
    name = f"conv_wgrad_scratch_{NAMES[dtype]}"
    launch(
        "conv_wgrad_fused",
        dtype,
        Read(sizes),
        Read(x),
        Read(grad),
        Write(scratch_of(name, sizes)),
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
