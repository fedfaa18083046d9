"""A table that stays in its HDF5 file: it has the shape of an array, and its rows are read when they are asked for."""

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpbackprop.errors import DataError

READ = 1 << 22  # bytes that are read at once: enough for any disk, little beside the data


class Source:
    """An open dataset of a file, which may not change from here on."""

    def __init__(self, path: Path, dataset: Any):
        self.path, self.dataset, self.file = path, dataset, dataset.file
        self.chunk = dataset.chunks[0] if dataset.chunks else 1
        self.found = self._state()

    def _state(self) -> tuple[int, int]:
        facts = os.fstat(self.file.id.get_vfd_handle())
        return facts.st_size, facts.st_mtime_ns

    def read(self, start: int, out: np.ndarray) -> None:
        """out[...] = rows `start`, start + 1, ...; `out` has the dtype of the dataset.

        Raises DataError where they cannot be read, or the file is not what it was: of a file that was cut off, HDF5
        would hand out zeros.
        """
        stop = start + len(out)
        try:
            self.dataset.read_direct(out, np.s_[start:stop])
            if self._state() != self.found:
                raise OSError("the file was changed after it was opened")
        except (OSError, RuntimeError, ValueError) as error:
            raise DataError(
                f"{self.path}: rows {start} to {stop - 1} of {self.dataset.name!r} cannot be read ({error}); "
                "bring the file back as it was; a run then goes on by `gpbackprop resume`"
            ) from error


class Stored:
    """A table (N, ...) in a file, of which no row is in memory.

    `table[rows]` reads the rows of a slice or of sorted row numbers. `astype` and `reshape` are noted down, and done to
    what is read. Rows lie together in the file in runs of `chunk`.
    """

    def __init__(self, source: Source, shape: Sequence[int] | None = None, dtype: Any = None):
        self.source, self.chunk = source, source.chunk
        self.shape = tuple(source.dataset.shape if shape is None else shape)
        self.dtype = np.dtype(source.dataset.dtype if dtype is None else dtype)

    ndim = property(lambda self: len(self.shape))
    size = property(lambda self: math.prod(self.shape))
    nbytes = property(lambda self: self.size * self.dtype.itemsize)

    def __len__(self) -> int:
        return self.shape[0]

    def astype(self, dtype: Any, copy: bool = False) -> "Stored":
        return Stored(self.source, self.shape, dtype)

    def reshape(self, *shape: int) -> "Stored":
        """The same rows with another shape each."""
        if -1 in shape:
            known = -math.prod(shape)
            shape = tuple(self.size // known if n == -1 else n for n in shape)
        if shape[0] != len(self) or math.prod(shape) != self.size:
            raise ValueError(f"rows of the shape {self.shape[1:]} cannot become {shape[1:]}")
        return Stored(self.source, shape, self.dtype)

    def __getitem__(self, rows: Any) -> np.ndarray:
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(len(self)))
        out = np.empty((len(rows), *self.shape[1:]), self.dtype)
        self.read(rows, out)
        return out

    def read(self, rows: np.ndarray, out: np.ndarray) -> None:
        """out[i] = row rows[i]; the rows are sorted, and what lies between near ones is read with them."""
        stored, most = self.source.dataset, self.at_once
        plain = stored.dtype == self.dtype and out.flags.c_contiguous
        start = 0
        while start < len(rows):
            first = int(rows[start])
            end = int(np.searchsorted(rows, first - first % self.chunk + most))
            last = int(rows[end - 1])
            if plain and last - first == end - 1 - start:
                self.source.read(first, out[start:end].reshape(end - start, *stored.shape[1:]))
            else:
                read = np.empty((last + 1 - first, *stored.shape[1:]), stored.dtype)
                self.source.read(first, read)
                with np.errstate(over="ignore"):  # what is too large becomes an infinity, as of a table in memory
                    chosen = read[rows[start:end] - first].reshape(end - start, *self.shape[1:])
                    out[start:end] = chosen.astype(self.dtype, copy=False)
            start = end

    @property
    def at_once(self) -> int:
        """The rows of one read: whole chunks, as many as are few bytes."""
        rows = READ // (math.prod(self.shape[1:]) * self.source.dataset.dtype.itemsize)
        return max(self.chunk, rows // self.chunk * self.chunk)


def blocks(table: Any, rows: np.ndarray | None, size: int) -> Iterator[np.ndarray]:
    """The rows `rows`, or all, of an array or a table in a file, `size` at a time.

    From a file come more at once, into memory that the next ones use again: a block is to be used before that.
    """
    count = len(table) if rows is None else len(rows)
    if not isinstance(table, Stored):
        for start in range(0, count, size):
            chosen = slice(start, start + size)
            yield table[chosen if rows is None else rows[chosen]]
        return
    once = size * max(1, table.at_once // size)
    room = np.empty((min(once, count), *table.shape[1:]), table.dtype)
    for start in range(0, count, once):
        stop = min(start + once, count)
        table.read(np.arange(start, stop) if rows is None else rows[start:stop], room[: stop - start])
        for first in range(0, stop - start, size):
            yield room[first : min(first + size, stop - start)]
