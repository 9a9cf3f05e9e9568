"""Errors of a run, in words for the person who started it.

The command line prints such an error as one line and exits with its ``exit_code``, without a
traceback.
"""

from __future__ import annotations


class TrainError(Exception):
    """Anything a person can do something about; the message is one line."""

    exit_code = 2


class OptionError(TrainError, ValueError):
    """An option that has no meaning, or not with these data, this model or this machine."""


class DataError(TrainError):
    """Images that cannot be read, or too few of them."""


class CheckpointError(TrainError):
    """A checkpoint or a model file that is missing, damaged or of something else."""


class FileError(TrainError):
    """A file or folder that cannot be written, or that is not to be overwritten."""


class NonFiniteError(TrainError):
    """A loss or a weight that is NaN or infinite. The run is over; nothing was given wrong."""

    exit_code = 1


class InterruptedRunError(TrainError):
    """A run that a signal stopped, after it had written a checkpoint."""

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal  # as a shell reports it
