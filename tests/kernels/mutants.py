"""Generates mutants of the CPU convolutions: each sign, coefficient, index and border, changed.

All mutants are compiled into one library (mutant schemata): an operator becomes a call that does
what it did, or something else where ``genimg_mutant`` is its number; ``a - b`` is written
``a -gm::Op(17)- b``, which keeps precedence without parsing expressions (cpu_mutants.h has the
operators). So the sources are only split into tokens, and new functions are mutated unasked.

What is changed, inside the bodies of functions:

- ``+`` and ``-`` to each other, ``a * b`` to ``a``, ``/`` and ``%`` to each other, a unary ``-``
  dropped, ``+=`` to ``=``;
- an integer by one, up and down; a fraction to its double; ``true`` and ``false`` to each other;
- ``<`` and ``<=``, ``>`` and ``>=``, ``==`` and ``!=`` to each other; a loop's ``<`` to one step less
  (one step more reads or writes out of bounds, which is for make sanitize to find);
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

SOURCES = {
    "conv_tiles.h": (
        "winograd_up",
        "winograd_down",
        "floor_mod",
        "direct_up",
        "direct_down",
        "gathered_down",
        "tiling_of",
        "Axis::all_outputs",
        "Tiling::max_values",
    ),
    "conv_load.h": (
        "leaky",
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
        "load_gathered_tile",
        "Cursor::Cursor",
        "Cursor::advance",
    ),
    "conv_store.h": (
        "tanh_of",
        "sigmoid_of",
        "PlainStore::operator()",
        "GateStore::operator()",
        "finish_axis",
        "finish_tile",
        "finish_vector",
        "moments_about",
    ),
    "conv_contract.h": (
        "unit_at",
        "find_terms",
        "Contraction::find_outputs",
        "Contraction::each_outlet",
        "Contraction::run_panels",
        "Contraction::multiply_outlet",
        "Contraction::take_moments",
    ),
    "conv_columns.h": (
        "add_columns",
        "ColumnsContraction::multiply_channels",
        "ColumnsContraction::add_up",
        "ColumnsContraction::take_moments",
    ),
    "conv_few.h": ("FewUp::FewUp", "FewUp::first_small", "FewUp::last_small"),
    "conv_forms.h": ("fits_winograd", "fits_columns", "form_of", "wgrad_form"),
    "conv_pack.cpp": ("packing_of", "combine_taps", "combine", "read_taps", "pack_few_row", "pack"),
    "conv_dgrad.cpp": ("FewContraction::gather_row", "FewContraction::gather_tap"),
    "conv_wgrad.cpp": (
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
"""The files, and functions in them that must be found: one that is renamed is not lost in silence."""

TOKEN = re.compile(
    r"(?P<space>\s+|//[^\n]*|/\*.*?\*/)|(?P<directive>\#(?:[^\n\\]|\\.)*)"
    r"|(?P<text>\"(?:[^\"\\\n]|\\.)*\"|'(?:[^'\\\n]|\\.)*')"
    r"|(?P<number>(?:0[xX][\da-fA-F]+|\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+)[uUlLfF]*)"
    r"|(?P<name>[A-Za-z_]\w*)"
    r"|(?P<operator>->|::|\.\.\.|<<=|>>=|<<|&&|\|\||\+\+|--|[-+*/%&|^=!<>]=|[-+*/%&|^=!<>~?:.,;(){}\[\]])",
    re.DOTALL,
)
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
CLOSING = {"(": ")", "[": "]", "{": "}"}
SKIPPED_CALLS = re.compile(r"__\w+|static_assert|sizeof|alignof|decltype")
FORCED = re.compile(r"\[\[gnu::always_inline\]\]|__attribute__\(\(always_inline\)\)")
# Where an operand of ?, && and || may begin or end.
BOUNDS = {"(", "[", "{", "}", ")", "]", ",", ";", "?", ":", "=", "return", "&&", "||"} | {
    f"{operator}=" for operator in "+-*/%&|^"
}


@dataclass(frozen=True)
class Token:
    """A word of C++ with its place in the text."""

    kind: str
    text: str
    start: int
    end: int


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


class GeneratorError(Exception):
    """The sources are not what the generator takes them for."""


def tokenize(text: str) -> list[Token]:
    """All tokens but spaces, comments and directives of the preprocessor."""
    tokens, at = [], 0
    while at < len(text):
        found = TOKEN.match(text, at)
        if found is None:
            raise GeneratorError(f"no token of C++: {text[at : at + 20]!r}")
        at = found.end()
        kind = found.lastgroup or ""
        if kind not in ("space", "directive"):
            tokens.append(Token(kind, found.group(), found.start(), at))
    return tokens


class Source:
    """A file's tokens, their brackets, and the functions that they make."""

    def __init__(self, name: str, text: str) -> None:
        self.name, self.text = name, text
        self.tokens = tokenize(text)
        self.partner = self._match()
        self.kept = self._kept()

    def word(self, i: int) -> str:
        return self.tokens[i].text if 0 <= i < len(self.tokens) else ""

    def spaced(self, i: int) -> bool:
        """Whether token i stands apart on both sides, as binary operators do."""
        token = self.tokens[i]
        around = self.text[token.start - 1] + self.text[token.end]
        return not around.strip()

    def _match(self) -> dict[int, int]:
        """Brackets to their partners; < and > where they enclose template arguments."""
        partner: dict[int, int] = {}
        open_: list[int] = []
        for i, token in enumerate(self.tokens):
            word = token.text
            if word in CLOSING or (word == "<" and self._is_template(i)):
                open_.append(i)
            elif word in CLOSING.values() or (
                word == ">" and open_ and self.word(open_[-1]) == "<"
            ):
                if not open_:
                    raise GeneratorError(f"{self.name}: {word} closes nothing")
                partner[i] = open_.pop()
                partner[partner[i]] = i
                if CLOSING.get(self.word(partner[i]), ">") != word:
                    raise GeneratorError(f"{self.name}: {self.word(partner[i])} ends in {word}")
        if open_:
            raise GeneratorError(f"{self.name}: {self.word(open_[-1])} stays open")
        return partner

    def _is_template(self, i: int) -> bool:
        return self.word(i - 1) == "template" or not self.spaced(i)

    def _kept(self) -> set[int]:
        """Tokens that no mutant may touch."""
        kept: set[int] = set()
        for i, token in enumerate(self.tokens):
            word, end = token.text, i
            if word == "constexpr" and self.word(i - 1) == "if":
                end = self.partner[i + 1]
            elif word == "constexpr":
                end = self.find(i, ";", "{")
            elif word == "case":
                end = self.find(i, ":")
            elif word == "<" and i in self.partner:
                end = self.partner[i]
            elif SKIPPED_CALLS.fullmatch(word) and self.word(i + 1) == "(":
                end = self.partner[i + 1]
            elif (word == "[" and self._is_dimension(i)) or (
                word == "[" and self.word(i + 1) == "["
            ):
                end = self.partner[i]
            kept.update(range(i, end + 1) if end > i else ())
        return kept

    def find(self, i: int, *words: str) -> int:
        """The next of these words from i on, not inside of brackets."""
        while self.word(i) not in words:
            i = self.partner[i] if self.word(i) in CLOSING else i
            i += 1
            if i >= len(self.tokens):
                raise GeneratorError(f"{self.name}: no {words} follows")
        return i

    def _is_dimension(self, i: int) -> bool:
        """Whether [ opens the dimension of a declared array, as in ``Vector a[4], b[2][3]``."""
        while self.word(i - 1) == "]":
            i = self.partner[i - 1]
        if self.tokens[i - 1].kind != "name":
            return self.word(i - 1) == ")"  # Vector (&a)[4]
        before = i - 2
        while self.word(before) == ",":  # to the first of the declared
            before -= 1
            while self.word(before) in ("]", "}", ")"):
                before = self.partner[before] - 1
            if self.word(before) == "=":
                before -= 1
                while self.word(before) == "]":
                    before = self.partner[before] - 1
            if self.tokens[before].kind != "name":
                return False
            before -= 1
        named = self.tokens[before].kind == "name" and self.word(before) not in ("return", "else")
        return named or (self.word(before) == ">" and before in self.partner)

    def bodies(self) -> Iterator[tuple[str, int, int]]:
        """Functions: name, and the first and the last token of body or list of initialisers."""
        yield from self._bodies(0, len(self.tokens), "")

    def _bodies(self, i: int, end: int, scope: str) -> Iterator[tuple[str, int, int]]:
        statement = i
        while i < end:
            word = self.word(i)
            if word == "template" and self.word(i + 1) == "<":
                i = self.partner[i + 1] + 1
                statement = i
                continue
            if word in (";", ":") and self.word(i - 1) != ")":
                statement = i + 1
            elif word == "(":
                name = self._function(statement, i)
                close = self.partner[i]
                body = self._body(close)
                if name and body is not None:
                    yield scope + name, close + 1, self.partner[body]
                    i = self.partner[body] + 1
                    statement = i
                    continue
                i = close
            elif word == "{":
                words = [self.word(j) for j in range(statement, i)]
                if "namespace" in words:
                    yield from self._bodies(i + 1, self.partner[i], scope)
                elif "struct" in words or "class" in words:
                    inner = words[words.index("struct" if "struct" in words else "class") + 1]
                    yield from self._bodies(i + 1, self.partner[i], f"{scope}{inner}::")
                i = self.partner[i]
                if "namespace" in words:
                    statement = i + 1
            elif word == "[":
                i = self.partner[i]
            i += 1

    def _function(self, statement: int, i: int) -> str:
        """The name of the function whose parameters ( opens, if it is a function's."""
        if any(self.word(j) == "=" for j in range(statement, i)):
            return ""
        if [self.word(j) for j in range(i - 3, i)] == ["operator", "(", ")"]:
            return "operator()"
        name = self.tokens[i - 1]
        return name.text if name.kind == "name" and name.text != "operator" else ""

    def _body(self, close: int) -> int | None:
        """The { of the function whose parameters end at close, if this defines one."""
        i = close + 1
        while self.word(i) in ("const", "noexcept", "override"):
            i += 1
        if self.word(i) == ":":  # initialisers: name(value) or name{value}
            i += 1
            while True:
                while self.word(i) not in ("(", "{"):
                    i = self.partner[i] + 1 if i in self.partner else i + 1
                i = self.partner[i] + 1
                if self.word(i) != ",":
                    break
                i += 1
        return i if self.word(i) == "{" else None


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
        self.functions: set[str] = set()
        for self.function, begin, end in self.source.bodies():
            self.functions.add(self.function)
            self._visit(begin, end)

    def _add(self, first: int, last: int, *changes: str) -> int:
        """Mutants of tokens first to last; the number of the first one."""
        source = self.source
        begin, end = source.tokens[first].start, source.tokens[last].end
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
                number = self._add(i, i, "=")
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
        self.loops.update(dict.fromkeys(range(first, end), step))

    def _binary(self, i: int, word: str) -> None:
        if i in self.loops and word in ("<", "<="):
            number = self._add(i, i, "one step less")
            self.replaced[i] = f"{word} gm::Op({number}, {self.loops[i]}) {word}"
            return
        number = self._add(i, i, BINARY[word])
        self.replaced[i] = f"{word} gm::Op({number}) {word}"

    def _number(self, i: int) -> None:
        text = self.source.word(i)
        if not text.isdigit():
            number = self._add(i, i, "doubled")
            self.replaced[i] = f"gm::scaled({number}, {text})"
            return
        changes = [str(int(text) + 1)] + ([str(int(text) - 1)] if int(text) else [])
        number = self._add(i, i, *changes)
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
        files[name] = '#include "cpu_mutants.h"\n' + mutator.rewritten()
        mutants += mutator.mutants
    return files, mutants
