"""C++ as tokens, brackets and functions: as much as a generator of mutants needs.

It relies on clang-format, which puts spaces around binary operators and none around brackets of
template arguments.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

TOKEN = re.compile(
    r"(?P<space>\s+|//[^\n]*|/\*.*?\*/)|(?P<directive>\#(?:[^\n\\]|\\.)*)"
    r"|(?P<text>\"(?:[^\"\\\n]|\\.)*\"|'(?:[^'\\\n]|\\.)*')"
    r"|(?P<number>(?:0[xX][\da-fA-F]+|\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+)[uUlLfF]*)"
    r"|(?P<name>[A-Za-z_]\w*)"
    r"|(?P<operator>->|::|\.\.\.|<<=|>>=|<<|&&|\|\||\+\+|--|[-+*/%&|^=!<>]=|[-+*/%&|^=!<>~?:.,;(){}\[\]])",
    re.DOTALL,
)
CLOSING = {"(": ")", "[": "]", "{": "}"}
SKIPPED_CALLS = re.compile(r"__\w+|static_assert|sizeof|alignof|decltype")


@dataclass(frozen=True)
class Token:
    """A word of C++ with its place in the text."""

    kind: str
    text: str
    start: int
    end: int


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
