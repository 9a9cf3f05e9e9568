"""The build: what ``GENIMG_BUILD`` promises, and a package that works whatever came of it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

from genimg import _native

ROOT = Path(__file__).parents[1]
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
BUILT_FOLDERS = (".*", "build", "dist", "out", "runs", "*.egg-info", "__pycache__", "*.so")

pytestmark = pytest.mark.skipif(
    not (ROOT / "setup.py").exists(), reason="not run from a source tree"
)


def run(*command: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {k: v for k, v in os.environ.items() if k not in ("GENIMG_BUILD", "CMAKE_ARGS")}
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources without anything built."""
    tree = tmp_path_factory.mktemp("tree") / "genimg"
    shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(*BUILT_FOLDERS, "_build.json"))
    return tree


def build(tree: Path, lib: Path, kind: str, **environment: str) -> str:
    """Build into ``lib``, and give the last line that was printed; fails if the build does."""
    environment["GENIMG_BUILD"] = kind
    done = run(
        sys.executable, "setup.py", "-q", "build", "--build-lib", lib, cwd=tree, **environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()[-1]


def refusal(tree: Path, kind: str, **environment: str) -> str:
    """The sentence with which the build stops."""
    environment["GENIMG_BUILD"] = kind
    done = run(sys.executable, "setup.py", "-q", "build", cwd=tree, **environment)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    sentence = done.stderr.splitlines()[-1]
    assert sentence.startswith("genimg: ")
    return sentence


def python(lib: Path, code: str, cwd: Path) -> str:
    """The output of Python with the package in ``lib``."""
    done = run(sys.executable, "-c", code, cwd=cwd, PYTHONPATH=str(lib))
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def pure(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package without kernels."""
    lib = tmp_path_factory.mktemp("pure")
    assert build(tree, lib, "none") == "genimg: kernels built: none (GENIMG_BUILD=none)"
    return lib


def test_none_builds_a_package_that_works(pure, tmp_path):
    assert not list(pure.glob("genimg/_C.*.so"))
    printed = python(
        pure,
        "import torch, genimg, genimg.kernels.triton.runtime\n"
        "from genimg import _native, info\n"
        "assert genimg.__file__.startswith(" + repr(str(pure)) + ")\n"
        "assert _native.load() is None and not _native.available()\n"
        "assert torch.equal(genimg.ops.leaky_relu(torch.tensor([-1.0, 2.0]), 0.5),\n"
        "                   torch.tensor([-0.5, 2.0]))\n"
        "try:\n"
        "    genimg.ops.leaky_relu(torch.ones(2), backend='cpu')\n"
        "except genimg.BackendError as error:\n"
        "    print(error)\n"
        "info.main([])\n",
        tmp_path,
    )
    assert "cpu: no compiled kernels (GENIMG_BUILD=none); see docs/building.md" in printed
    assert "build     none: GENIMG_BUILD=none" in printed


def test_unknown_kind_is_refused(tree):
    sentence = refusal(tree, "gpu")
    assert sentence == "genimg: GENIMG_BUILD=gpu: expected auto, cpu, cuda, none"


def test_no_compiler(tree, tmp_path):
    broken = tmp_path / "c++"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    for compiler in (broken, tmp_path / "missing"):
        printed = build(tree, tmp_path / "lib", "auto", CXX=str(compiler))
        assert printed.startswith("genimg: kernels built: none (no working C++ compiler was found")
        record = json.loads((tmp_path / "lib/genimg/_build.json").read_text())
        assert record["kind"] == "none"
        assert "apt-get install g++" in record["reason"]
    sentence = refusal(tree, "cpu", CXX=str(broken))
    assert sentence.startswith("genimg: GENIMG_BUILD=cpu: no working C++ compiler was found")


def test_no_cmake(tree, tmp_path):
    scripts = tmp_path / "bin"
    scripts.mkdir()
    code = (
        "import runpy, sys, sysconfig\n"
        f"sysconfig.get_path = lambda *names: {str(scripts)!r}\n"
        "sys.argv = ['setup.py', '-q', 'build_ext']\n"
        "runpy.run_path('setup.py', run_name='__main__')\n"
    )
    done = run(sys.executable, "-c", code, cwd=tree, GENIMG_BUILD="cpu", PATH=str(scripts))
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1] == (
        "genimg: GENIMG_BUILD=cpu: cmake is missing: pip install cmake"
    )


def test_no_torch(tree):
    code = (
        "import runpy, sys\n"
        "sys.modules['torch'] = None\n"
        "sys.argv = ['setup.py', '-q', 'build_ext']\n"
        "runpy.run_path('setup.py', run_name='__main__')\n"
    )
    done = run(sys.executable, "-c", code, cwd=tree)
    assert done.returncode != 0
    assert "--no-build-isolation" in done.stderr.splitlines()[-1]


@pytest.mark.skipif(torch.version.cuda is not None, reason="torch is a CUDA build")
def test_cuda_is_refused_where_torch_has_none(tree):
    sentence = refusal(tree, "cuda")
    assert f"torch {torch.__version__} is a build without CUDA" in sentence


def test_architectures_are_read(tree):
    """CMake's part alone: it stops at the first that is none."""
    if shutil.which("nvcc") is None:
        pytest.skip("needs nvcc")
    cmake = shutil.which("cmake", path=f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}")
    done = run(
        cmake, "-S", tree, "-B", tree / "build/archs", f"-DPython_EXECUTABLE={sys.executable}",
        "-DGENIMG_COMPILE_ONLY=ON", cwd=tree, TORCH_CUDA_ARCH_LIST="8.0 Hopper",
    )  # fmt: skip
    assert done.returncode != 0
    assert "Hopper is no architecture" in (tree / "build/archs/refusal.txt").read_text()


def test_unknown_level_is_refused(tree):
    before = set(tree.glob("build/cpu-*"))
    sentence = refusal(tree, "cpu", CMAKE_ARGS="-DGENIMG_CPU_LEVEL=sse9")
    assert "GENIMG_CPU_LEVEL=sse9: expected native, baseline" in sentence
    (folder,) = set(tree.glob("build/cpu-*")) - before  # other flags, other objects
    assert re.search(r"-[0-9a-f]{8}$", folder.name)


def test_a_build_for_one_level_runs_at_it(tmp_path):
    """Whatever the CPU has besides; every machine has the baseline."""
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    main = tmp_path / "main.cpp"
    main.write_text(
        '#include "isa.h"\n#include <cstdio>\n#include <exception>\n'
        "GENIMG_DECLARE_CPU_KERNEL(which)\n"
        'namespace genimg::cpu::baseline { void which() { std::puts("the baseline\'s"); } }\n'
        "int main() try {\n"
        "  GENIMG_CPU_KERNEL(which)();\n"
        "  std::puts(genimg::cpu::isa_name(genimg::cpu::active_isa()));\n"
        "} catch (const std::exception& error) { std::puts(error.what()); }\n"
    )
    cpu = ROOT / "kernels/cpu"
    command = [compiler, "-std=c++20", "-DGENIMG_ONLY_ISA=baseline", f"-I{cpu}", main]
    program = tmp_path / "level"
    done = run(*command, cpu / "isa.cpp", "-o", program, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert run(program, cwd=tmp_path, GENIMG_CPU_ISA="").stdout == "the baseline's\nbaseline\n"
    said = run(program, cwd=tmp_path, GENIMG_CPU_ISA="avx2").stdout
    assert said.startswith("GENIMG_CPU_ISA=avx2 is not available here")


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({}, "no compiled kernels (they were never built)"),
        ({"kind": "none", "reason": "no compiler"}, "no compiled kernels (no compiler)"),
        ({"torch": "9.8.7"}, "were built for torch 9.8.7 (without CUDA), but torch "),
        ({"torch_cuda": "99.0"}, "(CUDA 99.0), but torch "),
        ({"torch": torch.__version__.split("+")[0] + "+other"}, None),
    ],
)
def test_record_is_checked_before_loading(record, reason):
    if record and "kind" not in record:
        same = {"torch": torch.__version__, "torch_cuda": torch.version.cuda or ""}
        if torch.version.cuda and "torch" in record:
            same["torch_cuda"], reason = "", reason and "without CUDA"
        record = {"kind": "cpu", **same, **record}
    found = _native._check(record)
    assert found == reason if reason is None else reason in found


def test_library_for_another_torch_is_not_opened(pure, tmp_path):
    """A file that is no library would make opening it fail; the sentence is the record's."""
    lib = tmp_path / "lib"
    shutil.copytree(pure, lib)
    (lib / f"genimg/_C{SUFFIX}").write_bytes(b"no library")
    record = {"kind": "cpu", "reason": "", "torch": "1.0.0", "torch_cuda": ""}
    ask = "from genimg import _native; print(_native.why_not()); print(_native.why_not_cuda())"

    (lib / "genimg/_build.json").write_text(json.dumps(record))
    printed = python(lib, ask, tmp_path).splitlines()
    assert printed[0].startswith("the compiled kernels were built for torch 1.0.0")
    assert "rebuild: pip install --no-build-isolation" in printed[0]
    assert printed[0] == printed[1]

    record |= {"torch": torch.__version__, "torch_cuda": torch.version.cuda or ""}
    (lib / "genimg/_build.json").write_text(json.dumps(record))
    assert "the compiled kernels do not load" in python(lib, ask, tmp_path)

    (lib / f"genimg/_C{SUFFIX}").unlink()
    (lib / "genimg/_build.json").write_text(json.dumps({**record, "python": "3.0"}))
    assert "were built for Python 3.0" in python(lib, ask, tmp_path)


def test_kernels_is_importable_only_as_ours(pure, tmp_path):
    for cwd in (ROOT, tmp_path):
        printed = python(pure, "import genimg.kernels.triton as t; print(t.__name__)", cwd)
        assert printed.strip() == "genimg.kernels.triton"
    done = run(sys.executable, "-c", "import kernels", cwd=ROOT)
    assert "import genimg.kernels instead" in done.stderr.splitlines()[-1]


@pytest.mark.skipif(not _native.available(), reason=f"no _C: {_native.why_not()}")
def test_stub_and_record_tell_what_the_module_has():
    module = _native.load()
    stub = (ROOT / "genimg/_C.pyi").read_text()
    names = [name for name in dir(module) if not name.startswith("__")]
    assert names == [line[4 : line.index("(")] for line in stub.splitlines() if line[:4] == "def "]
    info = module.build_info()
    assert {key: info[key] for key in info if key not in ("isa", "threads")} == json.loads(
        (Path(_native.__file__).parent / "_build.json").read_text()
    )
    assert info["isa"] in info["isas"]
    assert info["threads"], "at::parallel_for is a plain loop without OpenMP"


@pytest.mark.skipif(not _native.available(), reason=f"no _C: {_native.why_not()}")
def test_library_names_no_folder_of_this_machine():
    library = Path(_native.load().__file__).read_bytes()
    for folder in (ROOT, Path(torch.__file__).parent, Path.home()):
        assert str(folder).encode() + b"/" not in library


@pytest.mark.slow
def test_sdist_and_wheel(tree, tmp_path):
    command = ("-m", "build", "--no-isolation", "-o", tmp_path, tree)
    one = "-DGENIMG_CPU_LEVEL=native"  # the others would take a minute, and show nothing more
    done = run(sys.executable, *command, cwd=tmp_path, GENIMG_BUILD="cpu", CMAKE_ARGS=one)
    assert done.returncode == 0, done.stdout + done.stderr
    (sdist,) = tmp_path.glob("*.tar.gz")
    (wheel,) = tmp_path.glob("*.whl")
    assert "none-any" not in wheel.name
    with tarfile.open(sdist) as archive:
        inside = archive.getnames()
    for path in ("csrc/module.cpp", "kernels/cpu/isa.h", "kernels/cuda/leaky_relu.cu", "Makefile"):
        assert f"{sdist.name.removesuffix('.tar.gz')}/{path}" in inside
    assert not [name for name in inside if name.endswith((".so", "_build.json"))]
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        record = json.loads(archive.read("genimg/_build.json"))
    assert (record["kind"], record["reason"]) == ("cpu", "GENIMG_BUILD=cpu")
    assert {f"genimg/_C{SUFFIX}", "genimg/_build.json", "genimg/kernels/__init__.py"} <= set(names)
    assert not [name for name in names if name.endswith((".cpp", ".cu", ".h", ".md"))]

    # Empty but for a path to this environment's packages, whose .pth files then do not count: its
    # editable genimg is not among them.
    venv = tmp_path / "venv"
    assert run(sys.executable, "-m", "venv", venv, cwd=tmp_path).returncode == 0
    (packages,) = venv.glob("lib/python*/site-packages")
    (packages / "torch.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = (venv / "bin/python", "-m", "pip", "install", "--no-deps", "--no-index", wheel)
    done = run(*pip, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    code = (
        "import genimg, genimg.kernels.triton.runtime\n"
        "from genimg import _native\n"
        "print(genimg.__file__, _native.why_not())"
    )
    done = run(venv / "bin/python", "-c", code, cwd=ROOT.parent)
    assert done.stdout.split() == [str(packages / "genimg/__init__.py"), "None"], done.stderr


@pytest.mark.slow
def test_cuda_sources_compile_against_any_torch(tree):
    """A file of each kind; make check-cuda compiles them all."""
    if shutil.which("nvcc") is None:
        pytest.skip("needs nvcc")
    scripts = f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}"
    cmake, ninja = (shutil.which(name, path=scripts) for name in ("cmake", "ninja"))
    folder = tree / "build/any-torch"
    options = [f"-DCMAKE_MAKE_PROGRAM={ninja}", f"-DPython_EXECUTABLE={sys.executable}"]
    options += [f"-DGENIMG_{name}=ON" for name in ("COMPILE_ONLY", "GATE", "WERROR")]
    objects = (
        "cuda_kernels.dir/kernels/cuda/leaky_relu.cu.o",
        "bindings.dir/csrc/leaky_relu.cpp.o",
    )
    targets = [f"CMakeFiles/{name}" for name in objects]
    for step in (
        ["-S", tree, "-B", folder, "-GNinja", *options],
        ["--build", folder, "--target", *targets],
    ):
        done = run(cmake, *step, cwd=tree)
        assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((folder / targets[0]).with_suffix(".kernels.json").read_text())
    assert {row["arch"] for row in rows} == {"80", "90a", "100", "120"}


@pytest.mark.slow
def test_wheel_without_kernels_serves_every_platform(tree, tmp_path):
    command = ("-m", "build", "--no-isolation", "--wheel", "-o", tmp_path, tree)
    done = run(sys.executable, *command, cwd=tmp_path, GENIMG_BUILD="none")
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
