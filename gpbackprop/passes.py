"""Floor 3: a network over the rows of a split: plans that read batches and add up the loss and metrics."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from gpbackprop.backend import Array
from gpbackprop.data import Preparation, Split
from gpbackprop.data.augment import Augment
from gpbackprop.data.batches import Feed, order
from gpbackprop.data.portions import Place, Portions, order_within
from gpbackprop.data.stored import Stored
from gpbackprop.errors import ConfigError, DataError
from gpbackprop.losses import Loss
from gpbackprop.metrics import Metric
from gpbackprop.optim.objective import Objective
from gpbackprop.plan import Closure, Network, Plan, phantom

EVALUATION_BATCH = 256  # the same for every population, so that a member's sums are those of the network alone
EVALUATION_SHARE = 4  # a portion that need not be a good mixture of the rows is so many times smaller

Row = dict[str, Any]


@dataclass(frozen=True)
class Batch:
    """A plan and what fills it: `fetch()` with the next rows of the epoch, `load(index)` with rows (K, batch)."""

    plan: Plan
    objective: Objective
    fetch: Closure
    load: Callable[[Array], None]


class Pass:
    """A network over one split, batch by batch: rows in, tallies out.

    The order of an epoch lies on the device, as does the place in it, so that a step is the same calls on the same
    arrays every time. Of a split that is streamed these are the order of a portion and the place in that; `turn` brings
    the portion that a step needs.
    """

    def __init__(
        self,
        network: Network,
        loss: Loss,
        metrics: Sequence[Metric],
        split: Split,
        preparation: Preparation,
        batch_size: int,
        training: bool,
        augment: Augment | None = None,
    ):
        self.network, self.loss, self.metrics, self.training = network, loss, metrics, training
        for metric in metrics:
            metric.check(len(preparation.classes), network.output_shape[-1])
        if network.w is not None:  # to be measured, the rows are not looked at
            expect_symbols(network, split, preparation)
        steps = network.row_shape[:1]
        self.split = split if preparation.input_shape[:1] == steps else split.cut(*steps)
        xp = network.backend.xp
        make = network.backend.zeros if network.w is not None else partial(phantom, xp)
        self.portions = self._portions(batch_size)
        self.feed = Feed(network.backend, self.split, preparation, augment, self.portions, make)
        self.tallies: dict[str, Array] = {}
        self.carried: dict[str, Array] | None = {} if self.split.windows > 1 else None
        self.batch_size = batch_size
        self.full, self.rest = divmod(len(split), batch_size)
        self.steps = (self.full + bool(self.rest)) * self.split.windows
        rows = self.portions.rows if self.portions else len(split) * self.split.windows
        self.stretch = -(-rows // batch_size) if self.portions else self.steps  # the steps until a portion ends
        self._epoch, self._number, self._shuffle = 0, -1, False  # of the portion in the tables
        self.order, self.position = make((network.K, rows), np.int64), xp.zeros(1, np.int64)
        self.batches: dict[int, Batch] = {}

    def _portions(self, batch_size: int) -> Portions | None:
        split = self.split
        if split.stream is None:
            return None
        if split.index.ndim > 1:
            raise ConfigError("data.folds: the folds share a table in memory, but data.stream reads it in portions")
        size = split.stream.size if self.training else split.stream.size // EVALUATION_SHARE
        return Portions(split.inputs, split.index, batch_size, replace(split.stream, size=size))

    def batch(self, size: int) -> Batch:
        """The batch of a size, traced when it is asked for first."""
        if size not in self.batches:
            self.batches[size] = self._traced(size)
        return self.batches[size]

    def _traced(self, size: int) -> Batch:
        read: Callable[[Array], None]
        objective: Objective

        def finish(plan: Plan) -> None:
            nonlocal read, objective
            read, objective = self._finish(plan)

        backend = self.network.backend
        xp, (K, rows) = backend.xp, self.order.shape
        plan = Plan(self.network, size, training=self.training, loss=finish, tallies=self.tallies, carried=self.carried)
        places = backend.array(np.arange(K)[:, None] * rows + np.arange(size))
        at, index, order = xp.zeros((K, size), np.int64), xp.zeros((K, size), np.int64), self.order.reshape(-1)

        def fetch():
            xp.add(places, self.position, out=at)
            backend.gather(order, at, index)
            read(index)
            xp.add(self.position, size, out=self.position)

        return Batch(plan, objective, backend.capture([fetch]), read)

    def _finish(self, plan: Plan) -> tuple[Callable[[Array], None], Objective]:
        """Trace the loss and the metrics; what reads the rows of an index, and the loss as a function."""
        target, read = self.feed.bind(plan)
        total, mass = self.loss.trace(plan, plan.y, target)
        sums = [(plan.tally("loss"), total), (plan.tally("loss-mass"), mass)]
        xp = plan.xp

        def add_up():
            for tally, part in sums:
                xp.add(tally, part[:, 0, 0], out=tally)

        plan.step(add_up, None)
        for metric in self.metrics:
            metric.trace(plan, plan.y, target, self.loss.threshold)
        return read, Objective(plan, self.loss, target, total, mass)

    def measured(self, size: int) -> Plan:
        """The plan of a batch of a size over phantoms, which knows how much memory it would take."""
        loss = lambda plan: self._finish(plan) and None  # noqa: E731
        carried = None if self.carried is None else dict[str, Array]()
        return Plan(self.network, size, training=self.training, loss=loss, carried=carried, measure=True)

    def size(self, step: int) -> int:
        """The rows of step number `step` of an epoch."""
        return self.batch_size if step < self.full * self.split.windows else self.rest

    def begin(self, epoch: int, step: int, shuffle: bool) -> None:
        """Bring the order of an epoch to the device; the next rows are those of step number `step`."""
        if self.portions:
            self._epoch, self._number, self._shuffle = epoch, -1, shuffle
            return
        backend = self.network.backend
        backend.stage(order(self.split, self.batch_size, self.network.seeds, epoch, shuffle), self.order)
        self.position.fill(self._place(step))

    def turn(self, step: int) -> None:
        """Where rows come in portions: have that of step number `step` of this epoch lie in the tables.

        The next one, that of the next epoch after the last of a training, is read meanwhile. Raises what reading the
        portion failed with.
        """
        tables, number = self.feed.streamed, step // self.stretch
        if tables is None or number == self._number:
            return
        place, last = tables.portions.place, number + 1 == tables.portions.count
        following: Place | None = place(self._epoch, number + 1, self._shuffle)
        if last:
            following = place(self._epoch + 1, 0, self._shuffle) if self.training else None
        tables.turn(place(self._epoch, number, self._shuffle), following)
        count, order = len(tables.numbers), np.zeros(self.order.shape, np.int64)
        within = order_within(count, self.network.seeds, self._epoch, number, self._shuffle)
        np.add(tables.start, within, out=order[:, :count])
        self.network.backend.stage(order, self.order)
        self.position.fill(step % self.stretch * self.batch_size)
        self._number = number

    def rows(self, step: int) -> np.ndarray:
        """The numbers (K, batch) of the rows of the data that step number `step` of this epoch takes."""
        start, order = self._place(step), self.network.backend.host(self.order)
        if tables := self.feed.streamed:
            start %= tables.portions.rows
        order = order[:, start : start + self.size(step)]
        return tables.numbers[order - tables.start] if tables else order // self.split.windows

    def _place(self, step: int) -> int:
        """Where the rows of step number `step` begin in the order of an epoch."""
        full = self.full * self.split.windows
        return min(step, full) * self.batch_size + max(0, step - full) * self.rest

    def reset(self) -> None:
        for tally in self.tallies.values():
            tally.fill(0)

    def forget(self) -> None:
        """Before a step where sequences begin: what windows hand on is zero."""
        for array in (self.carried or {}).values():
            self.network.backend.xp.copyto(array, 0)

    def results(self) -> Row:
        """The loss and metrics of what has been added up: a number, or a list with one for each member."""
        host = {name: self.network.backend.host(tally) for name, tally in self.tallies.items()}
        with np.errstate(all="ignore"):
            loss = host["loss"] / host["loss-mass"] if self.loss.reduce == "mean" else host["loss"]
            values = {"loss": loss, **{metric.name: metric.value(host) for metric in self.metrics}}
        return {name: plain(value if self.network.K > 1 else value[0]) for name, value in values.items()}


class Evaluation:
    """The loss and metrics of a network on a split, in the split's order."""

    def __init__(self, network: Network, loss: Loss, metrics: Sequence[Metric], split: Split, preparation: Preparation):
        self.network = network
        self.run = Pass(network, loss, metrics, split, preparation, EVALUATION_BATCH, training=False)

    def __call__(self) -> Row:
        self.run.reset()
        for _ in self._plans():
            pass
        return self.run.results()

    def outputs(self) -> np.ndarray:
        """The outputs (K, rows, ...) of the network for the rows of the split."""
        parts = [np.array(self.network.backend.host(plan.y.value)) for plan in self._plans()]
        windows = self.run.split.windows
        if windows > 1:  # one after the other in time
            parts = [np.concatenate(parts[i : i + windows], axis=2) for i in range(0, len(parts), windows)]
        return np.concatenate(parts, axis=1)

    def _plans(self) -> Iterator[Plan]:
        """The plans of all batches, each after its forward pass."""
        with np.errstate(all="ignore"):
            self.run.begin(epoch=0, step=0, shuffle=False)
            for step in range(self.run.steps):
                self.run.turn(step)
                batch = self.run.batch(self.run.size(step))
                if step % self.run.split.windows == 0:
                    self.run.forget()
                batch.fetch()
                batch.plan.forward()
                yield batch.plan


def expect_symbols(network: Network, split: Split, preparation: Preparation, name: str = "") -> None:
    """Raise DataError, with the row, where the network looks its inputs up in a table and one of them is not in it."""
    if network.symbols is None:
        return
    size = split.inputs.at_once if isinstance(split.inputs, Stored) else len(split)
    for start in range(0, len(split), size):
        part = split.index[..., start : start + size]
        _expect_symbols(network.symbols, split, part, preparation, name)


def _expect_symbols(symbols: int, split: Split, index: np.ndarray, preparation: Preparation, name: str) -> None:
    raw = split.inputs[index]  # (rows, ...), or (folds, rows, ...)
    normalised = preparation.shift.any() or (preparation.scale != 1).any()
    x = (raw - preparation.shift) * preparation.scale if normalised else raw
    wrong = (x < 0) | (x >= symbols)
    if x.dtype.kind == "f":
        wrong |= x != np.floor(x)
    if split.lengths is not None:  # what lies beyond the end of a row is not looked at
        valid = np.arange(x.shape[index.ndim]) < split.lengths[index][..., None]
        wrong &= valid.reshape(*valid.shape, *(1,) * (wrong.ndim - valid.ndim))
    if not wrong.any():
        return
    place = tuple(np.argwhere(wrong)[0])
    row, inside = index[place[: index.ndim]], ", ".join(map(str, place[index.ndim :]))
    found, advice = f"{float(raw[place]):g}", "give the embedding a larger vocabulary, or correct the data"
    if normalised:
        found, advice = f"{found}, normalised to {x[place]:g}", 'set normalize = "none" in [data]'
    raise DataError(
        f"{name and name + ' '}row {row}, input {inside} (both counted from 0): found {found}; an embedding of "
        f"{symbols} symbols takes whole numbers from 0 to {symbols - 1}; {advice}"
    )


def plain(value: np.ndarray) -> Any:
    """The numbers as lists that JSON can hold: null for what is not finite."""
    return np.where(~np.isfinite(value), np.array(None), value).tolist() if value.dtype.kind == "f" else value.tolist()
