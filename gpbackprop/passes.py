"""Floor 3: a network over the rows of a split: plans that read batches and add up the loss and metrics."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from gpbackprop.backend import Array
from gpbackprop.data import Preparation, Split
from gpbackprop.data.augment import Augment
from gpbackprop.data.batches import Feed, visits
from gpbackprop.errors import DataError
from gpbackprop.losses import Loss
from gpbackprop.metrics import Metric
from gpbackprop.optim.objective import Objective
from gpbackprop.plan import Network, Plan

EVALUATION_BATCH = 256  # the same for every population, so that a member's sums are those of the network alone

Row = dict[str, Any]


class Pass:
    """Plans of some batch sizes over one split: rows in, tallies out."""

    def __init__(
        self,
        network: Network,
        loss: Loss,
        metrics: Sequence[Metric],
        split: Split,
        preparation: Preparation,
        training: bool,
        augment: Augment | None = None,
    ):
        self.network, self.loss, self.metrics, self.training = network, loss, metrics, training
        for metric in metrics:
            metric.check(len(preparation.classes), network.output_shape[-1])
        expect_symbols(network, split, preparation)
        steps = network.row_shape[:1]
        self.split = split if preparation.input_shape[:1] == steps else split.cut(*steps)
        self.feed = Feed(network.backend, self.split, preparation, augment)
        self.tallies: dict[str, Array] = {}
        self.carried: dict[str, Array] | None = {} if self.split.windows > 1 else None
        self.plans: dict[int, tuple[Plan, Callable[[Array], None]]] = {}
        self.objectives: dict[int, Objective] = {}

    def plan(self, batch: int) -> tuple[Plan, Callable[[Array], None]]:
        """The plan of a batch size, and the call that loads the rows of an index array (K, batch) into it."""
        if batch not in self.plans:
            load: Callable[[Array], None]

            def finish(plan: Plan) -> None:
                nonlocal load
                target, load = self.feed.bind(plan)
                total, mass = self.loss.trace(plan, plan.y, target)
                self.objectives[batch] = Objective(plan, self.loss, target, total, mass)
                xp, sums = plan.xp, [(plan.tally("loss"), total), (plan.tally("loss-mass"), mass)]

                def add_up():
                    for tally, part in sums:
                        xp.add(tally, part[:, 0, 0], out=tally)

                plan.step(add_up, None)
                for metric in self.metrics:
                    metric.trace(plan, plan.y, target, self.loss.threshold)

            plan = Plan(
                self.network, batch, training=self.training, loss=finish, tallies=self.tallies, carried=self.carried
            )
            self.plans[batch] = plan, load
        return self.plans[batch]

    def reset(self) -> None:
        for tally in self.tallies.values():
            tally.fill(0)

    def start(self, step: int) -> None:
        """Before step `step` of an epoch: what windows hand on is zero where a sequence begins."""
        if step % self.split.windows == 0:
            for array in (self.carried or {}).values():
                array.fill(0)

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
        self.run = Pass(network, loss, metrics, split, preparation, training=False)

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
            backend, seeds = self.network.backend, self.network.seeds
            batches = visits(backend, self.run.split, EVALUATION_BATCH, seeds, 0, shuffle=False)
            for step, index in enumerate(batches):
                plan, load = self.run.plan(index.shape[1])
                self.run.start(step)
                load(index)
                plan.forward()
                yield plan


def expect_symbols(network: Network, split: Split, preparation: Preparation, name: str = "") -> None:
    """Raise DataError, with the row, where the network looks its inputs up in a table and one of them is not in it."""
    if network.symbols is None:
        return
    raw = split.inputs[split.index]  # (rows, ...), or (folds, rows, ...)
    normalised = preparation.shift.any() or (preparation.scale != 1).any()
    x = (raw - preparation.shift) * preparation.scale if normalised else raw
    wrong = (x < 0) | (x >= network.symbols)
    if x.dtype.kind == "f":
        wrong |= x != np.floor(x)
    if split.lengths is not None:  # what lies beyond the end of a row is not looked at
        valid = np.arange(x.shape[split.index.ndim]) < split.lengths[split.index][..., None]
        wrong &= valid.reshape(*valid.shape, *(1,) * (wrong.ndim - valid.ndim))
    if not wrong.any():
        return
    place = tuple(np.argwhere(wrong)[0])
    row, inside = split.index[place[: split.index.ndim]], ", ".join(map(str, place[split.index.ndim :]))
    found, advice = f"{float(raw[place]):g}", "correct the data, or give the embedding a larger vocabulary"
    if normalised:
        found, advice = f"{found}, normalised to {x[place]:g}", 'set normalize = "none" in [data]'
    raise DataError(
        f"{name and name + ' '}row {row}, input {inside} (both counted from 0): found {found}; an embedding of "
        f"{network.symbols} symbols takes whole numbers from 0 to {network.symbols - 1}; {advice}"
    )


def plain(value: np.ndarray) -> Any:
    """The numbers as lists that JSON can hold: null for what is not finite."""
    return np.where(~np.isfinite(value), np.array(None), value).tolist() if value.dtype.kind == "f" else value.tolist()
