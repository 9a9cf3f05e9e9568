"""Hands the build over to CMake; metadata stand in pyproject.toml, flags in CMakeLists.txt.

GENIMG_BUILD=auto|cpu|cuda|none says what to build: auto goes cuda -> cpu -> none by what the
machine has, a kind that is named fails loudly. The outcome goes into genimg/_build.json, which
`genimg info` reads.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent.resolve()
KINDS = ("auto", "cpu", "cuda", "none")


def find_tool(name):
    """A program beside this interpreter (an environment need not be activated) or on PATH."""
    beside = str(Path(sys.executable).parent)
    return shutil.which(name, path=os.pathsep.join([beside, os.environ.get("PATH", "")]))


def find_nvcc():
    """nvcc from CUDA_HOME, PATH, or the wheel nvidia-cuda-nvcc."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    found = home and shutil.which("nvcc", path=str(Path(home) / "bin"))
    spec = importlib.util.find_spec("nvidia")
    wheels = [Path(p) for p in spec.submodule_search_locations] if spec else []
    in_wheels = [str(p) for w in wheels for p in sorted(w.glob("cu*/bin/nvcc"), reverse=True)]
    return found or shutil.which("nvcc") or next(iter(in_wheels), None)


def find_compiler():
    """A C++ compiler that runs."""
    for name in filter(None, (os.environ.get("CXX"), "c++", "g++", "clang++")):
        path = shutil.which(name)
        if path and subprocess.run([path, "--version"], capture_output=True).returncode == 0:
            return path
    return None


def why_not(kind, torch):
    """Why this machine cannot build ``kind``, in one sentence, or None."""
    if find_compiler() is None:
        return "no C++ compiler: install g++ or clang++, or name one in CXX"
    missing = [tool for tool in ("cmake", "ninja") if find_tool(tool) is None]
    missing += [] if importlib.util.find_spec("pybind11") else ["pybind11"]
    if missing:
        return f"not installed: {', '.join(missing)}; pip install {' '.join(missing)}"
    if kind == "cuda" and torch.version.cuda is None:
        return f"torch {torch.__version__} is a build without CUDA"
    if kind == "cuda" and find_nvcc() is None:
        return "no nvcc on PATH, in CUDA_HOME or among the installed wheels"
    return None


def run_cmake(kind, torch, output):
    """Configure and build; raises CalledProcessError."""
    tag = f"{sys.implementation.cache_tag}-{kind}-{torch.__version__}"
    build = ROOT / "build" / f"cmake-{tag}"
    pybind11 = importlib.import_module("pybind11")
    debug = os.environ.get("DEBUG", "").lower() in ("1", "on", "true")
    configure = [
        find_tool("cmake"), "-S", str(ROOT), "-B", str(build), "-GNinja",
        f"-DCMAKE_MAKE_PROGRAM={find_tool('ninja')}",
        f"-DCMAKE_BUILD_TYPE={'Debug' if debug else 'Release'}",
        f"-DCMAKE_CXX_COMPILER={find_compiler()}",
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        f"-DGENIMG_OUTPUT_DIR={output}",
        f"-DGENIMG_CUDA={'ON' if kind == 'cuda' else 'OFF'}",
    ]  # fmt: skip
    if kind == "cuda":
        configure += [f"-DCMAKE_CUDA_COMPILER={find_nvcc()}"]
    jobs = ["-j", os.environ["MAX_JOBS"]] if os.environ.get("MAX_JOBS") else []
    subprocess.run(configure, check=True)
    subprocess.run([find_tool("cmake"), "--build", str(build), *jobs], check=True)


def build_native(output):
    """Build what GENIMG_BUILD asks for into ``output`` and note the outcome there."""
    wanted = os.environ.get("GENIMG_BUILD") or "auto"
    if wanted not in KINDS:
        sys.exit(f"GENIMG_BUILD={wanted} is unknown: expected one of {', '.join(KINDS)}")
    for stale in output.glob("_C.*.so"):
        stale.unlink()
    torch, reasons, built = None, [], "none"
    if wanted != "none":
        if importlib.util.find_spec("torch") is None:
            sys.exit("genimg is built against the torch it runs with: install torch first, then "
                     "pip install --no-build-isolation genimg")  # fmt: skip
        torch = importlib.import_module("torch")
        for kind in ("cuda", "cpu") if wanted == "auto" else (wanted,):
            reason = why_not(kind, torch)
            if reason is None:
                try:
                    run_cmake(kind, torch, output)
                    built = kind
                    break
                except subprocess.CalledProcessError as error:
                    reason = f"the build failed, see above: {Path(error.cmd[0]).name} gave " \
                             f"{error.returncode}"  # fmt: skip
            if wanted != "auto":
                sys.exit(f"genimg: GENIMG_BUILD={wanted} cannot be built: {reason}")
            reasons.append(f"no {kind} kernels: {reason}")
    else:
        reasons.append("GENIMG_BUILD=none")
    outcome = {"kind": built, "reason": "; ".join(reasons)}
    outcome["torch"] = torch.__version__ if torch else None
    (output / "_build.json").write_text(json.dumps(outcome, indent=2) + "\n", encoding="utf-8")
    print(f"genimg: built {built}" + (f" ({outcome['reason']})" if reasons else ""), flush=True)


class BuildPy(build_py):
    """The Python files, then the compiled module beside them."""

    def run(self):
        super().run()
        output = ROOT / "genimg" if self.editable_mode else Path(self.build_lib, "genimg").resolve()
        output.mkdir(parents=True, exist_ok=True)
        build_native(output)


class PlatformDistribution(Distribution):
    """A wheel of compiled code belongs to one platform; without it, to all."""

    def has_ext_modules(self):
        return os.environ.get("GENIMG_BUILD") != "none"


setup(cmdclass={"build_py": BuildPy}, distclass=PlatformDistribution)
