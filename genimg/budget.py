"""How much time measuring may take: a second at the start, then a share of the running time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

START = 1.0
"""Seconds that measuring may take before it has been earned."""

SHARE = 0.05
"""Seconds of measuring that a second of everything else earns."""


class Budget:
    """What measuring may take, and has taken.

    ``START + SHARE * running`` seconds are allowed, where ``running`` is the time since the budget
    was made that was not spent on measuring. Candidates whose first runs take longer than what is
    left overdraw the budget by these; nothing is measured then until that is earned back.

    Args:
        clock: seconds, as ``time.perf_counter`` gives them.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self._began = clock()
        self._spent = 0.0
        self._since: float | None = None  # when the spending in progress began
        self._unlimited = 0

    @property
    def spent(self) -> float:
        """Seconds that measuring has taken."""
        return self._spent + (0.0 if self._since is None else self.clock() - self._since)

    @property
    def left(self) -> float:
        """Seconds that may be spent now; negative if overdrawn."""
        if self._unlimited:
            return math.inf
        spent = self.spent
        running = self.clock() - self._began - spent
        return START + SHARE * running - spent

    @property
    def is_unlimited(self) -> bool:
        """Whether the caller has asked for measuring: :meth:`unlimited`."""
        return self._unlimited > 0

    @contextmanager
    def spending(self) -> Iterator[None]:
        """Charge the time inside; by one thread at a time, and what is nested is charged once."""
        if self._since is not None:
            yield
            return
        self._since = self.clock()
        try:
            yield
        finally:
            since, self._since = self._since, None
            self._spent += self.clock() - since

    @contextmanager
    def unlimited(self) -> Iterator[None]:
        """Let measuring inside take as long as it needs: the caller has asked for it."""
        self._unlimited += 1
        try:
            yield
        finally:
            self._unlimited -= 1
