"""Fixtures of the training tests: runs that take a fraction of a second."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from genimg.train.options import Options


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """One, for nothing here is large enough for two; the next test has its own again."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _machine() -> None:
    """The priors of this machine: runs are compared with those of other processes."""


@pytest.fixture
def tiny() -> Callable[..., Options]:
    """Options of a very small run on the digits."""

    def make(model: str, **changes: Any) -> Options:
        given: dict[str, Any] = {
            "image_size": 16,
            "width": 4,
            "latent_dim": 5,
            "batch_size": 8,
            "steps": 8,
            "threads": 1,
            "device": "cpu",
            "snapshot_every": 4,
            "checkpoint_every": 4,
            "stats_every": 3,
        }
        return Options(model, **{**given, **changes})

    return make
