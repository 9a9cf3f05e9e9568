"""Layers that a forward calls, fused because the user says which follow which."""

import copy
import pickle
import threading
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from nn.model_judge import judged
from torch import nn
from torch.nn.utils import parametrizations

import genimg


class Block(nn.Module):
    """As in code of residual networks, a name for each layer."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 4, 2, 1)
        self.bn1 = nn.BatchNorm2d(6)
        self.relu1 = nn.LeakyReLU(0.2, inplace=True)
        self.conv2 = nn.ConvTranspose2d(6, 4, 4, 2, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(4)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(4, 4, 3, padding=1)
        self.tanh = nn.Tanh()

    def forward(self, x):
        h = self.relu1(self.bn1(self.conv1(x)))
        h = self.relu2(self.bn2(self.conv2(h)))
        return self.tanh(self.conv3(h)) + h


RUNS = [["conv1", "bn1", "relu1"], ["conv2", "bn2", "relu2"], ["conv3", "tanh"]]
X = torch.randn(3, 3, 8, 12, generator=torch.Generator().manual_seed(0))


def converted(model, runs=RUNS):
    genimg.convert(model, fuse=runs)
    return model


def stacks_in(model, x=X):
    """How many runs of convolutions are computed as one op."""
    with mock.patch.object(genimg.ops, "conv_stack", wraps=genimg.ops.conv_stack) as spy:
        model(x)
    return spy.call_count


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(
    "runs", [RUNS, [[*RUNS[0], *RUNS[1]]], ["bn1", "relu1"]], ids=["three", "one", "norm"]
)
def test_same_as_plain(runs, training, layout):
    with genimg.use_backend("cpu"):  # whatever auto would choose
        _, report = judged(
            Block,
            X,
            convert=lambda model: genimg.convert(model, fuse=runs),
            training=training,
            layout=layout,
        )
    assert not report.skipped
    assert len(report.fused) == (1 if len(runs) != 3 else 3)


def test_they_run_as_one():
    model = converted(Block())
    assert stacks_in(model) == 3
    assert model.bn1.num_batches_tracked == 1
    model = converted(Block(), [[*RUNS[0], *RUNS[1]], RUNS[2]])
    assert stacks_in(model) == 2
    with torch.no_grad():
        model(X)
    with torch.inference_mode():
        model(X)
    assert model.conv1._run._marks == {}


def test_the_report():
    model = nn.Sequential(Block(), nn.Conv2d(4, 4, 3))
    runs = [[f"0.{name}" for name in run] for run in RUNS]
    report = genimg.convert(model, fuse=runs)
    assert "0.conv1 Conv2d + 0.bn1 BatchNorm2d + 0.relu1 LeakyReLU run as one" in str(report)
    again = genimg.convert(model, fuse=runs)
    assert not again.changed
    assert again.fused == report.fused
    assert not genimg.convert(model).changed


@pytest.mark.parametrize(
    ("runs", "error"),
    [
        ([["conv1", "bn9"]], "the model has no submodule 'bn9'"),
        ([["bn1", "conv1"]], r"'conv1' \(Conv2d\) cannot follow 'bn1' \(BatchNorm2d\); a run is"),
        ([["conv1", "relu1", "bn1"]], r"'bn1' \(BatchNorm2d\) cannot follow 'relu1'"),
        ([["relu1", "conv2"]], r"'relu1' \(LeakyReLU\) cannot begin a run"),
        ([["conv3", "tanh", "conv1"]], r"'conv1' \(Conv2d\) cannot follow 'tanh'"),
        ([["bn1", "tanh"]], r"'tanh' \(Tanh\) cannot follow 'bn1'"),
        ([["conv1", "bn2"]], "cannot follow 'conv1'.*takes 4 channels, and that gives 6"),
        ([["conv1", "bn1"], ["bn1", "relu1"]], "'bn1' is named twice"),
        ([["conv1"]], r"needs two layers or more, but got \['conv1'\]"),
        ([["conv1", "pool"]], "'pool' cannot be fused: MaxPool2d is not supported in a run"),
        ([["odd", "bn1"]], "'odd' cannot be fused: it is lazy; run one batch first"),
        ([["same", "bn1"], ["conv1", "relu1"]], "'conv1' and 'same' are one layer"),
    ],
)
def test_wrong_runs_are_refused(runs, error):
    model = Block()
    model.pool = nn.MaxPool2d(2)
    model.odd = nn.LazyConv2d(6, 4)
    model.same = model.conv1
    with pytest.raises(ValueError, match=error):
        genimg.convert(model, fuse=runs)
    assert type(model.conv1) is nn.Conv2d  # nothing was changed


def test_wrong_types_are_refused():
    for fuse in ("conv1", 3, [["conv1", 1]], [["conv1", "bn1"], "relu1"]):
        with pytest.raises(TypeError, match="names of submodules"):
            genimg.convert(Block(), fuse=fuse)
    with pytest.raises(ValueError, match="ops leaves out conv_stack"):
        genimg.convert(Block(), fuse=RUNS, ops="conv2d")


class Between(Block):
    """A forward that is not as declared."""

    def __init__(self, edit):
        super().__init__()
        self.edit = edit

    def forward(self, x):
        return self.relu1(self.edit(self, self.bn1(self.conv1(x))))


@pytest.mark.parametrize(
    "edit",
    [
        lambda model, h: h + 1,
        lambda model, h: h.add_(1),
        lambda model, h: F.dropout(h, 0.5),
        lambda model, h: model.bn1(h),
        lambda model, h: h.detach(),
    ],
    ids=["new", "in_place", "dropout", "twice", "detached"],
)
def test_forwards_that_do_otherwise_raise(edit):
    model = converted(Between(edit), [RUNS[0]])
    with pytest.raises(RuntimeError, match="was declared to follow '(bn1|conv1)', but the model"):
        model(X)


def test_calls_that_interleave():
    """One run in two branches, and in two threads."""

    class Branches(Block):
        def forward(self, x):
            a, b = self.conv1(x), self.conv1(x * 2)
            a, b = self.bn1(a), self.bn1(b)
            return self.relu1(b) - self.relu1(a)

    judged(Branches, X, convert=lambda model: genimg.convert(model, fuse=[RUNS[0]]))
    model = converted(Block()).eval()
    expected = model(X)
    failures = []

    def serve():
        for _ in range(10):
            if not torch.equal(model(X), expected):
                failures.append(1)

    threads = [threading.Thread(target=serve) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert model.conv1._run._marks == {}


@pytest.mark.parametrize("index", [0, 1, 2])
def test_hooks_run(index):
    """The run is not fused while one of its layers has a hook."""
    model, plain = converted(Block()), Block()
    plain.load_state_dict(model.state_dict())
    name = RUNS[0][index]
    seen = [[], []]
    handles = [
        getattr(each, name).register_forward_hook(lambda m, a, y, s=s: s.append(y.detach().clone()))
        for each, s in zip((model, plain), seen, strict=True)
    ]
    torch.testing.assert_close(model(X), plain(X))
    torch.testing.assert_close(*seen)
    assert stacks_in(model) == 2
    for handle in handles:
        handle.remove()
    assert stacks_in(model) == 3


def test_replaced_and_changed_layers_count():
    model, plain = converted(Block()), Block()
    plain.load_state_dict(model.state_dict())
    for each in (model, plain):
        each.bn1 = nn.Identity()
        each.bn2.eval()
        each.conv3.padding_mode = "circular"
        each.conv3._reversed_padding_repeated_twice = [1, 1, 1, 1]
    assert stacks_in(model) == 1
    torch.testing.assert_close(model(X), plain(X))
    assert model.bn2.num_batches_tracked == 0
    for each in (model, plain):
        parametrizations.weight_norm(each.conv2)
    torch.testing.assert_close(model(X), plain(X))


def test_copies_and_files():
    model = converted(Block()).eval()
    expected = model(X)
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), copy.copy(model)]
    for twin in copies:
        assert stacks_in(twin) == 3
        assert torch.equal(twin(X), expected)
    for twin in copies[:2]:
        assert twin.conv1._run.owner() is twin
        assert twin.conv1._run is not model.conv1._run
    alone = copy.deepcopy(model.conv1)
    assert alone._run.owner() is None
    torch.testing.assert_close(alone(X), F.conv2d(X, alone.weight, alone.bias, 2, 1))
    parts = list(Block().children())
    converted(nn.ModuleList(parts), [["0", "1", "2"]])  # the owner is gone
    torch.testing.assert_close(nn.Sequential(*parts)(X), nn.Sequential(*copy.deepcopy(parts))(X))


def test_replicas_run_by_themselves():
    """As nn.DataParallel makes them, with tensors of another device in the place of parameters."""
    model = converted(Block())
    expected = copy.deepcopy(model)(X)
    replica = model._replicate_for_data_parallel()
    replica._modules = {
        name: child._replicate_for_data_parallel() for name, child in model._modules.items()
    }
    for child, original in zip(replica._modules.values(), model.children(), strict=True):
        child._parameters = {n: p for n, p in original._parameters.items() if p is None}
        for name, parameter in original.named_parameters():
            setattr(child, name, parameter * 1)
    torch.testing.assert_close(replica(X), expected)


def test_restore_and_state_dicts():
    model, plain = converted(Block()), Block()
    model.load_state_dict(plain.state_dict(), strict=True)
    plain.load_state_dict(model.state_dict(), strict=True)
    report = genimg.restore(model)
    assert not report.skipped
    assert "_run" not in model.conv1.__dict__
    assert [type(m) for m in model.children()] == [type(m) for m in plain.children()]
    torch.testing.assert_close(model(X), plain(X))
    genimg.restore(converted(model).bn1)  # one layer of a run
    torch.testing.assert_close(model(X), plain(X))


def test_output_size_of_a_call():
    class Sized(Block):
        def forward(self, x):
            h = self.relu1(self.bn1(self.conv1(x)))
            return self.relu2(self.bn2(self.conv2(h, output_size=[9, 13])))

    model, _ = judged(Sized, X, convert=lambda model: genimg.convert(model, fuse=RUNS[:2]))
    assert stacks_in(model) == 2


def test_checkpoint_and_autocast():
    model, plain = converted(Block()), Block()
    plain.load_state_dict(model.state_dict())
    for each in (model, plain):
        x = X.clone().requires_grad_()
        torch.utils.checkpoint.checkpoint(each, x, use_reentrant=False).square().sum().backward()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-3)
    with torch.autocast("cpu", torch.bfloat16):
        y, expected = model(X), plain(X)
    assert y.dtype == expected.dtype
    torch.testing.assert_close(y, expected, rtol=0.1, atol=0.1)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_tracers_see_torchs_layers():
    model, plain = converted(Block()).eval(), Block().eval()
    plain.load_state_dict(model.state_dict())
    expected = plain(X)
    graphs = [torch.fx.symbolic_trace(each).graph.nodes for each in (model, plain)]
    described = [[(node.op, str(node.target)) for node in nodes] for nodes in graphs]
    assert described[0] == described[1]
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(X), expected)
    traced = torch.jit.trace(model, X)
    assert not [n for n in traced.inlined_graph.nodes() if n.kind().startswith("genimg")]
    torch.testing.assert_close(torch.jit.script(model)(X), expected)


def test_compile_and_export():
    torch._dynamo.reset()
    model, plain = converted(Block()), Block()
    plain.load_state_dict(model.state_dict())
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        torch.testing.assert_close(compiled(X), plain(X))
    compiled(X).sum().backward()
    plain(X).sum().backward()
    torch.testing.assert_close(model(X), plain(X))  # the eager model goes on
    exported = torch.export.export(model.eval(), (X,)).module()
    torch.testing.assert_close(exported(X), plain.eval()(X))
