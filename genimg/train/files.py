"""Files that are either whole or not there.

A file is written under a temporary name in its own folder, flushed to the disk, and only then
renamed: a kill, a crash or a full disk at any moment leaves what was there before.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from genimg.train.errors import FileError

_PREFIX, _SUFFIX = ".genimg-", ".tmp"


def printable(path: str | os.PathLike[str]) -> str:
    """The path as text that any terminal and JSON can take, also where it is not UTF-8."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def reason(error: BaseException) -> str:
    """An exception in one line, without the numbers and paths that `OSError` puts around it."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def make_folder(path: Path) -> None:
    """Makes a folder and those above it, unless they are there.

    Raises:
        FileError: if it cannot be made or written to, or something else has its name.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"cannot make the folder {printable(path)}: {reason(error)}") from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise FileError(f"cannot write to the folder {printable(path)}: Permission denied")


def check_folder(path: Path) -> None:
    """Raises `FileError` if `make_folder` could not make ``path``, as far as can be seen before."""
    above = next(p for p in (path, *path.absolute().parents) if os.path.lexists(p))
    if not above.is_dir():
        raise FileError(f"cannot make the folder {printable(path)}: Not a directory")
    if not os.access(above, os.W_OK | os.X_OK):
        raise FileError(f"cannot write to the folder {printable(above)}: Permission denied")


def sync_folder(folder: Path) -> None:
    """Flushes the folder's entries, so that a rename outlives a power cut."""
    if os.name == "nt":  # a directory has no descriptor there
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def refuse_existing(path: Path) -> None:
    """Raises `FileError` if there is something at ``path``."""
    if os.path.lexists(path):
        raise FileError(f"{printable(path)} exists: --force overwrites it")


def write_whole(path: Path, content: bytes, *, overwrite: bool = True) -> None:
    """Writes ``content`` to ``path``: all of it, or nothing.

    Raises:
        FileError: if it cannot be written, or exists and ``overwrite`` is false. What was at
            ``path`` is then still there.
    """
    # Not mkstemp: its mode 0600 would stay on the file; here the umask decides, as for any file.
    temporary = path.with_name(f"{_PREFIX}{secrets.token_hex(8)}{_SUFFIX}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            with open(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if not overwrite:
                refuse_existing(path)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        sync_folder(path.parent)
    except OSError as error:
        raise FileError(f"cannot write {printable(path)}: {reason(error)}") from error


def remove_stale(folder: Path) -> None:
    """Removes what a killed `write_whole` left in ``folder``; call it under `held`."""
    for path in folder.glob(f"{_PREFIX}*{_SUFFIX}"):
        with contextlib.suppress(OSError):
            path.unlink()


@contextlib.contextmanager
def held(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Holds ``folder`` against other genimg processes; the system lets go if this one dies.

    Args:
        folder: an existing folder.
        wait: whether to wait for another process that holds it.

    Raises:
        FileError: if another process holds it and ``wait`` is false, or it cannot be opened.
    """
    try:
        import fcntl
    except ImportError:  # not a POSIX system: nothing to hold it with
        yield
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise FileError(f"cannot open {printable(folder)}: {reason(error)}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise FileError(f"{printable(folder)} is in use by another run") from error
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(descriptor)
