"""Ctrl-C at the end of a step, not in the middle of one."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class Interrupt:
    """While entered, the first SIGINT or SIGTERM only sets `signal`; a second one acts as ever.

    An optimiser that is stopped between two weights leaves a state that belongs to no step; the
    run asks for `signal` after each step instead. Signals can be caught in the main thread only;
    in others nothing changes.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def _catch(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number)
        self._restore()

    def _restore(self) -> None:
        for which, handler in self._previous.items():
            signal.signal(which, handler)
        self._previous.clear()

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            for which in (signal.SIGINT, signal.SIGTERM):
                # A process started with `nohup` or `&` ignores SIGINT, and goes on doing so.
                if signal.getsignal(which) not in (signal.SIG_IGN, None):
                    self._previous[which] = signal.signal(which, self._catch)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore()
