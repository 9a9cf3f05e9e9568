"""Compiles the LeakyReLU kernels for GPUs that are not here; run by test_triton_compile.py.

A process of its own: under the interpreter, which the tests run in, there is nothing to compile.
"""

import re

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from genimg.kernels.triton import leaky_relu

KERNELS = {
    leaky_relu._leaky_relu_fwd_kernel: ("x_ptr", "y_ptr"),
    leaky_relu._leaky_relu_bwd_kernel: ("grad_y_ptr", "x_ptr", "grad_x_ptr"),
}

for capability in (80, 90, 100, 120):
    for dtype in ("fp32", "fp16", "bf16"):
        for kernel, pointers in KERNELS.items():
            source = ASTSource(
                kernel,
                dict.fromkeys(pointers, f"*{dtype}")
                | {"n": "i64", "negative_slope": "fp32", "BLOCK": "constexpr"},
                {"BLOCK": leaky_relu.BLOCK},
                # What the launcher finds for aligned tensors: pointers and n divide by 16.
                {(i,): [["tt.divisibility", 16]] for i in range(len(pointers) + 1)},
            )
            compiled = triton.compile(
                source,
                target=GPUTarget("cuda", capability, 32),
                options={"num_warps": leaky_relu.NUM_WARPS},
            )
            accesses = re.findall(r"(?:ld|st)\.global\S*", compiled.asm["ptx"])
            widths = {("v4" in a and "b32" in a) or ("v2" in a and "b64" in a) for a in accesses}
            name = kernel.fn.__name__
            assert widths == {True}, f"{name} {dtype} sm_{capability}: not 16 bytes: {accesses}"
            print(name, dtype, f"sm_{capability}", len(accesses))
