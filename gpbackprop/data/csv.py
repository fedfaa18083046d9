"""CSV files: columns of numbers or of text, told apart by their cells.

The file is read twice: once to find its delimiter, columns and their kinds and to check that no row is ragged, once
into arrays of the right size, so that memory never holds the cells as text. A file may end in `.gz`.
"""

import csv
import gzip
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np

from gpbackprop.data.table import Cells, Words
from gpbackprop.errors import DataError
from gpbackprop.spec import suggest

MISSING = frozenset({"", "?", "na", "n/a", "#n/a", "nan", "null"})
MOST_CATEGORIES = 256
LONGEST_LINE = 1 << 24  # letters: a line is held in memory, and a small .gz may say that it has one of gigabytes


@dataclass(frozen=True)
class Layout:
    """The outside of a CSV file: its delimiter, its columns and how many rows it has.

    A column without a name in the header, or of a file without one, is called `c0`, `c1`, ... by its position.
    `numeric` says of each column whether most of its cells are numbers.
    """

    path: Path
    delimiter: str
    header: bool
    names: tuple[str, ...]
    numeric: tuple[bool, ...]
    rows: int

    def column(self, name: str | int, key: str) -> str:
        """The name of the column that `key` of the config calls `name`: a name, or a position (-1 is the last)."""
        if isinstance(name, int) and -len(self.names) <= name < len(self.names):
            return self.names[name]
        if name not in self.names:
            raise DataError(
                f"{self.path}: {key} = {name!r} is no column of the file{suggest(str(name), self.names)}; "
                f"its columns are: {', '.join(self.names)}"
            )
        return name


def number(cell: str) -> float | None:
    """The number a cell holds, or None; "1_000" is text, "1e999" is infinity."""
    try:
        return None if "_" in cell else float(cell)
    except ValueError:
        return None


def is_missing(cell: str) -> bool:
    """Whether a cell says that its value is not known."""
    return cell.strip().casefold() in MISSING


@contextmanager
def _reading(path: Path):
    """The text of `path`; whatever is wrong with the file becomes a DataError."""
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8-sig", newline="") as file:
            yield file
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: byte {error.start} of a block is not UTF-8 text ({error.reason}); save the file as UTF-8"
        ) from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: the compressed file is damaged or cut off ({error})") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error


def _records(path: Path, file, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """(line, cells) of every record that is not blank; `line` is where the record ends."""
    reader = csv.reader(_lines(path, file), delimiter=delimiter, skipinitialspace=True, strict=True)
    try:
        for cells in reader:
            if cells:
                yield reader.line_num, cells
    except csv.Error as error:
        raise DataError(
            f"{path}, line {reader.line_num}: {error}; check the quotes around this place and that the file is text"
        ) from error


def _lines(path: Path, file) -> Iterator[str]:
    for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE), ""), 1):
        if len(line) == LONGEST_LINE:
            raise DataError(
                f"{path}, line {number}: has {LONGEST_LINE} letters or more; expected rows of values, a line for each"
            )
        yield line


def _delimiter(path: Path) -> str:
    """The one of comma, semicolon and tab that splits the first records into the same, or else the largest, number of
    columns. What is broken in them is found again, and told, by `scan`.
    """
    ranks = {}
    for delimiter in ",;\t":
        widths = []
        with _reading(path) as file, suppress(DataError):
            for _, cells in islice(_records(path, file, delimiter), 20):
                widths.append(len(cells))
        widest = max(widths, default=1)
        ranks[delimiter] = (widest > 1, len(set(widths)) == 1, widest)
    return max(ranks, key=ranks.__getitem__)


def scan(path: Path, header: str | bool = "auto") -> Layout:
    """The layout of the CSV file `path`. Under "auto" the first row is a header when none of its cells is a number.

    Raises DataError for an empty or header-only file, a ragged row, a name that appears twice, broken text.
    """
    delimiter = _delimiter(path)
    with _reading(path) as file:
        records = _records(path, file, delimiter)
        first = next(records, None)
        if first is None:
            raise DataError(f"{path}: the file is empty; expected rows of values separated by commas")
        cells = first[1]
        width = len(cells)
        if header == "auto":
            header = all(number(cell) is None for cell in cells) and not all(map(is_missing, cells))
        names = tuple(cell.strip() or f"c{i}" for i, cell in enumerate(cells)) if header else ()
        names = names or tuple(f"c{i}" for i in range(width))
        if len(set(names)) < width:
            name = next(name for name in names if names.count(name) > 1)
            raise DataError(f"{path}, line {first[0]}: two columns are called {name!r}; every name must be its own")
        numbers, texts, rows = [0] * width, [0] * width, 0
        for line, cells in records if header else chain([first], records):
            if len(cells) != width:
                raise DataError(
                    f"{path}, line {line}: {len(cells)} values, but line {first[0]} has {width}; "
                    "every row needs as many values (put a value that holds the delimiter in quotes)"
                )
            rows += 1
            for i, cell in enumerate(cells):
                if number(cell) is not None:
                    numbers[i] += 1
                elif not is_missing(cell):
                    texts[i] += 1
        if rows == 0:
            raise DataError(f"{path}: the file has a header and no rows; say `header = false` if line 1 is data")
    numeric = tuple(n >= t for n, t in zip(numbers, texts, strict=True))
    return Layout(path, delimiter, bool(header), names, numeric, rows)


def read(layout: Layout, kinds: dict[str, bool]) -> tuple[dict[str, Cells], np.ndarray]:
    """The columns named in `kinds`, as numbers where the kind is True and as `Words` where not, and the line of each
    row. Raises DataError, with line and column, for text or an infinity among the numbers.
    """
    lines = np.empty(layout.rows, np.int64)
    places = {name: at for at, name in enumerate(layout.names)}
    columns: list[tuple[int, str, np.ndarray, dict[str, int] | None]] = [
        (
            places[name], name, np.empty(layout.rows, np.float64 if numeric else np.int32),
            None if numeric else {},
        )
        for name, numeric in kinds.items()
    ]  # fmt: skip
    with _reading(layout.path) as file:
        records = _records(layout.path, file, layout.delimiter)
        if layout.header:
            next(records, None)
        n = -1
        for n, (line, cells) in enumerate(records):
            if n == layout.rows or len(cells) != len(layout.names):
                raise DataError(f"{layout.path}, line {line}: the file changed while it was read; try again")
            lines[n] = line
            for position, name, values, codes in columns:
                cell = cells[position]
                if codes is not None:
                    values[n] = -1 if is_missing(cell) else codes.setdefault(cell.strip(), len(codes))
                else:
                    values[n] = _value(layout, line, name, cell)
        if n + 1 != layout.rows:
            raise DataError(f"{layout.path}: the file changed while it was read; try again")
    return {name: values if codes is None else Words(values, tuple(codes)) for _, name, values, codes in columns}, lines


def _value(layout: Layout, line: int, name: str, cell: str) -> float:
    """The number in a cell of a column of numbers, NaN where it is missing."""
    value = number(cell)
    if value is not None and math.isfinite(value):
        return value
    shown = repr(cell if len(cell) < 60 else f"{cell[:50]}... ({len(cell)} letters)")
    if value is None or value != value:
        if is_missing(cell):
            return math.nan
        raise DataError(
            f"{layout.path}, line {line}, column {name!r}: {shown} is not a number, but the others of the column "
            "are; correct it, leave it empty (a missing value), or leave the column out with `inputs`"
        )  # fmt: skip
    raise DataError(
        f"{layout.path}, line {line}, column {name!r}: {shown} is infinite; expected a finite number, "
        "or nothing (a missing value)"
    )
