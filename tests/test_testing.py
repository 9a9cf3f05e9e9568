"""The judge itself: what is wrong must not pass."""

import importlib
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from genimg import _native
from genimg.backends import OPS
from genimg.testing import Case, compare, integers, judge, normal, place, prepare, run
from genimg.testing.kinks import Kink, RecordSides, TakeSides, assignments, kinks_of
from genimg.testing.rounding import magnitudes, perturbed

stacks = importlib.import_module("genimg.cases.conv_stack")  # not the function of that name

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


@pytest.mark.parametrize(
    "activation", [F.relu, torch.relu, partial(F.leaky_relu, negative_slope=0.2)]
)
def test_the_truth_takes_the_sides_of_the_judged_result(activation):
    """A pre-activation that rounding moves across 0: both are right, each for its own side."""
    case = Case(
        "kink",
        "",
        lambda g: {"x": torch.tensor([1.0, -2.0, 3.0, 1e-12], dtype=torch.float64)},
        lambda op, t: op(t["x"]),
    )

    def reference(x):
        return activation(x - 1e-12) * 3

    def moved(by):
        def op(x, *, backend=None):
            return activation(x - 1e-12 + by) * 3

        return op

    for by in (-1e-12, 0, 1e-12):
        errors = compare(case, moved(by), reference, "reference")
        assert all(error.ok for error in errors), errors
    wrong = compare(case, lambda x, *, backend=None: reference(-x), reference, "reference")
    assert not all(error.ok for error in wrong)


def test_a_side_that_no_rounding_explains_fails():
    """The truth takes the result's sides, but a result on the wrong side is far from its truth."""
    case = Case("sides", "", lambda g: {"x": normal(g, 50)}, lambda op, t: op(t["x"]))

    def wrong(x, *, backend=None):
        return torch.where(x > 0.5, x, 0.2 * x)

    errors = compare(case, wrong, lambda x: F.leaky_relu(x, 0.2), "cpu")
    assert not any(error.ok for error in errors)


def test_each_way_of_rounding_is_tried_and_then_open_sites():
    sides = torch.tensor([True, False, False, True])
    other = torch.tensor([True, False, True, True])
    tried = list(
        assignments([Kink((sides, sides, other), torch.tensor([False, False, True, False]))])
    )
    assert [side[0].tolist() for side in tried[:2]] == [sides.tolist(), other.tolist()]
    open_sites = torch.tensor([False, True, False, True])
    tried = list(assignments([Kink((sides,), open_sites)]))
    assert len({tuple(side[0].tolist()) for side in tried}) == 4
    assert all(side[0][0] and not side[0][2] for side in tried)
    assert len(list(assignments([Kink((sides,), torch.ones(4, dtype=torch.bool))]))) == 1


def test_sides_of_nan_and_inf_are_left_to_pytorch():
    x = torch.tensor([float("nan"), float("-inf"), float("inf"), 2.0])
    with TakeSides([torch.tensor([True, True, False, False])]):
        y = F.relu(x)
    assert y.isnan().tolist() == [True, False, False, False]
    assert y[1:].tolist() == [0.0, float("inf"), 0.0]


@pytest.mark.skipif(not _native.available(), reason=_native.why_not() or "")
@pytest.mark.parametrize(
    ("op", "name"),
    [
        ("conv_stack", "generator"),
        ("conv_stack", "discriminator"),
        ("conv_stack", "frozen_norm"),
        ("batch_norm_act", "primes"),
        ("batch_norm_act", "relu"),
        ("batch_norm_act", "plain"),
    ],
)
def test_kernels_tell_the_sides_that_pytorch_takes(op, name):
    """In float32, on small data, no pre-activation lies so near 0 that they could differ."""
    entry = OPS[op]
    case = next(case for case in entry.cases if case.name == name)
    tensors = prepare(case, torch.float32, "cpu")
    with RecordSides() as recorded:
        run(case, entry.reference, tensors)
    found = []
    run(case, partial(entry.function, backend="cpu"), tensors,
        look=lambda outputs: found.extend(kinks_of(outputs)))  # fmt: skip
    assert len(found) == len(recorded.sides)
    for kink, side in zip(found, recorded.sides, strict=True):
        assert all(torch.equal(sides, side) for sides in kink.sides)
        assert not kink.open.any()


def _through_zero(case):
    """The case with a beta that sends one pixel of each channel to 0, up to rounding."""

    def tensors(generator):
        made = {name: x.float().double() for name, x in case.tensors(generator).items()}
        y = F.conv_transpose2d(made["x"], made["weight0"], None, 2, 1)
        z = F.batch_norm(y, None, None, made["gamma0"], None, training=True)
        return {**made, "beta0": -z[0, :, 1, 1]}

    return replace(case, tensors=tensors)


@pytest.mark.skipif(not _native.available(), reason=_native.why_not() or "")
def test_a_kernel_is_not_judged_by_the_luck_of_a_kink():
    """Rounding decides the side of 24 pixels, in the kernel, in PyTorch and in float64 apart."""
    layers = (stacks.Layer(stacks.UP, 24, negative_slope=0.0), stacks.TANH)
    case = _through_zero(stacks.make_case("kinks", "", (4, 16, 4, 4), layers))
    entry = OPS["conv_stack"]
    tensors = prepare(case, torch.float32, "cpu")
    sides = []
    for given in (tensors, {name: x.double() for name, x in tensors.items()}):
        with RecordSides() as recorded:
            run(case, entry.reference, given)
        sides.append(recorded.sides[0])
    assert (sides[0] != sides[1]).any(), "no pixel lies on a kink"
    errors = entry.compare(case, "cpu")
    assert all(error.ok for error in errors), errors


def test_the_bound_of_a_convolution_is_the_sum_of_absolute_terms():
    case = next(case for case in OPS["conv2d"].cases if case.name == "k3s1p1")
    wide = prepare(case, torch.float64, "cpu")
    results, grads = run(case, OPS["conv2d"].reference, wide)
    sizes = magnitudes(case, OPS["conv2d"].reference, wide, grads)
    expected = F.conv2d(wide["x"].abs(), wide["weight"].abs(), wide["bias"].abs(), padding=1)
    torch.testing.assert_close(sizes["y"], expected)
    assert all((sizes[name] >= results[name].abs() * (1 - 1e-12)).all() for name in results)


def test_the_bound_passes_what_pytorch_computes_too_well():
    """PyTorch may sum exactly by chance: a float32 sum in another order is right all the same."""
    truth = torch.tensor([3.0, 1.0], dtype=torch.float64)
    got = truth.float() + torch.tensor([4.8e-7, 0])
    assert not judge("y", got, truth.float(), truth).ok
    assert judge("y", got, truth.float(), truth, bound=torch.tensor([5e-7, 1e-9])).ok
    # Each element has its own bound: the large one's does not cover the small one.
    got = truth.float() + torch.tensor([0, 4.8e-7])
    assert not judge("y", got, truth.float(), truth, bound=torch.tensor([5e-7, 1e-9])).ok


def test_the_perturbed_problem_moves_by_rounding_and_no_more():
    case = next(case for case in OPS["conv_stack"].cases if case.name == "generator")
    wide = prepare(case, torch.float64, "cpu")
    truth, grads = run(case, OPS["conv_stack"].reference, wide)

    def again():
        return run(case, OPS["conv_stack"].reference, wide, grads)[0]

    float32, bfloat16 = (perturbed(again, truth, d) for d in (torch.float32, torch.bfloat16))
    for name, value in truth.items():
        scale = float(value.abs().max())
        moved = float(float32[name].max()) / scale
        assert 1e-8 < moved < 1e-4, (name, moved)
        assert float(bfloat16[name].max()) / scale < 1, name
        assert torch.equal(value, again()[name]), "the truth itself is not perturbed"


def _mean_of_squares(x, mean, var, weight, bias, training=True, *, backend=None, **options):
    """A batch norm whose variance cancels: E[x^2] - E[x]^2, in float32."""
    of = [d for d in range(x.dim()) if d != 1]
    centre = x.mean(of, keepdim=True)
    spread = (x * x).mean(of, keepdim=True) - centre * centre
    y = (x - centre) * (spread.abs() + 1e-5).rsqrt()
    y = y * weight.view(1, -1, 1, 1) + bias.view(1, -1, 1, 1)
    count = x.numel() // x.shape[1]
    mean.mul_(0.9).add_(0.1 * centre.detach().flatten())
    var.mul_(0.9).add_(0.1 * spread.detach().flatten() * count / (count - 1))
    return F.leaky_relu(y, 0.01)


def test_a_variance_that_cancels_fails_on_a_large_mean():
    entry = OPS["batch_norm_act"]
    cases = {case.name: case for case in entry.cases}
    errors = compare(cases["large_mean"], _mean_of_squares, entry.reference, "cpu")
    assert not all(error.ok for error in errors)


@pytest.mark.parametrize("op", ["conv2d", "conv_transpose2d"])
def test_a_product_in_half_precision_fails(op):
    """Operands rounded to bfloat16, as TF32 rounds them to ten bits, are not float32's."""
    entry = OPS[op]
    case = next(case for case in entry.cases if case.name == "k4s2p1_primes")

    def rounded(x, weight, bias, *options, backend=None, **named):
        return entry.reference(x.bfloat16().float(), weight, bias, *options, **named)

    errors = compare(case, rounded, entry.reference, "cpu", bilinear=True)
    assert not all(error.ok for error in errors)
