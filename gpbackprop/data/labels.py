"""The targets of a table as class numbers or numbers."""

from typing import Any

import numpy as np

from gpbackprop.data.table import Raw, Words, as_dtype
from gpbackprop.errors import DataError
from gpbackprop.spec import suggest


def as_number(word: str) -> float | None:
    """The number a label spells, or None."""
    try:
        return None if "_" in word else float(word)
    except ValueError:
        return None


def is_one_hot(targets: Any) -> bool:
    """Whether targets (N, O) of two columns or more have a single 1 in each row, and 0 beside it."""
    if isinstance(targets, Words) or targets.ndim != 2 or targets.shape[1] < 2:
        return False
    return bool((((targets == 0) | (targets == 1)).all(axis=1) & (targets.sum(axis=1) == 1)).all())


def class_numbers(classes: tuple[str, ...], raw: Raw) -> np.ndarray:
    """The class number (N,) of the target of each row, by name, by value where all names are numbers, or one-hot."""
    targets = raw.targets
    if is_one_hot(targets) and targets.shape[1] == len(classes):
        return np.argmax(targets, axis=1)
    if not isinstance(targets, Words):
        if targets.shape[1] != 1:
            raise DataError(
                f"{raw.where}: a row has {targets.shape[1]} targets; a classification needs one label a row"
            )
        values, codes = np.unique(targets[:, 0], return_inverse=True)
        targets = Words(codes, tuple(f"{v:.0f}" if v == np.round(v) else repr(float(v)) for v in values))
    if (targets.codes < 0).any():
        raise DataError(
            f"{raw.place(int(np.argmax(targets.codes < 0)))}, column {', '.join(raw.target_names)!r}: "
            'the label is missing; fill it in, or leave such rows out with `missing = "drop"` in [data]'
        )  # fmt: skip
    known = {name: i for i, name in enumerate(classes)}
    if all(as_number(name) is not None for name in classes):
        by_value = {as_number(name): i for i, name in enumerate(classes)}
        find = lambda word: known.get(word, by_value.get(as_number(word)))  # noqa: E731
    else:
        find = known.get
    numbers = [find(word) for word in targets.words]
    for code, word in enumerate(targets.words):
        if numbers[code] is None and (targets.codes == code).any():
            row = int(np.argmax(targets.codes == code))
            raise DataError(
                f"{raw.place(row)}: the label {word!r} is none of the {len(classes)} classes of the training data"
                f"{suggest(word, classes)}: {', '.join(classes[:20])}{', ...' if len(classes) > 20 else ''}"
            )
    return np.array([-1 if n is None else n for n in numbers], np.int64)[targets.codes]


def target_numbers(raw: Raw, dtype: Any) -> np.ndarray:
    """The targets of a regression, (N, O) of `dtype`."""
    targets = raw.targets
    if isinstance(targets, Words):
        values = np.array([np.nan if (v := as_number(word)) is None else v for word in targets.words] + [np.nan])
        numbers = values[targets.codes][:, None]
    else:
        numbers = targets
    result = as_dtype(numbers, dtype)
    if not np.isfinite(result).all():
        flat = numbers.reshape(len(numbers), -1)
        row, column = (int(i[0]) for i in np.nonzero(~np.isfinite(result.reshape(flat.shape))))
        found = flat[row, column]
        if isinstance(targets, Words):
            found = repr(targets.words[targets.codes[row]]) if targets.codes[row] >= 0 else "missing"
        name = raw.target_names[column] if column < len(raw.target_names) else column
        raise DataError(f"{raw.place(row)}, target {name!r}: {found} is not a finite number, which a regression needs")
    return result
