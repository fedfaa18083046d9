"""Rows of a split, gathered into the inputs of a plan and prepared on the way: the table keeps its own dtype."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gpbackprop.backend import Array, Backend, random
from gpbackprop.data.augment import Augment, Pick, centre
from gpbackprop.data.portions import Portions, Tables
from gpbackprop.data.preparation import Preparation
from gpbackprop.data.split import Split
from gpbackprop.plan import Plan, Target


class Feed:
    """The table of a split on the device, or, where the split is streamed, two portions of it: see `Tables`.

    `bind(plan)` gives the plan's target and a call that fills the plan's input, target and weights with the rows of
    an index array (K, batch):  x = (table[index] - shift) scale. The target of a reconstruction is the plan's input.
    In plans that train the rows are augmented.
    """

    def __init__(
        self,
        backend: Backend,
        split: Split,
        preparation: Preparation,
        augment: Augment | None = None,
        portions: Portions | None = None,
        make: Callable[..., Array] | None = None,
    ):
        self.preparation, self.augment = preparation, augment
        columns = {"inputs": split.inputs, "weights": split.weights, "lengths": split.lengths}
        if not preparation.reconstructs:
            columns["targets"] = split.targets
        columns = {name: column for name, column in columns.items() if column is not None}
        self.streamed = Tables(backend, columns, portions, make or backend.zeros) if portions else None
        tables: Any = self.streamed.tables if self.streamed else {name: backend.array(a) for name, a in columns.items()}
        self.inputs, self.targets = tables["inputs"], tables.get("targets")
        self.weights, self.lengths = tables.get("weights"), tables.get("lengths")

    def bind(self, plan: Plan) -> tuple[Target, Callable[[Array], None]]:
        prep, rows, pick = self.preparation, (plan.batch,), _whole
        if self.augment and plan.training:
            pick = self.augment.bind
        elif prep.crop:
            pick = centre
        loads = [_reader(plan, self.inputs, plan.x.value, *prep.moments, pick)]
        if plan.lengths is not None:
            loads.append(_reader(plan, self.lengths, plan.lengths))
        if prep.classes:
            labels = plan.scratch((*rows, *self.targets.shape[1:]), np.int64)
            loads.append(_reader(plan, self.targets, labels))
            value, classes, scale = labels, len(prep.classes), None
        elif prep.reconstructs:
            value, classes, scale = plan.x.value, 0, _raw_scale(plan, prep)
        else:
            value, classes = plan.scratch((*rows, *self.targets.shape[1:])), 0
            loads.append(_reader(plan, self.targets, value, prep.target_shift, prep.target_scale))
            scale = None if prep.target_scale is None else 1 / prep.target_scale
        weight = None
        if self.weights is not None:
            weight = plan.scratch((*rows, *self.weights.shape[1:]))
            loads.append(_reader(plan, self.weights, weight))

        def load(index: Array) -> None:
            for read in loads:
                read(index)

        return Target(value, classes, weight, scale), load


def _raw_scale(plan: Plan, prep: Preparation) -> Any:
    """What turns a difference of reconstructed and prepared inputs into raw units, for each of the plan's outputs."""
    row, out, (_, scale) = plan.x.shape[1:], plan.y.shape[1:], prep.moments
    folds = scale.shape[: -len(row)]
    fits = math.prod(row) == math.prod(out)  # where not, the loss says so
    return np.broadcast_to(1 / scale, (*folds, *row)).reshape(*folds, *out) if fits else None


def _whole(plan: Plan, table: Array, out: Array) -> Pick:
    """A call that writes table[index] into `out`."""
    gather = plan.backend.gather
    return lambda index: gather(table, index, out)


def _reader(plan: Plan, table: Array, out: Array, shift: Any = None, scale: Any = None, pick: Any = _whole) -> Pick:
    """A call that writes (rows - shift) scale into `out`, where the rows are what `pick` makes of table[index]."""
    xp = plan.xp
    raw = out if table.dtype == out.dtype else plan.scratch(out.shape[1:], table.dtype)
    fetch = pick(plan, table, raw)
    shift = None if shift is None or not np.any(shift) else plan.constant(shift)
    scale = None if scale is None or np.all(np.asarray(scale) == 1) else plan.constant(scale)

    def read(index: Array) -> None:
        fetch(index)
        if raw is not out:
            xp.copyto(out, raw)
        if shift is not None:
            xp.subtract(out, shift, out=out)
        if scale is not None:
            xp.multiply(out, scale, out=out)

    return read


def order(split: Split, batch: int, seeds: Sequence[int], epoch: int, shuffle: bool) -> np.ndarray:
    """The rows (K, N) that an epoch visits, batch after batch: a function of (seed, epoch).

    Where sequences were cut, a batch comes window after window.
    """
    k, n, windows = len(seeds), len(split), split.windows
    rows = np.broadcast_to(split.index, (k, n))
    if shuffle:
        rows = np.take_along_axis(rows, random.permutations(n, seeds, epoch), axis=1)
    if windows == 1:
        return rows
    full = n // batch * batch
    parts = rows[:, :full].reshape(k, -1, 1, batch), rows[:, full:].reshape(k, 1, 1, -1)
    window = np.arange(windows)[:, None]
    return np.concatenate([(part * windows + window).reshape(k, -1) for part in parts], axis=1)
