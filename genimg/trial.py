"""The candidates of one kind of call, timed round by round until one of them is the fastest."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from genimg.decisions import Decision, fastest

ROUNDS = 5
"""Rounds that decide between candidates whose times are close."""

SECONDS = 0.005
"""For each such candidate at least, since a single run of a short op may meet a hiccup."""

MOST_ROUNDS = 50

_HOPELESS = 1.5  # times the fastest's median, from the second round on
_FIRST_ROUNDS = 2


class Trial:
    """Times of candidates; between rounds the program may go on, for as long as it likes.

    Args:
        names: the candidates.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.samples: dict[str, list[float]] = {name: [] for name in names}
        self.failure = ""
        self.needs = 0.0  # seconds, to go on with it at all

    @property
    def milliseconds(self) -> dict[str, float]:
        """The median time of each candidate that has one."""
        return {
            name: statistics.median(samples) * 1e3
            for name, samples in self.samples.items()
            if samples
        }

    @property
    def rounds(self) -> int:
        """Rounds of those still in the race."""
        return max(map(len, self.samples.values()))

    def racing(self) -> list[str]:
        """The candidates that may yet be the fastest."""
        if self.rounds < _FIRST_ROUNDS:
            return list(self.samples)
        limit = _HOPELESS * min(self.milliseconds.values()) / 1e3
        most = self.rounds
        return [
            name
            for name, samples in self.samples.items()
            if len(samples) >= most - 1 and min(samples) <= limit
        ]

    def round(self, seconds: Callable[[str], float]) -> None:
        """Run every candidate in the race once, in turn: a slow phase affects all of them."""
        for name in self.racing():
            self.samples[name].append(seconds(name))

    def decision(self) -> Decision | None:
        """The fastest, once that is known."""
        racing = self.racing()
        times = [self.samples[name] for name in racing]
        enough = all(
            len(samples) >= MOST_ROUNDS or (len(samples) >= ROUNDS and sum(samples) >= SECONDS)
            for samples in times
        )
        if self.rounds >= _FIRST_ROUNDS and (len(racing) == 1 or enough):
            return fastest(self.milliseconds)
        return None

    def told(self) -> str:
        """How far it is, in words."""
        if self.failure:
            return f"not measured: {self.failure}"
        return f"measured in {self.rounds} of {ROUNDS} rounds, and not decided yet"
