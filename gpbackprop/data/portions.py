"""A split that is too large to lie in memory comes in portions: as many rows at a time as a few bytes hold.

The rows of the file lie in blocks. An epoch takes the blocks in the order of a permutation of (data seed, epoch), and
cuts their rows, one after the other, into portions; inside a portion the rows are permuted as a function of (seed,
epoch, portion). Which rows lie in memory together does not depend on the seed of the training: all members of a
population share them.
"""

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpbackprop.backend import Array, Backend, random
from gpbackprop.data.stored import Stored

Place = tuple[int, int, bool]  # epoch, number of the portion, whether the epoch is shuffled
BLOCKS = 16  # of a portion: from so many places of the file come the rows that lie in memory together


@dataclass(frozen=True)
class Stream:
    """How a split is read: `size` bytes at a time, in an order of `seed`."""

    size: int = 64_000_000
    seed: int = 0


class Portions:
    """An epoch over the rows `index` (n,), sorted, of a table, cut into `count` portions of `rows` rows.

    A portion holds whole batches, so that no batch needs two of them; the last may be short. A block holds whole chunks
    of the file, so that each is unpacked once.
    """

    def __init__(self, table: Any, index: np.ndarray, batch: int, stream: Stream):
        self.index, self.seed, self._blocks = index, stream.seed, (-1, index, index)
        self.rows = min(len(index), max(1, stream.size // _row_bytes(table) // batch) * batch)
        self.count = -(-len(index) // self.rows)
        self.block = block_rows(table, stream)
        self.edges = np.searchsorted(index, np.arange(0, len(table) + self.block, self.block))

    def place(self, epoch: int, number: int, shuffle: bool) -> Place:
        """Portion `number` of an epoch, the same wherever it has the same rows."""
        shuffle = shuffle and self.count > 1
        return epoch if shuffle else 0, number, shuffle

    def of(self, epoch: int, number: int, shuffle: bool) -> np.ndarray:
        """The sorted row numbers of portion `number` of an epoch."""
        start = number * self.rows
        stop = min(start + self.rows, len(self.index))
        if not shuffle:
            return self.index[start:stop]
        order, ends = self._order(epoch)
        first, last = np.searchsorted(ends, [start, stop - 1], side="right")
        places = [np.arange(self.edges[b], self.edges[b + 1]) for b in order[first : last + 1]]
        skipped = start - (ends[first - 1] if first else 0)  # what the portion before has taken of the first block
        return self.index[np.sort(np.concatenate(places)[skipped : skipped + stop - start])]

    def _order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The blocks as an epoch takes them, and how many rows lie in them and in those before."""
        if self._blocks[0] != epoch:
            order = random.permutation(len(self.edges) - 1, self.seed, f"{epoch}/blocks")
            self._blocks = epoch, order, np.cumsum(np.diff(self.edges)[order])
        return self._blocks[1:]


def block_rows(table: Any, stream: Stream) -> int:
    """The rows of a block."""
    chunk = table.chunk if isinstance(table, Stored) else 1
    return max(chunk, stream.size // BLOCKS // _row_bytes(table) // chunk * chunk)


def _row_bytes(table: Any) -> int:
    """What a row takes, with its target and its place in the order."""
    return math.prod(table.shape[1:]) * table.dtype.itemsize + 16


def order_within(rows: int, seeds: Sequence[int], epoch: int, number: int, shuffle: bool) -> np.ndarray:
    """The order (K, rows) in which the members visit the rows of a portion."""
    if not shuffle:
        return np.broadcast_to(np.arange(rows), (len(seeds), rows))
    return random.permutations(rows, seeds, f"{epoch}/{number}")


class Tables:
    """The columns of a streamed split on the device, `tables[name]` (2 rows, ...): room for two portions, one that the
    network sees and one that a thread reads meanwhile. Where one portion is all, there is room for that.

    One portion is read ahead, never more, and its thread ends with it. On a device the thread fills pinned memory; the
    copy from there is queued behind the steps on the portion before.
    """

    def __init__(self, backend: Backend, columns: dict[str, Any], portions: Portions, make: Callable[..., Array]):
        self.backend, self.columns, self.portions = backend, columns, portions
        rows, size = portions.rows * min(2, portions.count), portions.rows
        self.tables = {name: make((rows, *x.shape[1:]), x.dtype) for name, x in columns.items()}
        self.half, self.numbers = 1, portions.index[:0]  # what the network sees, and the numbers of its rows
        self.place: Place | None = None
        self._landings = [
            {name: backend.landing(table[start : start + size]) for name, table in self.tables.items()}
            for start in range(0, rows, size)
        ]
        self._landed: list[list[Callable[[], None]]] = [[], []]
        self._reading: _Reading | None = None

    @property
    def nbytes(self) -> int:
        return sum(table.nbytes for table in self.tables.values())

    @property
    def start(self) -> int:
        """The first place of the portion in the tables."""
        return self.half * self.portions.rows

    def turn(self, place: Place, following: Place | None) -> None:
        """Have the portion `place` lie in the tables for the network, and begin to read the `following` one.

        Raises what reading the portion failed with.
        """
        if place != self.place:
            self._bring(place)
        if following not in (None, place) and self._reading is None:
            self._reading = self._begin(following)

    def _bring(self, place: Place) -> None:
        if self._reading is not None:
            self._reading.wait()
        if self._reading is None or self._reading.place != place or not self._reading.done:
            self._reading = self._begin(place)
            self._reading.wait()
        reading, self._reading = self._reading, None
        if reading.error is not None:
            raise reading.error
        self.half, self.place, self.numbers = 1 - self.half, place, reading.numbers
        count = len(self.numbers)
        for name, table in self.tables.items():
            landing, out = self._landings[self.half][name], table[self.start : self.start + count]
            self._landed[self.half].append(self.backend.land(landing[:count], out))

    def _begin(self, place: Place) -> "_Reading":
        """Start to read a portion into the host memory of the half that nobody looks at."""
        half = 1 - self.half
        for wait in self._landed[half]:
            wait()
        self._landed[half].clear()
        return _Reading(place, self.portions, self.columns, self._landings[half])


class _Reading:
    """A thread that reads a portion, of which the rows are `numbers` in the end, into host memory."""

    def __init__(self, place: Place, portions: Portions, columns: dict[str, Any], into: dict[str, np.ndarray]):
        self.place, self.portions, self.columns, self.into = place, portions, columns, into
        self.numbers = portions.index[:0]
        self.error: Exception | None = None
        self.done = False  # a fork leaves its thread behind, which has ended then
        self.thread: threading.Thread | None = threading.Thread(target=self._read, name="reader of a portion")
        try:
            self.thread.start()
        except RuntimeError:  # the system has no thread left
            self.thread = None
            self._read()

    def wait(self) -> None:
        if self.thread is not None:
            self.thread.join()

    def _read(self) -> None:
        try:
            self.numbers = self.portions.of(*self.place)
            for name, column in self.columns.items():
                out = self.into[name][: len(self.numbers)]
                if isinstance(column, Stored):
                    column.read(self.numbers, out)
                else:
                    np.take(column, self.numbers, axis=0, out=out, mode="clip")
        except Exception as error:  # the thread that trains shall hear of it
            self.error = error
        self.done = True
