"""What a [data] table leaves open, decided from the rows: which are usable, the classes, the shape, the moments."""

import dataclasses
from typing import Any

import numpy as np

from gpbackprop.data.labels import as_number, is_one_hot
from gpbackprop.data.moments import moments
from gpbackprop.data.preparation import Preparation, missing_error
from gpbackprop.data.table import Raw, Words, missing
from gpbackprop.errors import ConfigError, DataError


def usable(raw: Raw, policy: str) -> Raw:
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


def check_reconstruction(data) -> list[str]:
    """What in a `Data` does not go with a reconstruction, each beginning with its key."""
    found = []
    if data.task == "reconstruction" and data.target is not None:
        found.append(f"target: found {data.target!r}, but the targets of a reconstruction are its inputs; leave it out")
    if data.task == "reconstruction" and data.normalize_targets != "none":
        found.append("normalize_targets: the targets of a reconstruction are normalised as its inputs; leave it out")
    return found


def unlabelled(raw: Raw) -> Raw:
    """`raw` without its targets, for a network whose targets are its inputs. Raises ConfigError for windows."""
    if raw.kind in ("series", "text"):
        raise ConfigError(
            f'data.task = "reconstruction": the rows of {raw.where} are windows over a {raw.kind}, whose targets lie '
            "behind them; leave data.window out, or give the windows as rows of an array"
        )
    return dataclasses.replace(raw, targets=None, target_names=("x",))


def class_names(task: str, raw: Raw) -> tuple[str, ...]:
    """The names of the classes in their order (by value where all are numbers), or () for a regression."""
    targets = raw.targets
    if task == "reconstruction":
        return ()
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


def row_shape(shape, size: int, stored: tuple[int, ...], raw: Raw, window: int) -> tuple[int, ...]:
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


def normalised(
    preparation: Preparation, how: tuple[str, str], x: np.ndarray, targets: np.ndarray, rows: np.ndarray, lengths: Any
) -> Preparation:
    """The preparation with the shift and scale of the training rows; one-hot columns stay 0 and 1.

    `how` is what `normalize` and `normalize_targets` say.
    """
    inputs, outputs = how
    if preparation.kind == "text":
        return preparation
    if preparation.kind != "rows":  # all steps alike
        steps = _steps(x, rows, lengths)
        shift, scale = moments(steps, np.arange(len(steps)), inputs)
    else:
        shift, scale = moments(x, rows, inputs)
    one_hot = [bool(column.categories) for column in preparation.columns for _ in range(column.width)]
    if any(one_hot):
        keep = np.reshape(one_hot, preparation.row_shape[preparation.kind == "series" :])
        shift, scale = np.where(keep, 0.0, shift), np.where(keep, 1.0, scale)
    found = dataclasses.replace(preparation, shift=shift, scale=scale)
    if outputs == "standard":
        if targets.ndim > 2:
            targets = _steps(targets, rows, lengths)
            rows = np.arange(len(targets))
        target_shift, target_scale = moments(targets, rows, "standard")
        found = dataclasses.replace(found, target_shift=target_shift, target_scale=target_scale)
    return found
