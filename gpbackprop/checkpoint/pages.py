"""The bytes of an open file where they are asked for: what a memoryview is for bytes in memory."""

import os
from functools import lru_cache

from gpbackprop.checkpoint import disk

PAGE = 1 << 16


class File:
    """An open file of its own, read a page at a time; the last 16 pages are kept."""

    def __init__(self, fd: int):
        self.fd = os.dup(fd)
        self.page = lru_cache(16)(self._page)

    def __del__(self) -> None:
        disk.calls.close(self.fd)

    def _page(self, number: int) -> bytes:
        disk.calls.lseek(self.fd, number * PAGE, os.SEEK_SET)
        return b"".join(disk.pieces(self.fd, PAGE))


class Bytes:
    """The bytes `start` to `stop` of a file; a slice of it reads nothing yet."""

    def __init__(self, file: File, start: int, stop: int):
        self.file, self.start, self.stop = file, start, stop

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, part: slice) -> "Bytes":
        start, stop, _ = part.indices(len(self))
        return Bytes(self.file, self.start + start, self.start + max(start, stop))

    def __bytes__(self) -> bytes:
        """Raises OSError where the file has become shorter."""
        numbers = range(self.start // PAGE, -(-self.stop // PAGE))
        found = b"".join(self.file.page(number) for number in numbers)[self.start % PAGE :][: len(self)]
        if len(found) < len(self):
            raise OSError("the file has become shorter while it was read")
        return found
