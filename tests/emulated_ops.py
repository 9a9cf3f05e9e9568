"""The CUDA kernels as a backend of the ops: what ``csrc/`` does on a GPU, around the emulator.

One host function per op and pass. Each runs under every schedule, and all must give the same bits.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from emulated_conv import (
    conv2d_bwd,
    conv2d_fwd,
    conv_transpose2d_bwd,
    conv_transpose2d_fwd,
)
from emulator import Read, Update, Write, launch, library
from torch import Tensor

from genimg import _native
from genimg.backends import OPS


def _in_order_of(like: Tensor, x: Tensor) -> Tensor:
    return x if x.stride() == like.stride() else torch.empty_like(like).copy_(x)


def _leaky_relu_fwd(x: Tensor, negative_slope: float) -> Tensor:
    y = torch.empty_like(x)
    args = (Read(_in_order_of(y, x)), Write(y), x.numel(), float(negative_slope))
    launch("leaky_relu_fwd", x.dtype, *args)
    return y


def _leaky_relu_bwd(grad_y: Tensor, x: Tensor, negative_slope: float) -> Tensor:
    grad_x = torch.empty_like(x)
    args = (Read(_in_order_of(grad_x, grad_y)), Read(_in_order_of(grad_x, x)), Write(grad_x))
    launch("leaky_relu_bwd", x.dtype, *args, x.numel(), float(negative_slope))
    return grad_x


def _shape(x: Tensor) -> tuple[Tensor, Tensor]:
    """x as it is where the kernels read it so, else a copy in NCHW order; and its description."""
    if x.numel() == 0:
        return x, torch.tensor([0, *x.shape[:2], 0, 0, 0, 0])
    pixels = x.stride(1) == 1 and x.dim() == 2
    if x.dim() == 4 and x.stride(1) == 1 and x.shape[1] > 1:
        step, (height, width) = x.stride(3), x.shape[2:]
        pixels = (height == 1 or x.stride(2) == width * step) and (
            x.shape[0] == 1 or x.stride(0) == height * width * step
        )
    if not pixels and not x[0, 0].is_contiguous():
        x = x.contiguous()
    pixel_stride = x.stride(0) if x.dim() == 2 else x.stride(3) if pixels else 0
    sizes = [pixels, *x.shape[:2], x[0, 0].numel(), *x.stride()[:2], pixel_stride]
    return x, torch.tensor(sizes)


def _dense(x: Tensor, shape: Tensor) -> torch.memory_format:
    pixels = bool(shape[0]) and x.dim() == 4
    return torch.channels_last if pixels else torch.contiguous_format


def _scratch(shape: Tensor) -> tuple[Write, Update]:
    scratch = library("genimg_emulated").batch_norm_act_scratch
    scratch.restype = ctypes.c_int64
    floats = torch.empty(scratch(ctypes.c_void_p(shape.data_ptr())))
    return Write(floats), Update(torch.zeros(int(shape[2]), dtype=torch.int32))


def _floats(parameter: Tensor | None) -> Read:
    return Read(None if parameter is None else parameter.float())


def _batch_norm_act_fwd(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    eps: float,
    negative_slope: float,
) -> tuple[Tensor, ...]:
    x, shape = _shape(x)
    channels = x.shape[1]
    mean, rstd, var = (torch.empty(channels) for _ in range(3))
    if training:
        scratch, tickets = _scratch(shape)
        outputs = (Write(mean), Write(rstd), Write(var))
        launch(
            "batch_norm_act_stats",
            x.dtype,
            Read(x),
            Read(shape),
            float(eps),
            scratch,
            tickets,
            *outputs,
        )
        assert not tickets.tensor.any()
    else:
        running = (_floats(running_mean), _floats(running_var), channels, float(eps))
        outputs = (Write(mean), Write(rstd))
        launch("batch_norm_act_running", torch.float32, *running, *outputs)
    y = torch.empty_like(x, memory_format=_dense(x, shape))
    parameters = (_floats(weight), _floats(bias), Read(mean), Read(rstd), float(negative_slope))
    launch("batch_norm_act_fwd", x.dtype, Read(x), Write(y), Read(shape), *parameters)
    return y, mean, rstd, var


def _batch_norm_act_bwd(
    grad_y: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    training: bool,
    negative_slope: float,
    needs_grad_x: bool,
) -> tuple[Tensor, ...]:
    x, shape = _shape(x)
    grad_y = grad_y.contiguous(memory_format=_dense(x, shape))
    parameters = (_floats(weight), _floats(bias), Read(mean), Read(rstd))
    grad_weight, grad_bias = torch.empty_like(mean), torch.empty_like(mean)
    if x.numel() == 0:
        return torch.empty_like(x), grad_weight.zero_(), grad_bias.zero_()
    launch(
        "batch_norm_act_sums",
        x.dtype,
        Read(grad_y),
        Read(x),
        Read(shape),
        *parameters,
        float(negative_slope),
        *_scratch(shape),
        Write(grad_weight),
        Write(grad_bias),
    )
    grad_x = torch.empty_like(x, memory_format=_dense(x, shape))
    sums = (Read(grad_weight), Read(grad_bias)) if training else (Read(None), Read(None))
    tensors = (Read(grad_y), Read(x), Write(grad_x), Read(shape), *parameters, *sums)
    launch("batch_norm_act_bwd", x.dtype, *tensors, float(negative_slope))
    return grad_x, grad_weight, grad_bias


def _reparam_kl_fwd(mu: Tensor, logvar: Tensor, seed: Tensor) -> tuple[Tensor, Tensor]:
    z, kl = torch.empty(mu.shape, dtype=mu.dtype), torch.empty(mu.shape[0])
    rows = mu.shape[0]
    inputs = (Read(mu.contiguous()), Read(logvar.contiguous()), Read(seed))
    sizes = (rows, mu.numel() // max(rows, 1))
    launch("reparam_kl_fwd", mu.dtype, *inputs, Write(z), Write(kl), *sizes)
    return torch.empty_like(mu).copy_(z), kl


def _reparam_kl_bwd(
    grad_z: Tensor, grad_kl: Tensor, mu: Tensor, logvar: Tensor, seed: Tensor
) -> tuple[Tensor, Tensor]:
    grads = [torch.empty(mu.shape, dtype=mu.dtype) for _ in range(2)]
    rows = mu.shape[0]
    inputs = [x.contiguous() for x in (grad_z, grad_kl, mu, logvar, seed)]
    sizes = (rows, mu.numel() // max(rows, 1))
    launch("reparam_kl_bwd", mu.dtype, *map(Read, inputs), *map(Write, grads), *sizes)
    return torch.empty_like(mu).copy_(grads[0]), torch.empty_like(logvar).copy_(grads[1])


HOSTS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "batch_norm_act": (_batch_norm_act_fwd, _batch_norm_act_bwd),
    "conv2d": (conv2d_fwd, conv2d_bwd),
    "conv_transpose2d": (conv_transpose2d_fwd, conv_transpose2d_bwd),
    "leaky_relu": (_leaky_relu_fwd, _leaky_relu_bwd),
    "reparam_kl": (_reparam_kl_fwd, _reparam_kl_bwd),
}
"""Forward and backward of each op that has CUDA kernels."""


@contextmanager
def emulated(op: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """``backend="cuda"`` of an op takes CPU tensors, by its own ``why_not``, to the emulator."""
    entry = OPS[op]
    fwd, bwd = HOSTS[op]
    impl = replace(entry.by_backend["cuda"], devices=("cpu",), fwd=fwd, bwd=bwd)
    with monkeypatch.context() as patch:
        patch.setitem(entry.by_backend, "cuda", impl)
        patch.setattr(_native, "_why_not_cuda", None)
        yield
