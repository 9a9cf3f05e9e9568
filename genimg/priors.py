"""What auto takes where nothing was measured, by class of machine, and what each prior rests on.

A prior is a guess: on every machine measured decisions replace it (``genimg.autotune``,
``genimg.tune``). Each class lists the measurements behind its numbers; a class that nobody has
measured leaves everything to PyTorch. ``genimg info`` names the class of this machine.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from genimg import environment


@dataclass(frozen=True)
class Convolutions:
    """From where on the CPU kernels were faster than PyTorch's, in multiplications of a call.

    Attributes:
        lone: a convolution by itself.
        channels: and of at least so many channels on both sides.
        call: one of a pixel, or to few channels.
        weight: numbers of its weight, which also suffice.
        stack: a stack.
        stack_share: of which at least this share is in kernels 4x4 of stride 2 and padding 1.
    """

    lone: int
    channels: int
    call: int
    weight: int
    stack: int
    stack_share: float


@dataclass(frozen=True)
class BatchNorms:
    """From where on the CPU kernels were faster than PyTorch's, in elements.

    Attributes:
        pixels: in channels_last memory, of at least ``channels`` channels.
        planes: in contiguous memory, of planes of at least ``plane`` values.
        planes_bfloat16: the same in bfloat16.
    """

    pixels: int
    planes: int
    planes_bfloat16: int
    channels: int
    plane: int


@dataclass(frozen=True)
class CpuClass:
    """A class of machines.

    Attributes:
        name: what makes it.
        evidence: the measurements behind the numbers.
        convolutions, norms: the numbers; None leaves the op to PyTorch.
        bfloat16_products: PyTorch multiplies bfloat16 by instructions that genimg has no use of.
    """

    name: str
    evidence: tuple[str, ...]
    convolutions: Convolutions | None = None
    norms: BatchNorms | None = None
    bfloat16_products: bool = False


_NORMS = BatchNorms(2**18, 2**20, 2**22, channels=16, plane=64)

AVX512 = CpuClass(
    "x86-64, AVX-512 without AMX",
    (
        "one machine, 2 cores of an AMD EPYC (Zen 4), torch 2.13, float32, benchmarks/README.md: "
        "layers of kernel 4, stride 2, padding 1 at 64 images 1.02 to 1.61 times the speed of "
        "PyTorch's best mode, DCGAN-64 generator 1.30 to 1.41 with its backward",
        "the same machine: other kernels 0.6 to 0.9; lone convolutions below 700 million "
        "multiplications or 32 channels below 1",
        "the same machine: batch norm with LeakyReLU 1.1 to 1.5, less below a million elements "
        "(262,144 in channels_last)",
        "the same machine, bfloat16 by AVX512-BF16: PyTorch's lone convolutions take 0.63 to 0.83 "
        "of genimg's time, its DCGAN-64 generator 0.9",
    ),
    Convolutions(700_000_000, 32, 10_000_000, 2**18, 0, 0.6),
    _NORMS,
)

AMX = CpuClass(
    "x86-64, AVX-512 with AMX",
    (
        "one machine, 2 cores of an Intel Xeon (Sapphire Rapids, 2 MB of L2 a core), torch 2.13, "
        "float32: geometric mean of unseen shapes 1.00; PyTorch's transposed convolutions in "
        "channels_last memory run at 370 of 400 GFLOP/s, genimg's at 300 to 450",
        "the same machine: DCGAN-64 generator at 8 images (0.8 thousand million multiplications) "
        "0.86 with its backward, a U-Net at 2 images 0.61, first layers 3 to 48 channels 0.63",
    ),
    Convolutions(2_000_000_000, 64, 10_000_000, 2**18, 2_000_000_000, 0.6),
    _NORMS,
    bfloat16_products=True,
)

AVX2 = CpuClass("x86-64, AVX2", ("nobody has measured such a machine: PyTorch runs every op",))

OTHER = CpuClass("another CPU", ("nobody has measured such a machine: PyTorch runs every op",))

GPU_EVIDENCE = "no kernel has run on a GPU: PyTorch runs every op there, and none is measured"

LEAKY_RELU = (
    "PyTorch's kernel makes the same one pass at a lower cost a call (measured: this one has 0.5x "
    "of its speed at 4,096 elements, 0.9x at 4 million)"
)
"""Evidence: the machine of :data:`AVX512`. Nothing is fused, so that nothing is won anywhere."""


def class_of_cpu() -> CpuClass:
    """The class of this machine, at the instruction-set level that the CPU kernels run at."""
    level = environment.value("GENIMG_CPU_ISA") or torch.backends.cpu.get_cpu_capability().lower()
    if level == "avx512":
        return AMX if _cpu_has("_is_amx_tile_supported") else _with_bfloat16(AVX512)
    return AVX2 if level == "avx2" else OTHER


def _cpu_has(question: str) -> bool:
    return bool(getattr(torch.cpu, question, bool)())


def _with_bfloat16(machines: CpuClass) -> CpuClass:
    has = _cpu_has("_is_avx512_bf16_supported")
    return CpuClass(machines.name, machines.evidence, machines.convolutions, machines.norms, has)


CPU = class_of_cpu()


def is_below(size: int, limit: int) -> bool:
    """Whether a call is too small for a kernel; an exported graph is for every size."""
    return not torch.compiler.is_exporting() and size < limit


def is_proved(device: str) -> bool:
    """Whether the kernels for a type of device have run on one: auto does not try others there.

    A kernel that faults on a GPU takes the process with it, so that none is measured unasked.
    """
    return device != "cuda"


def of_gpu(*args: object) -> str | None:
    """The prior of every kernel on every GPU."""
    return "not yet measured on a GPU, where PyTorch's kernels may be faster"


def of_leaky_relu(device: str) -> str | None:
    """The prior of an activation alone."""
    if device == "cpu":
        return LEAKY_RELU
    return (
        "PyTorch's kernel makes the same one pass, and this one was not yet measured to be faster"
    )


_FOLDING = {"cpu": 10_000_000}
_FOLDING_ELSEWHERE = 1_000_000_000
_FOLDING_A_VALUE = 500


def of_folding(device: str, values: int) -> int:
    """The multiplications from which on folding a weight of so many values pays.

    Evidence: measured on one CPU, forward and backward: folding and its adjoint cost as much as 10
    million multiplications and 500 for each value of the weight save. On a GPU they are about
    twenty launches, in which it does some 1,000 million; no GPU has measured it.
    """
    return _FOLDING.get(device, _FOLDING_ELSEWHERE) + _FOLDING_A_VALUE * values


def _not_measured() -> str:
    return f"nobody has measured it on such a machine ({CPU.name})"


def of_bfloat16(dtype: torch.dtype) -> str | None:
    """The prior of every convolution of bfloat16."""
    if dtype == torch.bfloat16 and CPU.bfloat16_products:
        return "in bfloat16 PyTorch's use this CPU's dot products, and are faster"
    return None


def of_stack(dtype: torch.dtype, batch: int, fast: int, every: int) -> str | None:
    """The prior of conv_stack.

    Args:
        dtype: of its tensors.
        batch: images.
        fast: multiplications an image in kernels 4x4 of stride 2 and padding 1.
        every: multiplications an image.
    """
    numbers = CPU.convolutions
    if numbers is None:
        return _not_measured()
    if fast < numbers.stack_share * every:
        return (
            "most of its multiplications are in other convolutions than 4x4 of stride 2 and "
            "padding 1, where PyTorch's are faster"
        )
    if numbers.stack and is_below(batch * every, numbers.stack):
        return f"below {_millions(numbers.stack)} multiplications PyTorch's layers are faster"
    return of_bfloat16(dtype)


@dataclass(frozen=True)
class Convolution:
    """The facts of a lone convolution for which the kernels have a form of fewer multiplications.

    Attributes:
        few: transposed, to few channels.
        one_pixel: transposed, from one pixel.
        channels: the fewer of both sides.
        trains: it has a backward.
        pixels: in channels_last memory.
    """

    dtype: torch.dtype
    few: bool
    one_pixel: bool
    channels: int
    weight: int
    multiplications: int
    trains: bool
    pixels: bool


def of_other_convolution() -> str | None:
    """The prior of conv2d and conv_transpose2d where the kernels multiply as often as PyTorch."""
    if CPU.convolutions is None:
        return _not_measured()
    return "only 4x4 kernels of stride 2 and padding 1 were measured faster than PyTorch's"


def of_convolution(call: Convolution) -> str | None:
    """The prior of conv2d and conv_transpose2d."""
    numbers = CPU.convolutions
    if numbers is None:
        return _not_measured()
    if (call.trains or not call.few) and (reason := of_bfloat16(call.dtype)):
        return reason
    if call.few or call.one_pixel:
        if call.trains and not call.one_pixel and not call.pixels:
            return "in contiguous memory the copies for its backward cost more than it gains"
        if call.weight >= numbers.weight or not is_below(call.multiplications, numbers.call):
            return None
        return f"below {_millions(numbers.call)} multiplications the call costs more"
    if call.channels < numbers.channels:
        return f"with fewer than {numbers.channels} channels PyTorch's is faster"
    if is_below(call.multiplications, numbers.lone):
        return f"below {_millions(numbers.lone)} multiplications PyTorch's is faster"
    return None


def of_batch_norm(
    dtype: torch.dtype, elements: int, channels: int, planes: int, pixels: bool
) -> str | None:
    """The prior of batch_norm_act.

    Args:
        dtype: of its input.
        elements: of it.
        channels: of it.
        planes: in it.
        pixels: it is in channels_last memory, or has one pixel an image.
    """
    numbers = CPU.norms
    if numbers is None:
        return _not_measured()
    in_planes = numbers.planes_bfloat16 if dtype == torch.bfloat16 else numbers.planes
    worth = numbers.pixels if pixels else in_planes
    if is_below(elements, worth):
        return f"below {worth:,} elements the call costs more than the fusion saves"
    if pixels and channels < numbers.channels:
        return (
            f"in channels_last memory, with fewer than {numbers.channels} channels, PyTorch's is "
            "faster"
        )
    if not pixels and elements < numbers.plane * planes:
        return f"for planes of fewer than {numbers.plane} values PyTorch's is faster"
    return None


def _millions(count: int) -> str:
    return f"{count // 1_000_000:,} million"
