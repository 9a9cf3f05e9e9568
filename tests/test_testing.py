"""The judge itself: what is wrong must not pass."""

import pytest
import torch

from genimg.testing import Case, compare, integers, judge, normal, place

TRUTH = torch.tensor([1.0, -2.0, 3.0, 0.5], dtype=torch.float64)
OWN = TRUTH.float()


def test_right_passes():
    assert judge("y", OWN.clone(), OWN, TRUTH).ok
    assert judge("y", OWN + 1e-7, OWN, TRUTH).ok


@pytest.mark.parametrize(
    "wrong",
    [
        OWN * (1 + 1e-5),
        torch.tensor([1.0, -2.0, 3.0, 0.0]),
        torch.tensor([1.0, -2.0, float("nan"), 0.5]),
        torch.tensor([1.0, -2.0, float("inf"), 0.5]),
        OWN[:3],
        OWN.double(),
        OWN.to("meta"),
    ],
    ids=["value", "dropped", "nan", "inf", "shape", "dtype", "device"],
)
def test_wrong_fails(wrong):
    error = judge("y", wrong, OWN, TRUTH)
    assert not error.ok


def test_other_memory_format_fails():
    own = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    error = judge("y", own.contiguous(), own, own.double())
    assert "strides" in error.note


def test_missing_nan_fails():
    own = torch.tensor([float("nan"), 1.0])
    assert not judge("y", torch.tensor([0.0, 1.0]), own, own.double()).ok
    assert judge("y", own.clone(), own, own.double()).ok


def test_exact_leaves_no_room():
    assert not judge("y", OWN + 2.4e-7, OWN, TRUTH, exact=True).ok
    assert judge("y", OWN.clone(), OWN, TRUTH, exact=True).ok


def test_gradients_may_differ_where_pytorch_is_not_finite():
    own = torch.tensor([float("nan"), 1.0])
    truth = torch.tensor([float("nan"), 1.0]).double()
    assert judge("grad_x", torch.tensor([float("inf"), 1.0]), own, truth).ok
    assert not judge("grad_x", torch.tensor([0.0, 1.1]), own, truth).ok


def wrong_cube(x, *, backend=None):
    """The cube of x, with a third of its derivative."""

    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        def backward(ctx, grad):
            return grad * ctx.saved_tensors[0] ** 2

    return Cube.apply(x)


def test_compare_sees_a_wrong_gradient():
    case = Case("cube", "", lambda g: {"x": normal(g, 7)}, lambda op, t: op(t["x"]))
    errors = {e.result: e.ok for e in compare(case, wrong_cube, lambda x: x**3, "cpu")}
    assert errors == {"y": True, "grad_x": False}


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced", "expanded", "offset"])
def test_layouts_keep_the_values(layout):
    x = integers(torch.Generator(), 3, 4, 2, 5)
    placed = place(x, layout)
    assert torch.equal(placed, x[:1].expand_as(x) if layout == "expanded" else x)
    assert (placed.stride() == x.stride()) == (layout in ("contiguous", "offset"))
    assert (placed.storage_offset() == 1) == (layout == "offset")
    with pytest.raises(ValueError, match="unknown layout 'nhwc'"):
        place(x, "nhwc")
