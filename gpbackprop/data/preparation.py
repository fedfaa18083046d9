"""How raw rows become inputs of a network, stored with the model so that raw rows can be predicted on.

encode:     columns -> (N, *row_shape): numbers as they are, a category as one-hot, a missing value as `fill`
normalise:  x' = (x - shift) scale,     t' = (t - target_shift) target_scale
"""

import json
import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np

from gpbackprop.data.labels import class_numbers, target_numbers
from gpbackprop.data.sequences import symbols, windows
from gpbackprop.data.stored import blocks
from gpbackprop.data.table import BLOCK, Raw, Words, as_dtype, missing
from gpbackprop.errors import DataError
from gpbackprop.spec import suggest


@dataclass(frozen=True)
class Column:
    """An input column: numbers when `categories` is empty, else text that becomes one-hot in their order.

    `fill` stands in for a missing value: the mean, or the most frequent category, of the training rows; where it is
    None a missing value is an error.
    """

    name: str
    categories: tuple[str, ...] = ()
    fill: float | str | None = None

    @property
    def width(self) -> int:
        return len(self.categories) or 1

    @property
    def names(self) -> tuple[str, ...]:
        """What each number of it is called."""
        return tuple(f"{self.name} = {category}" for category in self.categories) or (self.name,)


@dataclass(frozen=True)
class Preparation:
    """All that is needed to predict on raw data.

    `columns` are the inputs of a source with columns, () for a source that is one array. `classes` are the names of the
    classes as they were given, () for regression. `shift` and `scale` are float64, broadcastable to `row_shape`;
    `target_shift` and `target_scale` are float64 (O,) or None. `target` names the target columns, `weight` the weights.
    `kind` says what a row is: one of the source's "rows", one of its "sequences" (T, features), a window over a
    "series" (the target lies `horizon` steps after it), or one over a "text", whose classes are the characters.
    Where it `reconstructs`, the targets are the normalised inputs themselves, and `target` names these. A network sees
    a `crop` (height, width) of rows that are larger images, their centre where it does not train.
    Of the `folds` of a cross-validation each has moments of its own: `shift` and `scale` are (F, 1, row axes...),
    broadcastable to (F, rows, *row_shape), and `target_shift` and `target_scale` are (F, 1, ..., O).
    """

    columns: tuple[Column, ...]
    target: tuple[str, ...]
    weight: str | None
    header: bool
    classes: tuple[str, ...]
    row_shape: tuple[int, ...]
    shift: np.ndarray
    scale: np.ndarray
    target_shift: np.ndarray | None = None
    target_scale: np.ndarray | None = None
    kind: str = "rows"
    horizon: int = 1
    reconstructs: bool = False
    crop: tuple[int, ...] = ()

    @property
    def folds(self) -> int:
        """The number of folds, 0 where there is one set of moments for all."""
        return len(self.shift) if self.shift.ndim == len(self.row_shape) + 2 else 0

    def of_fold(self, k: int) -> "Preparation":
        """The preparation of fold `k` alone."""
        own: dict[str, Any] = {"shift": self.shift[k, 0], "scale": self.scale[k, 0]}
        if self.target_shift is not None and self.target_scale is not None:
            own |= {"target_shift": self.target_shift[k].ravel(), "target_scale": self.target_scale[k].ravel()}
        return replace(self, **own)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of a row as a network sees it."""
        return (*self.crop, *self.row_shape[len(self.crop) :])

    @property
    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """`shift` and `scale` for what a network sees of a row."""
        return self._seen(self.shift), self._seen(self.scale)

    def _seen(self, a: np.ndarray) -> np.ndarray:
        first = a.ndim - len(self.row_shape)
        for axis, size in enumerate(self.crop, first):
            if a.shape[axis] > 1:
                a = a.take(np.arange(size) + (a.shape[axis] - size) // 2, axis)
        return a

    def encode(self, raw: Raw, dtype: Any = np.float32) -> Any:
        """The rows of `raw` as (N, *row_shape), of `dtype` or, where they are bytes, uint8; not normalised yet. What is
        in a file stays there.

        Raises DataError, with row and column, for a missing value that has no fill, an unknown category, a number that
        is not finite in `dtype`, or rows of another size.
        """
        if self.kind == "text":
            return symbols(raw, self.classes)
        if isinstance(raw.inputs, dict):
            x = _encode_columns(self.columns, raw, dtype)
        else:
            x = raw.inputs if raw.inputs.dtype == np.uint8 else as_dtype(raw.inputs, dtype)
            if any(column.categories for column in self.columns):
                raise DataError(f"{raw.where}: the inputs were columns with text; give a CSV file with these columns")
        series = self.kind == "series"
        size = int(np.prod(self.row_shape[series:]))
        if math.prod(x.shape[1:]) != size:
            raise DataError(
                f"{raw.where}: a row has the shape {x.shape[1:]}; expected {self.row_shape} or {size} values in a row"
            )
        check_finite(x, raw, [column.name for column in self.columns for _ in range(column.width)])
        if series:
            return windows(x, self.row_shape[0], raw.where)
        return x.reshape(len(x), *self.row_shape)

    def pairs(self, raw: Raw, dtype: Any = np.float32) -> tuple[Any, np.ndarray]:
        """The rows of `raw` and their targets, as `encode` and `labels` give them; of a series, those with a target."""
        x = self.encode(raw, dtype)
        if self.reconstructs:
            return x, x
        targets = self.labels(raw, dtype)
        if self.kind != "series":
            return x, targets
        window = self.row_shape[0]
        if len(x) <= self.horizon:
            raise DataError(
                f"{raw.where}: has {len(targets)} rows; windows of {window} with a target {self.horizon} steps later "
                f"need {window + self.horizon} at least"
            )
        return x[: -self.horizon], targets[window - 1 + self.horizon :]

    def in_raw_units(self, y: np.ndarray) -> np.ndarray:
        """The outputs y (K, N, ...) of a network as numbers of the raw targets: what normalised them undone."""
        if self.reconstructs:
            (shift, scale), rows = self.moments, y.reshape(*y.shape[:2], *self.input_shape)
            return (rows / scale + shift).reshape(y.shape)
        return y if self.target_scale is None else y / self.target_scale + self.target_shift

    def labels(self, raw: Raw, dtype: Any = np.float32) -> np.ndarray:
        """The targets of `raw`: (N,) int64 class numbers, or (N, O) of `dtype`. Raises DataError, with the row, for a
        label that is none of the classes, and for a target that is missing or not a number.
        """
        if raw.targets is None:
            raise DataError(f"{raw.where}: there is no target in it")
        return class_numbers(self.classes, raw) if self.classes else target_numbers(raw, dtype)

    def arrays(self) -> dict[str, np.ndarray]:
        """Arrays that hold all of it: the numbers, and the rest as "text", the bytes of a JSON object."""
        numbers = {name: getattr(self, name) for name in _NUMBERS}
        text = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _NUMBERS}
        text["columns"] = [asdict(column) for column in self.columns]
        encoded = json.dumps(text, ensure_ascii=False, sort_keys=True).encode()
        return {"text": np.frombuffer(encoded, np.uint8), **{k: v for k, v in numbers.items() if v is not None}}

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> "Preparation":
        """The preparation that `arrays()` wrote. Raises ValueError when they are anything else."""
        return _from_arrays(arrays)


KINDS = ("rows", "sequences", "series", "text")
_NUMBERS = ("shift", "scale", "target_shift", "target_scale")


def _encode_columns(columns: tuple[Column, ...], raw: Raw, dtype: Any) -> np.ndarray:
    """Columns of numbers and one-hot categories side by side, (N, sum of widths)."""
    x = np.zeros((len(raw), sum(column.width for column in columns)), dtype)
    at = 0
    for column in columns:
        cells = raw.inputs[column.name]
        gone = missing(cells)
        if column.fill is None and gone.any():
            raise missing_error(raw, int(np.argmax(gone)), column.name)
        if column.categories:
            codes = np.concatenate([_positions(column, cells, raw), [-1]])[cells.codes]  # code -1 picks the last
            if gone.any():
                codes[gone] = column.categories.index(column.fill)
            x[np.arange(len(x)), at + codes] = 1
        else:
            if gone.any():
                cells = np.where(gone, column.fill, cells)
            x[:, at] = as_dtype(cells, dtype)
        at += column.width
    return x


def _positions(column: Column, cells: Words, raw: Raw) -> np.ndarray:
    """The position in `column.categories` of each of the words of `cells`."""
    known = {word: i for i, word in enumerate(column.categories)}
    for code, word in enumerate(cells.words):
        if word not in known and (cells.codes == code).any():
            row = int(np.argmax(cells.codes == code))
            raise DataError(
                f"{raw.place(row)}, column {column.name!r}: {word!r} is none of the categories of the training data"
                f"{suggest(word, known)}: {', '.join(known)}"
            )
    return np.array([known.get(word, -1) for word in cells.words], np.int64)


def missing_error(raw: Raw, row: int, column: str) -> DataError:
    """What is said of a value that is missing and may not be."""
    return DataError(
        f'{raw.place(row)}, column {column!r}: the value is missing; fill it in, or train with `missing = "drop"` '
        'in [data] (leaves such rows out) or `missing = "mean"` (fills in the mean or the most frequent category)'
    )


def check_finite(x: Any, raw: Raw, names: list[str]) -> None:
    """Raise DataError, with row and column, when a row of `x` (N, ...) holds NaN or infinity."""
    if x.dtype == np.uint8:
        return
    step = max(1, BLOCK // max(1, math.prod(x.shape[1:])))
    for number, block in enumerate(blocks(x, None, step)):
        if not np.isfinite(block).all():
            block, start = block.reshape(len(block), -1), number * step
            row, column = (int(i[0]) for i in np.nonzero(~np.isfinite(block)))
            name = names[column] if column < len(names) else column
            raise DataError(
                f"{raw.place(start + row)}, column {name!r}: {block[row, column]} (as {x.dtype}); "
                f"expected a finite number below {np.finfo(x.dtype).max:.2g}"
            )


def _from_arrays(arrays: dict[str, np.ndarray]) -> Preparation:
    wanted, optional = {"text", "shift", "scale"}, {"target_shift", "target_scale"}
    if not wanted <= set(arrays) <= wanted | optional or len(optional & set(arrays)) == 1:
        raise ValueError(f"a preparation holds {sorted(wanted)} and perhaps {sorted(optional)}, not {sorted(arrays)}")
    encoded = arrays["text"]
    if encoded.dtype != np.uint8 or encoded.ndim != 1:
        raise ValueError("the text of a preparation is not an array of bytes")
    try:
        text = json.loads(encoded.tobytes().decode())
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"the text of a preparation is not JSON: {error}") from error
    keys = {"columns", "target", "weight", "header", "classes", "row_shape", "kind", "horizon"}
    keys |= {"reconstructs", "crop"}
    if not isinstance(text, dict) or set(text) != keys:
        raise ValueError(f"the text of a preparation has other keys than {sorted(keys)}")
    columns = tuple(_column(item) for item in _list(text["columns"], "columns", dict))
    shape = tuple(_list(text["row_shape"], "row_shape", int))
    if not shape or min(shape) < 1 or not isinstance(text["header"], bool):
        raise ValueError(f"a preparation with the row shape {shape} and the header {text['header']!r}")
    if not isinstance(text["reconstructs"], bool) or (text["reconstructs"] and text["classes"]):
        raise ValueError(f"a preparation that reconstructs {text['reconstructs']!r}, of the classes {text['classes']}")
    crop = tuple(_list(text["crop"], "crop", int))
    if crop and (len(crop) != 2 or len(shape) < 2 or not all(1 <= m <= n for m, n in zip(crop, shape, strict=False))):
        raise ValueError(f"a preparation that crops rows of {shape} to {crop}")
    if text["kind"] not in KINDS or type(text["horizon"]) is not int or text["horizon"] < 1:
        raise ValueError(f"a preparation of the kind {text['kind']!r} and the horizon {text['horizon']!r}")
    features = shape[1:] if text["kind"] == "series" else shape
    if columns and sum(column.width for column in columns) != int(np.prod(features, dtype=object)):
        raise ValueError(f"the columns of a preparation do not make rows of the shape {shape}")
    if not isinstance(text["weight"], str | None):
        raise ValueError("the weight of a preparation is not a name")
    classes = tuple(_list(text["classes"], "classes", str))
    if len(set(classes)) != len(classes) or len(classes) == 1:
        raise ValueError("the classes of a preparation are not at least two different names")
    numbers = {name: arrays[name] for name in _NUMBERS if name in arrays}
    folds = len(numbers["shift"]) if numbers["shift"].ndim == len(shape) + 2 else 0
    for name, a in numbers.items():
        if folds and (a.ndim < 3 or a.shape[:2] != (folds, 1)):
            raise ValueError(f"{name} of a preparation has the shape {a.shape}, which does not fit {folds} folds")
        if folds:
            a = numbers[name][0, 0] if name in ("shift", "scale") else numbers[name][0].ravel()
        if a.dtype != np.float64 or not np.isfinite(a).all():
            raise ValueError(f"{name} of a preparation is not an array of finite float64")
        if name in ("shift", "scale") and (a.ndim > len(shape) or any(
            m not in (1, n) for m, n in zip(a.shape[::-1], shape[::-1], strict=False)
        )):  # fmt: skip
            raise ValueError(f"{name} of a preparation has the shape {a.shape}, which does not fit rows of {shape}")
        if name not in ("shift", "scale") and (
            a.ndim != 1 or classes or arrays[name].shape != arrays["target_shift"].shape
        ):
            raise ValueError(f"{name} of a preparation does not fit its targets")
    target = tuple(_list(text["target"], "target", str))
    kind, horizon, found = text["kind"], text["horizon"], numbers.get
    return Preparation(
        columns, target, text["weight"], text["header"], classes, shape, numbers["shift"], numbers["scale"],
        found("target_shift"), found("target_scale"), kind, horizon, text["reconstructs"], crop,
    )  # fmt: skip


def _list(value, name: str, kind: type) -> list:
    if not isinstance(value, list) or any(type(item) is not kind for item in value):
        raise ValueError(f"{name} of a preparation is not a list of {kind.__name__}")
    return value


def _column(item: dict) -> Column:
    if set(item) != {"name", "categories", "fill"} or not isinstance(item["name"], str):
        raise ValueError("a column of a preparation has a name, categories and a fill")
    categories, fill = tuple(_list(item["categories"], "categories", str)), item["fill"]
    fits = fill in categories if categories else (type(fill) is float and np.isfinite(fill))
    if len(set(categories)) != len(categories) or not (fill is None or fits):
        raise ValueError(f"the column {item['name']!r} of a preparation has wrong categories or a wrong fill")
    return Column(item["name"], categories, fill)
