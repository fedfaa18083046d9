"""A run is stopped after a step and gone on with, for every step of small runs of all kinds.

The matrix: every optimizer x every schedule x with and without dropout x {mlp, cnn, rnn} x a population of 1 and of 3,
each plain and with the options around a rule (accumulated batches, averaged and clipped weights). The state after each
step goes through a checkpoint file into a trainer that has trained already, and now and then into a new one. Then runs
with folds, augmentation, early stopping and rates on a plateau, by their directories: metrics.jsonl, best.json and the
bytes of the last checkpoint.
"""

import argparse
import dataclasses
import itertools
import random
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torture_run as tortured
from torture import Row

import gpbackprop as gp
from gpbackprop import checkpoint
from gpbackprop import layers as _layers  # noqa: F401  finds every layer
from gpbackprop.backend import Backend, select
from gpbackprop.config import parse
from gpbackprop.data import Dataset, Preparation, Split
from gpbackprop.optim.base import Optimizer
from gpbackprop.optim.rule import GradientRule
from gpbackprop.optim.schedules import ReduceOnPlateau, Schedule, Warmup
from gpbackprop.restoring import arrays_of
from gpbackprop.run import Run
from gpbackprop.settings import EarlyStopping
from gpbackprop.spec import family
from gpbackprop.trainer import Hook, Trainer

OPTIONS = {"accumulate": 3, "average": 0.9, "clip_norm": 1.0}
ROWS, CLASSES = 11, 3

# What differs from `tortured.CONFIG`, run by run.
RUNS = {
    "folds": ["data.folds=3", "data.validation=0", "population=3", "train.epochs=2", "train.batch_size=24"],
    "portions": ['data.stream="1 kB"', "train.epochs=3", "train.batch_size=10"],
    "augmentation": [
        'data={source="digits", shape=[8, 8, 1], validation=0.02, test=0.93, augment={shift=1}}',
        'model=[{type="conv2d", units=2, kernel=3, activation="relu"}, {type="flatten"}, {type="dense", units=10}]',
        "train.epochs=3",
        "train.batch_size=32",
    ],
    "plateau and early stopping": [
        'optimizer.schedule={type="reduce_on_plateau", patience=0, threshold=0.5}',
        "train.early_stopping={patience=2, min_delta=0.05}",
        "train.epochs=9",
        "train.batch_size=48",
    ],
    "rollback": [
        "optimizer.lr=1e37",
        "train.on_nan=rollback",
        "train.rollbacks=200",
        "train.keep=20",
        'model=[{type="dense", units=8, activation="relu"}, {type="dense", units=2}]',
    ],
    "accumulated and averaged": ["optimizer.accumulate=3", "optimizer.average=0.9", "population=3", "train.epochs=2"],
}


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="cpu", help="where (default: %(default)s)")
    parser.add_argument("--compile", action="store_true", help="steps as machine code (train.compile)")
    parser.add_argument("--sample", type=int, metavar="N", help="so many kinds of run of the matrix, drawn at random")


def run(arguments: argparse.Namespace) -> Iterator[Row]:
    backend = select(arguments.device).compiling(arguments.compile)
    more = ["train.compile=true"] if arguments.compile else []
    kinds = list(matrix())
    rng = random.Random(arguments.seed)
    if arguments.short or arguments.sample:
        kinds = rng.sample(kinds, min(arguments.sample or 40, len(kinds)))
    with tempfile.TemporaryDirectory(dir=arguments.place) as directory:
        place = Path(directory)
        for name in NETWORKS:
            yield in_matrix(f"matrix: {name}", place, [kind for kind in kinds if kind.network == name], backend, rng)
        for name, settings in RUNS.items():
            yield by_directory(
                f"run: {name}", place / name.replace(" ", "-"), [*settings, *more], arguments.device, arguments.short
            )


# The matrix.


@dataclasses.dataclass(frozen=True)
class Kind:
    """One cell of the matrix."""

    network: str
    optimizer: Optimizer
    dropout: float
    population: int

    @property
    def name(self) -> str:
        return f"{self.network}, {self.optimizer}, dropout {self.dropout}, population {self.population}"

    def trainer(self, backend: Backend) -> Trainer:
        """A new trainer; those that take one step from all rows have more epochs for it."""
        optimizer = self.optimizer
        plain = isinstance(optimizer, gp.LevenbergMarquardt)  # least squares, and no state that rows share
        model, rows = NETWORKS[self.network](self.dropout, not plain)
        settings: dict[str, Any] = {"epochs": 3, "batch_size": 4, "bptt": 3 if self.network == "rnn" else None}
        if optimizer.whole or optimizer.swarm:
            settings = {"epochs": 6, "batch_size": "full"}
        return Trainer(
            model,
            gp.MeanSquaredError() if plain else gp.SoftmaxCrossEntropy(),
            optimizer,
            data(rows, plain),
            seed=5,
            population=self.population,
            device=backend,
            early_stopping=EarlyStopping(patience=50),
            compile=backend.rounds,
            **settings,
        )


def matrix() -> Iterator[Kind]:
    """Every cell there is: a swarm needs a population, and Levenberg-Marquardt goes without dropout."""
    schedules = [cls.example() for cls in family(Schedule).values()]
    schedules.append(Warmup(1, then=ReduceOnPlateau(gamma=0.5, patience=0, threshold=0.2)))
    optimizers = [
        dataclasses.replace(cls.example(), **more)
        for cls in family(Optimizer).values()
        for more in ({}, OPTIONS)
        if not more or issubclass(cls, GradientRule)
    ]
    for optimizer, schedule, network, dropout, population in itertools.product(
        optimizers, schedules, NETWORKS, (0.0, 0.3), (1, 3)
    ):
        refused = dropout and isinstance(optimizer, gp.LevenbergMarquardt)
        if not refused and (population > 1 or not optimizer.swarm):
            yield Kind(network, dataclasses.replace(optimizer, schedule=schedule), dropout, population)


def mlp(dropout: float, norm: bool):
    norms = [gp.BatchNorm()] if norm else []
    return gp.Chain(gp.Dense(4), *norms, gp.Tanh(), gp.Dropout(dropout), gp.Dense(CLASSES)), (3,)


def cnn(dropout: float, norm: bool):
    norms = [gp.BatchNorm()] if norm else []
    layers = (gp.Conv2d(2, 3, activation="tanh"), *norms, gp.MaxPool2d(2), gp.Flatten(), gp.Dropout(dropout))
    return gp.Chain(*layers, gp.Dense(CLASSES)), (5, 5, 1)


def rnn(dropout: float, norm: bool):
    return gp.Chain(gp.LSTM(3, returns="sequence"), gp.Dropout(dropout), gp.Dense(CLASSES)), (6, 2)


NETWORKS = {"mlp": mlp, "cnn": cnn, "rnn": rnn}


def data(shape: tuple[int, ...], numbers: bool) -> Dataset:
    """A few rows of noise, of which some validate; sequences have a target for each step."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(ROWS + 4, *shape)).astype(np.float32)
    each = (len(x), shape[0]) if len(shape) == 2 else (len(x),)
    y = rng.normal(size=(*each, CLASSES)).astype(np.float32) if numbers else rng.integers(0, CLASSES, each)
    names = () if numbers else tuple("abc"[:CLASSES])
    preparation = Preparation((), ("y",), None, False, names, shape, np.zeros(1), np.ones(1))
    parts = {"train": np.arange(ROWS), "validation": np.arange(ROWS, len(x))}
    return Dataset("noise", {name: Split(x, y, None, rows) for name, rows in parts.items()}, preparation, "")


class Snapshots(Hook):
    """The content after every step, and after every epoch's evaluation, in files."""

    def __init__(self, place: Path):
        self.place, self.files = place, []

    def on_step(self, trainer: Trainer) -> None:
        self.files.append(self.place / f"{len(self.files)}.h5")
        trainer.save(self.files[-1])

    def on_epoch(self, trainer: Trainer, row: dict) -> None:
        self.on_step(trainer)


def in_matrix(name: str, place: Path, kinds: Iterable[Kind], backend: Backend, rng: random.Random) -> Row:
    row = Row(name)
    for kind in kinds:
        whole, shots = kind.trainer(backend), Snapshots(place)
        whole.fit(hooks=[shots])
        wanted, dirty = frozen(whole), whole  # which has trained to the end: nothing of that may stay
        fresh = rng.randrange(len(shots.files))
        for number, file in enumerate(shots.files):
            trainer = kind.trainer(backend) if number == fresh else dirty
            trainer.restore(arrays_of(trainer, checkpoint.read(file)))
            at = f"{kind.name}, from step {trainer.step} ({trainer.batch_in_epoch} of epoch {trainer.epoch + 1})"
            trainer.fit()
            found = frozen(trainer)
            other = [path for path in {**wanted, **found} if wanted.get(path) != found.get(path)]
            row.count("silent" if other else "survived", f"{at}: other {', '.join(other[:4])}" if other else "")
    return row


def frozen(trainer: Trainer) -> dict[str, bytes]:
    """The bits of all that a trainer has come to."""
    return {path: np.asarray(value).tobytes() for path, value in trainer.content().items()}


# By directories.


class StopAt(Hook):
    """Stops once, at a step, or behind it where several are done together."""

    def __init__(self, step: int):
        self.step, self.stopped = step, False

    def on_step(self, trainer: Trainer) -> None:
        if trainer.step >= self.step and not self.stopped:
            self.stopped = True
            trainer.stop()


def by_directory(name: str, place: Path, settings: list[str], device: str, short: bool) -> Row:
    """Each run is stopped after a step as by a signal, and `resume` brings it to its end."""
    row = Row(name)
    config = parse(tortured.CONFIG.replace("{epochs}", "3").replace("{policy}", "stop"), name, settings)
    place.mkdir(parents=True)
    whole = Run.start(place / "whole", config, config.text(), device)
    whole.train()
    wanted = tortured.Outcome.of(place / "whole")
    for step in range(1, whole.trainer.step, 4 if short else 1):
        path = place / f"{step}"
        Run.start(path, config, config.text(), device).train(hooks=[StopAt(step)])
        Run.open(path, device).train()
        tortured.judge(row, path, wanted, f"from step {step}")
    return row
