"""What the training rows say: shift and scale of the inputs and targets, and what stands in for a missing value.

Computed in blocks of float64, so that a table of uint8 is never copied as numbers of another size.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from gpbackprop.data.preparation import Column
from gpbackprop.data.stored import blocks
from gpbackprop.data.table import BLOCK, Cells, Raw, Words, missing
from gpbackprop.errors import DataError


def moments(x: Any, rows: np.ndarray, normalize: str) -> tuple[np.ndarray, np.ndarray]:
    """`shift` and `scale`, float64 and broadcastable to a row of `x`, of the rows `rows`: x' = (x - shift) scale.

    "standard": the mean and 1/deviation; "minmax": the minimum and 1/(maximum - minimum); "none": 0 and 1. A table of
    uint8 holds pixels: one number for all columns, or one for each channel of rows (H, W, C). Any other table has one
    for each column. A column that does not vary has the scale 1. A table in a file is read in the same blocks, and has
    the moments of the one in memory, to the bit.
    """
    shape = x.shape[1:]
    if x.dtype == np.uint8:
        channels = shape[-1] if len(shape) == 3 else 1
        wide = (*(1,) * (len(shape) - 1), channels)
        flat = x.reshape(len(x), -1, channels)
        found = _of_pixels(flat, rows, normalize)
    else:
        wide = shape
        found = _of_numbers(x.reshape(len(x), -1), rows, normalize)
    shift, spread = found
    scale = np.where(spread > 0, 1 / np.where(spread > 0, spread, 1), 1.0)
    return shift.reshape(wide), scale.reshape(wide)


def _blocks(x: Any, rows: np.ndarray) -> Iterator[np.ndarray]:
    return blocks(x, rows, max(1, BLOCK // max(1, math.prod(x.shape[1:]))))


def _of_pixels(x: Any, rows: np.ndarray, normalize: str) -> tuple[np.ndarray, np.ndarray]:
    """Shift and spread of each channel, from the counts of the 256 values: exact, whatever the order of the rows."""
    channels = x.shape[-1]
    counts = np.zeros((channels, 256), np.int64)
    for block in _blocks(x, rows):
        for c in range(channels):
            counts[c] += np.bincount(block[..., c].ravel(), minlength=256)
    values = np.arange(256.0)
    if normalize == "minmax":
        low = np.array([np.flatnonzero(n)[0] for n in counts], np.float64)
        return low, np.array([np.flatnonzero(n)[-1] for n in counts]) - low
    if normalize == "none":
        return np.zeros(channels), np.ones(channels)
    total = counts.sum(axis=1)
    mean = counts @ values / total
    deviation = np.sqrt(np.sum(counts * (values - mean[:, None]) ** 2, axis=1) / total)
    return mean, deviation


def _of_numbers(x: Any, rows: np.ndarray, normalize: str) -> tuple[np.ndarray, np.ndarray]:
    """Shift and spread of each column."""
    width = x.shape[1]
    if normalize == "none":
        return np.zeros(width), np.ones(width)
    low, high, total = np.full(width, np.inf), np.full(width, -np.inf), np.zeros(width)
    for block in _blocks(x, rows):
        low, high = np.minimum(low, block.min(axis=0)), np.maximum(high, block.max(axis=0))
        total += block.sum(axis=0, dtype=np.float64)
    if normalize == "minmax":
        return low, high - low
    mean = np.clip(total / len(rows), low, high)  # rounding must not make a column vary that does not
    squares = np.zeros(width)
    for block in _blocks(x, rows):
        squares += np.square(block - mean).sum(axis=0)
    return mean, np.sqrt(squares / len(rows))


def filled_columns(raw: Raw, rows: np.ndarray, fill: bool) -> tuple[Column, ...]:
    """The input columns of `raw`: categories in sorted order and, where asked, what fills in a missing value, both the
    mean and the most frequent category of `rows` alone. Raises DataError for a column without any value.
    """
    return tuple(_column(name, cells, raw, rows, fill) for name, cells in raw.inputs.items())


def _column(name: str, cells: Cells, raw: Raw, rows: np.ndarray, fill: bool) -> Column:
    present = cells[rows][~missing(cells[rows])]
    length = len(present.codes) if isinstance(present, Words) else len(present)
    if fill and length == 0:
        raise DataError(
            f"{raw.where}, column {name!r}: every value of the training rows is missing; leave it out with `inputs`"
        )
    if not isinstance(cells, Words):
        return Column(name, fill=float(np.mean(present)) if fill else None)
    categories = tuple(sorted(cells.words))
    counts = dict(zip(cells.words, np.bincount(present.codes, minlength=len(cells.words)), strict=True))
    return Column(name, categories, max(categories, key=lambda word: counts[word]) if fill else None)
