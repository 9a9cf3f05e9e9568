"""Removes each barrier, fence and wait from each CUDA kernel in turn: a test must fail every time.

Run by ``make check-barriers``. What no test misses is not needed, or not tested. Arguments name
files by how they begin (``batch_norm_act``, ``conv``); without any, all are tried.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
KERNELS = ROOT / "kernels/cuda"
WORK = ROOT / "build/barriers"
TESTS = ("conv_sm90", "emulated", "conv", "conv_fused", "conv_stack")
ORDERING = re.compile(
    r"(?:__syncthreads(?:_\w+)?|__syncwarp|__threadfence(?:_block)?|simt::cp_async_wait<[^<>]+>"
    r"|simt::mbarrier_(?:init_fence|wait)|simt::fence_proxy_async|simt::wgmma_(?:fence|wait<\w+>))"
    r"\([^()]*\);"
)


def sources() -> list[Path]:
    named = tuple(sys.argv[1:])
    every = sorted([*KERNELS.rglob("*.cu"), *KERNELS.rglob("*.h")])
    every = [path for path in every if path.parent.name != "simt"]
    return [path for path in every if not named or name_of(path).startswith(named)]


def name_of(source: Path) -> str:
    return source.relative_to(KERNELS).as_posix()


def test(keyword: str, *options: str) -> tuple[bool, str]:
    """Whether the emulated tests pass with the kernels in the work folder, and what they say."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-x", "-k", keyword, "--no-header", *options),
            *(f"tests/kernels/test_cuda_{name}.py" for name in TESTS),
            f"--emulated-kernels={WORK / 'cuda'}",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if done.returncode not in (0, 1):
        sys.exit(done.stdout + done.stderr)
    said = re.findall(r"^E +(?:emulator\.KernelError: |AssertionError: )?(.+)", done.stdout, re.M)
    if done.returncode == 1 and any("FAILED: [code" in line for line in done.stdout.splitlines()):
        sys.exit(done.stdout)
    return done.returncode == 0, said[0] if said else ""


def included(path: Path) -> set[Path]:
    """The headers that a file includes, and those that they do."""
    found: set[Path] = set()
    for name in re.findall(r'#include "([\w./]+)"', path.read_text(encoding="utf-8")):
        header = (path.parent / name).resolve()
        if header not in found and header.exists():  # the emulator's are elsewhere
            found |= {header, *included(header)}
    return found


def users(source: Path) -> str:
    """The ops whose kernels include a file, as pytest's -k has them."""
    if source.parent.name == "conv":  # their headers are of all three
        return "conv"
    if source.suffix == ".cu":
        return source.stem
    # conv_stack's ends are enough for what only they include.
    kernels = [path for path in KERNELS.glob("*.cu") if source in included(path)]
    stems = sorted(path.stem for path in kernels)
    return " or ".join(stems) or "conv"


def main() -> None:
    # With what was compiled: an object of the last run may lack a barrier. The copies keep their
    # times, by which g++ takes a header that csrc/ includes and the kernels' copy of it for one.
    shutil.rmtree(WORK, ignore_errors=True)
    shutil.copytree(KERNELS, WORK / "cuda")
    everything = " or ".join(sorted({users(source) for source in sources()}))
    passed, said = test(everything, "--numprocesses", "auto")
    if not passed:
        sys.exit(f"the tests fail as things stand: {said}")
    missed = tried = 0
    for source in sources():
        text = source.read_text(encoding="utf-8")
        copy = WORK / "cuda" / name_of(source)
        for found in ORDERING.finditer(text):
            line = text.count("\n", 0, found.start()) + 1
            copy.write_text(text[: found.start()] + ";" + text[found.end() :], encoding="utf-8")
            passed, said = test(users(source))
            copy.write_text(text, encoding="utf-8")
            tried += 1
            missed += passed
            verdict = "NO TEST FAILS" if passed else said[:150]
            print(f"{name_of(source)}:{line}: without {found.group()} {verdict}", flush=True)
    if missed:
        sys.exit(f"{missed} of {tried} can be removed without a test failing")
    print(f"{tried} removed in turn, and a test failed each time")


if __name__ == "__main__":
    main()
