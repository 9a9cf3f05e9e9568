"""docs/adding_an_op.md, followed: a seventh op in a copy of the tree, by the page's steps alone.

The op is leaky_relu under another name, made of the files that the page names. A list that the page
does not mention, and that an op must be on, fails here.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BUILT_FOLDERS = (".*", "build", "dist", "out", "runs", "*.egg-info", "__pycache__", "*.so")
NAMES = (  # but not torch's own, nor its prior, which holds for the other name, too
    (r"(?<!F\.)(?<!functional\.)(?<!aten\.)(?<!priors\.of_)leaky_relu", "toy_relu"),
    (r"(?<!nn\.)LeakyReLU", "ToyReLU"),
    ("LEAKY_RELU", "TOY_RELU"),
)
LISTS = (
    *("genimg/ops/__init__.py", "genimg/reference/__init__.py", "genimg/nn/__init__.py"),
    *("tests/ops/test_contract.py", "tests/ops/test_opcheck.py"),
    *("tests/ops/test_second_derivatives.py", "tests/ops/test_transforms.py"),
    *("kernels/README.md", "README.md"),
)
"""Files that list the ops, one to a line."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="not run from a source tree"),
]


def renamed(text: str) -> str:
    for old, new in NAMES:
        text = re.sub(old, new, text)
    return text


def files_of(page: str) -> list[str]:
    """The paths with the op's stem; ``x.h` and `.cpp`` are two."""
    found = []
    for path, more in re.findall(r"`([\w/]*leaky_relu\.\w+)`(?: and `(\.\w+)`)?", page):
        found += [path, str(Path(path).with_suffix(more))] if more else [path]
    return found


def extend_lists(tree: Path) -> None:
    """Put the new op beside leaky_relu in every list."""
    entry = re.compile(
        r'^(\s+"leaky_relu"[,:].*|\s+"LeakyReLU",'
        r"|from genimg\.\w+\.leaky_relu import \w+|\| .*`leaky_relu`.*)\n",
        re.MULTILINE,
    )
    for name in LISTS:
        path = tree / name
        text, count = entry.subn(lambda line: line[0] + renamed(line[0]), path.read_text())
        assert count > 0, name
        path.write_text(text)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The copy, with the op in it."""
    tree = tmp_path_factory.mktemp("tree") / "genimg"
    shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(*BUILT_FOLDERS, "_build.json"))
    shutil.copy(ROOT / ".gitignore", tree)
    page = (tree / "docs/adding_an_op.md").read_text()
    assert [name for name in LISTS if f"`{name}`" not in page and name != "README.md"] == []
    files = files_of(page)
    assert len(files) == len(set(files)) == 12
    for name in files:
        (tree / renamed(name)).write_text(renamed((tree / name).read_text()))
    extend_lists(tree)
    return tree


@pytest.fixture(scope="module")
def python(tree: Path) -> Path:
    """An environment with the copy built into it, and this environment's packages."""
    venv = tree.parent / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    (packages,) = venv.glob("lib/python*/site-packages")
    # The .pth files of those packages do not count: this project's own is not among them.
    (packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = venv / "bin/python"
    build = {"GENIMG_BUILD": "cpu", "CMAKE_ARGS": "-DGENIMG_CPU_LEVEL=native", "DEBUG": "1"}
    install = ("-m", "pip", "install", "--no-deps", "--no-index", "--no-build-isolation")
    run(python, *install, "-e", tree, **build)
    subprocess.run(["git", "init", "-q", tree], check=True)  # test_layout.py asks it for the files
    return python


def run(python: Path, *command: object, **environment: str) -> str:
    """What the copy's Python prints; fails if it does."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("GENIMG_", "PYTEST_"))}
    done = subprocess.run(
        [python, *map(str, command)],
        cwd=python.parents[2] / "genimg",
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    return done.stdout


def test_the_layout_knows_it(python):
    run(python, "-m", "pytest", "-q", "tests/test_layout.py")


def test_its_tests_pass_on_every_backend(python):
    tests = ("test_toy_relu", "test_contract", "test_opcheck", "test_second_derivatives")
    paths = [f"tests/ops/{name}.py" for name in (*tests, "test_transforms")]
    printed = run(python, "-m", "pytest", "-q", *paths, "tests/test_work.py", "-k", "toy_relu")
    assert int(re.findall(r"(\d+) passed", printed)[0]) > 100


def test_check_sees_every_backend(python):
    printed = run(python, "-m", "genimg", "check", "--op", "toy_relu", TRITON_INTERPRET="1")
    rows = [line.split() for line in printed.splitlines() if line.startswith("toy_relu")]
    assert {"cpu", "triton"} <= {word for row in rows for word in row}, printed


def test_the_benchmark_has_a_bound(python, tmp_path):
    results = tmp_path / "results.json"
    run(
        *(python, "-m", "pytest", "benchmarks/bench_toy_relu.py", "-c", "benchmarks/pytest.ini"),
        *("--rootdir=.", f"--benchmark-json={results}", "-k", "forward-genimg or forward-eager"),
    )
    rows = json.loads(results.read_text())["benchmarks"]
    assert rows
    assert all(row["extra_info"]["bound_ms"] > 0 for row in rows)


def test_its_triton_kernels_compile(python):
    command = ("tests/kernels/check_triton.py", "--here", "--only", "toy_relu", "--arch", "90")
    printed = run(python, *command, TRITON_INTERPRET="0")
    assert "sm_90" in printed
