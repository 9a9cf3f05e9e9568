"""A Sequential that runs its blocks fused."""

import copy
import pickle

import pytest
import torch
from torch import nn

import genimg
from genimg.nn import FusedSequential
from genimg.nn.conv_stack import plan


def generator():
    return [
        nn.Linear(8, 6 * 3 * 3),
        nn.Unflatten(1, (6, 3, 3)),
        nn.BatchNorm2d(6),
        nn.ReLU(True),
        nn.ConvTranspose2d(6, 5, 4, 2, 1, bias=False),
        nn.BatchNorm2d(5, 1e-3, 0.01),
        nn.LeakyReLU(0.2, inplace=True),
        nn.Dropout2d(0.0),
        nn.ConvTranspose2d(5, 4, 3, 2, 1, output_padding=1),
        nn.BatchNorm2d(4),
        nn.Tanh(),
        nn.Conv2d(4, 3, 3, padding=1, groups=1),
        nn.Sigmoid(),
    ]


def twins():
    torch.manual_seed(2)
    plain = nn.Sequential(*generator())
    stack = FusedSequential(*copy.deepcopy(generator()))
    stack.load_state_dict(plain.state_dict())
    return stack, plain


def shape_of(stack):
    """The plan in words: 'Linear', or 'conv+norm+act, conv'."""
    words = []
    for step in plan(stack):
        if isinstance(step, nn.Module):
            words.append(type(step).__name__)
        else:
            words.append(
                ", ".join("+".join(type(m).__name__ for m in block.modules()) for block in step)
            )
    return words


def test_plan():
    stack, _ = twins()
    assert shape_of(stack) == [
        "Linear",
        "Unflatten",
        "BatchNorm2d+ReLU",
        "ConvTranspose2d+BatchNorm2d+LeakyReLU, ConvTranspose2d+BatchNorm2d+Tanh",
        "Conv2d+Sigmoid",
    ]


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ([nn.Conv2d(3, 3, 3)], ["Conv2d"]),
        ([nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3)], ["Conv2d, Conv2d"]),
        ([nn.BatchNorm2d(3), nn.Tanh()], ["BatchNorm2d", "Tanh"]),
        ([nn.BatchNorm2d(3), nn.BatchNorm2d(3), nn.ReLU()], ["BatchNorm2d", "BatchNorm2d+ReLU"]),
        (
            [nn.Conv2d(3, 3, 3), nn.ReLU(), nn.BatchNorm2d(3), nn.ReLU()],
            ["Conv2d+ReLU", "BatchNorm2d+ReLU"],
        ),
        ([nn.ReLU(), nn.Conv2d(3, 3, 3), nn.GELU()], ["ReLU", "Conv2d", "GELU"]),
        (
            [nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect"), nn.ReLU()],
            ["Conv2d", "ReLU"],
        ),
        ([nn.Conv2d(3, 3, 3, padding="same"), nn.ReLU()], ["Conv2d", "ReLU"]),
        (
            [nn.Sequential(nn.Conv2d(3, 3, 3), nn.ReLU()), nn.Sequential(nn.BatchNorm2d(3))],
            ["Conv2d+ReLU", "BatchNorm2d"],
        ),
        (
            [nn.Conv2d(3, 3, 3), nn.ReLU(), nn.Conv2d(3, 3, 3, groups=3), nn.Conv2d(3, 3, 1)],
            ["Conv2d+ReLU", "Conv2d", "Conv2d"],
        ),
        (
            [nn.Sequential(nn.Conv2d(3, 3, 3)), FusedSequential(nn.BatchNorm2d(3), nn.ReLU())],
            ["Conv2d+BatchNorm2d+ReLU"],
        ),
    ],
)
def test_plan_of_edges(layers, expected):
    """Two activations in a row, norms without a convolution, nested Sequentials."""
    stack = FusedSequential(*layers)
    assert shape_of(stack) == expected
    plain = nn.Sequential(*copy.deepcopy(layers))
    x = torch.randn(2, 3, 9, 9)
    torch.testing.assert_close(stack(x), plain(x))


def test_two_activations_stay_two():
    stack = FusedSequential(nn.Conv2d(3, 3, 3), nn.Tanh(), nn.Tanh())
    assert shape_of(stack) == ["Conv2d+Tanh", "Tanh"]


def test_trains_as_a_sequential():
    stack, plain = twins()
    assert list(stack.state_dict()) == list(plain.state_dict())
    for training in (True, True, False):
        stack.train(training)
        plain.train(training)
        x = torch.randn(4, 8)
        y, expected = stack(x), plain(x)
        torch.testing.assert_close(y, expected)
        y.square().sum().backward()
        expected.square().sum().backward()
    for ours, theirs in zip(stack.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-4)
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(stack.state_dict()[key], value)


def test_frozen_norm_keeps_its_statistics():
    stack, plain = twins()
    for model in (stack, plain):
        model[5].eval()
    before = stack[5].running_mean.clone()
    x = torch.randn(4, 8)
    torch.testing.assert_close(stack(x), plain(x))
    assert torch.equal(stack[5].running_mean, before)
    assert not torch.equal(stack[9].running_mean, torch.zeros(4))


@pytest.mark.parametrize("index", [4, 5, 6])
def test_hooks_run(index):
    stack, _ = twins()
    seen = []
    stack[index].register_forward_hook(lambda module, args, output: seen.append(output.shape))
    stack(torch.randn(2, 8))
    assert seen == [torch.Size([2, 5, 6, 6])]


def test_backward_hooks_run():
    stack, _ = twins()
    seen = []
    stack[4].register_full_backward_hook(lambda module, grad_in, grad_out: seen.append(grad_out))
    stack(torch.randn(2, 8)).sum().backward()
    assert len(seen) == 1


def test_global_hooks_run():
    """Profilers and FLOP counters hook every module."""
    stack, plain = twins()
    counts = []
    for model in (stack, plain):
        seen = []
        handle = nn.modules.module.register_module_forward_hook(
            lambda module, args, output, seen=seen: seen.append(module)
        )
        model(torch.randn(2, 8))
        handle.remove()
        counts.append(len(seen))
    assert counts[0] == counts[1]


def test_replaced_child_counts():
    stack, _ = twins()
    stack[6] = nn.GELU()
    assert "GELU" in shape_of(stack)
    stack[5] = nn.Identity()
    assert "ConvTranspose2d" in shape_of(stack)


def test_compile():
    torch._dynamo.reset()
    stack, plain = twins()
    compiled = torch.compile(stack, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 8)
    torch.testing.assert_close(compiled(x), plain(x))
    compiled(x).sum().backward()


def test_pickle_deepcopy_repr():
    stack, plain = twins()
    x = torch.randn(2, 8)
    expected = plain.eval()(x)
    for twin in (copy.deepcopy(stack), pickle.loads(pickle.dumps(stack))):
        torch.testing.assert_close(twin.eval()(x), expected)
    assert repr(stack) == repr(plain).replace("Sequential(", "FusedSequential(")
    assert isinstance(stack[:3], FusedSequential)


def test_unbatched_input_is_refused_as_in_a_sequential():
    stack = FusedSequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    with pytest.raises(ValueError, match="expected 4D input"):
        stack(torch.randn(3, 8, 8))
    assert stack[1].num_batches_tracked == 0


def test_public_name():
    assert genimg.nn.FusedSequential is FusedSequential
