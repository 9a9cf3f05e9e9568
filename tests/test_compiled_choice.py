"""Decisions in compiled and exported code: read, never measured, and no limit to what it takes."""

import pytest
import torch

import genimg
from genimg import _native, tuning
from genimg.budget import Budget
from genimg.decisions import DecisionStore, Kind, fastest
from genimg.kinds import call_of
from genimg.ops.conv_stack import CONV_STACK
from genimg.ops.leaky_relu import LEAKY_RELU

pytestmark = pytest.mark.skipif(not _native.available(), reason=f"no _C: {_native.why_not()}")

CPU = torch.device("cpu")
KERNEL = fastest({"cpu": 1.0, "reference": 2.0})
PYTORCH = fastest({"cpu": 2.0, "reference": 1.0})
X = torch.randn(6, 5, 4, 4)


@pytest.fixture
def store():
    """An empty one of a process that would measure, if it could."""
    before = tuning.current()
    torch.use_deterministic_algorithms(False)
    torch._dynamo.reset()
    made = DecisionStore(None)
    tuning.install(tuning.Tuner(made, Budget()))
    yield made
    tuning.install(before)


def decide(store, op, args, decision, batch=None):
    facts, its_batch = call_of(op.name, op.parts(*args))
    kind = Kind(tuning._told(facts, CPU), its_batch if batch is None else batch)
    store.keep(CPU, {kind: decision})


def compiled(function, **how):
    """The function compiled, and the targets of its last graph."""
    targets = []

    def backend(graph, _):
        targets[:] = [str(node.target) for node in graph.graph.nodes]
        return graph

    return torch.compile(function, fullgraph=True, backend=backend, **how), targets


def test_compiled_code_takes_what_is_stored(store):
    run, targets = compiled(genimg.ops.leaky_relu)
    run(X)
    assert "genimg.leaky_relu_fwd" not in targets
    assert store.all(CPU) == {}
    decide(store, LEAKY_RELU, (X, 0.01, False), KERNEL)
    torch._dynamo.reset()
    run, targets = compiled(genimg.ops.leaky_relu)
    torch.testing.assert_close(run(X), torch.nn.functional.leaky_relu(X))
    assert "genimg.leaky_relu_fwd" in targets
    # Another kind: nothing is stored for it.
    run(X.double())
    assert "genimg.leaky_relu_fwd" not in targets


def test_a_kernel_that_cannot_is_not_taken(store):
    decide(store, LEAKY_RELU, (X, 0.01, True), KERNEL)
    run, targets = compiled(genimg.ops.leaky_relu)
    run(X.clone(), 0.01, True)
    assert "genimg.leaky_relu_fwd" not in targets


def test_a_dynamic_batch_takes_what_all_batches_agree_on_and_compiles_once(store):
    decide(store, LEAKY_RELU, (X, 0.01, False), KERNEL, batch=8)
    decide(store, LEAKY_RELU, (X, 0.01, False), KERNEL, batch=64)
    run, targets = compiled(genimg.ops.leaky_relu)
    torch._dynamo.mark_dynamic(X, 0)
    count = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for batch in (6, 2, 100, 17, 33):
        x = torch.randn(batch, 5, 4, 4)
        torch._dynamo.mark_dynamic(x, 0)
        run(x)
    assert "genimg.leaky_relu_fwd" in targets
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == count + 1
    decide(store, LEAKY_RELU, (X, 0.01, False), PYTORCH, batch=1)
    torch._dynamo.reset()
    run, targets = compiled(genimg.ops.leaky_relu)
    run(x)
    assert "genimg.leaky_relu_fwd" not in targets


def test_dynamic_images_are_not_looked_up(store):
    run, _ = compiled(genimg.ops.leaky_relu, dynamic=True)
    count = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for height, width in ((8, 9), (6, 10), (16, 7)):
        run(torch.randn(3, 5, height, width))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == count + 1


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("dynamic", [False, True])
def test_export(store, strict, dynamic):
    decide(store, LEAKY_RELU, (X, 0.2, False), KERNEL)

    class Model(torch.nn.Module):
        def forward(self, x):
            return genimg.ops.leaky_relu(x, 0.2)

    x = X.clone()
    shapes = ({0: torch.export.Dim("n", max=1000)},) if dynamic else None
    program = torch.export.export(Model(), (x,), dynamic_shapes=shapes, strict=strict)
    assert "genimg.leaky_relu_fwd.default" in [str(node.target) for node in program.graph.nodes]
    if dynamic:
        more = torch.randn(500, 5, 4, 4)
        torch.testing.assert_close(program.module()(more), genimg.ops.leaky_relu(more, 0.2))


@pytest.mark.parametrize("decision", [KERNEL, PYTORCH])
def test_tracing_a_model_finds_the_kind_of_an_eager_call(store, decision, monkeypatch):
    model = torch.nn.Sequential(
        torch.nn.ConvTranspose2d(6, 8, 4, 2, 1, bias=False),
        torch.nn.BatchNorm2d(8),
        torch.nn.LeakyReLU(0.2),
        torch.nn.Conv2d(8, 3, 3, 1, 1),
        torch.nn.Tanh(),
    )
    genimg.convert(model.eval())
    x = torch.randn(2, 6, 4, 4)
    calls = []

    def record(op, args):
        if op is CONV_STACK:
            calls.append(args)

    monkeypatch.setattr(tuning.current(), "selected", record)
    with torch.no_grad():  # with gradients the op is inside a node of the graph
        expected = model(x)
        decide(store, CONV_STACK, calls[0], decision)
        run, targets = compiled(model)
        torch.testing.assert_close(run(x), expected)
    assert ("genimg.conv_stack_fwd" in targets) is (decision is KERNEL)
