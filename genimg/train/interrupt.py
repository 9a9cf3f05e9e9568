"""A signal ends a run at the end of a step, not in the middle of one."""

from __future__ import annotations

import errno
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

# Windows lacks some.
_HANGUP: signal.Signals | None = getattr(signal, "SIGHUP", None)
_CAUGHT = tuple(s for s in (signal.SIGINT, signal.SIGTERM, _HANGUP) if s is not None)
_PIPE = 13
_HANGUP_NUMBER = 1


class Interrupt:
    """While entered, the first SIGINT, SIGTERM or SIGHUP only sets `signal`; a second one acts.

    An optimiser that is stopped between two weights leaves a state that belongs to no step; the
    run asks for `signal` after each step instead. A terminal that closes may send SIGHUP twice, by
    the shell and by the system: the second is ignored. Signals can be caught in the main thread
    only; in others nothing changes.

    Attributes:
        signal: the number of the signal that came, None before. Output to a pipe that nobody reads
            counts as SIGPIPE, output to a terminal that is gone as SIGHUP.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def _catch(self, number: int, frame: FrameType | None) -> None:
        self.signal = int(number)
        hung_up = _HANGUP if number == _HANGUP else None
        for which, handler in self._previous.items():
            signal.signal(which, signal.SIG_IGN if which == hung_up else handler)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Around output: if nobody is there to read it, the run ends as for a signal."""
        try:
            yield
        except OSError as error:
            ends = {errno.EPIPE: _PIPE, errno.EIO: _HANGUP_NUMBER}
            if error.errno not in ends:
                raise
            self.signal = self.signal or ends[error.errno]

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            for which in _CAUGHT:
                # A process started with `nohup` or `&` ignores some, and goes on doing so.
                if signal.getsignal(which) not in (signal.SIG_IGN, None):
                    self._previous[which] = signal.signal(which, self._catch)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for which, handler in self._previous.items():
            signal.signal(which, handler)
        self._previous.clear()
