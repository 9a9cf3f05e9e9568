"""Measuring the real ops leaves no trace in the program that calls them."""

import pytest
import torch
from measured import Clock, processes

import genimg
from genimg import _native, tuning
from genimg.decisions import DecisionStore
from genimg.ops import ConvBlock, Direction

native = pytest.mark.skipif(not _native.available(), reason=f"no _C: {_native.why_not()}")


@pytest.fixture
def begin(tmp_path):
    with processes(tmp_path / "cache", Clock()) as begin:
        yield begin


@pytest.fixture
def tuner(begin):
    return begin()


@native
def test_nothing_that_a_call_writes_is_touched_by_measuring(begin):
    begin()
    x = torch.randn(8, 4, 8, 8, requires_grad=True)
    calls = []
    x.register_hook(lambda grad: calls.append("hook"))
    state = [torch.zeros(4), torch.ones(4)]
    y = genimg.ops.batch_norm_act(x, *state, training=True)
    assert tuning.current().store.all(torch.device("cpu"))
    expected = [torch.zeros(4), torch.ones(4)]
    genimg.ops.batch_norm_act(x, *expected, training=True, backend="reference")
    for got, right in zip(state, expected, strict=True):
        torch.testing.assert_close(got, right)
    assert x.grad is None
    assert x._version == 0
    assert calls == []
    y.sum().backward()
    assert calls == ["hook"]

    mu, logvar = torch.randn(4, 8), torch.randn(4, 8)
    left = []
    for measures in (True, False):
        begin(measures)
        generator = torch.Generator().manual_seed(5)
        torch.manual_seed(6)
        genimg.ops.reparam_kl(mu, logvar, generator=generator, backend=None)
        genimg.ops.reparam_kl(mu, logvar)
        left.append(torch.stack([torch.rand(3), torch.rand(3, generator=generator)]))
    assert torch.equal(*left)


@native
def test_inference_mode_and_checkpointing(tuner):
    x = torch.randn(2, 8, 4, 4)
    weight = torch.randn(8, 6, 4, 4, requires_grad=True)
    with torch.inference_mode():
        genimg.ops.conv_transpose2d(x, weight, None, 2, 1)
    assert tuner.store.all(torch.device("cpu"))
    x.requires_grad_()
    for reentrant in (True, False):
        y = torch.utils.checkpoint.checkpoint(
            genimg.ops.conv_transpose2d, x, weight, None, 2, 1, use_reentrant=reentrant
        )
        y.sum().backward()


@native
def test_a_stacks_layers_are_decided_before_it_is(tuner, monkeypatch):
    """PyTorch's candidate for a stack is its layers, each by what is decided for it."""
    x = torch.randn(2, 8, 4, 4, requires_grad=True)
    weight = torch.randn(8, 6, 4, 4, requires_grad=True)
    block = ConvBlock(Direction.UP, weight, None, 2, 1)
    kept = []
    keep = DecisionStore.keep

    def record(self, device, decisions):
        kept.extend(kind.call.split("'")[1] for kind in decisions)
        keep(self, device, decisions)

    monkeypatch.setattr(DecisionStore, "keep", record)
    y = genimg.ops.conv_stack(x, [block], training=True)
    expected = genimg.ops.conv_stack(x, [block], training=True, backend="reference")
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    assert kept == ["conv_transpose2d", "conv_stack"]
    assert weight.grad is None


def test_errors_are_the_calls_own(tuner):
    with pytest.raises(RuntimeError, match="Kernel size can't be greater"):
        genimg.ops.conv2d(torch.randn(1, 3, 2, 2), torch.randn(4, 3, 5, 5))
    with pytest.raises(ValueError, match="more than 1 value"):
        genimg.ops.batch_norm_act(torch.randn(1, 3, 1, 1), None, None, training=True)


@native
def test_a_converted_model_trains(tuner):
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.ConvTranspose2d(6, 8, 4, 2, 1, bias=False),
        torch.nn.BatchNorm2d(8),
        torch.nn.LeakyReLU(0.2),
        torch.nn.ConvTranspose2d(8, 3, 4, 2, 1),
        torch.nn.Tanh(),
    )
    x = torch.randn(4, 6, 4, 4)
    expected = model(x)
    model[1].reset_running_stats()
    genimg.convert(model)
    got = model(x)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    got.sum().backward()
