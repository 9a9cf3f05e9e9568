"""A convolution and average pooling, folded into one strided convolution."""

import pytest
import torch
import torch.nn.functional as F
from op_checks import FLOATS, assert_case, small_cases
from ops.test_upsample_conv2d import products

import genimg
from genimg.ops import fold
from genimg.ops.fold import fold_avg_pool

conv2d_avg_pool = genimg.ops.conv2d_avg_pool


def by_torch(x, weight, bias=None, size=2, padding=1):
    return F.avg_pool2d(F.conv2d(x, weight, bias, 1, padding), size)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("case", small_cases("conv2d_avg_pool"))
def test_forward_backward(case, dtype):
    assert_case("conv2d_avg_pool", case, dtype)


def test_the_fold_of_three_taps():
    """Per axis (w0, w0 + w1, w1 + w2, w2) / 2."""
    weight = torch.tensor([2.0, 20.0, 200.0]).view(1, 1, 1, 3)
    assert fold_avg_pool(weight, (1, 2)).flatten().tolist() == [1, 11, 110, 100]


def test_a_half_weight_is_rounded_once():
    weight = torch.randn(3, 4, 3, 3, generator=torch.Generator().manual_seed(1)).bfloat16()
    assert torch.equal(
        fold_avg_pool(weight, (2, 2)), fold_avg_pool(weight.double(), (2, 2)).bfloat16()
    )


def test_a_small_call_is_not_folded(monkeypatch):
    """Where no kernel is faster, auto folds from some size on; a backend by name always."""
    x, weight = torch.randn(2, 3, 8, 8), torch.randn(5, 3, 3, 3)
    windows = 3 * 5 * 2 * 4 * 4
    assert products(conv2d_avg_pool, x, weight) == 36 * windows
    assert products(conv2d_avg_pool, x, weight, backend="reference") == 16 * windows
    monkeypatch.setattr(fold, "folding_cost", lambda *_: 36 * windows)
    assert products(conv2d_avg_pool, x, weight) == 16 * windows


def test_without_a_fold_torchs_two_ops_run():
    x, weight = torch.randn(2, 3, 9, 9), torch.randn(5, 3, 3, 3)
    expected = genimg.reference.conv2d_avg_pool(x, weight, kernel_size=9)
    for backend in (None, "reference"):
        assert torch.equal(conv2d_avg_pool(x, weight, kernel_size=9, backend=backend), expected)
    table = genimg.explain("conv2d_avg_pool", x, weight, kernel_size=9)
    reasons = {row.backend: row.reason for row in table.rows}
    assert reasons["cpu"] == "kernel_size is (9, 9); a folded kernel supports 1 to 8"


def test_unbatched():
    x, weight = torch.randn(3, 6, 5), torch.randn(5, 3, 3, 3)
    for backend in (None, "reference"):
        torch.testing.assert_close(conv2d_avg_pool(x, weight, backend=backend), by_torch(x, weight))


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_autocast_as_torch(dtype, backend):
    x, weight = torch.randn(2, 3, 4, 4).to(dtype), torch.randn(5, 3, 3, 3).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        y, expected = conv2d_avg_pool(x, weight, backend=backend), by_torch(x, weight)
        assert y.dtype == expected.dtype
    exact = by_torch(x.to(y.dtype).double(), weight.double())
    assert (y - exact).abs().max() <= 3 * (expected - exact).abs().max() + 1e-12


def test_refusals():
    x, weight = torch.randn(2, 3, 4, 4), torch.randn(5, 3, 3, 3)
    with pytest.raises(RuntimeError, match="expects an input of 3 channels, but got 2"):
        conv2d_avg_pool(x[:, :2], weight)
    with pytest.raises(genimg.BackendError, match="conv2d_avg_pool cannot run as asked. cuda: .+"):
        conv2d_avg_pool(x, weight, backend="cuda")


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 0},
        {"kernel_size": -1},
        {"kernel_size": 2.0},
        {"kernel_size": None},
        {"kernel_size": (2, 2, 2)},
        {"kernel_size": 5},
        {"padding": -1},
        {"padding": "full"},
        {"padding": 1.0},
    ],
    ids=str,
)
def test_invalid_options_raise_as_torchs(options):
    x, weight = torch.randn(2, 3, 4, 4), torch.randn(5, 3, 3, 3)
    with pytest.raises(Exception) as theirs:
        genimg.reference.conv2d_avg_pool(x, weight, **options)
    for backend in (None, "reference", "cpu,reference"):
        with pytest.raises(type(theirs.value)):
            conv2d_avg_pool(x, weight, backend=backend, **options)
