"""Changes each sign, coefficient, index and border of the CPU convolutions: a case must fail.

Run by ``make check-mutants``. The mutants (mutants.py) are compiled once for each instruction-set
level, into a copy of the package in build/mutants. For each mutant a forked process runs the named
cases that come by its place, by ``genimg.testing.compare``, until one fails. A mutant that fails
none is listed in equivalent_mutants.py with the reason why it changes no result, or a case is
missing.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(HERE.parent)]

from equivalent_mutants import RULES, Rule  # noqa: E402
from machines import ISAS, MACHINES, Machine  # noqa: E402
from mutants import Mutant, generate  # noqa: E402

KERNELS = ROOT / "kernels/cpu"
WORK = ROOT / "build/mutants"
OPS = ("conv2d", "conv_transpose2d", "conv_stack")
SECONDS = 5  # of computing, after which a case does not end
ROOM = 1 << 28  # bytes that a mutant may ask for


def run(command: list[str], **options: Any) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    if done.returncode != 0:
        sys.exit(f"{shlex.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout


def build(levels: list[str], files: dict[str, str]) -> list[str]:
    """Compile the mutants of these levels into a copy of the package; the levels that there are.

    The commands are those of the package's own build, on other sources.
    """
    library = next((ROOT / "genimg").glob("_C.*.so"), None)
    if library is None:
        sys.exit("genimg/_C is not built: make setup")
    same = [
        path
        for path in (ROOT / "build").glob(f"*/{library.name}")
        if path.samefile(library) or path.read_bytes() == library.read_bytes()
    ]
    if not same:
        sys.exit("no folder in build/ has made genimg/_C: make setup")
    folder = same[0].parent
    ninja = str(Path(sys.executable).with_name("ninja"))
    commands = run([ninja, "-C", str(folder), "-t", "commands", library.name]).splitlines()
    sources = WORK / "cpu"
    sources.mkdir(parents=True, exist_ok=True)
    shutil.copytree(KERNELS, sources, dirs_exist_ok=True)
    shutil.copy(HERE / "cpu_mutants.h", sources)
    for name, mutated in files.items():
        (sources / name).write_text(mutated, "utf-8")
    text = "".join(path.read_text("utf-8") for path in sorted(sources.rglob("*.*")))
    swaps: dict[str, str] = {}
    jobs: list[tuple[list[str], Path, str]] = []
    for line in commands:
        words = shlex.split(line)
        source = Path(words[-1])
        level = next((level for level in levels if f"cpu_{level}.dir/" in line), None)
        if level is None or KERNELS not in source.parents:
            continue
        if not {KERNELS / name for name in files} & included(source):
            continue
        at = words.index("-o") + 1
        object_ = WORK / level / f"{source.parent.name}_{source.stem}.o"
        object_.parent.mkdir(exist_ok=True)
        swaps[words[at]] = str(object_)
        words[at], words[-1] = str(object_), str(sources / source.relative_to(KERNELS))
        # Half a minute a level in place of two. What a mutant leaves unwritten is not 0 by chance.
        words[-1:-1] = [
            "-O1",
            "-w",
            "-ftrivial-auto-var-init=pattern",
            "-MF",
            str(object_.with_suffix(".d")),
        ]
        stamp = sha256((text + shlex.join(words)).encode()).hexdigest()
        jobs.append((words, object_, stamp))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda job: compile_one(folder, *job), jobs))
    link = [swaps.get(word, word) for word in shlex.split(commands[-1]) if word not in (":", "&&")]
    package = WORK / "package/genimg"
    shutil.rmtree(package, ignore_errors=True)
    leave_out = shutil.ignore_patterns("_C.*.so", "__pycache__")
    shutil.copytree(ROOT / "genimg", package, ignore=leave_out)
    link[link.index("-o") + 1] = str(package / library.name)
    run(link, cwd=folder)
    return sorted({Path(object_).parent.name for object_ in swaps.values()}, key=levels.index)


def included(path: Path) -> set[Path]:
    """A source, and the headers that it includes, and that they do."""
    names = re.findall(r'#include "([\w./]+\.h)"', path.read_text("utf-8"))
    return {path}.union(*(included((path.parent / name).resolve()) for name in names))


def compile_one(folder: Path, words: list[str], object_: Path, stamp: str) -> None:
    kept = object_.with_suffix(".stamp")
    if object_.exists() and kept.exists() and kept.read_text() == stamp:
        return
    run(words, cwd=folder)
    kept.write_text(stamp)


class Worker:
    """In a child process whose genimg is the mutated copy: tries mutants one after the other."""

    def __init__(self, threads: int) -> None:
        import cpu_cases
        import torch

        from genimg import _native, backends

        torch.use_deterministic_algorithms(True, warn_only=True)  # unwritten outputs are NaN
        torch.utils.deterministic.fill_uninitialized_memory = True
        module = _native.load()
        assert module is not None, _native.why_not()
        assert str(WORK) in str(module.__file__), module.__file__
        library = ctypes.CDLL(module.__file__)
        self.mutant = ctypes.c_int.in_dll(library, "genimg_mutant")
        self.refusals = ctypes.c_int.in_dll(library, "genimg_refusals")
        self.reached = (ctypes.c_char * (1 << 14)).in_dll(library, "genimg_reached")
        self.kills: Counter[str] = Counter()
        # Made by the children: a process that has threads cannot be forked.
        self.threads, self.set_threads = threads, torch.set_num_threads
        self.units: dict[str, tuple[Any, Any, Any]] = {}
        self.usual: dict[str, int] = {}
        self.places: dict[str, bytes] = {}
        for dtype in (torch.float32, torch.bfloat16):
            for op in (backends.OPS[name] for name in OPS):
                for case in (*op.cases, *cpu_cases.CASES.get(op.name, ())):
                    if not (case.speed or case.slow):
                        self.add(op, case, dtype)

    def add(self, op: Any, case: Any, dtype: Any) -> None:
        """A case in a dtype, and the places that it comes by."""
        from genimg.backends import BackendError

        name = f"{op.name} {case.name} {str(dtype).removeprefix('torch.')}"
        self.units[name] = (op, case, dtype)
        ctypes.memset(self.reached, 0, len(self.reached))
        try:
            fault = self.fault_of(name)
        except BackendError:
            del self.units[name]
            return
        if fault:
            sys.exit(f"without a mutant {name} fails: {fault}")
        self.usual[name] = self.refusals.value
        self.places[name] = self.reached.raw

    def fault_of(self, name: str) -> str:
        """The fault that a case finds; empty if none."""
        op, case, dtype = self.units[name]
        self.refusals.value = 0
        errors = op.compare(case, "cpu", dtype, "cpu")
        return next((f"{e.result} {e.note or e.error}" for e in errors if not e.ok), "")

    def attempt(self, number: int) -> tuple[str, str]:
        """The outcome of a mutant, and the case that decided it."""
        names = [name for name in self.units if self.places[name][number]]
        if not names:
            return "no case comes by", ""
        # Those that find most; in float32, where errors are seen best.
        names.sort(key=lambda name: (self.units[name][2].itemsize != 4, -self.kills[name]))
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(read)
            self.child(number, names, write)
        os.close(write)
        with os.fdopen(read, encoding="utf-8") as pipe:
            said = pipe.read().splitlines()
        _, status = os.waitpid(child, 0)
        name = said[-2] if len(said) > 1 else said[-1] if said else ""
        if os.WIFSIGNALED(status):
            ended = os.WTERMSIG(status)
            stopped = ended in (signal.SIGPROF, signal.SIGALRM)
            verdict = "does not end" if stopped else f"dies of signal {ended}"
            self.kills[said[-1] if said else name] += 1
            return verdict, said[-1] if said else ""
        if said[-1] not in ("survives", "refuses"):
            self.kills[name] += 1
        return said[-1], name

    def child(self, number: int, names: list[str], write: int) -> None:
        """In the forked process: writes the case that is tried, and at last what came of it."""
        import resource

        for ended in (signal.SIGPROF, signal.SIGALRM):
            signal.signal(ended, signal.SIG_DFL)
        signal.alarm(100 * SECONDS)  # where threads wait for each other
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, used + ROOM))
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        self.set_threads(self.threads)
        self.mutant.value = number
        verdict, refused = "survives", False
        for name in names:
            os.write(write, f"{name}\n".encode())
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            try:
                fault = self.fault_of(name)
            except BaseException as error:  # a kernel's complaint is a find, too
                fault = f"{type(error).__name__}"
            refused |= self.refusals.value != self.usual[name]
            if fault:
                verdict = " ".join(fault.split())
                break
        else:
            verdict = "refuses" if refused else verdict
        os.write(write, f"{verdict}\n".encode())
        os._exit(0)


def work(threads: int, numbers: list[int]) -> None:
    worker = Worker(threads)
    for number in numbers:
        verdict, case = worker.attempt(number)
        print(json.dumps([number, verdict, case]), flush=True)


def attempt_all(machine: Machine, mutants: list[Mutant], processes: int) -> dict[int, list[str]]:
    """Verdict and case of every mutant, on a pretended machine."""
    numbers = [mutant.number for mutant in mutants]
    environment = machine.environment() | {"PYTHONPATH": str(WORK / "package")}
    environment |= {"OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    children = []
    for first in range(processes):
        child = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), "--work"],
            env=environment,
            cwd=WORK,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        children.append((child, json.dumps([machine.threads, numbers[first::processes]])))
    with ThreadPoolExecutor(processes) as pool:
        outputs = list(pool.map(lambda pair: talk(*pair), children))
    if any(child.returncode != 0 for child, _ in children):
        sys.exit(f"a process failed on {machine}")
    return {number: rest for output in outputs for number, *rest in output}


def talk(child: subprocess.Popen[str], numbers: str) -> list[Any]:
    """Send a process its numbers, and collect what it finds."""
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(numbers)
    child.stdin.close()
    found = []
    with (WORK / f"progress-{child.pid}").open("w", encoding="utf-8") as progress:
        for line in child.stdout:
            found.append(json.loads(line))
            progress.write(line)
            progress.flush()
    child.wait()
    return found


def drawn(mutants: list[Mutant], count: int, files: dict[str, str]) -> list[Mutant]:
    """So many of the mutants, others after each change of the sources."""
    salt = "".join(files.values())

    def rank(mutant: Mutant) -> bytes:
        return sha256(f"{mutant} {salt}".encode()).digest()

    return sorted(sorted(mutants, key=rank)[:count], key=lambda mutant: mutant.number)


def rule_of(mutant: Mutant, machine: Machine) -> Rule | None:
    return next((rule for rule in RULES if rule.covers(mutant, machine)), None)


def report(machine: Machine, mutants: list[Mutant], found: dict[int, Any], skipped: int) -> int:
    """Print what came of the mutants, and the ones that a case is missing for; their number."""
    counts = Counter({"not tried": skipped})
    missing = 0
    for mutant in mutants:
        verdict = found[mutant.number][0]
        if verdict == "refuses":  # the numbers are PyTorch's, and right
            counts["left to PyTorch"] += 1
        elif verdict not in ("survives", "no case comes by"):
            stopped = verdict.startswith(("dies", "does not end"))
            counts["crashes" if stopped else "fails"] += 1
        else:
            missing += 1
            print(f"{verdict}: {mutant}", flush=True)
    said = ", ".join(f"{count} {what}" for what, count in sorted(counts.items()))
    print(f"{machine}: {len(mutants)} mutants: {said}, {missing} missed", flush=True)
    return missing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--all", action="store_true", help="on every pretended machine")
    parser.add_argument("--machine", action="append", help="by name; default: the best one here")
    parser.add_argument("--only", default="", help="mutants whose description this matches")
    parser.add_argument("--sample", type=int, help="so many mutants alone")
    parser.add_argument("--processes", type=int, default=min(os.cpu_count() or 1, 8))
    parser.add_argument(
        "--equivalent", action="store_true", help="those of equivalent_mutants.py instead"
    )
    parser.add_argument("--verbose", action="store_true", help="every mutant and its verdict")
    options = parser.parse_args()
    if options.work:
        return work(*json.loads(sys.stdin.read()))
    began = time.monotonic()
    files, every = generate(KERNELS)
    mutants = [mutant for mutant in every if re.search(options.only, str(mutant))]
    stale = [rule for rule in RULES if not any(rule.covers(mutant, None) for mutant in every)]
    for rule in stale:
        print(f"a rule of equivalent_mutants.py covers no mutant: {rule}")
    possible = [machine for machine in MACHINES if not machine.missing()]
    best = max(possible, key=lambda machine: (ISAS.index(machine.isa), machine.threads))
    chosen = possible if options.all else [best]
    if options.machine:
        chosen = [machine for machine in possible if machine.name in options.machine]
    levels = build(list(dict.fromkeys(machine.isa for machine in chosen)), files)
    print(f"built {', '.join(levels)}: {time.monotonic() - began:.0f} s", flush=True)
    missing = len(stale)
    for machine in chosen:
        if machine.isa not in levels:
            print(f"{machine}: genimg is not built for it")
            continue
        began = time.monotonic()
        tried = [
            mutant for mutant in mutants if bool(rule_of(mutant, machine)) == options.equivalent
        ]
        if options.sample is not None:
            tried = drawn(tried, options.sample, files)
        found = attempt_all(machine, tried, options.processes)
        if options.verbose:
            for mutant in tried:
                print(f"{found[mutant.number]}: {mutant}")
        missing += report(machine, tried, found, len(mutants) - len(tried))
        print(f"{time.monotonic() - began:.0f} s", flush=True)
    if missing:
        sys.exit("a case is missing, or a rule that says why there is none")


if __name__ == "__main__":
    main()
