"""Compiles the Triton kernels for GPUs that are not here, under several Tritons: make check-triton.

Each Triton is unpacked from its wheel into a folder of its own, put first on the path of a process
of its own. By default the first configuration of a kernel is compiled for every architecture and
dtype that it ships for, and each other one for sm_90 and sm_120 in bfloat16; the oldest and the
newest Triton compile float32 for sm_90 alone. --all compiles all.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import inspect
import multiprocessing
import os
import pkgutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build" / "check-triton"
DEFAULT = "3.7.1"
VERSIONS = ("3.6.0", DEFAULT, "3.9.0")  # the oldest, the default and the newest


def unpacked(version: str) -> Path | None:
    """The folder of a Triton, fetched if need be; None where it is the installed one."""
    if importlib.metadata.version("triton") == version:
        return None
    folder = FOLDER / f"triton-{version}"
    if not folder.exists():
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "-q"]
        wheels = ["--no-deps", "--only-binary", ":all:", "-d", str(FOLDER)]
        subprocess.run([*pip, *wheels, f"triton=={version}"], check=True)
        (wheel,) = FOLDER.glob(f"triton-{version}-*.whl")
        unfinished = folder.with_suffix(".part")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(unfinished)
        for tool in (unfinished / "triton/backends/nvidia/bin").iterdir():
            tool.chmod(0o755)
        unfinished.rename(folder)
        wheel.unlink()
    return folder


def modules(path: Path | None) -> Iterator[ModuleType]:
    """Every module of kernels/triton that lists what it ships, or the one at ``path``."""
    if path is not None:
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module
        return
    import genimg.kernels.triton as package

    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        module = importlib.import_module(found.name)
        listed = getattr(module, "compiles", None)
        if listed is not None and not inspect.signature(listed).parameters:
            yield module


def chosen(args: argparse.Namespace, version: str) -> Iterator[tuple]:
    """(entry, capability, dtype, what the module allows) to compile under a Triton."""
    every_dtype = version == DEFAULT or args.all
    for module in modules(args.module):
        seen: set[tuple] = set()
        for entry in module.compiles():
            targets = [(c, dtype) for c in entry.capabilities for dtype in entry.dtypes]
            # A tile may not ship for sm_90.
            typical = {(90, entry.dtypes[-1])} & {*targets} or {targets[-1]}
            for target in targets:
                first = (entry.kernel.__name__, *target) not in seen
                first = first and (target[0] == 90 or target[1] == entry.dtypes[-1])
                seen.add((entry.kernel.__name__, *target))
                wanted = args.all or (not entry.only_all and (first or target in typical))
                asked = target[0] in (args.arch or target) and target[1] in (args.dtype or target)
                wanted = wanted and (every_dtype or target[0] == 90 or target[1] != "fp32")
                if wanted and asked and args.only in entry.name:
                    yield entry, *target, getattr(module, "NARROW", {})


def row(job: tuple) -> tuple[str, list[str]]:
    """A line of the table, and what is wrong."""
    from genimg.kernels.triton.aot import compile_for, faults

    entry, capability, dtype, narrow = job
    start = f"{entry.name:<52} sm_{capability:<4} {dtype:<5}"
    try:
        made = compile_for(entry, capability, dtype)
    except Exception as error:  # of any kind: the table goes on
        return f"{start} does not compile", [f"{type(error).__name__}: {error}"]
    line = f"{start}{made.registers:>5}{made.shared:>9}{made.matrix or '':>7}"
    return line, faults(entry, capability, dtype, made, narrow)


# Set before the processes fork: a kernel cannot be sent to them.
jobs: list[tuple] = []


def compile_job(index: int) -> tuple[str, list[str]]:
    return row(jobs[index])


def compile_all(args: argparse.Namespace) -> int:
    """Compile under the Triton of this process."""
    import triton

    jobs.extend(chosen(args, triton.__version__))
    start = time.monotonic()
    print(f"Triton {triton.__version__}: {len(jobs)} kernels to compile")
    print(f"{'kernel, tile':<52} {'arch':<7} {'dtype':<5}{'regs':>5}{'shared':>9}{'matrix':>7}")
    bad = 0
    with multiprocessing.get_context("fork").Pool(args.jobs) as pool:
        for line, wrong in pool.imap(compile_job, range(len(jobs))):
            print(line, *(f"\n  FAULT {fault}" for fault in wrong), flush=True)
            bad += bool(wrong)
    print(f"Triton {triton.__version__}: {bad} at fault, {time.monotonic() - start:.0f} s")
    return min(bad, 1) if jobs else 2


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--all", action="store_true", help="every configuration, for all")
    parser.add_argument("--only", default="", help="kernels whose name holds this")
    parser.add_argument("--arch", type=int, nargs="*", help="80, 90, ...; default: all")
    parser.add_argument("--dtype", nargs="*", help="fp32, fp16, bf16; default: all")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--versions", nargs="*", default=VERSIONS, help="of Triton")
    parser.add_argument("--module", type=Path, help="a kernel module in place of genimg's")
    parser.add_argument("--here", action="store_true", help="under the installed Triton alone")
    args = parser.parse_args()
    if args.here:
        return compile_all(args)
    worst = 0
    for version in args.versions:
        folder = unpacked(version)
        environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
        environment.setdefault("TRITON_CACHE_DIR", str(FOLDER / f"cache-{version}"))
        if folder is not None:
            environment["PYTHONPATH"] = str(folder)
        command = [sys.executable, __file__, *sys.argv[1:], "--here"]
        worst = max(worst, subprocess.run(command, env=environment).returncode)
    return worst


if __name__ == "__main__":
    sys.exit(main())
