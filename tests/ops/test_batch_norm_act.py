"""Batch norm and LeakyReLU."""

import pytest
import torch
import torch.nn.functional as F
from contract import FLOATS, assert_case, small_cases

import genimg

batch_norm_act = genimg.ops.batch_norm_act


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("case", small_cases("batch_norm_act"))
def test_forward_backward(case, dtype):
    assert_case("batch_norm_act", case, dtype)


def test_is_the_two_layers_it_replaces():
    x = torch.randn(4, 3, 5, 5) * 3 + 1
    layers = torch.nn.Sequential(torch.nn.BatchNorm2d(3, 1e-3, 0.01), torch.nn.LeakyReLU(0.3))
    norm = layers[0]
    mean, var = norm.running_mean.clone(), norm.running_var.clone()
    y = batch_norm_act(x, mean, var, norm.weight, norm.bias, True, 0.01, 1e-3, 0.3)
    assert torch.equal(y, layers(x))
    assert torch.equal(mean, norm.running_mean)
    assert torch.equal(var, norm.running_var)


def test_pair_fill_statistics_are_exact():
    """x[i] + x[i + 1] = 2 mean: the mean is exact, and the variance of integers nearly."""
    deviation = torch.randint(-5, 6, (1, 3, 4, 4)).float()
    x = torch.cat([2 + deviation, 2 - deviation])
    mean, var = torch.zeros(3), torch.zeros(3)
    batch_norm_act(x, mean, var, training=True, momentum=1.0)
    assert torch.equal(mean, torch.full((3,), 2.0))
    expected = x.double().transpose(0, 1).flatten(1).var(1)
    torch.testing.assert_close(var.double(), expected, rtol=2e-7, atol=0)


def test_relu_sends_minus_infinity_to_zero():
    x = torch.tensor([[float("-inf")], [1.0]])
    y = batch_norm_act(x, torch.zeros(1), torch.ones(1), negative_slope=0.0)
    assert y[0, 0] == 0


def test_half_input_with_single_parameters():
    x = torch.randn(4, 3, 5, 5).bfloat16()
    weight, bias = torch.rand(3) + 0.5, torch.randn(3)
    mean, var = torch.zeros(3), torch.ones(3)
    y = batch_norm_act(x, mean, var, weight, bias, True)
    assert y.dtype == torch.bfloat16
    assert mean.dtype == torch.float32
    assert mean.abs().max() > 0


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: batch_norm_act(torch.randn(1, 3, 1, 1), None, None, training=True),
            ValueError,
            "more than 1 value per channel",
        ),
        (
            lambda: batch_norm_act(torch.randn(2, 3, 4, 4), None, None),
            RuntimeError,
            "expected running_mean and running_var",
        ),
        (
            lambda: batch_norm_act(torch.randn(2, 3), torch.zeros(3), torch.ones(3), eps=0.0),
            ValueError,
            "eps above 0, but got 0.0",
        ),
        (
            lambda: batch_norm_act(torch.randn(3), torch.zeros(3), torch.ones(3)),
            ValueError,
            r"shape \[N, C, ...\], but got \(3,\)",
        ),
        (
            lambda: batch_norm_act(torch.randn(2, 3, 4, 4), torch.zeros(4), torch.ones(4)),
            RuntimeError,
            "running_mean should contain 3 elements not 4",
        ),
        (
            lambda: batch_norm_act(
                torch.randn(2, 3, 4, 4), torch.zeros(3), torch.ones(3), torch.ones(5)
            ),
            RuntimeError,
            "weight should contain 3 elements not 5",
        ),
        (
            lambda: batch_norm_act(None, None, None, training=True),
            TypeError,
            "x to be a Tensor, but got NoneType",
        ),
    ],
    ids=["single_value", "no_statistics", "eps", "rank", "running_mean", "weight", "no_tensor"],
)
def test_refuses(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_failing_call_leaves_the_statistics():
    mean, var = torch.zeros(3), torch.ones(3)
    with pytest.raises(RuntimeError):
        batch_norm_act(torch.randn(2, 3, 4, 4), mean, var, torch.ones(5), training=True)
    assert torch.equal(mean, torch.zeros(3))
    assert torch.equal(var, torch.ones(3))


def test_eval_leaves_the_statistics():
    mean, var = torch.ones(3), torch.full((3,), 2.0)
    version = mean._version
    batch_norm_act(torch.randn(2, 3, 4, 4), mean, var)
    assert mean._version == version


def test_gradient_at_exactly_zero_is_the_slope():
    x = torch.zeros(2, 1, 2, 2, requires_grad=True)
    y = batch_norm_act(x, torch.zeros(1), torch.ones(1), negative_slope=0.25)
    y.sum().backward()
    expected = F.batch_norm(torch.ones(1, 1), torch.zeros(1), torch.ones(1)).item() * 0.25
    torch.testing.assert_close(x.grad, torch.full_like(x, expected))
