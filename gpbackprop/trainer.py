"""Floor 3: the training loop.

One step is: gather the rows, forward, look at the loss, backward, update. Everything that changes lives in arrays and
counters that `content()` lists and `restore()` fills, so that a run goes on from any step with the same bits.
"""

import json
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np

from gpbackprop import checkpoint, diagnosis, sizes
from gpbackprop.backend import Array, Backend, select
from gpbackprop.data import Dataset, Split
from gpbackprop.errors import ConfigError, DataError, NumericalError
from gpbackprop.layers.base import Layer
from gpbackprop.layers.combine import Chain
from gpbackprop.losses import Loss
from gpbackprop.monitor import Monitor
from gpbackprop.optim.base import Optimizer
from gpbackprop.passes import Evaluation, Pass, Row, expect_symbols
from gpbackprop.plan import Flat, Network, Plan
from gpbackprop.settings import Train, render
from gpbackprop.spec import type_name
from gpbackprop.steps import Steps

COUNTERS = ("step", "epoch", "batch_in_epoch", "rollbacks", "rolled_from", "rolled_to")


class Trainer:
    """Trains K networks of one architecture on a data set.

        model = Chain(Dense(128, activation="relu"), Dense(10))
        digits = data.load("digits", validation=0.1, test=0.2)
        trainer = Trainer(model, SoftmaxCrossEntropy(), SGD(0.05, momentum=0.9), digits, batch_size=64)
        trainer.fit(epochs=10); trainer.evaluate("test"); trainer.save("digits.h5")

    Further keywords are the fields of `Train`. `seed` may be a list with one seed for each member of the population;
    one seed s of a population of K stands for s, s + 1, ..., s + K - 1. Data of F folds train a population of F, member
    k without fold k. Raises ConfigError where model, loss and data do not fit, DeviceError where the device cannot be
    used.
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
        name: str = "run",
        **train: Any,
    ):
        self.model, self.loss, self.optimizer, self.data, self.train = model, loss, optimizer, data, Train(**train)
        folds = data.preparation.folds
        if folds and population == 1:
            population = folds
        seeds = tuple(range(seed, seed + population)) if isinstance(seed, int) else tuple(seed)
        if len(seeds) != population and population != 1:
            raise ConfigError(f"seed: has {len(seeds)} entries for a population of {population}")
        if folds and population != folds:
            raise ConfigError(f"population: found {population}, but {folds} folds make {folds} members; leave it out")
        if any(not 0 <= each < 2**63 for each in seeds):
            raise ConfigError(f"seed: found {seed!r}, expected 0 to {2**63 - 1} for every member of the population")
        if data.augment and self.train.bptt:
            raise ConfigError(
                "train.bptt: windows of steps are no images, which data.augment is for; leave one of them out"
            )
        split = data.splits["train"]
        if not len(split):
            raise DataError(f"{data.name}: the training split has no rows")
        if split.stream and (optimizer.whole or self.train.batch_size == "full"):
            whole = type_name(type(optimizer)) if optimizer.whole else 'train.batch_size = "full"'
            raise ConfigError(
                f"data.stream: the rows come in portions, but {whole} takes one step from all of them; set "
                "data.stream = false, or take batches, and an optimizer that is made for them"
            )
        self.name, backend = name, select(device) if isinstance(device, str) else device
        self.backend = backend.rounding(self.train.precision).compiling(self.train.compile)
        shape, lengths = self.train.row_shape(data.preparation), split.lengths is not None
        self.sizes = sizes.expect_room(
            lambda batch: sizes.measure(
                model, loss, optimizer, data, self.train.of_batch(batch), len(seeds), self.backend
            ),
            self.backend.available(),
        )
        self.network = Network(model, shape, self.backend, seeds, self.train.dtype, lengths)
        for part, rows in data.splits.items():
            expect_symbols(self.network, rows, data.preparation, part)
        self.metrics = self.train.metrics_for(data.preparation)
        self.batch_size = len(split) if self.train.batch_size == "full" else min(self.train.batch_size, len(split))
        counted = self.train.running(self.metrics)
        self.training = Pass(self.network, loss, counted, split, data.preparation, self.batch_size, True, data.augment)
        self.steps_per_epoch = self.training.steps
        objectives = [self.training.batch(size).objective for size in (self.batch_size, self.training.rest) if size]
        for metric in self.metrics:
            metric.check(len(data.preparation.classes), self.network.output_shape[-1])
        if optimizer.whole and self.training.split.windows > 1:
            raise ConfigError(
                f"train.bptt = {self.train.bptt}: takes a step from each window of a row, but "
                f"{type_name(type(optimizer))} takes one step from all of every row; leave train.bptt out"
            )
        if optimizer.whole and self.steps_per_epoch > 1:
            raise ConfigError(
                f"train.batch_size: is {self.batch_size}, but {type_name(type(optimizer))} takes one step from all "
                f'{len(split)} rows; set batch_size = "full"'
            )
        self.update = optimizer.bind(self.network, objectives[0])
        if self.update.every > self.steps_per_epoch * self.train.epochs:
            raise ConfigError(
                f"optimizer.accumulate = {self.update.every}: is more than the {self.steps_per_epoch} batches of each "
                f"of the {self.train.epochs} epochs together, so that nothing would be learned; take a smaller number"
            )
        self.evaluations: dict[str, Evaluation] = {}
        self.step = self.epoch = self.batch_in_epoch = 0
        self.rollbacks = self.rolled_from = self.rolled_to = 0  # how many, and the steps of the last one
        self._lr = self.update.lr.copy()
        self.epochs = self.train.epochs
        counted = self.metrics if optimizer.swarm else counted
        columns = [f"train_{name}" for name in ("loss", *(metric.name for metric in counted))]
        if "validation" in data.splits:
            columns += [f"validation_{name}" for name in ("loss", *(metric.name for metric in self.metrics))]
        self.monitor = Monitor(self.train.early_stopping, columns)
        self.history: list[Row] = []
        self.stop_requested = False
        self._steps: Steps | None = None
        self._probed = 0  # the steps whose losses are known to be finite
        self._factors: list[float] = []
        self._past: list[tuple[float, ...]] = [()]  # what the schedule sees of the epochs before, for each member

    @property
    def seeds(self) -> tuple[int, ...]:
        return self.network.seeds

    def fit(self, epochs: int | None = None, hooks: Sequence["Hook"] = ()) -> list[Row]:
        """Train until `epochs` epochs are done (`train.epochs` unless told); returns the history, one row an epoch.

        Stops when `stop_requested` is set, as soon as the steps are done that the device has begun together (one on the
        CPU, at most 16 on CUDA and of short compiled steps), and early where `train.early_stopping` says so.
        Raises NumericalError, before the update, when the loss is not finite.
        """
        self.epochs = epochs or self.train.epochs
        with np.errstate(all="ignore"), self.backend.active():
            while self.epoch < self.epochs and not self.monitor.exhausted and not self.stop_requested:
                start, first = time.perf_counter(), self.batch_in_epoch
                self._run_epoch(hooks)
                if self.batch_in_epoch < self.steps_per_epoch:
                    break
                seconds = max(time.perf_counter() - start, 1e-9)
                rows = len(self.data.splits["train"]) - first // self.training.split.windows * self.batch_size
                row = self._finish_epoch()
                for hook in hooks:
                    hook.on_epoch(self, row | {"seconds": seconds, "samples_per_second": rows / seconds})
        self.stop_requested = False
        return self.history

    def stop(self) -> None:
        """Ask for a stop at the next step boundary; any thread may."""
        self.stop_requested = True

    def _run_epoch(self, hooks: Sequence["Hook"]) -> None:
        """The remaining steps of the current epoch, until a stop is requested."""
        if self.batch_in_epoch == 0:
            self.training.reset()
        if self.optimizer.schedule.watches:
            self._past = self.monitor.past(self.history, self.network.K)
        self.training.begin(self.epoch, self.batch_in_epoch, self.train.shuffle)
        if self._steps is None or self._steps.update is not self.update:
            every, unit = self.train.saving
            self._steps = Steps(self.training, self.optimizer, self.update, int(every) if unit == "step" else None)
        if self.batch_in_epoch == self.steps_per_epoch:  # going on before the epoch's evaluation
            self._set_rate(self.step - 1)
        while self.batch_in_epoch < self.steps_per_epoch and not self.stop_requested:
            held = self._set_rate(self.step)
            done = self._steps.run(self.step, self.batch_in_epoch, self._probe, held)
            self.step += done
            self.batch_in_epoch += done
            for hook in hooks:
                hook.on_step(self)
        self.backend.sync()

    def _set_rate(self, step: int) -> int:
        """Bring the learning rates to those of a step; for how many steps, up to `unroll`, they stay."""
        factors = self._factors_of(step)
        if factors != self._factors:
            self._factors = factors
            each = factors[0]
            if len(factors) > 1:
                each = self.backend.array(np.array(factors, self.network.dtype)[:, None])
            self.backend.xp.multiply(self.update.lr, each, out=self.update.rate)
        if self.backend.unroll == 1:
            return 1
        later = range(step + 1, step + self.backend.unroll)
        return 1 + sum(1 for _ in takewhile(lambda other: self._factors_of(other) == factors, later))

    def _factors_of(self, step: int) -> list[float]:
        """The schedule's factors at a step of this epoch."""
        t, schedule = step / self.steps_per_epoch, self.optimizer.schedule
        return [schedule.factor(t, self.epochs, past) for past in self._past]

    def _probe(self, plan: Plan | None, last: int) -> None:
        """Raise NumericalError unless the losses of the steps up to number `last` are finite.

        What is not finite stays so in the sum over the epoch, so that a look now and then misses nothing.
        """
        if not all(map(math.isfinite, self.backend.host(self.training.tallies["loss"]).tolist())):
            if self.backend.probe_every == 1 and last > self.step:  # the steps before, of a group, were in order
                self.batch_in_epoch += last - 1 - self.step
                self.step = self._probed = last - 1
            raise self._not_finite(plan, last)
        self._probed = last

    def _finish_epoch(self) -> Row:
        """Evaluate, record, and move on to the next epoch."""
        self._probe(None, self.step)
        results = self.evaluate("train") if self.optimizer.swarm else self.training.results()
        row: Row = {"epoch": self.epoch + 1, "step": self.step, "lr": self.rate} | self._rolled_back()
        row |= {f"train_{name}": value for name, value in results.items()}
        if "validation" in self.data.splits:
            row |= {f"validation_{name}": value for name, value in self.evaluate("validation").items()}
            if None in np.atleast_1d(row["validation_loss"]):
                raise NumericalError(
                    f"training stopped after epoch {self.epoch + 1} (step {self.step}): the validation loss is not "
                    f"finite. The learning rate was {row['lr']}: try a smaller one. No checkpoint was written after it"
                )
        self.history.append(row)
        self.epoch, self.batch_in_epoch = self.epoch + 1, 0
        self.monitor.see(row)
        return row

    @property
    def rate(self) -> float | list[float]:
        """The learning rate of the last step, one for each member where there are several."""
        rates = self.backend.host(self.update.rate)[:, 0].tolist()
        return rates if self.network.K > 1 else rates[0]

    def evaluate(self, split: str | Split = "test") -> Row:
        """The loss and metrics on a split of the data, by name, or on other rows."""
        if isinstance(split, str) and split not in self.data.splits:
            raise DataError(f"{self.data.name}: there is no {split} split; there are {', '.join(self.data.splits)}")
        rows = self.data.splits[split] if isinstance(split, str) else split
        evaluation = self.evaluations.get(split) if isinstance(split, str) else None
        if evaluation is None:
            evaluation = Evaluation(self.network, self.loss, self.metrics, rows, self.data.preparation)
            if isinstance(split, str):
                self.evaluations[split] = evaluation
        with self.backend.active(), self._as_result():
            results = evaluation()
        return {name: value[0] for name, value in results.items()} if self.optimizer.swarm else results

    @contextmanager
    def _as_result(self):
        """Inside, the network has the parameters that training leads to."""
        w, result = self.network.w, self.update.result
        if result is None:
            yield
            return
        kept = w.copy()
        w[...] = result
        try:
            yield
        finally:
            w[...] = kept

    def _not_finite(self, plan: Plan | None, last: int) -> NumericalError:
        """Names the step, and what `diagnosis.where` finds in the plan.

        Where the loss is not looked at in every step, later ones, or the update, have spoiled all layers: without a
        plan only the steps are known.
        """
        first, which, where = self._probed + 1, f"at step {last}", ""
        if first < last:
            which = f"by step {last}, at one of the steps {first} to {last}"
        elif plan is not None:
            where = diagnosis.where(self.training, plan, self.batch_in_epoch)
        rates = ", ".join(f"{rate:g}" for rate in np.atleast_1d(self.rate))
        return NumericalError(
            f"training stopped {which} (epoch {self.epoch + 1}): the loss is not finite{where}. The learning rate was "
            f"{rates}: try a smaller one, or normalize the data. No checkpoint was written after it"
        )

    def roll_back(self, content: Mapping[str, np.ndarray]) -> None:
        """Go back to an earlier step, whose `content()` this is, and on from there with half the learning rate."""
        count, step = self.rollbacks, self.step
        self.restore(content)
        self.rollbacks, self.rolled_from, self.rolled_to = max(count, self.rollbacks) + 1, step, self.step
        self._slow_down()

    def _slow_down(self) -> None:
        """Give the optimizer the learning rates of the config, halved at each rollback."""
        self.backend.xp.multiply(self._lr, 0.5**self.rollbacks, out=self.update.lr)
        self._factors = []

    def _rolled_back(self) -> Row:
        """What the row of an epoch says of a rollback that no row before has told of."""
        told = max((row["rollback"]["count"] for row in self.history if "rollback" in row), default=0)
        if self.rollbacks == told:
            return {}
        facts = {"count": self.rollbacks, "from_step": self.rolled_from, "to_step": self.rolled_to}
        return {"rollback": facts | {"lr_factor": 0.5**self.rollbacks}}

    # What a checkpoint holds.

    @property
    def carried(self) -> dict[str, Array]:
        """What one window of a sequence hands to the next, by path."""
        return self.training.carried or {}

    def _flats(self) -> dict[str, tuple[Flat, Array]]:
        """The layout and the flat array of each room of a checkpoint.

        Its params are those that training leads to; where the ones in training are others, they are with the optimizer.
        """
        net, update, arrays = self.network, self.update, dict(self.update.state)
        if update.result is not None:
            arrays["weights"] = net.w
        params = net.w if update.result is None else update.result
        flats = {"params": (net.params, params), "state": (net.states, net.state)}
        return flats | {f"optimizer/{name}": (net.params, array) for name, array in arrays.items()}

    def content(self, check: bool = True) -> dict[str, np.ndarray | bytes]:
        """Everything that a run needs to go on, as arrays and text.

        Raises NumericalError where a parameter or a loss is not finite, unless only names and shapes are wanted.
        """
        content: dict[str, np.ndarray | bytes] = {"config": self.text().encode()}
        tallies = {name: self.backend.host(tally) for name, tally in self.training.tallies.items()}
        if check and not np.isfinite(tallies["loss"]).all():  # where not every step is looked at
            raise self._not_finite(None, self.step)
        for room, (flat, array) in self._flats().items():
            for path, view in flat.views(self.backend.host(array)).items():
                content[f"{room}/{path}"] = view
                if check and not np.isfinite(view).all():
                    raise NumericalError(
                        f"{room}/{path} is not finite after step {self.step}, with learning rate {self.rate}; no "
                        "checkpoint was written after it. Go on from the one before with a smaller learning rate"
                    )
        content |= {f"optimizer/{name}": self.backend.host(array) for name, array in self.update.scalars.items()}
        content |= {f"preparation/{name}": array for name, array in self.data.preparation.arrays().items()}
        content |= {f"progress/tally/{name}": tally for name, tally in tallies.items()}
        content |= {f"progress/carried/{name}": self.backend.host(a) for name, a in self.carried.items()}
        content |= {f"progress/{name}": np.array(getattr(self, name), np.int64) for name in COUNTERS}
        content["progress/monitor"] = self.monitor.state()
        content["progress/seeds"] = np.array(self.seeds, np.int64)
        content["history"] = "".join(json.dumps(row) + "\n" for row in self.history).encode()
        return content

    def restore(self, content: Mapping[str, np.ndarray]) -> None:
        """Fill in place what `content()` wrote."""
        for room, (flat, array) in self._flats().items():
            for path, view in flat.views(array).items():
                self.backend.stage(content[f"{room}/{path}"], view)
        for name, array in self.update.scalars.items():
            self.backend.stage(content[f"optimizer/{name}"], array)
        for name, tally in self.training.tallies.items():
            self.backend.stage(content[f"progress/tally/{name}"], tally)
        for name, array in self.carried.items():
            self.backend.stage(content[f"progress/carried/{name}"], array)
        for name in COUNTERS:
            setattr(self, name, int(content[f"progress/{name}"]))
        self._slow_down()
        self.monitor.restore(content["progress/monitor"])
        self._probed = self.step
        self.history = [json.loads(line) for line in bytes(content["history"]).decode().splitlines()]
        self.network.clock.fill(self.step)

    def take(self, population: "Trainer", k: int) -> None:
        """Take over member `k` of a population: the bits that this trainer, of that one seed, would have reached."""
        own = ("params/", "state/", "optimizer/", "progress/tally/", "progress/carried/")
        content: dict[str, Any] = dict(population.content())
        self.restore({path: value[k : k + 1] if path.startswith(own) else value for path, value in content.items()})
        self.history = [member_row(row, k) for row in population.history]
        self.monitor.forget()  # the best epoch of the population is that of the mean
        for row in self.history:
            self.monitor.see(row)

    def text(self) -> str:
        """The config of this run: TOML that `gpbackprop train` reads."""
        return render(
            name=self.name,
            seed=self.seeds[0]
            if self.seeds == tuple(range(self.seeds[0], self.seeds[0] + len(self.seeds)))
            else self.seeds,
            population=self.network.K,
            data=self.data.source or {"source": self.data.name},
            model=self.model.layers if isinstance(self.model, Chain) else (self.model,),
            loss=self.loss,
            optimizer=self.optimizer,
            train=self.train,
        )

    def save(self, path: str | Path) -> None:
        """Write one checkpoint file. Raises CheckpointError where it cannot be written."""
        checkpoint.write(Path(path), self.content())


def member_row(row: Row, k: int) -> Row:
    """Member `k` of a row of a population's history."""
    lists = isinstance(row["train_loss"], list)  # one network has none
    return {name: value[k] if lists and isinstance(value, list) else value for name, value in row.items()}


class Hook:
    """Called by `fit` after each step and each epoch."""

    def on_step(self, trainer: Trainer) -> None:
        """After each step, or group of steps that are done together: up to 16 on CUDA, and of short compiled steps.

        `trainer.step` counts them already. On CUDA they may still be at work: to read an array waits for them.
        """

    def on_epoch(self, trainer: Trainer, row: Row) -> None:
        """After each epoch's evaluation; `row` is the history's row with `seconds` and `samples_per_second`."""
