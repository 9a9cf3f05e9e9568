"""The environment variables of genimg, their values, and a warning about any other value.

docs/environment.md describes each one. ``GENIMG_BACKEND`` and ``GENIMG_CPU_ISA`` have values that
their readers check: an unknown one raises an error there. ``GENIMG_BUILD`` is read by setup.py.
"""

from __future__ import annotations

import os
import warnings

VARIABLES: dict[str, tuple[str, ...]] = {
    "GENIMG_AUTOTUNE": ("0", "1"),
    "GENIMG_BACKEND": (),
    "GENIMG_BUILD": (),
    "GENIMG_CACHE": (),
    "GENIMG_CPU_ISA": (),
    "GENIMG_CUDA_SM90": ("0", "1"),
    "GENIMG_LOG": ("0", "1"),
}
"""Variable -> its known values; none listed: any value is passed on to the reader."""

_warned: set[tuple[str, str]] = set()


def value(name: str) -> str | None:
    """The value of a variable of :data:`VARIABLES`; None if it is not set, empty, or unknown.

    An unknown value is a warning, once in a process.
    """
    found = os.environ.get(name)
    known = VARIABLES[name]
    if not found or not known or found in known:
        return found or None
    if (name, found) not in _warned:
        _warned.add((name, found))
        warnings.warn(
            f"{name}={found} is not a known value; known: {', '.join(known)}; it is ignored",
            stacklevel=2,
        )
    return None


def is_on(name: str) -> bool:
    """Whether a variable that is a switch is 1."""
    return value(name) == "1"


# GENIMG_CUDA_SM90 is read in C++ at each call, so that nothing else would look at its value.
for _name in VARIABLES:
    value(_name)
