"""The [data] table of a config, and the data set it stands for."""

import dataclasses
import os
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from gpbackprop.backend import Backend, random
from gpbackprop.data import files
from gpbackprop.data.augment import Augment
from gpbackprop.data.catalog import CATALOG, Entry, embedded, entry, located
from gpbackprop.data.decisions import check_reconstruction, class_names, normalised, row_shape, unlabelled, usable
from gpbackprop.data.folds import alone, check_folds, deal, expect_apart, joined
from gpbackprop.data.generated import GENERATED, generate
from gpbackprop.data.idx import read as read_idx
from gpbackprop.data.labels import class_numbers
from gpbackprop.data.moments import filled_columns
from gpbackprop.data.portions import Stream
from gpbackprop.data.preparation import Preparation, check_finite
from gpbackprop.data.sequences import SEQUENCES, chronological, read_text
from gpbackprop.data.split import Dataset, Split, digest, partition
from gpbackprop.data.stored import Stored
from gpbackprop.data.streaming import Said, check_stream, expect_streamable, limit, settled, stream
from gpbackprop.data.table import Raw, Words, as_dtype, as_table, as_targets
from gpbackprop.errors import ConfigError, DataError
from gpbackprop.spec import Count, Flag, Fraction, NonNegative, Seed, Text, Whole, spec

Name = Text | Annotated[int, Field(strict=True)]


@spec
class Data:
    """Where the rows come from and how they are prepared.

    source      a name of the catalog, or a file .csv .npz .h5 .idx(.gz); a relative path starts at the config's folder.
                An array `lengths` beside x says that its rows are sequences (T, features), padded at the end: then y
                has a target for each row or for each step. A .txt with `window` is a text, a class for each character
    target      CSV: the column, by name or position (-1 is the last, the default), or several for a regression;
                NPZ and HDF5: the array (y or targets); IDX: the file of labels (found by its name)
    inputs      CSV: the input columns; by default all but target and weight
    weight      a column or array with a weight for each row
    task        "auto": text, few whole numbers, an array of integers, or an array of one-hot rows (a single 1 among 0)
                are classes, the last named "0", "1", ... by column; other numbers a regression. In a "reconstruction"
                the normalised inputs are the targets: all columns but `weight` unless `inputs` names them
    validation  a fraction of the rows, or a file; test: the same, by default the test rows that the source comes with
    folds       F deals the rows that are not kept aside to test into F folds for a cross-validation: a population of F
                networks, each with a fold of its own as its validation split, trained on and prepared by the others
    fold        k, from 0: the one network alone that fold k validates
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
    augment     a table of what is done to the images of training batches: shift, flip, crop
    stream      "auto" reads the inputs of an HDF5 file in portions where they are larger than half of what is free in
                memory, or on the device; true always does so, false never, "256 MB" says how much a portion holds
                (true: "64 MB"). What is in memory, and too large for the device, is sent there in portions
    header      CSV: whether the first row names the columns; "auto": when no cell of it is a number
    """

    source: Text
    target: Name | Annotated[tuple[Name, ...], Field(min_length=1)] | None = None
    inputs: Annotated[tuple[Text, ...], Field(min_length=1)] | None = None
    weight: Text | None = None
    task: Literal["auto", "classification", "regression", "reconstruction"] = "auto"
    validation: Fraction | Text = 0.0
    test: Fraction | Text | None = None
    folds: Annotated[int, Field(strict=True, ge=2)] | None = None
    fold: Whole | None = None
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
    augment: Augment | None = None
    stream: Said = "auto"

    def __post_init__(self):
        if found := check_folds(self) + check_reconstruction(self) + check_stream(self):
            raise ValueError("\n".join(found))


def load(
    source: str | Data,
    base: str | Path | None = None,
    dtype: Any = "float32",
    device: Backend | None = None,
    **fields,
) -> Dataset:
    """The data set of a `Data`, or of a name or path and the fields of one: `load("iris", validation=0.2)`.

    A relative path starts at `base`, by default the working directory. Bytes stay bytes, other numbers are kept in
    `dtype`: a network of float64 wants its data in float64, for 0.05 as float32 is another number. The `device` is the
    one whose memory `stream = "auto"` looks at; the `source` of the data set says what that came to. Raises DataError
    for what is wrong with the data, ConfigError for fields that do not fit the source.
    """
    data = dataclasses.replace(source, **fields) if isinstance(source, Data) else Data(source=source, **fields)
    folder = Path(base or ".")
    most = limit(data, device)
    known, parts = _read(data, folder, most)
    for part in parts.values():
        expect_streamable(data, part)
    parts = {name: _as_series(part, data) for name, part in parts.items()}
    reconstructs = data.task == "reconstruction"
    if reconstructs:
        parts = {name: unlabelled(part) for name, part in parts.items()}
    raw = usable(parts["train"], data.missing)
    classes = class_names(data.task, raw)
    if classes and data.normalize_targets != "none":
        raise ConfigError(f"data.normalize_targets = {data.normalize_targets!r}: the targets are classes, not numbers")
    fractions, window = _fractions(data, "test" in parts), data.window or 0
    if data.folds:
        expect_apart(raw.kind, data.folds)
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
    names = raw.target_names
    if reconstructs and columns:
        names = tuple(name for column in columns for name in column.names)
    stored = (known.stored if known else ()) or ((size,) if columns else shape)
    preparation = Preparation(
        columns, names, data.weight, raw.header, classes,
        row_shape(data.shape, size, stored, raw, window), np.zeros(1), np.ones(1),
        kind=raw.kind, horizon=data.horizon or 1, reconstructs=reconstructs,
    )  # fmt: skip
    if data.augment:
        data.augment.check(preparation, raw.where)
        preparation = dataclasses.replace(preparation, crop=data.augment.crop or ())
    whole = _split(preparation, raw, dtype)
    x, targets = whole.inputs, whole.targets
    if known and known.pixels:
        x = x.astype(np.uint8, copy=False)
    if reconstructs:
        targets = x
    data = dataclasses.replace(data, stream=settled(data, x, len(rows), device))
    how = (data.normalize, data.normalize_targets)
    if data.folds:
        known_classes = None if stratify is None else stratify[rows["train"]]
        rows |= deal(rows["train"], data.folds, known_classes, data.seed, len(fractions), raw.where)
        each = [normalised(preparation, how, x, targets, own, raw.lengths) for own in rows["train"]]
        preparation = joined(each, targets.ndim - 1)
    else:
        preparation = normalised(preparation, how, x, targets, rows["train"], raw.lengths)

    splits = {name: dataclasses.replace(whole, inputs=x, targets=targets, index=index) for name, index in rows.items()}
    if "test" in parts and data.test is None:
        splits["test"] = _whole(preparation, parts["test"], data.missing, dtype)
    for name in ("validation", "test"):
        if isinstance(path := getattr(data, name), str):
            splits[name] = read_labelled(preparation, folder / Path(path).expanduser(), data.missing, dtype, most)
    if said := stream(data.stream, data.seed):
        splits = {name: dataclasses.replace(split, stream=said) for name, split in splits.items()}
    for name, split in splits.items():
        if split.targets.shape[1:] != targets.shape[1:]:
            raise DataError(
                f"{name}: {split.targets.shape[1]} targets a row, but the training rows have {targets.shape[1]}"
            )
    name = known.name if known else Path(data.source).name.split(".")[0]
    found = Dataset(name, splits, preparation, digest(splits), _anchored(data, folder, known is None))
    return found if data.fold is None else alone(found, data.fold)


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
    preparation: Preparation, path: str | Path, dtype: Any = "float32", most: int | None = None
) -> tuple[Any, np.ndarray | None]:
    """What `read_inputs` gives, and the lengths (N,) of rows that are sequences, or None.

    Inputs of more than `most` bytes stay in an HDF5 file; a model takes them from there in portions.
    """
    raw = files.read_prepared(preparation, Path(path), labelled=False, most=most)
    return preparation.encode(raw, dtype), raw.lengths


def read_labelled(
    preparation: Preparation,
    path: str | Path,
    missing: str = "error",
    dtype: Any = "float32",
    most: int | None = None,
) -> Split:
    """The rows of a file with raw inputs and targets, as a split of all of them; `missing = "drop"` leaves out rows.

    Inputs of more than `most` bytes stay in an HDF5 file, and come in portions. Raises DataError as `read_inputs`, and
    for a label that is none of the classes.
    """
    most = None if missing == "drop" else most
    return _whole(preparation, files.read_prepared(preparation, Path(path), labelled=True, most=most), missing, dtype)


def _read(data: Data, folder: Path, most: int | None) -> tuple[Entry | None, dict[str, Raw]]:
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
        return None, files.read(path, **options, labelled=data.task != "reconstruction", most=most)
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
        raw = usable(raw, policy)
    split, shift = _split(preparation, raw, dtype), preparation.target_shift
    if shift is not None and split.targets.shape[-1] != shift.shape[-1]:
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
    stream = Stream() if isinstance(x, Stored) else None
    return Split(x, targets, weights, np.arange(len(x), dtype=np.int64), raw.lengths, stream=stream)
