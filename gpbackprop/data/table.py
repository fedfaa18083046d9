"""What a reader hands over: the columns of a source as they were read, nothing dropped, filled or scaled."""

import math
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from gpbackprop.data.stored import Stored, blocks
from gpbackprop.errors import DataError

BLOCK = 1 << 18  # elements that are converted to float64 at a time


@dataclass(frozen=True)
class Words:
    """A column of text: row n holds `words[codes[n]]`, and code -1 is a missing value."""

    codes: np.ndarray
    words: tuple[str, ...]

    def __getitem__(self, rows) -> "Words":
        return Words(self.codes[rows], self.words)

    def __len__(self) -> int:
        return len(self.codes)


Cells: TypeAlias = Any  # a column: float64 (N,), NaN where a value is missing, or `Words`


@dataclass(frozen=True)
class Raw:
    """A source as it was read.

    `inputs` is an array (N, ...) or, from a CSV, a dict of columns. `targets` are `Words`, a float array (N, O), or
    None. `lines` are the line numbers of the rows of a text file, so that an error that is found later still names
    its line. `kind` says what a row is (see `Preparation`); sequences may have `lengths` (N,), and a target for each
    step: `Words` of codes (N, T), or numbers (N, T, O).
    """

    where: str
    inputs: Any
    targets: Any = None
    weights: np.ndarray | None = None
    target_names: tuple[str, ...] = ()
    header: bool = True
    lines: Any = None
    lengths: np.ndarray | None = None
    kind: str = "rows"

    def __len__(self) -> int:
        if isinstance(self.inputs, dict):
            return len(self.lines)
        return len(self.inputs)

    def place(self, row: int) -> str:
        """Where row `row` is found: "file.csv, line 7", or "file.npz, row 5" (counted from 0)."""
        return f"{self.where}, row {row}" if self.lines is None else f"{self.where}, line {self.lines[row]}"

    def take(self, rows: np.ndarray) -> "Raw":
        """The same columns with only `rows` (a mask or indices)."""
        pick = lambda column: None if column is None else column[rows]  # noqa: E731
        inputs = {k: pick(v) for k, v in self.inputs.items()} if isinstance(self.inputs, dict) else pick(self.inputs)
        return replace(
            self, inputs=inputs, targets=pick(self.targets), weights=pick(self.weights), lines=pick(self.lines),
            lengths=pick(self.lengths),
        )  # fmt: skip


def missing(column: Cells) -> np.ndarray:
    """The mask of the rows of a column whose value is missing."""
    found = np.asarray(column.codes < 0 if isinstance(column, Words) else np.isnan(column))
    return np.asarray(found.reshape(len(found), math.prod(found.shape[1:])).any(axis=1))


def as_table(x: Any, where: str, what: str) -> Any:
    """`x` (N, ...), as uint8 where it is a boolean array, or one of integers that all lie in 0..255.

    A table in a file stays there.

    Raises DataError when `x` holds something else than real numbers, or no rows.
    """
    if x.ndim == 0 or x.size == 0:
        raise DataError(f"{where}: {what} has the shape {x.shape}; expected rows of values along the first axis")
    if x.ndim == 1:
        x = x.reshape(len(x), 1)
    if x.dtype.kind not in "biuf":
        raise DataError(f"{where}: {what} has the dtype {x.dtype}; expected integers, booleans or real numbers")
    if isinstance(x, Stored):
        return x.astype(np.uint8) if _holds_bytes(x) else x
    if x.dtype.kind == "b" or x.dtype == np.uint8:
        return np.ascontiguousarray(x.view(np.uint8))
    return np.ascontiguousarray(x, dtype=np.uint8 if _holds_bytes(x) else None)


def _holds_bytes(x: Any) -> bool:
    if x.dtype.kind == "b" or x.dtype == np.uint8:
        return True
    parts = blocks(x, None, x.at_once) if isinstance(x, Stored) else [x]
    return x.dtype.kind in "iu" and all(part.min() >= 0 and part.max() <= 255 for part in parts)


def as_targets(y: np.ndarray, rows: int, where: str, what: str, steps: int = 0) -> Words | np.ndarray:
    """The targets in an array: `Words` from (N,) or (N, 1) of integers, booleans or text, else float64 (N, O).

    Rows of so many `steps` may have a target for each: `Words` from (N, T), float64 from (N, T) or (N, T, O).
    """
    if steps and y.shape[:2] == (rows, steps):
        return _as_steps(y, where, what)
    if y.ndim == 2 and y.shape[1] == 1 and y.dtype.kind != "f":
        y = y[:, 0]
    if y.ndim not in (1, 2) or len(y) != rows or y.size == 0:
        raise DataError(f"{where}: {what} has the shape {y.shape}; expected ({rows},) or ({rows}, outputs)")
    if y.dtype.kind in "SUbiu" and y.ndim == 1:
        return _as_words(y, where, what)
    if y.dtype.kind not in "biuf":
        raise DataError(f"{where}: {what} has the dtype {y.dtype}; expected class labels (N,) or numbers (N, outputs)")
    return y.reshape(rows, -1).astype(np.float64)


def _as_words(y: np.ndarray, where: str, what: str) -> Words:
    try:
        values, codes = np.unique(y, return_inverse=True)
        words = [v.decode() if isinstance(v, bytes) else str(v) for v in values.tolist()]
        for word in words:
            word.encode()  # half of a pair of surrogates can be held, and not written
    except (ValueError, SystemError) as error:  # NumPy makes no str of a number that is no letter: a SystemError
        raise DataError(f"{where}: {what} holds text that is not UTF-8") from error
    return Words(codes.reshape(y.shape).astype(np.int32), tuple(words))


def _as_steps(y: np.ndarray, where: str, what: str) -> Words | np.ndarray:
    if y.dtype.kind in "SUbiu" and y.ndim == 2:
        return _as_words(y, where, what)
    if y.dtype.kind not in "biuf" or y.ndim > 3:
        raise DataError(f"{where}: {what} is {y.dtype} of the shape {y.shape}; expected classes (N, T) or numbers")
    return y.reshape(*y.shape[:2], -1).astype(np.float64)


def as_lengths(lengths: np.ndarray, x: np.ndarray, where: str, what: str) -> np.ndarray:
    """The lengths (N,) of rows x (N, T, ...), each from 1 to T."""
    if lengths.shape != (len(x),) or lengths.dtype.kind not in "iu" or x.ndim < 2:
        raise DataError(
            f"{where}: {what} is {lengths.dtype} of the shape {lengths.shape} for rows of the shape {x.shape[1:]}; "
            f"expected a whole number for each of the {len(x)} rows (T, features)"
        )
    if lengths.min() < 1 or lengths.max() > x.shape[1]:
        row = int(np.argmax((lengths < 1) | (lengths > x.shape[1])))
        raise DataError(
            f"{where}, row {row}: the length {lengths[row]}; expected 1 to {x.shape[1]}, the steps of a row"
        )
    return lengths.astype(np.int64)


def as_weights(w: np.ndarray, rows: int, where: str, what: str) -> np.ndarray:
    """The weights of the rows (N,) as float64; they are checked after missing rows are gone."""
    if w.shape != (rows,) or w.dtype.kind not in "biuf":
        raise DataError(f"{where}: {what} is {w.dtype} of the shape {w.shape}; expected one number a row, ({rows},)")
    return w.astype(np.float64)


def as_dtype(x: np.ndarray, dtype: Any) -> np.ndarray:
    """`x` as `dtype`; what is too large for it becomes an infinity, which `check_finite` finds with row and column."""
    with np.errstate(over="ignore"):
        return x.astype(dtype, copy=False)
