"""Stdout and stderr as they may be: closed, full, a pipe that nobody reads, in any encoding."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TextIO

READER_GONE = 141
"""The exit code of a program whose output nobody reads any more: 128 and SIGPIPE's number."""


def escape_what_does_not_fit() -> None:
    """Print a character that the encoding of stdout or stderr lacks as ``\\xe9``, not as an error.

    File names are the usual source: they may be bytes of no encoding at all.
    """
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)  # a stream may be None, or a test's
        if reconfigure is not None:
            with contextlib.suppress(OSError):  # it flushes
                reconfigure(errors="backslashreplace")


def say(text: str = "") -> None:
    """Print a line on stdout at once."""
    print(text, flush=True)


def complain(text: str) -> None:
    """Print a line on stderr, if anything can be printed there."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        _discard(sys.stderr)


def finish() -> None:
    """Flush both streams; one that fails is given up, so that Python does not complain at exit."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):  # ValueError: it was closed
            _discard(stream)


def _discard(stream: TextIO) -> None:
    """Send what the stream still holds, and all that follows, to nowhere."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
    except (OSError, ValueError):
        pass
