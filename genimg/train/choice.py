"""The kernels of a run: decided before its first step, kept in its folder, the same to its end.

A decision that changed in the middle of a run would change the last bits of its weights. So nothing
is measured while a run trains, and ``--resume`` takes the decisions that the run began with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from genimg import tuning
from genimg.decisions import Decisions, DecisionStore, from_json, signature, to_json
from genimg.train.files import write_whole

CHOICE_FILE = "decisions.json"


def measures() -> bool:
    """Whether :func:`decided` measures what is not decided yet."""
    return tuning.current().measures


@contextmanager
def decided(step: Callable[[], object], device: str) -> Iterator[Decisions]:
    """Decide what ``step`` calls, and let these decisions alone hold inside.

    Args:
        step: a training step of a trainer that is used for nothing else.
        device: of it.
    """
    found: Decisions = {}
    tuner = tuning.current()
    if tuner.measures or tuner.store.all(torch.device(device)):
        on_gpu = [torch.cuda.current_device()] if device == "cuda" else []
        with torch.random.fork_rng(on_gpu):
            tuning.decide(step)
            with tuner.still(), tuner.recording() as met:
                step()
        for call in met:
            decision = tuner.store.near(call.device, call.kind)
            if decision is not None and set(decision.milliseconds) == set(call.names):
                found[call.kind] = decision
    with holding(found, device):
        yield found


@contextmanager
def holding(decisions: Decisions, device: str) -> Iterator[None]:
    """Let ``decisions`` alone hold inside, and measure nothing."""
    before = tuning.current()
    store = DecisionStore(None)
    store.keep(torch.device(device), decisions)
    tuning.install(tuning.Tuner(store, before.budget, measures=False))
    try:
        yield
    finally:
        tuning.install(before)


def record(place: Path, decisions: Decisions, device: str) -> None:
    """Write the decisions of a run into its folder; none are no file.

    Raises:
        FileError: if that is not possible.
    """
    if decisions:
        text = to_json(decisions, signature(torch.device(device)))
        write_whole(place / CHOICE_FILE, text.encode())


def recorded(place: Path) -> Decisions:
    """The decisions in the folder of a run."""
    try:
        text = (place / CHOICE_FILE).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return {}
    return from_json(text, None)
