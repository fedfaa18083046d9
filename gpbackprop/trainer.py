"""Floor 3: the training loop.

One step is: gather the rows, forward, look at the loss, backward, update. Everything that changes lives in arrays and
counters that `content()` lists and `restore()` fills, so that a run goes on from any step with the same bits.
"""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpbackprop import checkpoint
from gpbackprop.backend import Array, Backend, select
from gpbackprop.data import Dataset, Split
from gpbackprop.data.batches import Feed, order
from gpbackprop.errors import ConfigError, DataError, NumericalError
from gpbackprop.layers.base import Layer
from gpbackprop.losses import Loss
from gpbackprop.metrics import Metric
from gpbackprop.optim.base import Optimizer
from gpbackprop.plan import Network, Plan
from gpbackprop.settings import Train

EVALUATION_BATCH = 256  # the same for every population, so that a member's sums are those of the network alone

Row = dict[str, Any]


class Pass:
    """Plans of some batch sizes over one split: rows in, tallies out."""

    def __init__(
        self, network: Network, loss: Loss, metrics: Sequence[Metric], split: Split, preparation: Any, training: bool
    ):
        self.network, self.loss, self.metrics, self.training = network, loss, metrics, training
        self.feed = Feed(network.backend, split, preparation)
        self.tallies: dict[str, Array] = {}
        self.plans: dict[int, tuple[Plan, Callable[[Array], None]]] = {}

    def plan(self, batch: int) -> tuple[Plan, Callable[[Array], None]]:
        """The plan of a batch size, and the call that loads the rows of an index array (K, batch) into it."""
        if batch not in self.plans:
            load: Callable[[Array], None]

            def finish(plan: Plan) -> None:
                nonlocal load
                target, load = self.feed.bind(plan)
                total, mass = self.loss.trace(plan, plan.y, target)
                xp, sums = plan.xp, [(plan.tally("loss"), total), (plan.tally("loss-mass"), mass)]

                def add_up():
                    for tally, part in sums:
                        xp.add(tally, part[:, 0, 0], out=tally)

                plan.step(add_up, None)
                for metric in self.metrics:
                    metric.trace(plan, plan.y, target, self.loss.threshold)

            plan = Plan(self.network, batch, training=self.training, loss=finish, tallies=self.tallies)
            self.plans[batch] = plan, load
        return self.plans[batch]

    def reset(self) -> None:
        for tally in self.tallies.values():
            tally.fill(0)

    def results(self) -> Row:
        """The loss and metrics of what has been added up: a number, or a list with one for each member."""
        host = {name: self.network.backend.host(tally) for name, tally in self.tallies.items()}
        with np.errstate(all="ignore"):
            loss = host["loss"] / host["loss-mass"] if self.loss.reduce == "mean" else host["loss"]
            values = {"loss": loss, **{metric.name: metric.value(host) for metric in self.metrics}}
        return {name: plain(value if self.network.K > 1 else value[0]) for name, value in values.items()}


class Evaluation:
    """The loss and metrics of a network on a split, in the split's order."""

    def __init__(self, network: Network, loss: Loss, metrics: Sequence[Metric], split: Split, preparation: Any):
        self.split, self.network = split, network
        self.run = Pass(network, loss, metrics, split, preparation, training=False)

    def __call__(self) -> Row:
        self.run.reset()
        for index in self._batches():
            plan, load = self.run.plan(index.shape[1])
            load(index)
            plan.forward()
        return self.run.results()

    def outputs(self) -> np.ndarray:
        """The outputs (K, rows, ...) of the network for the rows of the split."""
        parts = []
        for index in self._batches():
            plan, load = self.run.plan(index.shape[1])
            load(index)
            plan.forward()
            parts.append(np.array(self.network.backend.host(plan.y.value)))
        return np.concatenate(parts, axis=1)

    def _batches(self):
        with np.errstate(all="ignore"):
            whole, rest = order(self.split, EVALUATION_BATCH, self.network.seeds, 0, shuffle=False)
            yield from map(self.network.backend.array, whole)
            if rest.size:
                yield self.network.backend.array(rest)


class Trainer:
    """Trains K networks of one architecture on a data set.

        trainer = Trainer(Chain(Dense(128, activation="relu"), Dense(10)), SoftmaxCrossEntropy(), SGD(0.05, momentum=0.9),
                          data.load("digits"), batch_size=64, seed=1, device="cuda")
        trainer.fit(epochs=10); trainer.evaluate("test"); trainer.save("digits.h5")

    Further keywords are the fields of `Train`. `seed` may be a list with one seed for each of the population's members;
    one seed s of a population of K stands for s, s + 1, ..., s + K - 1. Raises ConfigError where model, loss and data do
    not fit, DeviceError where the device cannot be used.
    """

    def __init__(
        self,
        model: Layer,
        loss: Loss,
        optimizer: Optimizer,
        data: Dataset,
        *,
        seed: int | Sequence[int] = 0,
        population: int = 1,
        device: str | Backend = "auto",
        config: str = "",
        **train: Any,
    ):
        self.model, self.loss, self.optimizer, self.data, self.train = model, loss, optimizer, data, Train(**train)
        seeds = tuple(range(seed, seed + population)) if isinstance(seed, int) else tuple(seed)
        if len(seeds) != population and population != 1:
            raise ConfigError(f"seed: has {len(seeds)} entries for a population of {population}")
        self.config = config
        self.backend = select(device) if isinstance(device, str) else device
        split = data.splits["train"]
        if not len(split):
            raise DataError(f"{data.name}: the training split has no rows")
        self.network = Network(model, data.preparation.row_shape, self.backend, seeds, self.train.dtype)
        self.update = optimizer.bind(self.network)
        self.metrics = self.train.metrics_for(data.preparation.classes)
        self.batch = min(self.train.batch_size, len(split)) if self.train.batch_size != "full" else len(split)
        self.steps_per_epoch = -(-len(split) // self.batch)
        self.pass_ = Pass(self.network, loss, self.train.running(self.metrics), split, data.preparation, training=True)
        for size in {self.batch, len(split) % self.batch or self.batch}:
            self.pass_.plan(size)
        self.evaluations: dict[str, Evaluation] = {}
        self.step = self.epoch = self.batch_in_epoch = 0
        self.best: dict[str, float] = {}  # value and epoch of the best monitored metric
        self.history: list[Row] = []
        self.stop_requested = False
        self._factor = math.nan

    @property
    def seeds(self) -> tuple[int, ...]:
        return self.network.seeds

    def fit(self, epochs: int | None = None, hooks: Sequence["Hook"] = ()) -> list[Row]:
        """Train until `epochs` epochs are done (`train.epochs` unless told); returns the history, one row an epoch.

        Stops at the next step boundary when `stop_requested` is set, and early where `train.early_stopping` says so.
        Raises NumericalError, before the update, when the loss is not finite.
        """
        self.epochs = self.train.epochs if epochs is None else epochs
        with np.errstate(all="ignore"):
            while self.epoch < self.epochs and not self.stop_requested and not self.exhausted:
                seconds = self._run_epoch(hooks)
                if self.stop_requested:
                    break
                row = self._finish_epoch()
                speed = {"seconds": seconds, "samples_per_second": len(self.data.splits["train"]) / max(seconds, 1e-9)}
                for hook in hooks:
                    hook.on_epoch(self, row | speed)
        return self.history

    def _run_epoch(self, hooks: Sequence["Hook"]) -> float:
        """The remaining steps of the current epoch; returns the seconds they took."""
        start = time.perf_counter()
        if self.batch_in_epoch == 0:
            self.pass_.reset()
        whole, rest = order(self.data.splits["train"], self.batch, self.seeds, self.epoch, self.train.shuffle)
        batches = [*self.backend.array(whole), *([self.backend.array(rest)] if rest.size else [])]
        on_step = [hook.on_step for hook in hooks]
        loss = self.pass_.tallies["loss"]
        while self.batch_in_epoch < self.steps_per_epoch and not self.stop_requested:
            index = batches[self.batch_in_epoch]
            plan, load = self.pass_.plans[index.shape[1]]
            self._set_rate()
            load(index)
            plan.forward()
            if self.step % self.backend.probe_every == 0 and not all(map(math.isfinite, self.backend.host(loss).tolist())):
                raise self._not_finite(plan)
            plan.backward()
            self.update.step()
            self.network.clock += 1
            self.step += 1
            self.batch_in_epoch += 1
            for call in on_step:
                call(self)
        self.backend.sync()
        return time.perf_counter() - start

    def _set_rate(self) -> None:
        """Bring the learning rates of the next step up to date."""
        t = self.step / self.steps_per_epoch
        factor = self.optimizer.schedule.factor(t, self.epochs)
        if factor != self._factor:
            self._factor = factor
            self.backend.xp.multiply(self.update.lr, factor, out=self.update.rate)

    def _finish_epoch(self) -> Row:
        """Evaluate, record, and move on to the next epoch."""
        results = self.pass_.results()
        if not np.isfinite(results["loss"]).all():
            raise self._not_finite(self.pass_.plans[self.batch][0])
        row: Row = {"epoch": self.epoch + 1, "step": self.step, "lr": self.rate}
        row |= {f"train_{name}": value for name, value in results.items()}
        if "validation" in self.data.splits:
            row |= {f"validation_{name}": value for name, value in self.evaluate("validation").items()}
        self.history.append({name: value for name, value in row.items() if not name.endswith("confusion")})
        self.epoch, self.batch_in_epoch = self.epoch + 1, 0
        self._note_best(row)
        return self.history[-1]

    @property
    def rate(self) -> float | list[float]:
        """The learning rate of the last step, one for each member where there are several."""
        rates = self.backend.host(self.update.rate)[:, 0].tolist()
        return rates if self.network.K > 1 else rates[0]

    @property
    def monitor(self) -> str:
        """The metric that says which epoch is best."""
        if self.train.early_stopping and self.train.early_stopping.monitor:
            return self.train.early_stopping.monitor
        return "validation_loss" if "validation" in self.data.splits else "train_loss"

    def _note_best(self, row: Row) -> None:
        if self.monitor not in row:
            raise ConfigError(f"train.early_stopping.monitor: {self.monitor!r} is not recorded; there are {', '.join(row)}")
        value = float(np.mean(np.asarray(row[self.monitor], float)))
        sign = -1 if self.monitor.endswith(("loss", "error")) else 1
        least = self.train.early_stopping.min_delta if self.train.early_stopping else 0.0
        if not self.best or sign * (value - self.best["value"]) > least:
            self.best = {"value": value, "epoch": self.epoch}

    @property
    def exhausted(self) -> bool:
        """Whether early stopping says that waiting longer is of no use."""
        stopping = self.train.early_stopping
        return bool(stopping and self.best and self.epoch - self.best["epoch"] >= stopping.patience)

    def evaluate(self, split: str | Split = "test") -> Row:
        """The loss and metrics on a split of the data, by name, or on other rows."""
        if isinstance(split, str) and split not in self.data.splits:
            raise DataError(f"{self.data.name}: there is no {split} split; there are {', '.join(self.data.splits)}")
        rows = self.data.splits[split] if isinstance(split, str) else split
        if not isinstance(split, str):
            return Evaluation(self.network, self.loss, self.metrics, rows, self.data.preparation)()
        if split not in self.evaluations:
            self.evaluations[split] = Evaluation(self.network, self.loss, self.metrics, rows, self.data.preparation)
        return self.evaluations[split]()

    def _not_finite(self, plan: Plan) -> NumericalError:
        """Names the first layer, in forward order, whose outputs are not finite."""
        finite = (
            (path, bool(np.isfinite(self.backend.host(slot.value)).all()))
            for path, slot in [("the input", plan.x), *plan.outputs]
        )
        layer = next((path for path, ok in finite if not ok), "the loss")
        rates = ", ".join(f"{rate:g}" for rate in np.atleast_1d(self.rate))
        return NumericalError(
            f"training stopped at step {self.step + 1} (epoch {self.epoch + 1}, batch {self.batch_in_epoch + 1}): "
            f"the loss is not finite; the first values that are not finite leave {layer}. The learning rate was {rates}: "
            "try a smaller one, or normalize the data. No checkpoint was written after it"
        )

    # What a checkpoint holds.

    def content(self) -> dict[str, np.ndarray | bytes]:
        """Everything that a run needs to go on, as arrays and text. Raises NumericalError where a parameter is not finite."""
        net, host = self.network, self.backend.host
        for path, view in net.params.views(host(net.w)).items():
            if not np.isfinite(view).all():
                raise NumericalError(f"{path} is not finite after step {self.step}; no checkpoint was written after it")
        flats = {"params": (net.params, net.w), "state": (net.states, net.state)}
        flats |= {f"optimizer/{name}": (net.params, array) for name, array in self.update.state.items()}
        content: dict[str, np.ndarray | bytes] = {"config": self.config.encode()}
        for room, (flat, array) in flats.items():
            content |= {f"{room}/{path}": view for path, view in flat.views(host(array)).items()}
        content |= {f"preparation/{name}": array for name, array in self.data.preparation.arrays().items()}
        content |= {f"progress/tally/{name}": host(tally) for name, tally in self.pass_.tallies.items()}
        content |= {f"progress/{name}": np.array(getattr(self, name), np.int64) for name in COUNTERS}
        content["progress/best"] = np.array([self.best.get("value", math.nan), self.best.get("epoch", 0)])
        content["progress/seeds"] = np.array(self.seeds, np.int64)
        content["history"] = "".join(json.dumps(row) + "\n" for row in self.history).encode()
        return content

    def restore(self, content: Mapping[str, np.ndarray]) -> None:
        """Fill in place what `content()` wrote."""
        net = self.network
        flats = {"params": (net.params, net.w), "state": (net.states, net.state)}
        flats |= {f"optimizer/{name}": (net.params, array) for name, array in self.update.state.items()}
        for room, (flat, array) in flats.items():
            for path, view in flat.views(array).items():
                self.backend.stage(content[f"{room}/{path}"], view)
        for name, tally in self.pass_.tallies.items():
            self.backend.stage(content[f"progress/tally/{name}"], tally)
        for name in COUNTERS:
            setattr(self, name, int(content[f"progress/{name}"]))
        value, epoch = content["progress/best"].tolist()
        self.best = {"value": value, "epoch": int(epoch)} if epoch else {}
        self.history = [json.loads(line) for line in bytes(content["history"]).decode().splitlines()]
        net.clock.fill(self.step)

    def save(self, path: str | Path) -> None:
        """Write one checkpoint file. Raises CheckpointError where it cannot be written."""
        checkpoint.write(Path(path), self.content())


def plain(value: np.ndarray) -> Any:
    """The numbers as lists that JSON can hold: null for what is not a number."""
    return np.where(np.isnan(value), None, value).tolist() if value.dtype.kind == "f" else value.tolist()


COUNTERS = ("step", "epoch", "batch_in_epoch")


class Hook:
    """Called by `fit` after each step and each epoch."""

    def on_step(self, trainer: Trainer) -> None: ...

    def on_epoch(self, trainer: Trainer, row: Row) -> None: ...
