"""Splits of a table into training, validation and test rows: index arrays over one table, drawn from a seed."""

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gpbackprop.backend import random
from gpbackprop.data.augment import Augment
from gpbackprop.data.portions import Stream, block_rows
from gpbackprop.data.preparation import Preparation
from gpbackprop.data.stored import Stored, blocks
from gpbackprop.errors import ConfigError, DataError


@dataclass(frozen=True)
class Split:
    """Rows `index` (n,) of a table that splits share: `inputs` (N, *row_shape) of uint8 or the dtype it was loaded in,
    `targets` (N,) int64 class numbers or numbers (N, O), `weights` (N,) or None; numbers are of that dtype.

    Rows that are sequences (T, features) may have a target and a weight for each step, (N, T) or (N, T, O), and
    `lengths` (N,), the number of steps that count. Where they were cut, `windows` rows in a row are one sequence, and
    `index` holds the numbers of whole sequences. Where the data are folds, `index` is (F, n), the rows of each fold.
    Inputs and targets are as stored; `Preparation` says how they are normalised when a batch is gathered.
    With a `stream` the rows come in portions; then the inputs may be a table in a file, and `index` is sorted.
    """

    inputs: Any
    targets: np.ndarray
    weights: np.ndarray | None
    index: np.ndarray
    lengths: np.ndarray | None = None
    windows: int = 1
    stream: Stream | None = None

    def __len__(self) -> int:
        return self.index.shape[-1]

    def take(self, rows: slice) -> "Split":
        """A few rows of the split as one of their own, which lies in memory."""
        if self.stream is None:
            return replace(self, index=self.index[rows])
        few = self.index[rows]
        pick = lambda a: None if a is None else a[few]  # noqa: E731
        return Split(self.inputs[few], self.targets[few], pick(self.weights), np.arange(len(few)), pick(self.lengths))

    def cut(self, steps: int) -> "Split":
        """Each sequence as windows of `steps` steps. Raises ConfigError where that cannot be."""
        if self.stream is not None:
            raise ConfigError(
                f"train.bptt = {steps}: cuts the rows of a table in memory, but data.stream reads them in portions; "
                "leave train.bptt out, or set data.stream = false"
            )
        n, length = self.inputs.shape[:2]
        count = length // steps
        if length % steps:
            raise ConfigError(f"train.bptt = {steps}: does not divide the {length} steps of a row")
        if self.targets.shape[1:2] != (length,):
            raise ConfigError(
                f"train.bptt = {steps}: a window needs a target for each of its steps; the data has one for "
                f"each row of {length} steps. Leave train.bptt out"
            )
        flat = lambda a: a.reshape(n * count, steps, *a.shape[2:])  # noqa: E731
        weights, lengths = self.weights, self.lengths
        if weights is not None:
            weights = np.repeat(weights, count) if weights.ndim == 1 else flat(weights)
        if lengths is not None:
            lengths = np.clip(lengths[:, None] - np.arange(0, length, steps), 0, steps).reshape(-1)
        return Split(flat(self.inputs), flat(self.targets), weights, self.index, lengths, count)


@dataclass(frozen=True)
class Dataset:
    """A prepared data set: `splits` holds "train" and, where there is one, "validation" and "test".

    `digest` is the SHA-256 of the content of all splits, in hexadecimal; `source` is the `Data` that it was loaded by.
    """

    name: str
    splits: dict[str, Split]
    preparation: Preparation
    digest: str
    source: Any = None

    @property
    def augment(self) -> Augment | None:
        """What is done to the rows of training batches."""
        return self.source.augment if self.source else None


def draw(rows: np.ndarray, count: int, classes: np.ndarray | None, seed: int, part: int) -> np.ndarray:
    """The mask of `count` of `rows` (indices of a table), drawn by the permutation of (seed, part).

    With `classes` (the class of each of `rows`) every class gives its share of them, rounded up or down, and a class
    of one row gives it last.
    """
    order = random.permutation(len(rows), seed, part)
    taken = np.zeros(len(rows), bool)
    if classes is None:
        taken[order[:count]] = True
        return taken
    sizes = np.bincount(classes)
    share = sizes * (count / len(rows))
    quota = share.astype(np.int64)
    # What is left goes to the largest remainders, first where a class keeps a row to train on.
    for c in np.lexsort((quota - share, quota >= sizes - 1)):
        if quota.sum() == count:
            break
        quota[c] += quota[c] < sizes[c]
    grouped = order[np.argsort(classes[order], kind="stable")]
    place = np.arange(len(rows)) - np.repeat(np.cumsum(sizes) - sizes, sizes)  # the place of a row in its class
    taken[grouped[place < np.repeat(quota, sizes)]] = True
    return taken


def partition(
    n: int, fractions: dict[str, float], classes: np.ndarray | None, seed: int, where: str
) -> dict[str, np.ndarray]:
    """Disjoint, sorted row indices that together are 0..n-1: one array for each of `fractions`, the rest in "train".

    A part has round(fraction n) rows; the first part does not depend on the ones after it. Raises DataError when a part
    would have no row.
    """
    parts, rows = {}, np.arange(n, dtype=np.int64)
    for part, (name, fraction) in enumerate(fractions.items()):
        count = int(fraction * n + 0.5)
        if not 0 < count < len(rows):
            raise DataError(
                f"{where}: {name} = {fraction} of {n} rows is {count} and leaves {len(rows) - count} to train on; "
                "every split needs at least one row"
            )
        taken = draw(rows, count, None if classes is None else classes[rows], seed, part)
        parts[name] = rows[taken]
        rows = rows[~taken]
    return {"train": rows, **parts}


def digest(splits: dict[str, Split]) -> str:
    """The SHA-256, in hexadecimal, of the names, dtypes, shapes and bytes of all arrays of `splits`.

    A streamed split adds the size of its blocks, which the order of its rows depends on, and a file that is written
    with other chunks has other blocks.
    """
    total = hashlib.sha256()
    seen: dict[int, int] = {}
    for name in sorted(splits):
        split = splits[name]
        arrays: list[Any] = [split.inputs, split.targets, split.weights, split.index]
        for array in arrays if split.lengths is None else [*arrays, split.lengths]:
            if array is None:
                total.update(f"{name} none\n".encode())
            elif id(array) in seen:  # a table that splits share is hashed once
                total.update(f"{name} as {seen[id(array)]}\n".encode())
            else:
                seen[id(array)] = len(seen)
                total.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
                for part in blocks(array, None, array.at_once) if isinstance(array, Stored) else [array]:
                    total.update(memoryview(np.ascontiguousarray(part)).cast("B"))
        if split.stream is not None:
            total.update(f"{name} blocks of {block_rows(split.inputs, split.stream)}\n".encode())
    return total.hexdigest()
