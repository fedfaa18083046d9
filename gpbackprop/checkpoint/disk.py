"""Replacing a file so that a crash at any instant leaves the old one or the new one, whole.

Every system call goes through `calls`, so that a test can make the n-th one fail.
"""

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from gpbackprop.errors import CheckpointError

PIECE = 1 << 20


class Calls:
    """The system calls that touch the disk."""

    stat = staticmethod(os.stat)
    open = staticmethod(os.open)
    lseek = staticmethod(os.lseek)
    read = staticmethod(os.read)
    write = staticmethod(os.write)
    fsync = staticmethod(os.fsync)
    close = staticmethod(os.close)
    replace = staticmethod(os.replace)
    unlink = staticmethod(os.unlink)
    listdir = staticmethod(os.listdir)
    mkdir = staticmethod(os.mkdir)


calls = Calls()


def pieces(fd: int, size: int) -> Iterator[bytes]:
    """The next `size` bytes of an open file, or what there is of them."""
    while size and (piece := calls.read(fd, min(PIECE, size))):
        size -= len(piece)
        yield piece


def replace(path: Path, *parts: bytes | memoryview) -> None:
    """Make `path` a file of the bytes `parts`, durably, or leave it as it was.

    Raises CheckpointError, which says what is safe, when the disk refuses. The temporary file is removed then.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        _create(temporary, parts)
        calls.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            calls.unlink(temporary)
        if not isinstance(error, OSError):
            raise
        raise CheckpointError(
            f"{path}: could not be written: {error.strerror or error}. What was there before is untouched. "
            f"Make room in {path.parent}, or let this user write there"
        ) from error
    try:
        sync(path.parent)
    except OSError as error:
        raise CheckpointError(
            f"{path}: written, but the disk did not confirm it: {error.strerror or error}. After a power cut the "
            f"old or the new file is there, each whole. Check the disk under {path.parent}"
        ) from error


def _create(path: Path, parts: tuple[bytes | memoryview, ...]) -> None:
    """A new file at `path` with the bytes `parts`, on the disk when this returns, and read back."""
    fd = calls.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    try:
        for part in parts:
            left = memoryview(part)
            while left:
                left = left[_some(calls.write(fd, left)) :]
        calls.fsync(fd)
        calls.lseek(fd, 0, os.SEEK_SET)
        for part in parts:
            _compare(fd, memoryview(part))
    finally:
        calls.close(fd)  # some file systems report a full disk only here


def _compare(fd: int, expected: memoryview) -> None:
    while expected:
        found = calls.read(fd, min(PIECE, len(expected)))
        if found != expected[: _some(len(found))].tobytes():
            raise OSError(None, "the disk returned other bytes than were written")
        expected = expected[len(found) :]


def _some(count: int) -> int:
    """`count`, which a working disk never gives as 0."""
    if not count:
        raise OSError(None, "the disk took no bytes")
    return count


def sync(directory: Path) -> None:
    """Make the names in `directory` durable."""
    if os.name == "nt":  # a directory cannot be opened there
        return
    fd = calls.open(directory, os.O_RDONLY)
    try:
        calls.fsync(fd)
    except OSError as error:
        if error.errno != errno.EINVAL:  # what a file system says that never syncs a directory, as some shared ones
            raise
    finally:
        calls.close(fd)
