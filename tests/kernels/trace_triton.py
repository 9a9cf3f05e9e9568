"""Traces the Triton kernels into one graph without a GPU; run by test_triton_trace.py.

A process of its own: the interpreter, which the tests run in, has no kernels to trace. Dynamo is
told that there is a GPU, and the table that kernels take tensors on the CPU; nothing is launched.
"""

import collections
import json
import sys

import torch
import torch.utils._triton

import genimg
from genimg.backends import OPS
from genimg.testing import prepare

torch.utils._triton.has_triton = lambda: True


class TracedError(Exception):
    """Ends compilation with what was seen."""


def count(graph_module, inputs):
    found = collections.Counter(
        str(node.target)
        for module in graph_module.modules()
        if hasattr(module, "graph")
        for node in module.graph.nodes
        if node.op == "call_function"
    )
    raise TracedError(found["triton_kernel_wrapper_mutation"])


def kernels_in_graph(op, case):
    """How many launches one graph of forward and backward holds."""
    tensors = prepare(case, torch.float32, "cpu")
    for name in case.grad:
        tensors[name].requires_grad_()
    compiled = torch.compile(
        lambda given: case.call(op.function, given), fullgraph=True, backend=count
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
    torch._dynamo.reset()
    found[name] = kernels_in_graph(op, next(c for c in op.cases if c.name == case_name))
print(json.dumps(found))
