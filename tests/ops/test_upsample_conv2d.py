"""Nearest upsampling and a convolution, folded into one transposed convolution."""

import pytest
import torch
import torch.nn.functional as F
from op_checks import FLOATS, assert_case, small_cases
from torch.utils.flop_counter import FlopCounterMode

import genimg
from genimg import _native
from genimg.ops import fold
from genimg.ops.fold import MAX_FACTOR, fold_upsample

upsample_conv2d = genimg.ops.upsample_conv2d
native = pytest.mark.skipif(not _native.available(), reason=f"no _C: {_native.why_not()}")


def by_torch(x, weight, bias=None, scale=2, padding=1):
    return F.conv2d(F.interpolate(x, scale_factor=scale, mode="nearest"), weight, bias, 1, padding)


def products(function, *args, **options):
    """Multiplications that a call of PyTorch's convolutions takes."""
    with FlopCounterMode(display=False) as counter:
        function(*args, **options)
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("case", small_cases("upsample_conv2d"))
def test_forward_backward(case, dtype):
    assert_case("upsample_conv2d", case, dtype)


def test_the_fold_of_three_taps():
    """Per axis (w2, w1 + w2, w0 + w1, w0)."""
    weight = torch.tensor([1.0, 10.0, 100.0]).view(1, 1, 1, 3)
    folded = fold_upsample(weight, (1, 2), torch.contiguous_format)
    assert folded.flatten().tolist() == [100, 110, 11, 1]


def test_a_half_weight_is_rounded_once():
    weight = torch.randn(3, 4, 3, 3, generator=torch.Generator().manual_seed(1)).bfloat16()
    exact = fold_upsample(weight.double(), (2, 2), torch.contiguous_format)
    assert torch.equal(fold_upsample(weight, (2, 2), torch.contiguous_format), exact.bfloat16())


@pytest.mark.parametrize("factor", range(1, MAX_FACTOR + 1))
@pytest.mark.parametrize("mode", ["nearest", "nearest-exact"])
def test_torch_repeats_pixels_exactly(mode, factor):
    """The fold's premise; by 41 PyTorch's float32 index is one too low here and there."""
    x = torch.arange(2000.0).view(1, 1, 1, 2000)
    repeated = x.repeat_interleave(factor, 3)
    for options in ({"scale_factor": (1, factor)}, {"size": (1, 2000 * factor)}):
        assert torch.equal(F.interpolate(x, mode=mode, **options), repeated)


def test_a_small_call_is_not_folded(monkeypatch):
    """Where no kernel is faster, auto folds from some size on; a backend by name always."""
    x, weight = torch.randn(2, 3, 4, 4), torch.randn(5, 3, 3, 3)
    pixels = 3 * 5 * 2 * 8 * 8
    assert products(upsample_conv2d, x, weight) == 9 * pixels
    assert products(upsample_conv2d, x, weight, backend="reference") == 4 * pixels
    monkeypatch.setattr(fold, "folding_cost", lambda *_: 9 * pixels)
    assert products(upsample_conv2d, x, weight) == 4 * pixels


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"scale_factor": 1.5}, "scale_factor is 1.5; a folded kernel supports whole numbers"),
        ({"scale_factor": 9}, "scale_factor is (9, 9); a folded kernel supports 1 to 8"),
        ({"size": (9, 8)}, "size is (9, 8); a folded kernel supports multiples of (4, 4)"),
        ({"padding": 3}, "padding is 3, the kernel (3, 3); a folded kernel supports less padding"),
    ],
)
def test_without_a_fold_torchs_two_ops_run(options, reason):
    x, weight = torch.randn(2, 3, 4, 4), torch.randn(5, 3, 3, 3)
    expected = genimg.reference.upsample_conv2d(x, weight, **options)
    for backend in (None, "reference"):
        assert torch.equal(upsample_conv2d(x, weight, backend=backend, **options), expected)
    table = genimg.explain("upsample_conv2d", x, weight, **options)
    assert {row.backend: row.reason for row in table.rows}["cpu"] == reason


def test_unbatched():
    x, weight = torch.randn(3, 4, 5), torch.randn(5, 3, 3, 3)
    for backend in (None, "reference"):
        y = upsample_conv2d(x, weight, backend=backend)
        torch.testing.assert_close(y, by_torch(x[None], weight)[0])


@pytest.mark.parametrize("backend", [None, "reference", pytest.param("cpu", marks=native)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_autocast_as_torch(dtype, backend):
    if backend == "cpu" and dtype == torch.float64:
        pytest.skip("no kernel supports float64, which autocast leaves as it is")
    x, weight = torch.randn(2, 3, 4, 4).to(dtype), torch.randn(5, 3, 3, 3).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        y, expected = upsample_conv2d(x, weight, backend=backend), by_torch(x, weight)
        assert y.dtype == expected.dtype
    exact = by_torch(x.to(y.dtype).double(), weight.double())
    assert (y - exact).abs().max() <= 3 * (expected - exact).abs().max() + 1e-12


def test_refusals():
    x, weight = torch.randn(2, 3, 4, 4), torch.randn(5, 3, 3, 3)
    with pytest.raises(ValueError, match="mode is 'bilinear'; supported are nearest and nearest-"):
        upsample_conv2d(x, weight, mode="bilinear")
    with pytest.raises(RuntimeError, match="expects an input of 3 channels, but got 2"):
        upsample_conv2d(x[:, :2], weight)
    with pytest.raises(RuntimeError, match="input is torch.float32 and weight torch.float64"):
        upsample_conv2d(x, weight.double())
    with pytest.raises(genimg.BackendError, match="upsample_conv2d cannot run as asked. cuda: .+"):
        upsample_conv2d(x, weight, backend="cuda")


@pytest.mark.parametrize(
    "options",
    [
        {"scale_factor": 0},
        {"scale_factor": -1},
        {"scale_factor": "2"},
        {"scale_factor": (2, 2, 2)},
        {"scale_factor": True},
        {"size": 0},
        {"size": 8.5},
        {"padding": -1},
        {"padding": "full"},
        {"padding": 1.0},
        {"mode": None},
    ],
    ids=str,
)
def test_invalid_options_raise_as_torchs(options):
    x, weight = torch.randn(2, 3, 4, 4), torch.randn(5, 3, 3, 3)

    def outcome(function):
        try:
            return function(x, weight, **options).shape
        except Exception as error:
            return type(error)

    expected = outcome(genimg.reference.upsample_conv2d)
    assert outcome(upsample_conv2d) == expected
    with genimg.use_backend("cpu,reference"):
        assert outcome(upsample_conv2d) == expected


def test_what_torch_refuses():
    weight = torch.randn(5, 3, 3, 3)
    with pytest.raises(RuntimeError):  # no output
        upsample_conv2d(torch.randn(2, 3, 1, 1), torch.randn(5, 3, 3, 3), padding=0)
    with pytest.raises(RuntimeError):  # interpolate takes no empty image
        upsample_conv2d(torch.randn(2, 3, 0, 4), weight)
    with pytest.raises(AttributeError):  # interpolate's
        upsample_conv2d(None, weight)
    with pytest.raises(TypeError):
        upsample_conv2d(torch.randn(2, 3, 4, 4), weight, [1.0])
