"""Signals: the first waits for the end of a step, the second does not."""

from __future__ import annotations

import errno
import os
import signal
import threading

import pytest

from genimg.train.interrupt import Interrupt


def test_first_signal_is_noted_and_the_second_acts() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with Interrupt() as interrupt:
        assert interrupt.signal is None
        signal.raise_signal(signal.SIGINT)
        assert interrupt.signal == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_terminal_that_closes_may_say_so_twice() -> None:
    before = signal.signal(signal.SIGHUP, signal.default_int_handler)
    try:
        with Interrupt() as interrupt:
            signal.raise_signal(signal.SIGHUP)
            signal.raise_signal(signal.SIGHUP)
            assert interrupt.signal == signal.SIGHUP
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGHUP) == signal.default_int_handler
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("number", "counts_as"), [(errno.EPIPE, signal.SIGPIPE), (errno.EIO, signal.SIGHUP)]
)
def test_output_that_nobody_reads_counts_as_a_signal(
    number: int, counts_as: signal.Signals
) -> None:
    with Interrupt() as interrupt:
        with interrupt.writing():
            raise OSError(number, os.strerror(number))
        assert interrupt.signal == counts_as
        with pytest.raises(OSError, match="No space"), interrupt.writing():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_signals_are_as_before_afterwards() -> None:
    with Interrupt():
        pass
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interrupt() as interrupt:
            signal.raise_signal(signal.SIGINT)
            assert interrupt.signal is None
    finally:
        signal.signal(signal.SIGINT, before)


def test_outside_the_main_thread_nothing_changes() -> None:
    errors: list[Exception] = []

    def run() -> None:
        try:
            with Interrupt() as interrupt:
                assert interrupt.signal is None
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert not errors
