"""The guarantees of every op, as assertions; ``tests/ops`` applies them to each op."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from genimg.backends import BACKENDS, OPS, BackendError
from genimg.check import devices
from genimg.kernels.triton import runtime as triton_runtime
from genimg.testing import Case, prepare, run, seeded

needs_triton = pytest.mark.skipif(
    triton_runtime.MISSING is not None or not {*devices()} & {*triton_runtime.DEVICES},
    reason=triton_runtime.MISSING or "neither a GPU nor Triton's interpreter",
)
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def case_of(op: str, name: str) -> Case:
    return next(case for case in OPS[op].cases if case.name == name)


def small_cases(op: str) -> list[Any]:
    """The cases of an op that are not for timing, as pytest parameters with their names."""
    return [
        pytest.param(case, id=case.name, marks=[pytest.mark.slow] if case.slow else [])
        for case in OPS[op].cases
        if not case.speed
    ]


_NOT_FINITE = ("not_finite", "not_finite_first_channel", "not_finite_last_channel", "huge_values")
HALF_PRECISION_CASES = {
    "conv2d": ("k4s2p1_primes", "few_channels", *_NOT_FINITE),
    "conv_transpose2d": (
        "k4s2p1_primes",
        "few_channels",
        "few_channels_not_finite",
        *_NOT_FINITE,
    ),
    "conv_stack": (
        "generator",
        "relu_of_minus_infinity",
        "relu_of_minus_infinity_without_norm",
        "large_mean",
        "large_mean_few_pixels",
        "saturated_tanh",
        "saturated_sigmoid",
    ),
}
"""Cases that a convolution runs in float16 in the emulator, and in both half precisions in Triton's
interpreter, where each takes seconds.

The kernels order their work alike in all of them; rounding, range and, in CUDA, the width of a
vector differ. These are an ordinary case of each kernel, and those that end the range.
"""


def is_emulated(op: str, case: Case, dtype: torch.dtype) -> bool:
    """Whether the CUDA emulator runs the case in the dtype."""
    return dtype != torch.float16 or case.name in HALF_PRECISION_CASES.get(op, (case.name,))


def is_interpreted(op: str, case: Case, dtype: torch.dtype) -> bool:
    """Whether Triton's interpreter runs the case in the dtype.

    A composed op has no kernel of its own, so that one case shows how it calls another's.
    """
    if OPS[op].composed:
        return dtype == torch.float32 and case.name == "k3_primes"
    return dtype.itemsize != 2 or case.name in HALF_PRECISION_CASES.get(op, (case.name,))


def assert_case(op: str, case: Case, dtype: torch.dtype) -> None:
    """Every backend of this machine that serves the case keeps the tolerance rule; one must."""
    entry = OPS[op]
    served = []
    for device in devices():
        for backend in BACKENDS:
            interpreted = backend == "triton" and device == "cpu"
            if interpreted and not is_interpreted(op, case, dtype):
                continue
            try:
                errors = entry.compare(case, backend, dtype, device)
            except BackendError:
                continue
            served.append(backend)
            bad = [error for error in errors if not error.ok]
            assert not bad, f"{backend} on {device}: {bad}"
    assert "reference" in served


def device_for(backend: str | None) -> str:
    """Where a backend's kernels are tested: on the GPU, if there is one and they run there."""
    return "cuda" if backend in ("cuda", "triton") and torch.cuda.is_available() else "cpu"


def tensors_and_function(
    op: str, case: Case, dtype: torch.dtype, backend: str | None = None
) -> tuple[tuple[Tensor, ...], Callable[..., Any]]:
    """The case as a function of the tensors that are differentiated, for gradcheck and friends."""
    tensors = prepare(case, dtype, device_for(backend))
    leaves = tuple(tensors[name].detach().requires_grad_() for name in case.grad)
    entry = OPS[op]

    def function(*differentiated: Tensor) -> Any:
        values = {name: x.clone() for name, x in tensors.items() if name in case.state}
        given = {**tensors, **values, **dict(zip(case.grad, differentiated, strict=True))}
        return seeded(case.call, partial(entry.function, backend=backend), given)

    return leaves, function


def assert_derivatives(op: str, case: Case) -> None:
    """First and second derivatives against finite differences, in float64."""
    leaves, function = tensors_and_function(op, case, torch.float64)
    assert torch.autograd.gradcheck(function, leaves)
    # In one random direction of the inputs: of all there are thousands.
    assert torch.autograd.gradgradcheck(function, leaves, fast_mode=True)


def assert_compiles(op: str, case: Case, backend: str | None = None) -> None:
    """One graph, forward and backward, and eager's results."""
    torch._dynamo.reset()
    tensors = prepare(case, torch.float32, "cpu")
    entry = OPS[op]
    function = partial(entry.function, backend=backend)
    expected, grad_outputs = run(case, function, tensors)
    compiled = torch.compile(
        lambda given: case.call(function, given), fullgraph=True, backend="aot_eager"
    )
    got, _ = run(
        Case(
            case.name,
            case.why,
            case.tensors,
            lambda _, given: compiled(given),
            case.grad,
            case.state,
        ),
        function,
        tensors,
        grad_outputs,
    )
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=1e-5, atol=1e-5, equal_nan=True)


class _AsModule(torch.nn.Module):
    def __init__(self, call: Callable[..., Any], names: tuple[str, ...]) -> None:
        super().__init__()
        self.call = call
        self.names = names

    def forward(self, *tensors: Tensor) -> Any:
        return self.call(dict(zip(self.names, tensors, strict=True)))


def assert_exports(op: str, case: Case, backend: str | None = None) -> None:
    """``torch.export`` takes the op, and what it makes computes the same."""
    tensors = prepare(case, torch.float32, "cpu")
    function = partial(OPS[op].function, backend=backend)
    module = _AsModule(lambda given: case.call(function, given), tuple(tensors))

    def copies() -> tuple[Tensor, ...]:
        return tuple(x.clone(memory_format=torch.preserve_format) for x in tensors.values())

    with torch.no_grad():
        exported = torch.export.export(module, copies()).module()
        torch.testing.assert_close(seeded(exported, *copies()), seeded(module, *copies()))
