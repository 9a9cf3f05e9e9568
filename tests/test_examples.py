"""The examples: each runs by itself, prints what it promises, and stands in the list."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from command_line import process

EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))
NUMBER = r"(\d+(?:\.\d+)?(?:e[-+]\d+)?)"

pytestmark = pytest.mark.skipif(not EXAMPLES.exists(), reason="not run from a source tree")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def printed(script: str, *arguments: str) -> str:
    done = process(str(EXAMPLES / script), *arguments, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    return done.stdout


def numbers(line: str, output: str) -> list[float]:
    """The numbers in the one line of the output that is ``line``, in which # is a number."""
    pattern = re.escape(line).replace(r"\#", NUMBER)
    found = re.findall(rf"^{pattern}$", output, re.MULTILINE)
    assert len(found) == 1, f"not once in the output: {line}\n{output}"
    return [float(number) for number in (found[0] if isinstance(found[0], tuple) else found)]


def test_convert_a_model() -> None:
    output = printed("convert_a_model.py")
    assert output.startswith("10 modules changed, 0 left alone\n")
    fused = r"^  layers: 0 ConvTranspose2d \+ 1 BatchNorm2d .* \+ 13 Tanh run as one conv_stack$"
    assert re.search(fused, output, re.MULTILINE)
    (difference,) = numbers("largest difference of the images, which lie in [-1, 1]: #", output)
    assert difference < 1e-4
    line = "a training step takes # ms before and # ms after: # times as fast"
    before, after, ratio = numbers(line, output)
    assert ratio == pytest.approx(before / after, rel=0.05)


def test_train_a_vae() -> None:
    output = printed("train_a_vae.py")
    first, last = numbers("the loss fell from # to #", output)
    assert 50 < last < 0.85 * first
    assert [numbers(f"epoch {epoch}: loss #", output) for epoch in (1, 3)] == [[first], [last]]


def test_gradient_penalty() -> None:
    output = printed("gradient_penalty.py")
    assert re.search(r"^0 Conv2d \+ 1 LeakyReLU .* run as one conv_stack$", output, re.MULTILINE)
    loss, plain = numbers("loss with the penalty: #, plain PyTorch #", output)
    assert loss == pytest.approx(plain, rel=1e-4)
    line = "relative difference of the # parameters' gradients: #"
    parameters, difference = numbers(line, output)
    assert parameters == 167_649
    assert difference < 1e-3  # a pre-activation near 0 may fall on either side of the kink


def test_compile_a_model() -> None:
    """Compiles by a backend that needs no C++ compiler and less than half a minute."""
    output = printed("compile_a_model.py", "--backend", "aot_eager")
    numbers("compiled by aot_eager into one graph, and run, in # s", output)
    compiled, plain = numbers("loss: compiled #, not compiled #", output)
    assert compiled == pytest.approx(plain, rel=1e-4)
    (difference,) = numbers("largest relative difference of a gradient: #", output)
    assert difference < 1e-4


def test_benchmark_a_layer() -> None:
    output = printed("benchmark_a_layer.py")
    assert output.startswith("4 modules changed, 0 left alone\n")
    (difference,) = numbers("relative difference of the output: #", output)
    assert difference < 1e-5
    row = re.compile(rf"^(PyTorch|genimg)(, channels_last)? +{NUMBER} ms$", re.MULTILINE)
    times = {who + layout: float(ms) for who, layout, ms in row.findall(output)}
    assert len(times) == 4
    pytorch, ours = (
        min(times[who], times[f"{who}, channels_last"]) for who in ("PyTorch", "genimg")
    )
    (ratio,) = numbers("genimg is # times as fast as the better PyTorch", output)
    assert ratio == pytest.approx(pytorch / ours, rel=0.05)


def test_every_example_runs_here() -> None:
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert {script.stem for script in SCRIPTS} <= tested


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_is_short_and_says_how_to_run_it(script: Path) -> None:
    source = script.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 60
    assert f"`python examples/{script.name}`" in (ast.get_docstring(ast.parse(source)) or "")


def test_readme_lists_the_files() -> None:
    readme = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \[(\S+)\]\((\S+)\) \|", readme, re.MULTILINE)
    names = [script.name for script in SCRIPTS]
    assert sorted(rows) == [(name, name) for name in names]
    others = {path.name for path in EXAMPLES.iterdir()} - set(names)
    assert others - {"__pycache__"} == {"README.md"}
    for link in re.findall(r"\]\(([^)#:]+)", readme):
        assert (EXAMPLES / link).exists(), link
