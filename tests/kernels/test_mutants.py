"""The generator of mutants: what it changes, and that the changed program is the one it says."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import mutants
import pytest
from cpp_source import GeneratorError
from equivalent_mutants import RULES

HERE = Path(__file__).parent
KERNELS = HERE.parents[1] / "kernels/cpu"
COMPILER = shutil.which("c++") or shutil.which("g++")
SNIPPET = """
template <int kSize>
struct Sum {
  explicit Sum(int from) : total(from + 1) {}
  int add(const int* x, int count) {
    constexpr int kKept = kSize + 1;
    int sums[kKept] = {};
    for (int i = 0; i < count; i += 2) sums[i % kKept] += -x[i] * 3;
    if (count >= 5 && x[0] != 7) total -= sums[2];
    return total + smaller(sums[0], count / 2);
  }
  int total;
};
"""
PROGRAM = """
#include <cstdio>
#include <cstdlib>
#include "cpu_mutants.h"
inline int smaller(int a, int b) { return a < b ? a : b; }
%s
int main(int, char** arguments) {
  genimg_mutant = std::atoi(arguments[1]);
  const int x[] = {-5, 2, 7, 4, 3, 9, -8, 1, 7, 1, 5, 2, 6, 2, 9, 3};
  for (int from = 0; from < 6; ++from) {
    for (int count = 0; count < 8; ++count) {
      Sum<2> sum(count);
      std::printf("%%d ", sum.add(x + from, count));
    }
  }
}
"""

needs_sources = pytest.mark.skipif(not KERNELS.exists(), reason="not run from a source tree")


def described(text: str) -> set[str]:
    found = mutants.Mutator("snippet.h", text, 1).mutants
    return {f"{mutant.function}: {mutant.site} -> {mutant.change}" for mutant in found}


def test_what_is_changed():
    changed = described(SNIPPET)
    assert {
        "Sum::Sum: from + 1 -> a - b",
        "Sum::Sum: from + 1) -> 2",
        "Sum::add: i < count -> one step less",
        "Sum::add: i % kKept -> a / b",
        "Sum::add: ] += - -> =",
        "Sum::add: -x[i] -> without its sign",
        "Sum::add: ] * 3 -> a",
        "Sum::add: count >= 5 -> a > b",
        "Sum::add: count >= 5 -> true",
        "Sum::add: x[0] != 7 -> true",
        "Sum::add: total -= sums -> =",
        "Sum::add: smaller(sums[0], count / 2) -> first argument",
        "Sum::add: smaller(sums[0], count / 2) -> second argument",
    } <= changed
    # Compile-time constants and a loop's step are not changed.
    assert not [text for text in changed if "kSize" in text or "i += 2" in text]


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
def test_every_mutant_is_another_program(tmp_path):
    mutator = mutants.Mutator("snippet.h", SNIPPET, 1)

    def build(name: str, text: str) -> Path:
        source = tmp_path / f"{name}.cpp"
        source.write_text(PROGRAM % text, encoding="utf-8")
        command = [COMPILER, "-std=c++20", "-O0", f"-I{HERE}", source, "-o", tmp_path / name]
        subprocess.run(command, check=True, timeout=120)
        return tmp_path / name

    def said(program: Path, number: int) -> str:
        done = subprocess.run([program, str(number)], capture_output=True, text=True, timeout=30)
        return f"{done.returncode} {done.stdout}"

    right = said(build("original", SNIPPET), 0)
    mutated = build("mutated", mutator.rewritten())
    assert said(mutated, 0) == right
    same = [str(mutant) for mutant in mutator.mutants if said(mutated, mutant.number) == right]
    assert same == []


def test_what_it_does_not_understand_is_an_error():
    with pytest.raises(GeneratorError, match="stays open"):
        mutants.Mutator("snippet.h", "int f() { return (1; ", 1)
    with pytest.raises(GeneratorError, match="no token"):
        mutants.Mutator("snippet.h", "int f() { return `1; }", 1)


@needs_sources
def test_a_function_that_is_gone_is_an_error(tmp_path):
    shutil.copytree(KERNELS, tmp_path / "cpu")
    path = tmp_path / "cpu/conv/load.h"
    path.write_text(path.read_text().replace("find_patch", "seek_patch"))
    with pytest.raises(GeneratorError, match="no mutants of find_patch"):
        mutants.generate(tmp_path / "cpu")


@needs_sources
def test_every_sign_of_the_transforms_has_a_mutant():
    _, every = mutants.generate(KERNELS)
    for name, function in (
        ("conv/load.h", "transform_axis"),
        ("conv/store.h", "finish_axis"),
        ("conv/pack.cpp", "combine_taps"),
        ("conv/wgrad.cpp", "spread_axis"),
        ("conv/wgrad.cpp", "separate_taps"),
    ):
        text = (KERNELS / name).read_text(encoding="utf-8")
        body = re.search(rf"inline void {function}\(.*?\n}}\n", text, re.DOTALL)
        assert body, function
        code = re.sub(r"//[^\n]*", "", body.group())
        signs = len(re.findall(r" [-+] |[=,(] *-\w", code))
        changes = [mutant for mutant in every if mutant.function == function]
        signed = [m for m in changes if m.change in ("a + b", "a - b", "without its sign")]
        assert len(signed) == signs > 3, function


@needs_sources
def test_no_rule_of_equivalence_is_stale():
    _, every = mutants.generate(KERNELS)
    stale = [rule for rule in RULES if not any(rule.covers(mutant, None) for mutant in every)]
    assert stale == []


@pytest.mark.slow  # a minute and a half of compiling
def test_chosen_mutants_fail_a_case():
    command = [sys.executable, HERE / "check_mutants.py", "--only", "finish_axis"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 missed" in done.stdout
