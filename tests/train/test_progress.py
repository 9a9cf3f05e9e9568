"""Progress: plain lines without a terminal, a bar on one."""

from __future__ import annotations

import io
import time

import pytest

from genimg.train.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    stream = io.StringIO()
    with Progress(50, batch_size=50, label="gan", stream=stream, interval=10) as progress:
        for step in range(1, 51):
            now += 0.25
            progress.update(step, {"loss_d": 1 / step, "loss_g": 0.5})
    assert stream.getvalue().splitlines() == [
        "gan: step 1/50  loss_d 1  loss_g 0.5  200 images/s",
        "gan: step 41/50  loss_d 0.02439  loss_g 0.5  200 images/s",
        "gan: step 50/50  loss_d 0.02  loss_g 0.5  200 images/s",
    ]


def test_bar() -> None:
    stream = Terminal()
    with Progress(100, initial=90, batch_size=5, stream=stream) as progress:
        for step in range(91, 101):
            time.sleep(0.02)
            progress.update(step, {"loss": 0.25})
        progress.say("a line")
    shown = stream.getvalue()
    assert "100/100" in shown
    assert "loss=0.25" in shown
    assert "images/s=" in shown
    assert "a line\n" in shown
