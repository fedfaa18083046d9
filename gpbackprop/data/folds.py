"""Folds of a cross-validation: the rows are dealt into F folds, and each validates a network trained on the others.

Split k of F trains on all rows but those of fold k, with moments of its own; the F splits lie side by side over one
table, as `Split.index` (F, n) and moments (F, 1, ...), so that the F networks train as one population.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from gpbackprop.backend import random
from gpbackprop.data.preparation import Preparation
from gpbackprop.data.split import Dataset, Split, digest
from gpbackprop.errors import ConfigError, DataError


def check_folds(data) -> list[str]:
    """What in a `Data` does not go with its folds, each beginning with its key."""
    if data.folds is None:
        return [] if data.fold is None else [f"fold: {data.fold} is one of no folds; set data.folds too"]
    found = []
    if data.fold is not None and data.fold >= data.folds:
        found.append(f"fold: found {data.fold}, expected 0 to {data.folds - 1}: there are {data.folds} folds")
    if data.validation:
        found.append(
            f"validation: found {data.validation!r}, but with folds each fold is the validation split in its turn; "
            "leave the key out, or say --set data.validation=0"
        )
    if data.missing == "mean":
        found.append(
            'missing: found "mean", which would differ from fold to fold, in a table that the folds share; '
            'say "drop", or fill in the file'
        )
    return found


def deal(
    rows: np.ndarray, folds: int, classes: np.ndarray | None, seed: int, part: int, where: str
) -> dict[str, np.ndarray]:
    """The sorted training and validation rows of each fold, (F, n - floor(n/F)) and (F, floor(n/F)).

    `rows` (n,) are dealt in the order of the permutation of (seed, part), with `classes` (the class of each of them)
    class after class, so that folds differ by one row of a class at most. The n mod F rows that are left over train in
    every fold. Raises DataError where a fold would have no row.
    """
    n = len(rows)
    if n < folds:
        raise DataError(f"{where}: data.folds = {folds}, but there are {n} rows; every fold needs at least one")
    order = random.permutation(n, seed, part)[n % folds :]
    if classes is not None:
        order = order[np.argsort(classes[order], kind="stable")]
    validation = np.sort(order.reshape(-1, folds).T, axis=1)
    training = [np.delete(np.arange(n), own) for own in validation]
    return {"train": rows[np.stack(training)], "validation": rows[validation]}


def expect_apart(kind: str, folds: int) -> None:
    """Raise ConfigError for rows that are windows, which share steps with rows of other folds."""
    if kind in ("series", "text"):
        raise ConfigError(
            f"data.folds = {folds}: the windows of a {kind} follow each other in time, so that most folds would be "
            "forecast from what comes after them; leave folds out and set data.validation, whose windows come last"
        )


def joined(each: Sequence[Preparation], axes: int) -> Preparation:
    """One preparation of all folds: moments (F, 1, ..., columns), broadcastable to (F, rows, columns).

    The targets of a row have `axes` axes. All else is the same in `each`.
    """
    first, inner = each[0], len(each[0].row_shape)

    def stack(name: str, axes: int) -> np.ndarray:
        a = np.stack([getattr(one, name) for one in each])
        return a.reshape(len(a), *(1,) * (axes + 2 - a.ndim), *a.shape[1:])

    found = dataclasses.replace(first, shift=stack("shift", inner), scale=stack("scale", inner))
    if first.target_shift is None:
        return found
    return dataclasses.replace(
        found, target_shift=stack("target_shift", axes), target_scale=stack("target_scale", axes)
    )


def alone(data: Dataset, k: int) -> Dataset:
    """Fold `k` of a data set of folds as one of its own: what loading it with `fold = k` gives."""
    splits: dict[str, Split] = {
        name: dataclasses.replace(split, index=split.index[k]) if split.index.ndim == 2 else split
        for name, split in data.splits.items()
    }
    source = data.source and dataclasses.replace(data.source, fold=k)
    return Dataset(data.name, splits, data.preparation.of_fold(k), digest(splits), source)
