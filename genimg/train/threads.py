"""How many threads a run may have."""

from __future__ import annotations

import os
import threading

import torch

from genimg.train.errors import OptionError

MOST_THREADS = max(1024, os.cpu_count() or 1)
"""More are of no use: no machine has as many cores. OpenMP starts them all at the first layer, and
where the system refuses one, by a limit on processes or on memory maps, OpenMP ends the process."""


def start_threads(count: int) -> None:
    """Has torch's layers run on ``count`` threads, and sees that the system lets them start.

    Raises:
        OptionError: if it does not.
    """
    if count > (os.cpu_count() or 1):
        _try(count)
    torch.set_num_threads(count)


def _try(count: int) -> None:
    """Start as many threads of Python's, which can report a refusal, and end them again."""
    done = threading.Event()
    started: list[threading.Thread] = []
    try:
        for _ in range(count - 1):
            thread = threading.Thread(target=done.wait, daemon=True)
            thread.start()
            started.append(thread)
    except (RuntimeError, MemoryError) as error:
        most = len(started) + 1
        raise OptionError(f"--threads {count}: this system starts {most} at most") from error
    finally:
        done.set()
        for thread in started:
            thread.join()
