"""What is seen while a network trains, and its learning curve afterwards."""

import itertools
import sys
import time
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from gpbackprop.cli import screen
from gpbackprop.run import log
from gpbackprop.trainer import Hook, Row, Trainer

BLOCKS, ASCII = "▁▂▃▄▅▆▇█", "_.-=+*#@"
WIDTH = 50


def hook(trainer: Trainer) -> "Lines":
    """A bar where stderr is a terminal and -q or -v was not given, else one line an epoch in the log."""
    return Bar(trainer) if sys.stderr.isatty() and screen.verbosity == 0 else Lines(trainer)


class Lines(Hook):
    """One plain line for each epoch."""

    def __init__(self, trainer: Trainer):
        self.trainer = trainer

    def on_epoch(self, trainer: Trainer, row: Row) -> None:
        log.info(describe(row, trainer.epochs))

    def close(self) -> None: ...


class Bar(Lines):
    """A bar over the steps of all epochs; the plain lines go to the log file alone."""

    interval = 0.1  # seconds between looks at the bar: a step may take microseconds

    def __init__(self, trainer: Trainer):
        from tqdm import tqdm

        super().__init__(trainer)
        total = max(trainer.train.epochs * trainer.steps_per_epoch, trainer.step)
        self.bar = tqdm(
            total=total, initial=trainer.step, unit="step", file=sys.stderr, leave=False, dynamic_ncols=True,
            ascii=None if screen.speaks_unicode(sys.stderr) else True, desc=self._place(trainer),
            bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}, {rate_fmt}{postfix}",
        )  # fmt: skip
        self.next = 0.0

    def _place(self, trainer: Trainer) -> str:
        return f"epoch {min(trainer.epoch + 1, trainer.train.epochs)}/{trainer.train.epochs}"

    def on_step(self, trainer: Trainer) -> None:
        now = time.perf_counter()
        if now >= self.next:
            self.next = now + self.interval
            self.bar.update(trainer.step - self.bar.n)

    def on_epoch(self, trainer: Trainer, row: Row) -> None:
        with screen.only_to_files():
            super().on_epoch(trainer, row)
        name, value = list(metrics(row).items())[-1]
        self.bar.set_description_str(self._place(trainer), refresh=False)
        self.bar.set_postfix_str(f"{words(name)} {screen.number(value)}", refresh=False)

    def close(self) -> None:
        self.bar.close()


def describe(row: Row, epochs: int) -> str:
    """epoch 3/10  step 69  train loss 0.1234  ...  0.12 s"""
    parts = [f"epoch {row['epoch']}/{epochs}", f"step {row['step']}"]
    parts += [f"{words(name)} {screen.number(value)}" for name, value in metrics(row).items()]
    return "  ".join([*parts, f"{row['seconds']:.3g} s"])


def metrics(row: Row) -> dict[str, float | None]:
    """The metrics of an epoch that are one number, each the mean over the members of a population."""
    named = {name: value for name, value in row.items() if name.startswith(("train_", "validation_"))}
    return {name: mean(value) for name, value in named.items() if not _is_table(value)}


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(item, list) for item in value)


def mean(value: float | Sequence[float | None] | None) -> float | None:
    """A number as it is; of a population the mean over the members that have one."""
    if isinstance(value, list):
        known = [item for item in value if item is not None]
        return fmean(known) if known else None
    return value  # type: ignore[return-value]


def words(name: str) -> str:
    return name.replace("_", " ")


def curve(history: Sequence[Row], unicode: bool) -> str:
    """The learning curve: for each metric a line of bars by epoch, the first value, the last. Empty for one epoch."""
    if len(history) < 2:
        return ""
    names = [name for name in metrics(history[-1]) if name.endswith(("_loss", "_accuracy", "_r2", "_error"))]
    rows = [["", f"epoch {history[0]['epoch']} to {history[-1]['epoch']}", "first", "last"]]
    for name in names:
        values = [mean(row.get(name)) for row in history]
        rows.append([words(name), sparkline(values, unicode), screen.number(values[0]), screen.number(values[-1])])
    return screen.table(rows)


def sparkline(values: Sequence[float | None], unicode: bool = True) -> str:
    """Bars between the least and the largest value; more values than `WIDTH` are averaged in groups."""
    signs = BLOCKS if unicode else ASCII
    groups = min(WIDTH, len(values))
    edges = [i * len(values) // groups for i in range(groups + 1)]
    means = [mean(list(values[a:b])) for a, b in itertools.pairwise(edges)]
    known = [value for value in means if value is not None]
    low, high = min(known, default=0.0), max(known, default=0.0)
    scale = (len(signs) - 1) / (high - low) if high > low else 0.0
    return "".join(" " if value is None else signs[round((value - low) * scale)] for value in means)
