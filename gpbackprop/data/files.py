"""Files by the ending of their name: the rows of a training file, and of a file that is read with a preparation."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpbackprop.data import arrays, csv, idx
from gpbackprop.data.preparation import Preparation
from gpbackprop.data.sequences import read_text
from gpbackprop.data.table import Raw, Words, as_table, as_targets
from gpbackprop.errors import DataError


def kind(path: Path) -> str:
    """The kind of a file: "csv", "npz", "hdf5" or "idx". Raises DataError for another name or no file."""
    name = path.name.lower()
    if not path.is_file():
        found = "it is a directory" if path.is_dir() else "there is no such file"
        raise DataError(f"{path}: {found}; expected a data file")
    for ending, found in (
        ((".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz", ".txt.gz", ".data"), "csv"),
        ((".npz",), "npz"),
        ((".h5", ".hdf5"), "hdf5"),
    ):
        if name.endswith(ending):
            return found
    if idx.is_idx(path):
        return "idx"
    raise DataError(
        f"{path}: not a kind of file that is known; expected .csv .tsv .npz .h5 .hdf5 .idx or idx3-ubyte(.gz)"
    )


def read(
    path: Path,
    target: str | int | Sequence[str | int] | None = None,
    inputs: Sequence[str] | None = None,
    weight: str | None = None,
    header: str | bool = "auto",
    series: bool = False,
    labelled: bool = True,
    most: int | None = None,
) -> dict[str, Raw]:
    """The rows to train on and, where the file holds them, to test on. Raises DataError for a damaged file.

    Of a `series` the inputs are by default the targets: it tells its own future. What is not `labelled` needs no
    targets, and every column of a CSV is by default an input. Inputs of more than `most` bytes stay in an HDF5 file.
    """
    found = kind(path)
    if found == "csv":
        return {"train": _read_csv(path, target, inputs, weight, header, series, labelled)}
    if target is not None and not isinstance(target, str):
        raise DataError(
            f"{path}: data.target = {target!r}; expected the name of one array (or of the labels' file for IDX)"
        )
    if found == "idx":
        return {"train": _read_idx(path, target) if labelled else _read_images(path)}
    return arrays.read_npz(path, target, weight) if found == "npz" else arrays.read_hdf5(path, target, weight, most)


def _read_csv(path, target, inputs, weight, header, series, labelled) -> Raw:
    layout = csv.scan(path, header)
    asked = [-1] if target is None else list(target) if isinstance(target, list | tuple) else [target]
    asked = asked if labelled else []
    targets = [layout.column(name, "data.target") for name in asked]
    weights = [] if weight is None else [layout.column(weight, "data.weight")]
    if inputs is None and series:
        names = list(targets)
    elif inputs is None:
        names = [name for name in layout.names if name not in targets + weights]
    else:
        names = [layout.column(name, "data.inputs") for name in inputs]
    for name in names:
        if name in ([] if series else targets) + weights or names.count(name) > 1:
            raise DataError(
                f"{path}: column {name!r} cannot be an input twice, or an input and also the target or weight"
            )
    if not names:
        raise DataError(f"{path}: no column is left for the inputs; the file has {len(layout.names)}: {layout.names}")
    numeric = dict(zip(layout.names, layout.numeric, strict=True))
    columns, lines = csv.read(
        layout,
        {**{name: numeric[name] for name in names},
         **{name: len(targets) > 1 or (series and numeric[name]) for name in targets},
         **dict.fromkeys(weights, True)},
    )  # fmt: skip
    for name in names:
        if isinstance(cells := columns[name], Words) and len(cells.words) > csv.MOST_CATEGORIES:
            raise DataError(
                f"{path}, column {name!r}: {len(cells.words)} different texts (such as {cells.words[0]!r}) are too "
                f"many categories, at most {csv.MOST_CATEGORIES}; leave it out with `inputs` or write numbers"
            )
    y = _beside(columns, targets) if targets else None
    w = columns[weights[0]] if weights else None
    return Raw(str(path), {name: columns[name] for name in names}, y, w, tuple(targets), layout.header, lines)


def _beside(columns: dict[str, Any], names: Sequence[str]) -> Any:
    """The column of one name, or numbers side by side (N, O)."""
    first = columns[names[0]]
    return first if isinstance(first, Words) else np.stack([columns[name] for name in names], axis=1)


def _read_idx(path: Path, target: str | None) -> Raw:
    labels = path.parent / target if target else idx.labels_path(path)
    if labels is None:
        raise DataError(
            f"{path}: no file of labels beside it (images-idx3 has labels-idx1); name it with `target` in [data]"
        )
    x = as_table(idx.read(path), str(path), "the file")
    return Raw(
        str(path), x, as_targets(idx.read(labels), len(x), str(labels), "the file of labels"), target_names=("y",)
    )


def _read_images(path: Path) -> Raw:
    return Raw(str(path), as_table(idx.read(path), str(path), "the file"))


def read_prepared(preparation: Preparation, path: Path, labelled: bool, most: int | None = None) -> Raw:
    """The rows of `path` as the preparation needs them, with targets (and weights, where there are some) if `labelled`.

    A CSV with a header may have its columns in any order and others beside them. Inputs of more than `most` bytes stay
    in an HDF5 file.
    """
    if preparation.kind == "text":
        return read_text(path, preparation.row_shape[0])
    found, weight = kind(path), preparation.weight if labelled else None
    labelled = labelled and not preparation.reconstructs
    if found == "csv":
        return _columns_of(preparation, path, labelled, weight)
    if found == "idx":
        return _read_idx(path, None) if labelled else _read_images(path)
    own_name = labelled and not preparation.columns and preparation.target[0] not in arrays.NAMES["targets"]
    target = preparation.target[0] if own_name else None
    if found == "npz":
        return arrays.read_npz(path, target, weight)["train"]
    return arrays.read_hdf5(path, target, weight, None if preparation.kind == "series" else most)["train"]


def _columns_of(preparation: Preparation, path: Path, labelled: bool, weight: str | None) -> Raw:
    columns = preparation.columns
    layout = csv.scan(path, preparation.header if columns else "auto")
    wanted = [column.name for column in columns]
    size = len(columns) or int(np.prod(preparation.row_shape[preparation.kind == "series" :]))
    width = len(layout.names)
    if columns and (preparation.header or width > size):
        names, targets = wanted, list(preparation.target)
    elif width >= size:  # without names: the inputs in their order, then the target
        names, targets = list(layout.names[:size]), list(layout.names[size:])
    else:
        raise DataError(f"{path}: a row has {width} values; expected {size} inputs")
    if absent := [name for name in names + (targets if labelled else []) if name not in layout.names]:
        raise DataError(
            f"{path}: the column {absent[0]!r} is missing{f' ({len(absent)} are)' if len(absent) > 1 else ''}; "
            f"the file has: {', '.join(layout.names[:20])}"
        )
    if labelled and not targets:
        raise DataError(f"{path}: a row has {width} values, all of them inputs; expected the target after them")
    weight = weight if weight in layout.names else None
    numeric = [not column.categories for column in columns] or [True] * size
    kinds = dict(zip(names, numeric, strict=True))
    if labelled:
        series = preparation.kind == "series" and not preparation.classes
        kinds |= dict.fromkeys(targets, series or len(targets) > 1)
    cells, lines = csv.read(layout, kinds | ({weight: True} if weight else {}))
    y = None
    if labelled:
        y = _beside(cells, targets)
    inputs: Any
    if columns:
        inputs = {name: cells[found] for name, found in zip(wanted, names, strict=True)}
    else:
        inputs = np.stack([cells[name] for name in names], axis=1)
    return Raw(str(path), inputs, y, cells[weight] if weight else None, tuple(targets), layout.header, lines)
