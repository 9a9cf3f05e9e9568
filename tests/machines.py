"""Machines that this one can pretend to be, by the environment of a process.

oneDNN, ATen's own kernels, MKL and genimg select their code by the CPU; each reads a variable that
lowers the selection. Together with the number of threads this covers most of the differences that
another machine makes in a result.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

ISAS = ("baseline", "avx2", "avx512")


@dataclass(frozen=True)
class Machine:
    """A name, and what each library is told.

    Attributes:
        name: of the kind of machine that it stands for.
        isa: ``GENIMG_CPU_ISA``.
        onednn: ``ONEDNN_MAX_CPU_ISA``.
        aten: ``ATEN_CPU_CAPABILITY``.
        mkl: ``MKL_ENABLE_INSTRUCTIONS``, which MKL heeds on Intel's CPUs alone.
        threads: ``OMP_NUM_THREADS``.
        flags: of the CPU, without which it cannot be pretended.
    """

    name: str
    isa: str
    onednn: str
    aten: str
    mkl: str
    threads: int
    flags: tuple[str, ...] = ()

    def environment(self) -> dict[str, str]:
        """The variables, for a child process."""
        threads = str(self.threads)
        return {
            **os.environ,
            "GENIMG_CPU_ISA": self.isa,
            "ONEDNN_MAX_CPU_ISA": self.onednn,
            "ATEN_CPU_CAPABILITY": self.aten,
            "MKL_ENABLE_INSTRUCTIONS": self.mkl,
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
        }

    def missing(self) -> list[str]:
        """The flags that this CPU lacks."""
        return [flag for flag in self.flags if flag not in cpu_flags()]

    def __str__(self) -> str:
        return (
            f"{self.name:<18}{self.isa:<9} oneDNN {self.onednn:<17} ATen {self.aten:<8}"
            f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        )


def cpu_flags() -> set[str]:
    """Features of this CPU, as Linux names them; empty elsewhere."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return set()
    lines = path.read_text(encoding="utf-8").splitlines()
    return next((set(line.split()) for line in lines if line.startswith("flags")), set())


_AVX512 = ("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")

# A value of each column at least once, and each level of genimg's with more than one number of
# threads; not the product of all.
MACHINES = (
    Machine("old", "baseline", "SSE41", "default", "SSE4_2", 1, ("sse4_2",)),
    Machine("old, 4 threads", "baseline", "AVX", "default", "AVX", 4, ("avx",)),
    Machine("desktop", "avx2", "AVX2", "avx2", "AVX2", 2, ("avx2", "fma", "bmi2")),
    Machine("laptop, AVX-VNNI", "avx2", "AVX2_VNNI", "avx2", "AVX2", 1, ("avx2", "avx_vnni")),
    Machine("server", "avx512", "AVX512_CORE", "avx512", "AVX512", 4, _AVX512),
    Machine("server, bf16", "avx512", "AVX512_CORE_BF16", "avx512", "AVX512", 1, _AVX512),
    Machine("server, AMX", "avx512", "AVX512_CORE_AMX", "avx512", "AVX512", 2, ("amx_tile",)),
    Machine("mixed", "avx2", "AVX512_CORE", "default", "AVX512", 4, _AVX512),
)
