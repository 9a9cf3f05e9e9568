"""Mutants that no result can tell from the original, and why."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mutants import Mutant


@dataclass(frozen=True)
class Rule:
    """Mutants by function and by a pattern of ``site -> change: code``, and the reason."""

    function: str
    pattern: str
    reason: str
    levels: tuple[str, ...] = ()

    def covers(self, mutant: Mutant, level: str | None) -> bool:
        if level and self.levels and level not in self.levels:
            return False
        text = f"{mutant.site} -> {mutant.change}: {mutant.code}"
        return bool(re.fullmatch(self.function, mutant.function) and re.search(self.pattern, text))


RULES: tuple[Rule, ...] = ()
