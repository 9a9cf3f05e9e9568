"""The sections that gpu_bench.py measures: ceilings, layers and ops; gpu_models.py has the rest.

A kernel's result is compared with float64 on the very tensors that it is timed on. A wrong one is
recorded as wrong, and has no time.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import roofline
import torch
import torch.nn.functional as F
from gpu_check import HALO, backend_of
from gpu_timing import clocks, kernel_names, sample
from layers import LAYERS as LAYER_CASES
from torch import Tensor

from genimg import ops
from genimg.backends import OPS, BackendError, Op
from genimg.bench import eager_function, step
from genimg.check import reason
from genimg.ops.contraction import contraction
from genimg.ops.geometry import Geometry
from genimg.testing import Case, Tensors, normal, run
from genimg.work import Work

MARK = "@gpu_bench "
KERNELS = ("cuda", "triton") if torch.cuda.is_available() else ("cpu",)
HOPPER = (HALO,) if "cuda" in KERNELS and torch.cuda.get_device_capability() == (9, 0) else ()
VENDOR = "cudnn"
SHARES = {
    "ceilings": 0.05,
    "vendor": 0.2,
    "ops": 0.45,
    "layers": 0.65,
    "models": 0.85,
    "steps": 1.0,
}
"""The sections, and by which share of the time each is to have ended."""

DCGAN = ((100, 512, 1), (512, 256, 4), (256, 128, 8), (128, 64, 16), (64, 3, 32))
"""The layers of its generator: channels before and after, side before."""

FACTOR = 3.0
"""How many times PyTorch's own error, as a share of the norm, a kernel's may be."""

Results = Mapping[str, Tensor]


@dataclass(frozen=True)
class Timed:
    """A closure to time.

    ``work`` is what its kernels must move and compute, where that is known; ``note`` says what in
    it is PyTorch's, where its kernels do not serve all.
    """

    run: Callable[[], Any]
    work: Sequence[Work] = ()
    note: str = ""


class WrongError(ArithmeticError):
    """A result that is not to be timed."""


class Out:
    """The output to gpu_bench.py, and the measurements still to be done."""

    def __init__(self, rows: Sequence[dict[str, Any]], began: float, tiny: bool) -> None:
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.dtype = torch.bfloat16 if self.device == "cuda" else torch.float32
        self.tiny = tiny
        self.began, self.deadline = began, 0.0
        self.done = [_key(row) for row in rows]
        self.machine = _machine(rows)

    def time(
        self,
        where: dict[str, Any],
        make: Callable[[], Timed],
        graph: bool = True,
        names: bool = False,
    ) -> None:
        """Times the step that ``make`` returns; ``make`` raises if it must not be timed."""
        if time.time() > self.deadline or _key(where) in self.done:
            return
        self.say(begin=where)
        more: dict[str, Any] = {}
        os.environ["GENIMG_CUDA_SM90"] = "1" if where["provider"] == HALO else "0"
        try:
            timed = make()
            more = sample(timed.run, self.device, 0.02 if self.tiny else 0.1, graph).as_dict()
            if timed.work and self.machine:
                more["bound"] = roofline.bound(timed.work, self.machine) * 1e6
                more["flop"] = sum(kernel.operations for kernel in timed.work)
            if timed.note:
                more["note"] = timed.note
            if names:
                more["kernels"] = kernel_names(timed.run)
        except Exception as error:  # one row, whatever happens in it, must not cost the others
            told = isinstance(error, (WrongError, BackendError))
            more = {"failed": (str(error) if told else reason(error)).split("\n")[0][:300]}
        self.add({**where, **more})
        if "failed" in more and self.device == "cuda":
            torch.cuda.synchronize()  # raises if the device itself failed: a new process goes on

    def add(self, row: dict[str, Any]) -> None:
        """A row, as it is to stand in the file."""
        self.say(row=row)
        self.done.append(_key(row))

    def say(self, **what: Any) -> None:
        """One line."""
        print(MARK + json.dumps(what), flush=True)

    def batches(self) -> tuple[int, ...]:
        """Images at a time, the most telling first."""
        return (4,) if self.tiny else (128, 2048, 512)


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row.get(name) for name in ("section", "what", "batch", "mode", "provider"))


def _machine(rows: Iterable[Mapping[str, Any]]) -> roofline.Machine | None:
    rates = {row["what"]: row["rate"] for row in rows if row["section"] == "ceilings"}
    return roofline.Machine(rates["matmul"], rates["copy"]) if len(rates) == 2 else None


def check(got: Results, own: Results, truth: Results) -> None:
    """Raise :class:`WrongError` unless each result is about as near to the truth as PyTorch's."""
    for name, exact in truth.items():
        norm = exact.norm()
        error, allowed = ((x[name].double() - exact).norm() / norm for x in (got, own))
        allowed = FACTOR * allowed + torch.finfo(own[name].dtype).eps
        if not error <= allowed:  # a NaN is not
            raise WrongError(
                f"WRONG: {name} is off by {error:.1e} of its norm, {allowed:.1e} allowed"
            )


def ceilings(out: Out) -> None:
    """The device's own matrix product and copy."""
    if out.machine is None:
        out.machine = roofline.measure(out.device, out.dtype)
        for what, rate in (("matmul", out.machine.operations), ("copy", out.machine.bandwidth)):
            out.add({"section": "ceilings", "what": what, "rate": rate})


class Layer:
    """A layer of the DCGAN generator, on tensors in channels_last memory."""

    MODES = ("forward", "x_gradient", "weight_gradient")

    def __init__(self, out: Out, batch: int, before: int, after: int, side: int) -> None:
        self.name = f"{before}->{after}@{side}"
        self.stride, self.padding = (1, 0) if side == 1 else (2, 1)
        large = (side - 1) * self.stride - 2 * self.padding + 4
        make = partial(torch.randn, device=out.device, dtype=out.dtype)
        tensors = (
            make(batch, before, side, side),
            make(before, after, 4, 4).mul_(0.02),
            make(batch, after, large, large),
        )
        last = torch.channels_last
        self.x, self.weight, self.grad = (t.contiguous(memory_format=last) for t in tensors)

    def vendor(self, mode: str, dtype: torch.dtype | None = None) -> Callable[[], Tensor]:
        """CuDNN's."""
        x, weight, grad = (t.to(dtype or t.dtype) for t in (self.x, self.weight, self.grad))
        if mode == "forward":
            return partial(F.conv_transpose2d, x, weight, None, self.stride, self.padding)
        options = (None, [self.stride] * 2, [self.padding] * 2, [1, 1], True, [0, 0], 1)
        place = self.MODES.index(mode) - 1
        needed = [place == 0, place == 1, False]
        backward = torch.ops.aten.convolution_backward
        return lambda: backward(grad, x, weight, *options, needed)[place]

    def timed(self, mode: str, provider: str) -> Timed:
        """CuDNN's, or ours, checked."""
        if provider == VENDOR:
            return Timed(self.vendor(mode), [self.work(mode)])
        x, weight = self.x.detach(), self.weight.detach()
        call = partial(
            ops.conv_transpose2d,
            x,
            weight,
            None,
            self.stride,
            self.padding,
            backend=backend_of(provider),
        )
        ours = call
        if mode != "forward":
            leaf = x if mode == "x_gradient" else weight
            leaf.requires_grad_()
            y = call()

            def ours() -> Tensor:
                return torch.autograd.grad(y, leaf, self.grad, retain_graph=True)[0]

        with torch.backends.cudnn.flags(benchmark=False):
            truth = self.vendor(mode, torch.float64)()
        check({mode: ours()}, {mode: self.vendor(mode)()}, {mode: truth})
        return Timed(ours, [self.work(mode)])

    def providers(self, mode: str) -> tuple[str, ...]:
        """Ours that have a kernel of their own for a pass."""
        halo = self.stride == 2 and self.weight.shape[1] % 8 == 0 and mode != self.MODES[2]
        return (*KERNELS, *(HOPPER if halo else ()))

    def work(self, mode: str) -> Work:
        """Bytes and operations of a pass."""
        geometry = Geometry(True, self.stride, self.padding, 0, 1, 1)
        passes = contraction(self.x.shape, self.x.dtype, self.weight, geometry)
        return getattr(passes, mode)()


def vendor(out: Out) -> None:
    """CuDNN, layer by layer: what a contraction of our own has to beat."""
    _layers(out, lambda *_: (VENDOR,))


def layers(out: Out) -> None:
    """Our contractions on the same tensors."""
    _layers(out, Layer.providers)


def _layers(out: Out, providers: Callable[[Layer, str], Sequence[str]]) -> None:
    for batch in out.batches():
        for shape in DCGAN[-2:] if out.tiny else DCGAN:
            layer = Layer(out, batch, *shape)
            for mode in Layer.MODES:
                for name in providers(layer, mode):
                    where = {"section": "layer", "what": layer.name, "batch": batch}
                    where |= {"mode": mode, "provider": name}
                    make = partial(layer.timed, mode, name)
                    out.time(where, make, names=name in (VENDOR, HALO))


def timed_cases(batch: int) -> list[tuple[str, Case]]:
    """An op and a case each: hidden layers' batch norms, the last layer, the latents."""
    norm = next(c for c in OPS["batch_norm_act"].cases if c.name == "generator_layer")
    latents = next(c for c in OPS["reparam_kl"].cases if c.name == "vae_step")
    (last,) = LAYER_CASES["conv_stack"]

    def maps(channels: int, side: int) -> Callable[[torch.Generator], Tensors]:
        def tensors(generator: torch.Generator) -> Tensors:
            made = {"x": normal(generator, batch, channels, side, side)}
            for name in ("running_mean", "weight", "bias"):
                made[name] = normal(generator, channels)
            return {**made, "running_var": normal(generator, channels).abs() + 0.5}

        return tensors

    def last_layer(generator: torch.Generator) -> Tensors:
        made = {"x": normal(generator, batch, 64, 32, 32), "bias": normal(generator, 3)}
        return {**made, "weight": normal(generator, 64, 3, 4, 4) / 16}

    def both(generator: torch.Generator) -> Tensors:
        return {name: normal(generator, batch, 128, std=1.0) for name in ("mu", "logvar")}

    found = [
        ("batch_norm_act", replace(norm, name=f"{c}x{s}x{s}", tensors=maps(c, s)))
        for c, s in ((64, 32), (128, 16), (256, 8))
    ]
    found.append(("conv_stack", replace(last, name="64->3@32 tanh", tensors=last_layer)))
    return [*found, ("reparam_kl", replace(latents, name="128", tensors=both))]


def single_ops(out: Out) -> None:
    """Batch norm and LeakyReLU, the last layer, reparameterisation: ours beside PyTorch's."""
    for batch in out.batches():
        for name, case in timed_cases(batch):
            for mode in ("forward", "forward_backward"):
                for provider in ("eager", "compile", *KERNELS):
                    where = {"section": "op", "what": f"{name} {case.name}", "batch": batch}
                    where |= {"mode": mode, "provider": provider}
                    make = partial(_op_step, out, OPS[name], case, provider, mode)
                    out.time(where, make)


def _op_step(out: Out, op: Op, case: Case, provider: str, mode: str) -> Timed:
    made = case.tensors(torch.Generator(out.device).manual_seed(0))
    tensors = {
        name: x.to(torch.float32 if name in case.keep else out.dtype) for name, x in made.items()
    }
    tensors = {
        name: x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
        for name, x in tensors.items()
    }
    torch._dynamo.reset()
    function = {"eager": eager_function(op), "compile": torch.compile(eager_function(op))}.get(
        provider, partial(op.function, backend=provider)
    )
    work: list[Work] = []

    def recorded(*args: Any, **kwargs: Any) -> Any:
        work.extend(op.work(mode, case.grad, *args, **kwargs))
        return op.reference(*args, **kwargs)

    with torch.no_grad():
        y = case.call(recorded, {**tensors, **_copies(case, tensors)})
    if provider in KERNELS:
        if provider not in op.by_backend:
            raise BackendError(f"{op.name} has no {provider} kernel")
        wide = {name: x.double() for name, x in tensors.items()}
        drawn = [torch.randn_like(part) for part in (y if isinstance(y, tuple) else (y,))]
        run_one = partial(run, case, grad_outputs=drawn)
        got, own, truth = (
            run_one(op=of, tensors=on)[0]
            for of, on in ((function, tensors), (op.reference, tensors), (op.reference, wide))
        )
        check(got, own, truth)
    return Timed(step(case, function, tensors, mode == "forward_backward"), work)


def _copies(case: Case, tensors: Tensors) -> Tensors:
    return {name: tensors[name].clone() for name in case.state}


def run_sections(
    names: Sequence[str], rows: Sequence[dict[str, Any]], began: float, seconds: float, tiny: bool
) -> int:
    """A worker's part: measure what is not among the rows; returns the exit code."""
    import gpu_models

    sections = {"ceilings": ceilings, "vendor": vendor, "ops": single_ops, "layers": layers}
    sections |= {"models": gpu_models.decoders, "steps": gpu_models.training_steps}
    out = Out(rows, began, tiny)
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    named = {name: SHARES[name] for name in SHARES if name in names}
    if out.device == "cuda":  # a captured backward runs on the stream of its forward
        torch.cuda.set_stream(torch.cuda.Stream())
    for name, share in named.items():
        out.deadline = began + seconds * share / max(named.values())
        sections[name](out)
        out.add({"section": "clocks", "what": f"after {name}", "clocks": clocks()})
    return 0
