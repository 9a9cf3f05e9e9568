"""Launches on a GPU that is a stub, by the binder and by kept kernels; by test_triton_launch.py.

A process of its own: the interpreter, which the tests run in, compiles nothing. The driver is
replaced at its edge, so that Triton binds, compiles and calls as ever; what reaches the launcher is
kept instead of launched. Prints, for each check, whether it held.
"""

import gc
import json
from types import SimpleNamespace

import torch
import triton
import triton.language as tl
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.tools.tensor_descriptor import TensorDescriptor

from genimg import versions
from genimg.kernels.triton import launch as module
from genimg.kernels.triton.launch import launch

launched = []
bound = []
unloaded = []
gpu = SimpleNamespace(device=0, stream=7)


def told(argument):
    """The data of a launch for Triton's hooks, which Triton makes anew for each launch."""
    return argument.data if type(argument).__name__ == "LazyDict" else argument


class Driver:
    """The parts of a driver that Triton needs between a call and its launcher."""

    utils = SimpleNamespace(
        get_device_properties=lambda device: {"max_shared_mem": 1 << 17},
        load_binary=lambda name, *_: (f"module of {name}", f"function of {name}", 32, 0, 1024),
        unload_module=unloaded.append,
    )

    @staticmethod
    def launcher_cls(src, metadata):
        return lambda *args: launched.append((src.constants, *map(told, args)))

    def get_current_device(self):
        return gpu.device

    def get_current_stream(self, device):
        return gpu.stream

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)


driver.set_active(Driver())


@triton.jit
def _scale_kernel(x_ptr, y_ptr, other_ptr, n, slope, BLOCK: tl.constexpr, KIND: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, mask=i < n, other=0.0)
    if other_ptr is not None:
        x += tl.load(other_ptr + i, mask=i < n, other=0.0)
    tl.store(y_ptr + i, x * slope + KIND, mask=i < n)


@triton.jit
def _default_kernel(x_ptr, BLOCK: tl.constexpr = 16):
    tl.store(x_ptr + tl.arange(0, BLOCK), 0.0)


@triton.jit
def _described_kernel(x):
    x.store([0], x.load([16]))


def run(*args, **kwargs):
    bound.append(args)
    return plain_run(*args, **kwargs)


plain_run = _scale_kernel.run
_scale_kernel.run = run
launch(_default_kernel, (1,))(torch.zeros(16))
kept_by_default = len(module._kept)

X = torch.zeros(64)
CONSTANTS = {"BLOCK": 16, "KIND": 2, "num_warps": 1}


def binds(x=X, y=X, other=None, n=32, slope=0.5, grid=(4,), **constants):
    """How often the binder ran for one launch."""
    before = len(bound), len(launched)
    launch(_scale_kernel, grid)(x, y, other, n, slope, **{**CONSTANTS, **constants})
    assert len(launched) == before[1] + 1
    return len(bound) - before[0]


found = {"defaults": kept_by_default == 0, "first": binds() == 1}
by_binder = launched[-1]
found["again"] = binds() == 0
found["same launch"] = launched[-1] == by_binder
found["other memory"] = binds(x=torch.zeros(64)) == 0
found["another grid"] = binds(grid=(5, 2)) == 0 and launched[-1][1:4] == (5, 2, 1)

CHANGES = {
    "address": {"x": X[1:]},
    "dtype": {"x": X.double()},
    "absent": {"other": X},
    "size": {"n": 33},
    "one": {"n": 1},
    "wide": {"n": 2**31},
    "kind of number": {"slope": 1},
    "truth": {"slope": True},
    "float of it": {"slope": 1.0},
    "constant": {"KIND": 3},
    "kind of constant": {"KIND": 2.0},
    "option": {"num_warps": 2},
}
for name, change in CHANGES.items():
    found[name] = (binds(**change), binds(**change)) == (1, 0)
found["back"] = binds() == 0 and launched[-1] == by_binder

gpu.device = 1
found["device"] = (binds(), binds()) == (1, 0)
gpu.device = 0
gpu.stream = 8
found["stream"] = binds() == 0 and launched[-1][4] == 8

heard = []
knobs.runtime.launch_enter_hook.add(heard.append)
found["hook"] = binds() == 0
hook, metadata = launched[-1][8], launched[-1][7]
hook(metadata)
found["hook"] &= heard[0]["name"] == "_scale_kernel"
knobs.runtime.launch_enter_hook.remove(heard.append)

_scale_kernel.pre_run_hooks.append(lambda *_, **__: heard.append("before"))
found["kernel's hook"] = binds() == 1 and heard[-1] == "before"
_scale_kernel.pre_run_hooks.clear()
knobs.runtime.debug = True
found["debug"] = (binds(), binds()) == (1, 1)
knobs.runtime.debug = False
knobs.runtime.add_stages_inspection_hook = lambda *_: ("key", "hash")
found["stages"] = (binds(), binds()) == (1, 1)
knobs.runtime.add_stages_inspection_hook = None
knobs.compilation.instrumentation_mode = "consan"
found["instrumented"] = module._is_watched(_scale_kernel)
knobs.compilation.instrumentation_mode = ""
found["unknown kind"] = [binds(KIND=tl.constexpr(4)) for _ in range(2)] == [1, 1]
descriptor = TensorDescriptor(X, [64], [1], [16])
_described_kernel[(1,)](descriptor)
before = len(module._kept), len(launched)
for _ in range(2):
    launch(_described_kernel, (1,))(descriptor)
found["not hashable"] = (len(module._kept), len(launched) - 2) == before

module._MOST = len(module._kept)
found["forgets"] = binds(n=48) == 1 and len(module._kept) == 1 and binds() == 1

# Since 3.8 Triton unloads a kernel that nobody holds; a kept one is held.
_scale_kernel.device_caches.clear()
gc.collect()
before = len(unloaded)
found["held"] = binds() == 0
module._kept.clear()
gc.collect()
unloads = versions.release(triton.__version__) >= (3, 8)
found["let go"] = len(unloaded) - before == int(unloads)

pretended = {"3.5.1": False, triton.__version__: True, "3.10.0": False, "4.0.0rc1": False}
for version, keeps in pretended.items():
    module.VERSION = version
    found[f"keeps under {version}"] = module._keeps() == keeps
module._KEEPS = False
found["another Triton"] = (binds(), binds()) == (1, 1)
print(json.dumps(found))
