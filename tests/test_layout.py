"""The layout, as tests: every line in its room, every op complete, every list true."""

from __future__ import annotations

import ast
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

from genimg import environment, info, ops, reference
from genimg.backends import OPS, REFERENCE, dtype_name

ROOT = Path(__file__).parents[1]
TEXT = {
    ".yml",
    ".yaml",
    ".py",
    ".pyi",
    ".h",
    ".cpp",
    ".cu",
    ".cmake",
    ".txt",
    ".md",
    ".toml",
    ".ini",
    ".in",
    "",
}

# Each room imports only from those after it.
ROOMS = (
    *("__main__", "cli", "info", "bench", "check", "train", "models", "model_tuning"),
    *("nn", "ops"),
    *(
        "cases",
        "reference",
        "explanation",
        "tuning",
        "trial",
        "decisions",
        "budget",
        "kinds",
        "isolation",
        "backends",
        "priors",
        "kernels",
        "conv_blocks",
        "_native",
        "memory_format",
        "testing",
        "transforms",
        "work",
        "environment",
        "machine",
        "timing",
        "terminal",
        "versions",
    ),
)
MAY_IMPORT_GENIMG_ITSELF = ("__main__", "cli", "info")
BINDINGS_OF_SEVERAL = {"conv_block", "convolution", "leaky_signs", "memory_format", "module"}
NOT_OPS = {
    "ops": {
        *("__init__", "autograd", "checks", "contraction", "conv_block", "conv_refusals"),
        *("conv_rules", "conv_stack_work", "convolution", "flops", "fold", "geometry"),
        "leaky_signs",
    },
    "cases": {"__init__"},
    "reference": {"__init__"},
}
pytestmark = pytest.mark.skipif(
    not (ROOT / "pyproject.toml").exists(), reason="not run from a source tree"
)


@cache
def files() -> tuple[Path, ...]:
    """Every file that is, or would be, under version control."""
    if not (ROOT / ".git").exists():
        pytest.skip("not run from a git checkout")
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    found = (ROOT / name for name in sorted(set(names.split("\0"))) if name)
    return tuple(path for path in found if path.is_file() and path.suffix in TEXT)


def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def lines_that_match(pattern: str, paths: list[Path]) -> list[str]:
    return [
        f"{name(path)}:{number}: {line.strip()}"
        for path in paths
        for number, line in enumerate(text(path).splitlines(), 1)
        if re.search(pattern, line)
    ]


def under(folder: str, *suffixes: str) -> list[Path]:
    return [path for path in files() if name(path).startswith(folder) and path.suffix in suffixes]


def stems(folder: str, pattern: str = "*.py") -> set[str]:
    return {path.stem for path in (ROOT / folder).glob(pattern)}


def test_no_file_above_500_lines():
    assert [name(path) for path in files() if len(text(path).splitlines()) > 500] == []


def test_nothing_is_left_for_later():
    assert lines_that_match("TO" + "DO|FIX" + "ME", list(files())) == []


def test_no_path_of_one_machine():
    assert lines_that_match(r"(?<![\w.\])}])/(home|work|tmp|root|Users)/\w", list(files())) == []


def openings(path: Path) -> list[tuple[int, str]]:
    """The first line of every docstring and of every block of comments, with its number."""
    source = text(path)
    found = []
    if path.suffix == ".py":
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, kinds) and (docstring := ast.get_docstring(node)):
                found.append((node.body[0].lineno, docstring))
    mark = "#" if path.suffix == ".py" else "//"
    comments = [re.match(rf"\s*{mark}\s*(.*)", line) for line in source.splitlines()]
    for number, (before, comment) in enumerate(zip([None, *comments], comments, strict=False), 1):
        if comment and not before:
            found.append((number, comment[1]))
    return found


def test_comments_name_their_subject():
    folders = ("genimg/", "kernels/", "csrc/", "tests/", "benchmarks/")
    paths = [path for room in folders for path in under(room, ".py", ".h", ".cpp", ".cu")]
    headless = [
        f"{name(path)}:{number}: {opening}"
        for path in paths
        for number, opening in openings(path)
        if opening.startswith("Of ")
    ]
    assert headless == []


def test_architecture_page_has_the_rooms_in_order():
    page = text(ROOT / "docs/architecture.md").split("## Layers")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (`[^|]*) \|", page, re.MULTILINE)
    rooms = re.findall(r"`(\w+)`", " ".join(rows))
    assert len(rooms) > 10
    assert rooms == [room for room in ROOMS if room in rooms]


def test_packages_are_the_folders():
    tomllib = pytest.importorskip("tomllib")
    setuptools = tomllib.loads(text(ROOT / "pyproject.toml"))["tool"]["setuptools"]
    folders = {
        ".".join(path.parent.relative_to(ROOT).parts): path.parent
        for room in ("genimg", "kernels")
        for path in (ROOT / room).rglob("__init__.py")
    }
    expected = {re.sub(r"^kernels", "genimg.kernels", package) for package in folders}
    assert sorted(setuptools["packages"]) == sorted(expected)
    python = {path.parent for room in ("genimg/", "kernels/") for path in under(room, ".py")}
    assert python == set(folders.values())


def imports(path: Path) -> set[str]:
    """The rooms of genimg that a file imports; ``genimg`` itself is an empty string."""
    found = set()
    for node in ast.walk(ast.parse(text(path))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name(path)} imports relatively"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    parts = [each.split(".") for each in found if each.split(".")[0] == "genimg"]
    return {each[1] if len(each) > 1 and each[1] in ROOMS else "" for each in parts}


def test_imports_go_one_way():
    wrong = []
    for path in [*under("genimg/", ".py"), *under("kernels/", ".py")]:
        parts = path.relative_to(ROOT).with_suffix("").parts
        room = "kernels" if parts[0] == "kernels" else parts[1]
        if room == "__init__":
            continue
        assert room in ROOMS, f"{name(path)} is in no room that this test knows"
        for target in imports(path):
            if not target:
                allowed = room in MAY_IMPORT_GENIMG_ITSELF
            else:
                allowed = target == room or ROOMS.index(target) > ROOMS.index(room)
            if not allowed:
                wrong.append(f"{name(path)} imports genimg.{target}")
    assert wrong == []


def test_host_functions_of_kernels_have_types():
    """All but those that Triton compiles, for which mypy's own rule is off."""
    untyped = [
        f"{name(path)}: {node.name}"
        for path in under("kernels/", ".py")
        for node in ast.walk(ast.parse(text(path)))
        if isinstance(node, ast.FunctionDef)
        if not any("jit" in ast.unparse(each) for each in node.decorator_list)
        if node.returns is None
        or any(
            each.annotation is None for each in node.args.args if each.arg not in ("self", "cls")
        )
    ]
    assert untyped == []


def test_kernels_know_no_torch():
    sources = [path for path in under("kernels/", ".h", ".cpp", ".cu") if "simt" not in path.parts]
    assert lines_that_match(r"#include\s*[<\"](torch|ATen|c10|pybind11|Python)", sources) == []


def test_cpu_kernels_share_no_function_with_other_levels():
    """An inline function from elsewhere has one copy in the library, perhaps the AVX-512 one."""
    sources = [path for path in under("kernels/cpu/", ".h", ".cpp") if path.stem != "isa"]
    allowed = r"\"|<(cstdint|cstddef|cstring|immintrin\.h|arm_neon\.h)>"
    assert lines_that_match(rf"#include (?!{allowed})", sources) == []
    used = lines_that_match(r"^(?!\s*//).*std::(?!mem|u?int|size_t|ptrdiff_t)", sources)
    assert used == []
    for path in sources:
        inside = re.findall(r"^namespace (genimg\S*)", text(path), re.MULTILINE)
        assert inside, name(path)
        if path.suffix == ".cpp":
            assert inside == ["genimg::cpu::GENIMG_ISA"], name(path)


@pytest.mark.parametrize(("folder", "source"), [("kernels/cpu", "cpp"), ("kernels/cuda", "cu")])
def test_every_kernel_has_its_header(folder, source):
    for path in (ROOT / folder).rglob(f"*.{source}"):
        assert path.with_suffix(".h").exists(), path


def test_names_carry_their_stem():
    wrong = []
    for path in under("kernels/cuda/", ".h", ".cu"):
        for found in re.findall(r"\bcudaError_t launch_(\w+)", text(path)):
            stem = "_".join(path.relative_to(ROOT / "kernels/cuda").with_suffix("").parts)
            if not found.startswith(stem):
                wrong.append(f"{name(path)}: launch_{found}")
    for path in under("csrc/", ".cpp"):
        for found in re.findall(r"m\.def\(\s*\"(\w+)\(", text(path)):
            if not found.startswith(path.stem):
                wrong.append(f"{name(path)}: {found}")
    assert wrong == []


@pytest.mark.parametrize("op", sorted(OPS))
def test_every_op_is_complete(op):
    entry = OPS[op]
    assert entry.name == op
    assert getattr(ops, op) is entry.function
    assert getattr(reference, op) is entry.reference
    for path in (
        f"genimg/ops/{op}.py",
        f"genimg/reference/{op}.py",
        f"genimg/cases/{op}.py",
        f"tests/ops/test_{op}.py",
        f"benchmarks/bench_{op}.py",
    ):
        assert (ROOT / path).exists(), path
    for tables in ("contract", "opcheck", "second_derivatives", "transforms"):
        assert f'"{op}"' in text(ROOT / f"tests/ops/test_{tables}.py"), tables
    assert re.search(r"^CASES\b", text(ROOT / f"genimg/cases/{op}.py"), re.MULTILINE)
    assert 8 <= len(entry.cases) <= 40
    names = [case.name for case in entry.cases]
    assert len(set(names)) == len(names)
    assert all(case.why for case in entry.cases)
    assert any(case.speed for case in entry.cases)


def test_every_file_of_ops_is_an_op():
    for folder, others in NOT_OPS.items():
        assert stems(f"genimg/{folder}") - others == set(OPS)
    assert stems("csrc", "*.cpp") - BINDINGS_OF_SEVERAL <= set(OPS)
    tests = {stem.removeprefix("test_") for stem in stems("tests/ops", "test_*.py")}
    assert tests >= set(OPS)  # others are named for what they ask of every op
    benchmarks = {stem.removeprefix("bench_") for stem in stems("benchmarks", "bench_*.py")}
    assert benchmarks - {"models"} == set(OPS)


def test_coverage_table_is_the_registry():
    page = text(ROOT / "kernels/README.md").split("## Where to read")[0]
    rows = re.findall(r"^\| (.+) \|$", page, re.MULTILINE)
    cells = [[cell.strip() for cell in row.split("|")] for row in rows]
    header = cells[0]
    table = {row[0].strip("`"): dict(zip(header, row, strict=True)) for row in cells[1:]}
    expected = {
        op: {
            "op": f"`{op}`",
            REFERENCE: "yes",
            **{
                backend: ", ".join(map(dtype_name, entry.by_backend[backend].dtypes))
                if backend in entry.by_backend
                else ""
                for backend in header[2:]
            },
        }
        for op, entry in OPS.items()
    }
    assert table == expected


def test_every_environment_variable_is_on_the_page():
    page = text(ROOT / "docs/environment.md")
    documented = set(re.findall(r"^\|(?: `\w+`,?)+", page, re.MULTILINE))
    documented = set(re.findall(r"\w+", " ".join(documented)))
    sources = [
        path
        for folder in ("genimg/", "kernels/", "csrc/", "cmake/", "setup.py", "CMakeLists.txt")
        for path in under(folder, ".py", ".h", ".cpp", ".cu", ".cmake", ".txt")
    ]
    reads = (
        r"(?:environ(?:\.get\(|\[)|environment\.(?:value|is_on)\()\s*\"(\w+)"
        r"|getenv\(\"(\w+)|\$ENV\{(\w+)\}|DEFINED ENV\{(\w+)\}"
    )
    read = {
        variable
        for path in sources
        for groups in re.findall(reads, text(path))
        for variable in groups
        if variable
    }
    assert read - documented == {"PATH", "NVCC_APPEND_FLAGS"}
    ours = {variable for variable in documented if variable.startswith("GENIMG_")}
    assert ours <= read
    assert ours == set(environment.VARIABLES)
    assert ours <= set(info.ENVIRONMENT) <= documented
