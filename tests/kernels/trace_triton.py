"""Traces the Triton kernels into one graph without a GPU; run by test_triton_trace.py.

A process of its own: the interpreter, which the tests run in, has no kernels to trace. Dynamo is
told that there is a GPU, and the table that kernels take tensors on the CPU; nothing is launched.
"""

import json
import sys

import torch
import torch.utils._triton

import genimg
from genimg.backends import OPS
from genimg.testing import prepare

torch.utils._triton.has_triton = lambda **_: True
torch.cuda.get_device_capability = lambda device=None: (9, 0)


class TracedError(Exception):
    """Ends compilation with what was seen."""


def count(graph_module, inputs):
    """A backend that says how many launches there are."""
    targets = [
        str(node.target)
        for module in graph_module.modules()
        if hasattr(module, "graph")
        for node in module.graph.nodes
    ]
    raise TracedError(targets.count("triton_kernel_wrapper_mutation"))


def kernels_in_graph(op, case, symbolic):
    """How many launches one graph of forward and backward holds; of "all" sizes, the "batch"."""
    tensors = prepare(case, torch.float32, "cpu")
    for name in case.grad:
        tensors[name].requires_grad_()
    if symbolic == "batch":
        torch._dynamo.mark_dynamic(next(iter(tensors.values())), 0)
    torch._dynamo.reset()
    dynamic = symbolic == "all" or None if symbolic else False
    compiled = torch.compile(
        lambda given: case.call(op.function, given), fullgraph=True, backend=count, dynamic=dynamic
    )
    try:
        with genimg.use_backend("triton"):
            compiled(tensors)
    except torch._dynamo.exc.BackendCompilerFailed as failed:
        if isinstance(failed.inner_exception, TracedError):
            return failed.inner_exception.args[0]
        raise
    return 0


found = {}
for name, case_name in json.loads(sys.argv[1]).items():
    op = OPS[name]
    object.__setattr__(op.by_backend["triton"], "devices", ("cpu",))
    case = next(case for case in op.cases if case.name == case_name)
    # A convolution's weight and options stay numbers: kernels are compiled for them.
    symbolic = "batch" if name.startswith("conv") else "all"
    found[name] = [kernels_in_graph(op, case, sizes) for sizes in ("", symbolic)]
print(json.dumps(found))
