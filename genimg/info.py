"""``genimg info``: versions, what was built and why, which backends run; needs torch alone."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import genimg
from genimg import _native, priors, terminal, tuning
from genimg.backends import BACKENDS, OPS, REFERENCE
from genimg.kernels.triton import runtime as triton_runtime
from genimg.machine import cpu_name
from genimg.versions import notes

ENVIRONMENT = (
    "GENIMG_AUTOTUNE",
    "GENIMG_BACKEND",
    "GENIMG_BUILD",
    "GENIMG_CACHE",
    "GENIMG_CPU_ISA",
    "GENIMG_CUDA_SM90",
    "GENIMG_LOG",
    "MAX_JOBS",
    "TORCH_CUDA_ARCH_LIST",
    "TRITON_INTERPRET",
)
"""The variables that are shown; docs/environment.md says what each does."""

Facts = dict[str, Any]


def collect() -> Facts:
    """Everything that :func:`render` shows, in types that JSON has."""
    return {
        "versions": _versions(),
        "notes": _notes(),
        "system": _system(),
        "build": _native.build_info() or {"kind": "none", "reason": "it was never built"},
        "tools": _tools(),
        "gpus": _gpus(),
        "backends": _backends(),
        "ops": {name: [*op.by_backend, REFERENCE] for name, op in OPS.items()},
        "choice": _choice(),
        "environment": {name: os.environ.get(name) for name in ENVIRONMENT},
    }


def _versions() -> Facts:
    return {
        "genimg": genimg.__version__,
        "python": platform.python_version(),
        "gil": getattr(sys, "_is_gil_enabled", lambda: True)(),
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "triton": _distribution("triton"),
    }


def _notes() -> list[str]:
    """One sentence for each unusual fact about the versions."""
    found = _versions()
    running = {"Python": "python", "torch": "torch", "Triton": "triton"}
    return notes({package: found[key] for package, key in running.items()})


def _distribution(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _system() -> Facts:
    return {
        "os": platform.platform(),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
    }


def _tools() -> dict[str, Facts]:
    """The build tools: path and version of each, or how to install it."""
    compilers = [os.environ.get("CXX", ""), "c++", "g++", "clang++"]
    return {
        "c++": _tool(
            [shutil.which(name) for name in compilers if name],
            "install a C++20 compiler, such as g++ 11 (Debian: apt-get install g++)",
        ),
        "nvcc": _tool(_nvcc_candidates(), _nvcc_advice()),
        "cmake": _tool([_which("cmake")], "pip install cmake"),
        "ninja": _tool([_which("ninja")], "pip install ninja"),
        "pybind11": _package("pybind11"),
    }


def _which(name: str) -> str | None:
    """A program of this environment, which need not be activated, or of the PATH."""
    places = [sysconfig.get_path("scripts"), os.environ.get("PATH", "")]
    return shutil.which(name, path=os.pathsep.join(places))


def _nvcc_candidates() -> list[str | None]:
    """In the order in which the build looks (cmake/Nvcc.cmake)."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if home:
        return [shutil.which("nvcc", path=os.path.join(home, "bin"))]
    packages = Path(torch.__file__).parents[1] / "nvidia"
    found = [str(path) for path in packages.glob("cu[0-9]*/bin/nvcc")]
    return [shutil.which("nvcc"), shutil.which("nvcc", path="/usr/local/cuda/bin"), *found]


def _nvcc_advice() -> str:
    cuda = torch.version.cuda
    if cuda is None:
        return "not needed: torch is a build without CUDA"
    if int(cuda.split(".")[0]) < 13:
        return f"install NVIDIA's CUDA toolkit {cuda}"
    parts = ("cuda-nvcc", "cuda-crt", "nvvm", "cuda-cccl")
    return "pip install " + " ".join(f'"nvidia-{part}=={cuda}.*"' for part in parts)


def _tool(candidates: Sequence[str | None], advice: str) -> Facts:
    for path in candidates:
        version = _version_of(path) if path else None
        if version is not None:
            return {"path": path, "version": version, "advice": None}
    return {"path": None, "version": None, "advice": advice}


def _version_of(path: str) -> str | None:
    """The version that a program prints, None if it does not run."""
    lines = _output(path, "--version").splitlines()
    release = [line for line in lines if "release" in line]  # nvcc's is not in its first line
    text = (release or lines or [""])[0]
    found = re.findall(r"\d+(?:\.\d+)+", text)
    return found[-1] if found else text or None


def _output(*command: str) -> str:
    """The output of a program; empty if it fails."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def _package(name: str) -> Facts:
    version = _distribution(name)
    return {"path": None, "version": version, "advice": None if version else f"pip install {name}"}


def _gpus() -> Facts:
    if torch.version.cuda is None:
        return {"devices": [], "driver": None, "reason": "torch is a build without CUDA"}
    driver = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    found: Facts = {"devices": [], "driver": driver.split("\n")[0] or None, "reason": None}
    if not torch.cuda.is_available():
        what = "its driver does not suit this torch" if driver else "no GPU present, or no driver"
        return {**found, "reason": what}
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        found["devices"].append(
            {
                "name": device.name,
                "capability": f"{device.major}.{device.minor}",
                "memory_gib": round(device.total_memory / 2**30, 1),
                "multiprocessors": device.multi_processor_count,
            }
        )
    return found


def _backends() -> dict[str, Facts]:
    gpus = _gpus()
    no_gpu = None if gpus["devices"] else gpus["reason"]
    isa = _native.build_info().get("isa")
    level = isa in _native.build_info().get("isas", ())
    reasons = {
        "cuda": (_native.why_not_cuda(), no_gpu),
        "cpu": (_native.why_not(), None if level else isa),
        "triton": (triton_runtime.MISSING, None if triton_runtime.INTERPRETED else no_gpu),
        REFERENCE: (None, None),
    }
    return {
        name: {
            "built": reasons[name][0] is None,
            "usable": reasons[name] == (None, None),
            "reason": reasons[name][0] or reasons[name][1] or _serving(name, isa),
        }
        for name in BACKENDS
    }


def _serving(backend: str, isa: str | None) -> str:
    if backend == "cpu":
        threads = "torch's threads" if _native.build_info().get("threads") else "one thread"
        return f"runs at {isa}, on {threads}"
    if backend == "triton" and triton_runtime.INTERPRETED:
        return "in its interpreter, for tests: TRITON_INTERPRET=1"
    return "plain PyTorch" if backend == REFERENCE else "runs tensors on the GPU"


def _choice() -> Facts:
    """What auto goes by: measured decisions, and the priors of this class of machines."""
    tuner = tuning.current()
    device = torch.device("cpu")
    path = tuner.store.path(device)
    return {
        "machines": priors.CPU.name,
        "evidence": [*priors.CPU.evidence, priors.GPU_EVIDENCE],
        "priors": "genimg/priors.py",
        "decisions": None if path is None else str(path),
        "decided": len(tuner.store.all(device)),
        "measures": tuner.measures,
    }


def render(facts: Facts) -> str:
    """The facts as a page of text."""
    versions, system, build = facts["versions"], facts["system"], facts["build"]
    cuda = f"CUDA {versions['torch_cuda']}" if versions["torch_cuda"] else "without CUDA"
    lines = [
        f"genimg    {versions['genimg']}",
        f"python    {versions['python']}{'' if versions['gil'] else ', without the GIL'}",
        f"torch     {versions['torch']} ({cuda})",
        f"triton    {versions['triton'] or 'not installed'}",
        f"system    {system['os']}",
        f"cpu       {system['cpu']}, {system['cores']} cores, torch takes "
        f"{system['torch_threads']} threads",
        *_render_gpus(facts["gpus"]),
        *(f"note      {sentence}" for sentence in facts["notes"]),
        "",
        f"build     {build['kind']}: {build.get('reason')}",
    ]
    if build["kind"] != "none":
        lines += [f"          for torch {build['torch']}, by {build['compiler']}"]
        lines[-1] += f" and nvcc {build['nvcc']}" if build["nvcc"] else ""
        lines += [f"          CPU levels: {', '.join(build['isas'])}"]
        lines[-1] += f" (active: {build['isa']})" if "isa" in build else ""
    if build.get("cuda_archs"):
        lines += [f"          CUDA architectures: {', '.join(build['cuda_archs'])}"]
    lines += ["", "to build with"]
    for name, tool in facts["tools"].items():
        found = f"{tool['version']}  {tool['path'] or ''}"
        lines.append(f"  {name:<10}" + (found if tool["version"] else f"none: {tool['advice']}"))
    lines += ["", f"{'backend':<12}{'built':<7}{'runs here':<13}"]
    for name, state in facts["backends"].items():
        built, usable = ("yes" if state[key] else "no" for key in ("built", "usable"))
        lines.append(f"{name:<12}{built:<7}{usable:<13}{state['reason']}")
    lines += ["", f"{'op':<18}" + "".join(f"{name:<11}" for name in BACKENDS)]
    for op, served in facts["ops"].items():
        marks = "".join(f"{'yes' if name in served else '-':<11}" for name in BACKENDS)
        lines.append(f"{op:<18}{marks}")
    lines += _render_choice(facts["choice"])
    lines += ["", "environment"]
    for name, value in facts["environment"].items():
        lines.append(f"  {name:<22}{'not set' if value is None else value}")
    return "\n".join(line.rstrip() for line in lines)


def _render_choice(choice: Facts) -> list[str]:
    measures = "what is new is measured" if choice["measures"] else "nothing is measured"
    decided = f"{choice['decided']} measured decisions in {choice['decisions'] or 'no file'}"
    return [
        "",
        f"choice    {decided}; {measures}",
        f"          priors for the rest: {choice['machines']} ({choice['priors']})",
        *(f"          - {sentence}" for sentence in choice["evidence"]),
    ]


def _render_gpus(gpus: Facts) -> list[str]:
    if not gpus["devices"]:
        return [f"gpu       none: {gpus['reason']}"]
    driver = f", driver {gpus['driver']}" if gpus["driver"] else ""
    return [
        f"gpu       {gpu['name']}, compute capability {gpu['capability']}, "
        f"{gpu['multiprocessors']} multiprocessors, {gpu['memory_gib']} GiB{driver}"
        for gpu in gpus["devices"]
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Print the facts; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="genimg info", description="What genimg, this machine and their build have."
    )
    parser.add_argument("--json", action="store_true", help="as JSON, for programs")
    asked = parser.parse_args(argv)
    terminal.escape_what_does_not_fit()
    facts = collect()
    try:
        terminal.say(json.dumps(facts, indent=2) if asked.json else render(facts))
    except BrokenPipeError:  # the reader of our output has gone, as `head` does
        return terminal.READER_GONE
    except OSError as error:
        terminal.complain(f"genimg: {error.strerror or error}")
        return 2
    finally:
        terminal.finish()
    return 0
