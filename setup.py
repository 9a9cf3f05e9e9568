"""Builds genimg/_C by running CMake, which owns every decision about compilers and flags.

``GENIMG_BUILD`` is ``auto`` (CUDA and CPU kernels, else CPU kernels alone, else none: the package
works without any), ``cpu`` or ``cuda`` (these, or an error), or ``none``. What came of it, and why,
is kept in ``genimg/_build.json``. Also honoured: ``MAX_JOBS``, ``DEBUG``, ``TORCH_CUDA_ARCH_LIST``,
``CMAKE_ARGS``, and CMake's own variables (``CXX``, ``CUDAHOSTCXX``, ...).
"""

import importlib.util
import json
import os
import runpy
import shlex
import shutil
import subprocess
import sys
import sysconfig
import zlib
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
VERSION = (ROOT / "genimg" / "VERSION").read_text(encoding="utf-8").strip()
KINDS = ("auto", "cpu", "cuda", "none")
KIND = os.environ.get("GENIMG_BUILD") or "auto"
DEBUG = os.environ.get("DEBUG", "0") not in ("", "0")


class BuildError(Exception):
    """A build that cannot be had, in one sentence."""


class Build(build):
    """Runs build_ext even where there is no extension to build: it keeps the record of that."""

    sub_commands = [("build_py", None), ("build_ext", None)]  # noqa: RUF012


class BuildWithCMake(build_ext):
    """Configures, builds and installs into the package."""

    def run(self):
        if KIND not in KINDS:
            sys.exit(f"genimg: GENIMG_BUILD={KIND}: expected {', '.join(KINDS)}")
        torch = torch_version()
        package = (ROOT if self.inplace else Path(self.build_lib).resolve()) / "genimg"
        package.mkdir(parents=True, exist_ok=True)
        reason = "GENIMG_BUILD=none" if KIND == "none" else self.build_or_reason(package, torch)
        record = package / "_build.json"
        if reason is not None:
            (package / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}").unlink(missing_ok=True)
            facts = {"kind": "none", "reason": reason, "genimg": VERSION}
            facts |= {"torch": torch["__version__"], "torch_cuda": torch["cuda"] or ""}
            record.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        facts = json.loads(record.read_text(encoding="utf-8"))
        print(f"genimg: kernels built: {facts['kind']} ({facts['reason']})", flush=True)

    def build_or_reason(self, package, torch):
        """None, or under ``auto`` the reason why no kernels could be built."""
        try:
            try:
                cmake(package, torch, KIND)
            except BuildError as error:
                if KIND != "auto" or torch["cuda"] is None:
                    raise
                print(f"genimg: no CUDA kernels: {error}", flush=True)
                cmake(package, torch, "cpu", f"no CUDA kernels: {error}")
        except BuildError as error:
            if KIND != "auto":
                sys.exit(f"genimg: GENIMG_BUILD={KIND}: {error}")
            return str(error)
        return None


def torch_version():
    """The contents of torch/version.py, found without the seconds that importing torch takes."""
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        sys.exit(
            "genimg: torch is not installed in the environment that builds genimg: install it "
            "first, then run pip install --no-build-isolation"
        )
    return runpy.run_path(str(Path(spec.submodule_search_locations[0]) / "version.py"))


def cmake(package, torch, kind, reason=""):
    """Build ``kind`` into ``package``, or raise :class:`BuildError`."""
    tool, ninja = find_tool("cmake"), find_tool("ninja")
    asked = [
        f"-DCMAKE_BUILD_TYPE={'Debug' if DEBUG else 'Release'}",
        *shlex.split(os.environ.get("CMAKE_ARGS", "")),
    ]
    arguments = [
        f"-DCMAKE_MAKE_PROGRAM={ninja}",
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-DGENIMG_BUILD={kind}",
        *asked,
    ]
    # Other flags have other objects: to go back to the first ones then compiles nothing.
    flags = "" if len(asked) == 1 and not DEBUG else f"-{zlib.crc32(' '.join(asked).encode()):08x}"
    name = f"{kind}-{sys.implementation.cache_tag}-torch{torch['__version__']}{flags}"
    folder = ROOT / "build" / name
    # Keep the objects, which Ninja judges; forget the tools that CMake found in an earlier run.
    (folder / "CMakeCache.txt").unlink(missing_ok=True)
    for found in folder.glob("CMakeFiles/[0-9]*"):
        shutil.rmtree(found)
    jobs = os.environ.get("MAX_JOBS")
    steps = (
        ["-S", ROOT, "-B", folder, "-GNinja", *arguments, f"-DGENIMG_REASON={reason}"],
        ["--build", folder, *(["--parallel", jobs] if jobs else [])],
        ["--install", folder, "--prefix", package],
    )
    for step in steps:
        if subprocess.run([tool, *step], check=False).returncode != 0:
            refusal = folder / "refusal.txt"
            if refusal.exists():
                raise BuildError(refusal.read_text(encoding="utf-8"))
            raise BuildError("CMake or a compiler failed; pip install -v shows how")


def find_tool(name):
    """A program of this environment, which need not be activated, or of the PATH."""
    here = sysconfig.get_path("scripts")
    found = shutil.which(name, path=os.pathsep.join([here, os.environ.get("PATH", "")]))
    if found is None:
        raise BuildError(f"{name} is missing: pip install {name}")
    return found


setup(
    cmdclass={"build": Build, "build_ext": BuildWithCMake},
    # Named, so that a wheel with kernels is tagged with its platform and one without is not.
    ext_modules=[] if KIND == "none" else [Extension("genimg._C", [])],
)
