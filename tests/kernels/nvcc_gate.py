"""The gate of ``make check-cuda`` and ``check-cuda-build`` for CUDA kernels; needs no GPU.

As CMake's compiler launcher it runs nvcc with ptxas' report on. It fails on a spill, on a stack
frame, on ptxas' advice on wgmma (C7508, C7510, C7518 to C7520), and on a matrix kernel without
matrix instructions in its binary. With ``report`` as its argument it prints registers, static
shared memory, threads and occupancy of every kernel that was compiled under a folder. Dynamic
shared memory is chosen at launch and is not known here: occupancy is then an upper bound.
"""

from __future__ import annotations

import json
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

# Per multiprocessor: threads, and bytes of shared memory (CUDA programming guide, table of
# compute capabilities). Registers are 65536, and blocks at least 24, on all of them.
LIMITS = {"80": (2048, 164), "90a": (2048, 228), "100": (2048, 228), "120": (1536, 100)}

ENTRY = re.compile(
    r"Compiling entry function '(?P<name>\S+)' for 'sm_(?P<arch>\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)
ADVICE = re.compile(r"^.*\bC75(?:08|10|18|19|20)\b.*$", re.MULTILINE)
MATRIX_CALL = re.compile(r"\bsimt::(mma|wgmma)_m\w+[(<]")


def kernels_in(report: str) -> list[dict[str, str | int]]:
    """The report of ptxas -v for each kernel."""
    rows = []
    for found in ENTRY.finditer(report):
        shared = re.search(r"(\d+) bytes smem", found["rest"])
        numbers = {key: int(found[key]) for key in ("registers", "stack", "stores", "loads")}
        name = {"name": found["name"], "arch": found["arch"]}
        rows.append({**name, **numbers, "shared": int(shared[1]) if shared else 0})
    return rows


def faults(report: str, rows: list[dict[str, str | int]], source: str) -> list[str]:
    """Why the kernels of a source must not pass."""
    found = [
        f"{row['name']} for sm_{row['arch']}: {row['stack']} bytes of stack, "
        f"{row['stores']} + {row['loads']} bytes spilled"
        for row in rows
        if row["stack"] or row["stores"] or row["loads"]
    ]
    found += ADVICE.findall(report)
    if not rows and "__global__" in source:
        found.append("ptxas reported no kernel")
    return found


def matrix_faults(source: str, sass: dict[str, str]) -> list[str]:
    """Which binaries of a matrix kernel, by architecture, lack matrix instructions."""
    calls = set(MATRIX_CALL.findall(source))
    wanted = [("HMMA", arch) for arch in sass if "mma" in calls]
    wanted += [("HGMMA", arch) for arch in sass if "wgmma" in calls and arch == "90a"]
    return [
        f"no {instruction} for sm_{arch}"
        for instruction, arch in wanted
        if not re.search(rf"\b{instruction}\b", sass[arch])
    ]


def with_headers(source: Path) -> str:
    """The text of a source, and of what it includes beside it and above."""
    seen: dict[Path, str] = {}
    wanted = [source]
    while wanted:
        path = wanted.pop()
        if path in seen or not path.exists():
            continue
        seen[path] = path.read_text(encoding="utf-8")
        included = re.findall(r'^#include "([^"]+)"', seen[path], re.MULTILINE)
        wanted += [(path.parent / name).resolve() for name in included if "simt" not in name]
    return "\n".join(seen.values())


def cuobjdump(*arguments: str | Path, folder: Path | None = None) -> str:
    """The output of cuobjdump, from the toolkit or from Triton."""
    tool = shutil.which("cuobjdump")
    if tool is None:
        import triton

        tool = str(Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump")
    command = [tool, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder).stdout


def disassemble(binary: Path) -> dict[str, str]:
    """SASS by architecture."""
    output = cuobjdump("--dump-sass", binary)
    parts = re.split(r"^\s*arch = sm_(\w+)$", output, flags=re.MULTILINE)
    sass: dict[str, str] = {}
    for arch, text in zip(parts[1::2], parts[2::2], strict=True):
        sass[arch] = sass.get(arch, "") + text
    return sass


def launch_bounds(cubin: bytes) -> dict[str, int]:
    """Threads of a block by kernel: ``.nv.info.<kernel>`` has them, as attribute 5 of format 4."""
    (table,) = struct.unpack_from("<Q", cubin, 0x28)
    size, count, names = struct.unpack_from("<HHH", cubin, 0x3A)
    sections = [struct.unpack_from("<IIQQQQ", cubin, table + i * size) for i in range(count)]
    found = {}
    for name_at, _, _, _, at, length in sections:
        start = sections[names][4] + name_at
        name = cubin[start : cubin.index(b"\0", start)].decode()
        end = at + length
        while name.startswith(".nv.info.") and at < end:
            layout, attribute, value = struct.unpack_from("<BBH", cubin, at)
            at += 4
            if layout != 4:
                continue
            if attribute == 5:
                x, y, z = struct.unpack_from("<III", cubin, at)
                found[name.removeprefix(".nv.info.")] = x * y * z
            at += value
    return found


def threads_in(binary: Path) -> dict[tuple[str, str], int]:
    """Threads of a block by architecture and kernel."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        cuobjdump("--extract-elf", "all", binary.resolve(), folder=Path(folder))
        for path in Path(folder).glob("*.cubin"):
            arch = path.suffixes[-2].removeprefix(".sm_")
            for name, threads in launch_bounds(path.read_bytes()).items():
                found[arch, name] = threads
    return found


def with_dynamic_memory(source: str) -> set[str]:
    """Kernels whose launch decides on their shared memory."""
    kernels = re.split(r"^__global__\b", re.sub(r"//.*", "", source), flags=re.MULTILINE)[1:]
    return {
        name
        for text in kernels
        for name in re.findall(r"\b(\w+_kernel)\(", text)[:1]
        if "SIMT_DYN_SHARED(" in text
    }


def compile_and_judge(command: list[str]) -> int:
    """Run nvcc; keep ptxas' rows beside the object, or no object."""
    if "-c" not in command:  # CMake's questions to the compiler
        return subprocess.run(command).returncode
    source = Path(command[command.index("-c") + 1])
    binary = Path(command[command.index("-o") + 1])
    done = subprocess.run([*command, "-Xptxas", "-v"], stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.stderr.write(done.stderr)
        return done.returncode
    rows = kernels_in(done.stderr) if "kernels/cuda" in source.as_posix() else []
    text = source.read_text(encoding="utf-8")
    found = faults(done.stderr, rows, text) if rows else []
    if not MATRIX_CALL.search(text):
        text = with_headers(source)
    if MATRIX_CALL.search(text):
        found += matrix_faults(text, disassemble(binary))
    if found:
        binary.unlink()
        sys.stderr.write("\n".join([f"{source.name} does not pass:", *found, ""]))
        return 1
    if rows:
        threads = threads_in(binary)
        dynamic = with_dynamic_memory(source.read_text(encoding="utf-8"))
        for row in rows:
            row["threads"] = threads.get((row["arch"], row["name"]), 0)
            row["dynamic"] = any(f"{len(name)}{name}" in row["name"] for name in dynamic)
        binary.with_suffix(".kernels.json").write_text(json.dumps(rows), encoding="utf-8")
    return 0


def occupancy(row: dict[str, str | int]) -> str:
    """Percent of a multiprocessor's threads, an upper bound where the launch adds shared memory."""
    if not row.get("threads"):
        return "-"
    most, kibibytes = LIMITS[row["arch"]]
    threads = -(-row["threads"] // 32) * 32
    blocks = min(65536 // (-(-row["registers"] // 8) * 8 * threads), most // threads, 24)
    if row["shared"]:
        blocks = min(blocks, kibibytes * 1024 // (row["shared"] + 1024))  # 1 KiB is the system's
    return f"{'<=' if row['dynamic'] else ''}{100 * blocks * threads // most}%"


def readable(names: list[str]) -> list[str]:
    """Kernel and template arguments."""
    done = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True)
    short = [
        re.sub(r"^.*::(\w+(?:<[^(]*>)?)\(.*$", r"\1", line) for line in done.stdout.split("\n")
    ]
    return [name.replace("__nv_bfloat16", "bf16").replace("__half", "fp16") for name in short]


def report(folder: Path) -> int:
    """A line for each kernel: registers, static shared memory, threads, occupancy."""
    rows = [
        row
        for path in sorted(folder.rglob("*.kernels.json"))
        for row in json.loads(path.read_text(encoding="utf-8"))
    ]
    if not rows:
        print(f"no kernels under {folder}")
        return 1
    names = sorted({row["name"] for row in rows})
    head = "registers / static shared bytes / threads / occupancy"
    print(f"{head:<58}" + "".join(f"{'sm_' + arch:>26}" for arch in LIMITS))
    lines = []
    for name, shown in zip(names, readable(names), strict=False):
        cells = []
        for arch in LIMITS:
            row = next((r for r in rows if r["name"] == name and r["arch"] == arch), None)
            if row is None:
                cells.append("")
                continue
            threads = row.get("threads", "-")
            cells.append(f"{row['registers']} / {row['shared']} / {threads} / {occupancy(row)}")
        lines.append(f"{shown:<58}" + "".join(f"{cell:>26}" for cell in cells))
    print("\n".join(sorted(lines)))
    return 0


if __name__ == "__main__":
    if sys.argv[1] == "report":
        sys.exit(report(Path(sys.argv[2])))
    sys.exit(compile_and_judge(sys.argv[1:]))
