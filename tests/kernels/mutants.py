"""Generates mutants of the CPU convolutions: each sign, coefficient, index and border, changed.

All mutants are compiled into one library (mutant schemata): an operator becomes a call that does
what it did, or something else where ``genimg_mutant`` is its number; ``a - b`` is written
``a -gm::Op(17)- b``, which keeps precedence without parsing expressions (cpu_mutants.h has the
operators). So the sources are only split into tokens, and new functions are mutated unasked.

What is changed, inside the bodies of functions:

- ``+`` and ``-`` to each other, ``a * b`` to ``a``, ``/`` and ``%`` to each other, a unary ``-``
  dropped, ``+=`` to ``=``;
- an integer by one, up and down; a fraction to its double; ``true`` and ``false`` to each other;
- ``<`` and ``<=``, ``>`` and ``>=``, ``==`` and ``!=`` to each other; a loop's ``<`` to one step
  less (one step more reads or writes out of bounds, which is for make sanitize to find);
- a condition to true and to false, an operand of ``&&`` and ``||`` dropped;
- ``smaller`` and ``larger`` to either of their arguments.

What the compiler must know stays: ``constexpr``, template arguments, dimensions of arrays; and what
only hints: prefetches.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cpp_source import CLOSING, GeneratorError, Source

SOURCES = {
    "conv/tiles.h": (
        "winograd_up",
        "winograd_down",
        "floor_mod",
        "direct_up",
        "direct_down",
        "im2col_down",
        "tiling_of",
        "Axis::all_outputs",
        "Tiling::max_values",
    ),
    "leaky.h": ("Leaky::Leaky", "Leaky::operator()"),
    "conv/load.h": (
        "AffineLeaky::apply",
        "AffineLeaky::one",
        "TwoTensor::apply",
        "Guard::refuses",
        "find_patch",
        "transform_axis",
        "transform_vector",
        "over_vectors",
        "blocked",
        "load_winograd_tile",
        "load_position",
        "load_copied_tile",
        "copy_run",
        "load_im2col_tile",
        "Cursor::Cursor",
        "Cursor::advance",
    ),
    "conv/store.h": (
        "tanh_of",
        "sigmoid_of",
        "PlainStore::operator()",
        "GateStore::operator()",
        "finish_axis",
        "finish_tile",
        "finish_vector",
        "moments_about",
    ),
    "conv/contraction.h": (
        "unit_at",
        "find_terms",
        "Contraction::find_outputs",
        "Contraction::each_output_phase",
        "Contraction::run_panels",
        "Contraction::multiply_output_phase",
        "Contraction::take_moments",
    ),
    "conv/col2im.h": (
        "add_columns",
        "Col2imContraction::multiply_channels",
        "Col2imContraction::add_up",
        "Col2imContraction::take_moments",
    ),
    "conv/few.h": ("FewUp::FewUp", "FewUp::first_small", "FewUp::last_small"),
    "conv/algorithms.h": ("fits_winograd", "fits_col2im", "algorithm_of", "wgrad_algorithm"),
    "conv/pack.cpp": ("packing_of", "combine_taps", "combine", "read_taps", "pack_few_row", "pack"),
    "conv/dgrad.cpp": ("FewContraction::gather_row", "FewContraction::gather_tap"),
    "conv/wgrad.cpp": (
        "each_term",
        "find_outers",
        "spread_axis",
        "spread_tile",
        "spread_block",
        "separate_taps",
        "separate",
        "finish",
        "conv_wgrad_chunk",
        "conv_wgrad_multiply",
    ),
}
"""The files, and functions in them that must be found, so that none is lost in silence."""

# Binary operators and what a mutant makes of them; clang-format puts spaces around these.
BINARY = {
    "+": "a - b",
    "-": "a + b",
    "*": "a",
    "/": "a % b",
    "%": "a / b",
    "<": "a <= b",
    "<=": "a < b",
    ">": "a >= b",
    ">=": "a > b",
    "==": "a != b",
    "!=": "a == b",
}
FORCED = re.compile(r"\[\[gnu::always_inline\]\]|__attribute__\(\(always_inline\)\)")
# Where an operand of ?, && and || may begin or end.
BOUNDS = {"(", "[", "{", "}", ")", "]", ",", ";", "?", ":", "=", "return", "&&", "||"} | {
    f"{operator}=" for operator in "+-*/%&|^"
}


@dataclass(frozen=True)
class Mutant:
    """One change: ``code`` is the source's line, ``change`` what it does to ``site``."""

    number: int
    file: str
    line: int
    function: str
    site: str
    change: str
    code: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line} {self.function}"
        return f"{self.number:>5} {place}: {self.site} -> {self.change}: {self.code}"


class Mutator:
    """Rewrites one file, and numbers its mutants from ``first`` on."""

    def __init__(self, name: str, text: str, first: int) -> None:
        self.source = Source(name, text)
        self.first = first
        self.mutants: list[Mutant] = []
        self.edits: list[tuple[int, int, str]] = []  # position, order, text to put there
        self.replaced: dict[int, str] = {}  # tokens
        self.loops: dict[int, str] = {}  # tokens of a loop's head -> its step
        self.function = ""
        for function, begin, end in self.source.bodies():
            self.function = function
            self._visit(begin, end)

    def _add(self, first: int, last: int, *changes: str, before: int = 0, after: int = 0) -> int:
        """Mutants of tokens first to last; the number of the first one.

        As many tokens before and after tell the site from others in its line.
        """
        source = self.source
        begin = source.tokens[first - before].start
        end = source.tokens[last + after].end
        line = source.text.count("\n", 0, begin) + 1
        code = source.text.splitlines()[line - 1].strip()
        site = " ".join(source.text[begin:end].split())
        number = self.first + len(self.mutants)
        for i, change in enumerate(changes):
            self.mutants.append(
                Mutant(number + i, source.name, line, self.function, site, change, code)
            )
        return number

    def _wrap(self, call: str, first: int, last: int) -> None:
        """Put tokens first to last into a call: ``gm::x(1, tokens)``."""
        tokens = self.source.tokens
        # Where several begin at one place the widest is put first, and ends last.
        width = last - first
        self.edits.append((tokens[first].start, -width, f"{call}, "))
        self.edits.append((tokens[last].end, width - len(tokens), ")"))

    def _visit(self, begin: int, end: int) -> None:
        source = self.source
        for i in range(begin, end):
            word = source.word(i)
            if word == "for" and source.word(i + 1) == "(":
                self._keep_loop(i + 1)
            if i in source.kept:
                continue
            kind = source.tokens[i].kind
            if kind == "number":
                self._number(i)
            elif word in ("true", "false"):
                number = self._add(i, i, "false" if word == "true" else "true")
                self.replaced[i] = f"gm::flip({number}, {word})"
            elif word in ("smaller", "larger") and source.word(i + 1) == "(":
                number = self._add(i, source.partner[i + 1], "first argument", "second argument")
                self.edits.append((source.tokens[i + 1].end, 0, f"{number}, "))
                self.replaced[i] = f"gm::{word}"
            elif word == "if" and source.word(i + 1) == "(":
                self._condition(i + 2, source.partner[i + 1] - 1)
            elif word == "?":
                self._condition(self._operand_begins(i, "&&", "||"), i - 1)
            elif word in ("&&", "||") and source.spaced(i):
                self._chain(i, word)
            elif word in ("+=", "-=") and i not in self.loops:
                number = self._add(i, i, "=", before=1, after=1)
                self.replaced[i] = f"{word} gm::Op({number}) {word}"
            elif word in BINARY and i not in source.partner and source.spaced(i):
                self._binary(i, word)
            elif word == "-":
                self._negative(i)

    def _keep_loop(self, i: int) -> None:
        """A loop's step stays, and its condition may only end it earlier."""
        source = self.source
        first = source.find(i + 1, ";", ")")
        if source.word(first) != ";":
            return  # over a range
        second = source.find(first + 1, ";")
        end = source.partner[i]
        source.kept.update(range(second, end))
        step = "1"
        added = [j for j in range(second, end) if source.word(j) == "+="]
        if added:
            last = next((j for j in self._flat(added[0], end) if source.word(j) in (",", ")")), end)
            begin, stop = source.tokens[added[0]].end, source.tokens[last].start
            step = source.text[begin:stop].strip()
            step = step if re.fullmatch(r"[\w.* ]+", step) else "1"
        self.loops.update(dict.fromkeys(range(first, end), step))

    def _binary(self, i: int, word: str) -> None:
        if i in self.loops and word in ("<", "<="):
            number = self._add(i, i, "one step less", before=1, after=1)
            self.replaced[i] = f"{word} gm::Op({number}, {self.loops[i]}) {word}"
            return
        number = self._add(i, i, BINARY[word], before=1, after=1)
        self.replaced[i] = f"{word} gm::Op({number}) {word}"

    def _number(self, i: int) -> None:
        text = self.source.word(i)
        if not text.isdigit():
            number = self._add(i, i, "doubled", before=1, after=1)
            self.replaced[i] = f"gm::scaled({number}, {text})"
            return
        changes = [str(int(text) + 1)] + ([str(int(text) - 1)] if int(text) else [])
        number = self._add(i, i, *changes, before=2, after=1)
        self.replaced[i] = f"gm::number({number}, {text})"

    def _negative(self, i: int) -> None:
        """A unary minus and its operand: a name or a bracket, with what is selected from it."""
        source = self.source
        last = i + 1
        if source.word(last) in CLOSING:
            last = source.partner[last]
        while True:
            following = source.word(last + 1)
            if following in ("(", "[") or (following == "<" and last + 1 in source.partner):
                last = source.partner[last + 1]
            elif following in (".", "->", "::"):
                last += 2
            else:
                break
        number = self._add(i, last, "without its sign")
        self.replaced[i] = ""
        self._wrap(f"gm::negative({number}", i, last)

    def _condition(self, first: int, last: int) -> None:
        source = self.source
        if source.kept.intersection(range(first, last + 1)) == set(range(first, last + 1)):
            return
        chained = {"&&", "||"} & {source.word(j) for j in self._flat(first, last)}
        if chained:
            return  # its operands are dropped one by one
        number = self._add(first, last, "true", "false")
        self._wrap(f"gm::condition({number}", first, last)

    def _flat(self, first: int, last: int) -> Iterator[int]:
        """Tokens first to last that are in no brackets of their own."""
        i = first
        while i <= last:
            yield i
            i = self.source.partner[i] + 1 if self.source.word(i) in CLOSING else i + 1

    def _chain(self, i: int, word: str) -> None:
        """The operand right of && or ||; the one on the left, too, if it is the first."""
        source = self.source
        change, call = ("true", "gm::either") if word == "&&" else ("false", "gm::both")
        begin = self._operand_begins(i)
        operands = [(i + 1, self._operand_ends(i))]
        if source.word(begin - 1) not in ("&&", "||"):
            operands.insert(0, (begin, i - 1))
        for first, last in operands:
            number = self._add(first, last, change)
            self._wrap(f"{call}({number}", first, last)

    def _operand_begins(self, i: int, *within: str) -> int:
        source, j = self.source, i - 1
        while source.word(j) not in BOUNDS - set(within) or source.word(j) in (")", "]", "}"):
            if j in source.partner and source.word(j) in (")", "]", "}", ">"):
                j = source.partner[j]
            j -= 1
        return j + 1

    def _operand_ends(self, i: int) -> int:
        source, j = self.source, i + 1
        while source.word(j) not in BOUNDS or source.word(j) in CLOSING:
            j = source.partner[j] if source.word(j) in CLOSING else j
            j += 1
        return j - 1

    def rewritten(self) -> str:
        """The file with all its mutants in it."""
        edits = list(self.edits)
        tokens = self.source.tokens
        for i, text in self.replaced.items():
            edits.append((tokens[i].start, 1, text))
        skips = {tokens[i].start: tokens[i].end for i in self.replaced}
        edits.sort(key=lambda edit: edit[:2])
        text, parts, at = self.source.text, [], 0
        for position, _, new in edits:
            parts += [text[at:position], new]
            at = max(at, skips.get(position, position)) if _ == 1 else max(at, position)
        parts.append(text[at:])
        # Inlining by force is for speed, and would take minutes to compile.
        return FORCED.sub("", "".join(parts))


def generate(kernels: Path) -> tuple[dict[str, str], list[Mutant]]:
    """The mutated files by name, and all mutants, numbered from 1 on.

    Raises:
        GeneratorError: a file or a function of :data:`SOURCES` is missing, or has no mutants.
    """
    files: dict[str, str] = {}
    mutants: list[Mutant] = []
    for name, expected in SOURCES.items():
        mutator = Mutator(name, (kernels / name).read_text(encoding="utf-8"), len(mutants) + 1)
        counts = Counter(mutant.function for mutant in mutator.mutants)
        missing = [function for function in expected if not counts[function]]
        if missing:
            raise GeneratorError(f"{name}: no mutants of {', '.join(missing)}")
        up = "../" * name.count("/")
        files[name] = f'#include "{up}cpu_mutants.h"\n' + mutator.rewritten()
        mutants += mutator.mutants
    return files, mutants
