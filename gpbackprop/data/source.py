"""The [data] table of a config, and the data set it stands for."""

import dataclasses
import os
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from gpbackprop.backend import random
from gpbackprop.data import files
from gpbackprop.data.catalog import CATALOG, Entry, embedded, entry, located
from gpbackprop.data.generated import GENERATED, generate
from gpbackprop.data.idx import read as read_idx
from gpbackprop.data.moments import filled_columns, moments
from gpbackprop.data.preparation import (
    Preparation,
    as_dtype,
    as_number,
    check_finite,
    class_numbers,
    is_one_hot,
    missing_error,
)
from gpbackprop.data.sequences import SEQUENCES, chronological, read_text
from gpbackprop.data.split import Dataset, Split, digest, partition
from gpbackprop.data.table import Raw, Words, as_table, as_targets, missing
from gpbackprop.errors import ConfigError, DataError
from gpbackprop.spec import Count, Flag, Fraction, NonNegative, Seed, Text, spec

Name = Text | Annotated[int, Field(strict=True)]


@spec
class Data:
    """Where the rows come from and how they are prepared.

    source      a name of the catalog, or a file .csv .npz .h5 .idx(.gz); a relative path starts at the config's folder
    target      CSV: the column, by name or position (-1 is the last, the default), or several for a regression;
                NPZ and HDF5: the array (y or targets); IDX: the file of labels (found by its name)
    inputs      CSV: the input columns; by default all but target and weight
    weight      a column or array with a weight for each row
    task        "auto": text, few whole numbers, an array of integers, or an array of one-hot rows (a single 1 among 0)
                are classes, the last named "0", "1", ... by column; other numbers a regression
    validation  a fraction of the rows, or a file; test: the same, by default the test rows that the source comes with
    normalize   "standard" (mean 0, deviation 1 over the training rows), "minmax" (0..1) or "none"
    missing     "error", "drop" the row, or fill in the "mean", in a column of text the most frequent category, of the
                training rows (CSV)
    shape       of a row: "flat", as "stored", or [28, 28, 1]
    seed        of the split and of generated rows; the seed of the training has no part in it
    rows, noise of a generated source
    window      makes a row of so many steps: of a series (a CSV whose rows lie in time, or an array; its inputs are by
                default its targets), of the characters of a .txt, or of a generated sequence. Such rows are
                normalised alike at all steps, and the splits of a series or text follow each other in time
    horizon     how many steps after a window of a series its target lies, by default 1
    header      CSV: whether the first row names the columns; "auto": when no cell of it is a number
    """

    source: Text
    target: Name | Annotated[tuple[Name, ...], Field(min_length=1)] | None = None
    inputs: Annotated[tuple[Text, ...], Field(min_length=1)] | None = None
    weight: Text | None = None
    task: Literal["auto", "classification", "regression"] = "auto"
    validation: Fraction | Text = 0.0
    test: Fraction | Text | None = None
    normalize: Literal["standard", "minmax", "none"] = "standard"
    normalize_targets: Literal["standard", "none"] = "none"
    missing: Literal["error", "drop", "mean"] = "error"
    shape: Literal["flat", "stored"] | Annotated[tuple[Count, ...], Field(min_length=1)] = "flat"
    seed: Seed = 0
    rows: Count | None = None
    noise: NonNegative | None = None
    header: Literal["auto"] | Flag = "auto"
    window: Count | None = None
    horizon: Count | None = None


def load(source: str | Data, base: str | Path | None = None, dtype: Any = "float32", **fields) -> Dataset:
    """The data set of a `Data`, or of a name or path and the fields of one: `load("iris", validation=0.2)`.

    A relative path starts at `base`, by default the working directory. Bytes stay bytes, other numbers are kept in
    `dtype`: a network of float64 wants its data in float64, for 0.05 as float32 is another number. Raises DataError for
    what is wrong with the data, ConfigError for fields that do not fit the source.
    """
    data = dataclasses.replace(source, **fields) if isinstance(source, Data) else Data(source=source, **fields)
    folder = Path(base or ".")
    known, parts = _read(data, folder)
    parts = {name: _as_series(part, data) for name, part in parts.items()}
    raw = _usable(parts["train"], data.missing)
    classes = _classes(data.task, raw)
    if classes and data.normalize_targets != "none":
        raise ConfigError(f"data.normalize_targets = {data.normalize_targets!r}: the targets are classes, not numbers")
    fractions, window = _fractions(data, "test" in parts), data.window or 0
    if raw.kind == "series":
        rows = chronological(len(raw) - window - (data.horizon or 1) + 1, fractions, raw.where)
    elif raw.kind == "text":
        rows = chronological(len(raw), fractions, raw.where)
    else:
        numbers = class_numbers(classes, raw) if classes else None
        stratify = numbers if numbers is not None and numbers.ndim == 1 else None
        rows = partition(len(raw), fractions, stratify, data.seed, raw.where)

    table = rows["train"]  # the rows of the table that training sees
    if raw.kind == "series":
        table = np.arange(table[-1] + window)
    columns = filled_columns(raw, table, data.missing == "mean") if isinstance(raw.inputs, dict) else ()
    shape = raw.inputs.codes.shape[1:] if isinstance(raw.inputs, Words) else () if columns else raw.inputs.shape[1:]
    size = sum(column.width for column in columns) or int(np.prod(shape))
    stored = (known.stored if known else ()) or ((size,) if columns else shape)
    preparation = Preparation(
        columns, raw.target_names, data.weight, raw.header, classes,
        _row_shape(data.shape, size, stored, raw, window), np.zeros(1), np.ones(1),
        kind=raw.kind, horizon=data.horizon or 1,
    )  # fmt: skip
    whole = _split(preparation, raw, dtype)
    x, targets = whole.inputs, whole.targets
    if known and known.pixels:
        x = x.astype(np.uint8, copy=False)
    preparation = _normalised(preparation, data, x, targets, rows["train"], raw.lengths)

    splits = {name: dataclasses.replace(whole, inputs=x, index=index) for name, index in rows.items()}
    if "test" in parts and data.test is None:
        splits["test"] = _whole(preparation, parts["test"], data.missing, dtype)
    for name in ("validation", "test"):
        if isinstance(path := getattr(data, name), str):
            splits[name] = read_labelled(preparation, folder / Path(path).expanduser(), data.missing, dtype)
    for name, split in splits.items():
        if split.targets.shape[1:] != targets.shape[1:]:
            raise DataError(
                f"{name}: {split.targets.shape[1]} targets a row, but the training rows have {targets.shape[1]}"
            )
    name = known.name if known else Path(data.source).name.split(".")[0]
    return Dataset(name, splits, preparation, digest(splits), _anchored(data, folder, known is None))


def _anchored(data: Data, folder: Path, from_file: bool) -> Data:
    """`data` with absolute paths, which mean the same from every directory."""
    keys = [*(["source"] if from_file else []), "validation", "test"]
    paths = {key: path for key in keys if isinstance(path := getattr(data, key), str)}
    absolute: dict[str, Any] = {key: os.path.abspath(folder / Path(path).expanduser()) for key, path in paths.items()}
    return dataclasses.replace(data, **absolute)


def read_inputs(preparation: Preparation, path: str | Path, dtype: Any = "float32") -> np.ndarray:
    """The rows (N, *row_shape) of a CSV, NPZ, HDF5 or IDX file with raw inputs, encoded but not normalised.

    `dtype` is that of the network, so that it sees the digits that it was trained on.
    Raises DataError, with row and column, for what the preparation cannot use.
    """
    return read_rows(preparation, path, dtype)[0]


def read_rows(
    preparation: Preparation, path: str | Path, dtype: Any = "float32"
) -> tuple[np.ndarray, np.ndarray | None]:
    """What `read_inputs` gives, and the lengths (N,) of rows that are sequences, or None."""
    raw = files.read_prepared(preparation, Path(path), labelled=False)
    return preparation.encode(raw, dtype), raw.lengths


def read_labelled(preparation: Preparation, path: str | Path, missing: str = "error", dtype: Any = "float32") -> Split:
    """The rows of a file with raw inputs and targets, as a split of all of them; `missing = "drop"` leaves out rows.

    Raises DataError as `read_inputs`, and for a label that is none of the classes.
    """
    return _whole(preparation, files.read_prepared(preparation, Path(path), labelled=True), missing, dtype)


def _read(data: Data, folder: Path) -> tuple[Entry | None, dict[str, Raw]]:
    """The catalog's entry, if the source is one, and its rows."""
    path = folder / Path(data.source).expanduser()
    name_only = data.source == Path(data.source).stem and not path.exists()
    known = entry(data.source) if data.source in CATALOG or name_only else None
    for key, having in (("rows", [*GENERATED, *SEQUENCES]), ("noise", GENERATED)):
        if getattr(data, key) is not None and data.source not in having:
            raise ConfigError(f"data.{key}: only a generated source has it ({', '.join(having)}), not {data.source!r}")
    options: dict[str, Any] = {
        "target": data.target,
        "inputs": data.inputs,
        "weight": data.weight,
        "header": data.header,
    }
    made = known is not None and not known.columns
    if made or (known is None and files.kind(path) != "csv"):
        for key, value in {**options, "missing": data.missing}.items():
            if value not in (None, "auto", "error", "drop") and (made or key not in ("target", "weight")):
                raise ConfigError(
                    f"data.{key} = {value!r}: only a source with columns (CSV) has it, not {data.source!r}"
                )
    options["series"] = data.window is not None
    if known is None and data.window and path.suffix.lower() == ".txt":
        return None, {"train": read_text(path, data.window)}
    if known is None:
        return None, files.read(path, **options)
    if known.name in SEQUENCES:
        make, usual_rows, length = SEQUENCES[known.name]
        rng = random.generator(data.seed, f"data/{known.name}")
        return known, {"train": make(rng, data.rows or usual_rows, data.window or length)}
    if known.name in GENERATED:
        return known, {"train": generate(known.name, data.seed, data.rows, data.noise)}
    if known.file:
        return known, files.read(embedded(known), **{**options, "target": data.target or known.target})
    found = located(known)
    if known.columns:
        return known, files.read(found[0], **options)
    return known, {"train": _images(found[0], found[1]), "test": _images(found[2], found[3])}


def _images(images: Path, labels: Path) -> Raw:
    x = as_table(read_idx(images), str(images), "the file")
    return Raw(str(images), x, as_targets(read_idx(labels), len(x), str(labels), "the file"), target_names=("y",))


def _fractions(data: Data, stored_test: bool) -> dict[str, float]:
    """The parts to draw from the rows. The test rows come first: they do not depend on the validation."""
    if stored_test and data.test:
        raise ConfigError(f"data.test = {data.test!r}: {data.source!r} comes with its own test rows; leave the key out")
    asked = {"test": data.test, "validation": data.validation}
    fractions = {name: part for name, part in asked.items() if part and not isinstance(part, str)}
    if sum(fractions.values()) >= 1:
        raise ConfigError(f"data.validation + data.test = {sum(fractions.values())}; expected less than 1")
    return fractions


def _as_series(raw: Raw, data: Data) -> Raw:
    """`raw` as a series where `window` makes it one."""
    if data.window is None or raw.kind != "rows":
        if data.horizon is not None:
            raise ConfigError(
                f"data.horizon = {data.horizon}: only a series has it; set data.window, its steps in a row"
            )
        if data.source == "wave":
            raise ConfigError("data.window: 'wave' is a series; say how many steps a row has")
        return raw
    if data.missing == "drop":
        raise ConfigError('data.missing = "drop": would join what lies apart in a series; use "mean", or fill it in')
    targets = raw.targets
    if targets is None and not isinstance(raw.inputs, dict):
        targets = raw.inputs.reshape(len(raw), -1).astype(np.float64)
    return dataclasses.replace(raw, targets=targets, kind="series")


def _usable(raw: Raw, policy: str) -> Raw:
    """`raw` without the rows that lack a value ("drop"), or as it is; raises DataError for the first one ("error")."""
    if policy == "mean" or raw.kind == "text":
        return raw
    cells = {**raw.inputs} if isinstance(raw.inputs, dict) else {}
    gone = np.zeros(len(raw), bool)
    if raw.targets is not None:
        y = raw.targets
        cells |= {", ".join(raw.target_names): y if isinstance(y, Words) else np.sum(y, axis=1)}
    if raw.weights is not None:
        cells["weight"] = raw.weights
    if not isinstance(raw.inputs, dict) and raw.inputs.dtype != np.uint8 and policy == "drop":
        gone |= np.isnan(raw.inputs).any(axis=tuple(range(1, raw.inputs.ndim)))
    for name, column in cells.items():
        lacks = missing(column)
        if policy == "error" and lacks.any():
            raise missing_error(raw, int(np.argmax(lacks)), name)
        gone |= lacks
    if gone.all():
        raise DataError(f'{raw.where}: every row lacks a value, `missing = "drop"` leaves none; see which column it is')
    return raw.take(~gone) if gone.any() else raw


def _classes(task: str, raw: Raw) -> tuple[str, ...]:
    """The names of the classes in their order (by value where all are numbers), or () for a regression."""
    targets = raw.targets
    if raw.kind == "text":
        return raw.inputs.words
    if targets is None:
        raise DataError(f"{raw.where}: no targets; expected an array y or targets, or name it with `target` in [data]")
    if task == "regression":
        return ()
    if raw.kind != "series" and is_one_hot(targets) and (task == "classification" or raw.lines is None):
        return raw.target_names if len(raw.target_names) > 1 else tuple(map(str, range(targets.shape[1])))
    if task == "auto" and not isinstance(targets, Words):
        return ()
    if not isinstance(targets, Words):
        found = np.unique(targets)
        if targets.shape[1] != 1 or not np.array_equal(found, np.round(found)):
            raise DataError(
                f'{raw.where}: task = "classification" needs one whole number or name a row as its label, '
                "or one-hot rows"
            )
        words = [f"{v:.0f}" for v in found]
    else:
        words = [targets.words[code] for code in np.unique(targets.codes[targets.codes >= 0])]
    values = {word: as_number(word) for word in words}
    texts = [word for word, value in values.items() if value is None]
    if task == "auto" and texts and isinstance(targets, Words) and 2 * len(texts) < len(words):
        row = int(np.argmax(targets.codes == targets.words.index(texts[0])))
        raise DataError(
            f"{raw.place(row)}, target {raw.target_names[0]!r}: {texts[0]!r} is not a number, but most targets are; "
            'correct it, or say `task = "classification"` if they are names'
        )
    if not texts:
        whole = all(value == round(value) for value in values.values() if value is not None and np.isfinite(value))
        unique: dict[float, str] = {}
        for word in words:
            unique.setdefault(float(word), word)  # "1" and "1.0" are one class
        few = whole and len(unique) <= 20 and 2 * len(unique) <= len(raw)
        if task == "auto" and not few and raw.lines is not None:
            return ()
        classes = tuple(unique[value] for value in sorted(unique))
    else:
        classes = tuple(sorted(words))
    if len(classes) < 2:
        raise DataError(
            f"{raw.where}: all rows have the class {', '.join(classes)!r}; expected at least two classes. "
            'Is `target` the right column? For a regression say `task = "regression"`'
        )
    return classes


def _row_shape(shape, size: int, stored: tuple[int, ...], raw: Raw, window: int) -> tuple[int, ...]:
    if raw.kind != "rows":
        if shape not in ("flat", "stored"):
            raise ConfigError(f"data.shape = {list(shape)}: the rows of {raw.where} are sequences, which keep theirs")
        return (window, size) if raw.kind == "series" else tuple(stored)
    if shape == "flat":
        return (size,)
    if shape == "stored":
        return tuple(stored)
    if int(np.prod(shape)) != size:
        raise ConfigError(
            f"data.shape = {list(shape)}: {int(np.prod(shape))} values, but a row of {raw.where} has {size}"
        )
    return tuple(shape)


def _steps(a: np.ndarray, rows: np.ndarray, lengths: np.ndarray | None) -> np.ndarray:
    """The valid steps (M, features) of the rows of a (N, T, ...)."""
    steps = a[rows].reshape(-1, *(a.shape[2:] or (1,)))
    return steps if lengths is None else steps[(np.arange(a.shape[1]) < lengths[rows][:, None]).reshape(-1)]


def _normalised(preparation: Preparation, data: Data, x, targets, rows, lengths) -> Preparation:
    """The preparation with the shift and scale of the training rows; one-hot columns stay 0 and 1."""
    if preparation.kind == "text":
        return preparation
    if preparation.kind != "rows":  # all steps alike
        steps = _steps(x, rows, lengths)
        shift, scale = moments(steps, np.arange(len(steps)), data.normalize)
    else:
        shift, scale = moments(x, rows, data.normalize)
    one_hot = [bool(column.categories) for column in preparation.columns for _ in range(column.width)]
    if any(one_hot):
        keep = np.reshape(one_hot, preparation.row_shape[preparation.kind == "series" :])
        shift, scale = np.where(keep, 0.0, shift), np.where(keep, 1.0, scale)
    found = dataclasses.replace(preparation, shift=shift, scale=scale)
    if data.normalize_targets == "standard":
        if targets.ndim > 2:
            targets = _steps(targets, rows, lengths)
            rows = np.arange(len(targets))
        target_shift, target_scale = moments(targets, rows, "standard")
        found = dataclasses.replace(found, target_shift=target_shift, target_scale=target_scale)
    return found


def _weights(raw: Raw, dtype: Any) -> np.ndarray | None:
    if raw.weights is None:
        return None
    weights = as_dtype(raw.weights, dtype)
    check_finite(weights[:, None], raw, ["weight"])
    if (weights < 0).any() or not weights.any():
        row = int(np.argmin(weights))
        raise DataError(f"{raw.place(row)}: the weight {weights[row]}; expected weights >= 0, and one above 0")
    return weights


def _whole(preparation: Preparation, raw: Raw, policy: str, dtype: Any) -> Split:
    """All rows of `raw` as a split."""
    if policy == "drop":
        raw = _usable(raw, policy)
    split, shift = _split(preparation, raw, dtype), preparation.target_shift
    if shift is not None and split.targets.shape[-1] != len(shift):
        raise DataError(
            f"{raw.where}: a row has {split.targets.shape[-1]} targets; the training data has another number"
        )
    return split


def _split(preparation: Preparation, raw: Raw, dtype: Any) -> Split:
    """Rows and targets of `raw`, with weights that are zero beyond the end of a row."""
    x, targets = preparation.pairs(raw, dtype)
    weights = _weights(raw, dtype)
    if weights is not None:
        weights = weights[len(weights) - len(x) :]  # of a series, those of the targets
    if raw.lengths is not None and targets.ndim == (2 if preparation.classes else 3):
        valid = (np.arange(x.shape[1]) < raw.lengths[:, None]).astype(dtype)
        weights = valid if weights is None else valid * weights[:, None]
    return Split(x, targets, weights, np.arange(len(x), dtype=np.int64), raw.lengths)
