"""Kernels compiled for GPUs that are not here, and what the result must show.

A kernel module lists what it ships in ``compiles()``. Where a kernel cannot reach a tensor by 16
bytes, the module's ``NARROW`` says at how many places, and why: kernel -> (places, reason); where
only some configurations cannot, they say why themselves.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genimg import versions
from genimg.kernels.triton.runtime import VERSION

SHARED_MEMORY = {80: 163, 90: 227, 100: 227, 120: 99}
"""KiB that a program may have, for each architecture."""

DTYPES = ("fp32", "fp16", "bf16")

_MATRIX = {80: "mma.sync", 90: "wgmma.mma_async", 100: "tcgen05.mma", 120: "mma.sync"}
_FETCH = "cp.async.bulk.tensor"
_FETCH_STACK = 8
# 3.9's assembler holds some tiles to 72, 80 or 128 registers and spills up to four of them; the
# same tiles spill nothing under 3.6 and 3.7.
_SPILLED = {(3, 9): 16}
"""Triton's release -> bytes of stack that are no fault."""
_REQUIRED = {90: "wgmma", 100: "tcgen05"}


@dataclass(frozen=True)
class Compile:
    """A kernel as it ships: what the offline compiler needs, and what the result must show."""

    kernel: Any  # the @triton.jit function
    name: str  # e.g. "conv_dgrad_fwd 128x128x64"
    # argument -> "*T", "*fp32", "fp32", "i32", "i64", "constexpr", "tensordesc<T[1, 64]>"
    signature: dict[str, str]
    constexprs: dict[str, Any]
    options: dict[str, int]  # num_warps, num_stages
    aligned: tuple[str, ...]  # arguments divisible by 16
    is_matrix: bool = False  # must have wgmma on sm_90, tcgen05 on sm_100 in half dtypes
    narrow: str = ""  # why it reaches aligned tensors by fewer than 16 bytes, if it does
    # Which of these a configuration ships for: its tile may not fit elsewhere.
    dtypes: tuple[str, ...] = DTYPES
    capabilities: tuple[int, ...] = tuple(SHARED_MEMORY)
    only_all: bool = False  # compiled where all is asked for


def signature_of(kernel: Any, types: dict[str, str], constexprs: dict[str, Any]) -> dict[str, str]:
    """The type of every argument: from ``types``, ``constexpr`` if it has a value, else ``i32``."""
    return {
        name: "constexpr" if name in constexprs else types.get(name, "i32")
        for name in kernel.arg_names
    }


@dataclass(frozen=True)
class Compiled:
    """The resources of a compiled kernel."""

    registers: int
    stack: int
    shared: int
    matrix: int
    """Instructions for products of matrices."""
    boxes: int
    """Instructions that fetch a box by a tensor descriptor."""
    narrow: tuple[str, ...]
    """Accesses of aligned tensors by fewer than 16 bytes."""


def compile_for(entry: Compile, capability: int, dtype: str) -> Compiled:
    """Compile a kernel for an architecture, its tensors of ``T`` in ``dtype``."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kinds = {name: _of_dtype(kind, dtype) for name, kind in entry.signature.items()}
    constexprs = {name for name, kind in kinds.items() if kind == "constexpr"}
    if constexprs != set(entry.constexprs):
        raise ValueError(f"{entry.name}: {constexprs ^ set(entry.constexprs)} is not said twice")
    places = {name: place for place, name in enumerate(kinds)}
    attributes = {(places[name],): [["tt.divisibility", 16]] for name in entry.aligned}
    source = ASTSource(entry.kernel, kinds, entry.constexprs, attributes)
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=entry.options)
    ptx = made.asm["ptx"]
    judged = {
        place
        for place, name in enumerate(_parameters(entry.signature))
        if name in entry.aligned and entry.signature[name] == "*T"
    }
    registers, stack = _resources(made.asm["cubin"])
    return Compiled(
        registers,
        stack,
        made.metadata.shared,
        ptx.count(_MATRIX[capability]),
        ptx.count(_FETCH),
        tuple(narrow_accesses(ptx, judged)),
    )


def _of_dtype(kind: str, dtype: str) -> str:
    return f"*{dtype}" if kind == "*T" else kind.replace("<T[", f"<{dtype}[")


def _parameters(signature: dict[str, str]) -> Iterator[str]:
    """The argument of each of the compiled kernel's: a descriptor brings its shape and strides."""
    for name, kind in signature.items():
        if kind.startswith("tensordesc"):
            yield from [name] * (1 + 2 * (kind.count(",") + 1))
        elif kind != "constexpr":
            yield name


def faults(
    entry: Compile,
    capability: int,
    dtype: str,
    compiled: Compiled,
    narrow: dict[str, tuple[int, str]] | None = None,
) -> list[str]:
    """The faults of a compiled kernel, one sentence each.

    Args:
        entry, capability, dtype, compiled: what was compiled, and the result.
        narrow: the module's ``NARROW``.
    """
    found = []
    if compiled.stack > _SPILLED.get(versions.release(VERSION or ""), 0):
        found.append(f"spills: {compiled.stack} bytes of stack")
    limit = SHARED_MEMORY[capability] * 1024
    if compiled.shared > limit:
        found.append(f"{compiled.shared} bytes of shared memory, {limit} are there")
    wanted = _REQUIRED.get(capability)
    if entry.is_matrix and dtype != "fp32" and wanted and compiled.matrix == 0:
        found.append(f"multiplies matrices without {wanted}")
    if any("tensordesc" in kind for kind in entry.signature.values()) and compiled.boxes == 0:
        found.append("fetches no box by a tensor descriptor")
    allowed, _ = (narrow or {}).get(entry.kernel.__name__, (0, ""))
    if len(compiled.narrow) > allowed and not entry.narrow:
        kinds = ", ".join(f"{n} {kind}" for kind, n in Counter(compiled.narrow).items())
        found.append(f"accesses of fewer than 16 bytes: {kinds}")
    return found


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers of a thread and bytes that it spills, by the cuobjdump that Triton brings."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()

        def told(option: str) -> str:
            command = [str(tool), option, file.name]
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout

        usage = told("-res-usage")
        found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
        if found is None:
            raise RuntimeError(f"cuobjdump names no registers: {usage}")
        registers, stack = int(found[1]), int(found[2])
        # For a box, Triton 3.6's assembler writes 8 bytes of zeros on sm_120, and never reads them.
        if 0 < stack <= _FETCH_STACK and not re.search(r"\bLDL\b", told("-sass")):
            stack = 0
    return registers, stack


def narrow_accesses(ptx: str, parameters: set[int]) -> list[str]:
    """Global accesses by fewer than 16 bytes, through these of the kernel's pointers.

    Where an address comes from is followed through the 64-bit registers.
    """
    origins: dict[str, set[int]] = {}
    sources: list[tuple[str, list[str]]] = []
    accesses: list[tuple[str, str]] = []
    for line in ptx.splitlines():
        code = re.sub(r"^\s*@!?%p\d+\s+", "", line).strip()
        if loaded := re.match(r"ld\.param\.[bu]64\s+(%rd\d+), \[\w+_param_(\d+)\]", code):
            if int(loaded[2]) in parameters:
                origins.setdefault(loaded[1], set()).add(int(loaded[2]))
        elif re.match(r"(ld|st)\.global|cp\.async\.c[ag]\.shared\.global", code):
            address = re.findall(r"\[\s*(%rd\d+)", code)
            if address:
                accesses.append((code, address[-1]))
        elif computed := re.match(r"[a-z][\w.:]*\s+(%rd\d+), (.*);", code):
            sources.append((computed[1], re.findall(r"%rd\d+", computed[2])))
    changed = True
    while changed:
        changed = False
        for target, read in sources:
            reached = set().union(*(origins.get(register, set()) for register in read))
            if not reached <= origins.get(target, set()):
                origins.setdefault(target, set()).update(reached)
                changed = True
    return [code.split()[0] for code, at in accesses if origins.get(at) and _bytes(code) < 16]


def _bytes(access: str) -> int:
    if asynchronous := re.search(r"\], (0x[0-9a-f]+|\d+)", access):
        return int(asynchronous[1], 0)
    vector = re.search(r"\.v(\d)", access)
    width = re.search(r"\.[bufs](8|16|32|64|128)\b", access)
    assert width is not None, access
    return int(width[1]) // 8 * (int(vector[1]) if vector else 1)
