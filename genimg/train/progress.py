"""How far a run is: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
from types import TracebackType
from typing import TextIO

from tqdm import tqdm  # type: ignore[import-untyped]

PLAIN_SECONDS = 10.0
"""Without a terminal, how much time is between two lines."""


class Progress:
    """Shows the step, the losses and images/s.

    Args:
        total: the last step.
        initial: the step that the run goes on from.
        batch_size: images in a step.
        label: stands in front.
        stream: stderr by default.
        interval: seconds between plain lines.
    """

    def __init__(
        self,
        total: int,
        *,
        initial: int = 0,
        batch_size: int = 1,
        label: str = "",
        stream: TextIO | None = None,
        interval: float = PLAIN_SECONDS,
    ) -> None:
        self._total = total
        self._batch_size = batch_size
        self._label = label
        self._stream: TextIO | None = sys.stderr if stream is None else stream
        self._interval = interval
        self._bar: tqdm | None = None
        if self._stream is not None and self._stream.isatty():  # None: stderr is closed
            size = shutil.get_terminal_size()
            self._bar = tqdm(
                total=total,
                initial=initial,
                desc=label or None,
                unit="step",
                file=self._stream,
                # On a terminal that reports no size tqdm by itself shows nothing.
                ncols=size.columns,
                nrows=size.lines,
                smoothing=0.1,
            )
        self._shown: float | None = None
        self._mark = (initial, time.monotonic())

    def update(self, step: int, values: dict[str, float]) -> None:
        """Says that ``step`` is done, and with which losses."""
        if self._bar is not None:
            rate = self._bar.format_dict["rate"]
            shown = {k: f"{v:.4g}" for k, v in values.items()}
            if rate:
                shown["images/s"] = f"{rate * self._batch_size:.0f}"
            self._bar.set_postfix(shown, refresh=False)
            self._bar.update(step - self._bar.n)
            return
        now = time.monotonic()
        if self._shown is None or now - self._shown >= self._interval or step == self._total:
            self._line(step, values, now)

    def _line(self, step: int, values: dict[str, float], now: float) -> None:
        before, then = self._mark
        rate = (step - before) * self._batch_size / max(now - then, 1e-9)
        losses = "".join(f"  {k} {v:.4g}" for k, v in values.items())
        label = f"{self._label}: " if self._label else ""
        self.say(f"{label}step {step}/{self._total}{losses}  {rate:.0f} images/s")
        self._mark, self._shown = (step, now), now

    def say(self, text: str) -> None:
        """Prints a line, above the bar if there is one."""
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        else:
            print(text, file=self._stream, flush=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            with contextlib.suppress(OSError):  # the terminal may be gone
                self._bar.close()
