"""Kernels that make check-triton must refuse; test_triton_compile.py says for which fault."""

from dataclasses import replace

import triton
import triton.language as tl

from genimg.kernels.triton.aot import Compile


@triton.jit
def _sound_kernel(x_ptr, y_ptr, N: tl.constexpr):
    i = tl.program_id(0) * N + tl.arange(0, N)
    tl.store(y_ptr + i, tl.load(x_ptr + i) * 2)


@triton.jit
def _spilling_kernel(x_ptr, y_ptr, N: tl.constexpr):
    """Holds all values of a long row until their sum is known."""
    i = tl.arange(0, N)
    x = tl.load(x_ptr + i).to(tl.float32)
    tl.store(y_ptr + i, (x - tl.sum(x, 0)).to(y_ptr.dtype.element_ty))


@triton.jit
def _narrow_kernel(x_ptr, y_ptr, stride, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(y_ptr + i, tl.load(x_ptr + i * stride))


@triton.jit
def _product_kernel(x_ptr, y_ptr, steps, M: tl.constexpr, K: tl.constexpr):
    m = tl.arange(0, M)
    k = tl.arange(0, K)
    product = tl.zeros([M, M], tl.float32)
    for step in range(steps):
        a = tl.load(x_ptr + m[:, None] * K + k[None, :] + step * M * K)
        b = tl.load(x_ptr + k[:, None] * M + m[None, :] + step * M * K)
        product = tl.dot(a, b, product)
    tl.store(y_ptr + m[:, None] * M + m[None, :], product.to(y_ptr.dtype.element_ty))


@triton.jit
def _box_kernel(x_ptr, y_ptr, stride, N: tl.constexpr, FETCHES: tl.constexpr):
    x = tl.zeros([N], y_ptr.dtype.element_ty)
    if FETCHES:
        x = x_ptr.load([0])
    tl.store(y_ptr + tl.arange(0, N) * stride, x)


def _compile(name, kernel, constexprs, options, **more):
    signature = {
        argument: "constexpr"
        if argument in constexprs
        else "*T"
        if argument.endswith("_ptr")
        else "i32"
        for argument in kernel.arg_names
    }
    return Compile(kernel, name, signature, constexprs, options, ("x_ptr", "y_ptr"), **more)


def compiles():
    yield _compile("sound", _sound_kernel, {"N": 1024}, {"num_warps": 4})
    yield _compile("spilling", _spilling_kernel, {"N": 16384}, {"num_warps": 1})
    yield _compile("narrow", _narrow_kernel, {"N": 1024}, {"num_warps": 4})
    deep = {"num_warps": 8, "num_stages": 5}
    yield _compile("large", _product_kernel, {"M": 256, "K": 64}, deep, is_matrix=True)
    one_warp = {"num_warps": 1, "num_stages": 2}
    yield _compile("slow", _product_kernel, {"M": 16, "K": 32}, one_warp, is_matrix=True)
    yield _compile("broken", _narrow_kernel, {"N": 1000}, {"num_warps": 4})
    for name, fetches in (("narrow behind a box", True), ("without its box", False)):
        made = _compile(name, _box_kernel, {"N": 128, "FETCHES": fetches}, {"num_warps": 4})
        signature = {**made.signature, "x_ptr": "tensordesc<T[128]>"}
        yield replace(made, signature=signature, aligned=("y_ptr",))
