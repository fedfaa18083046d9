"""The last screen of a training: what was learned, where it lies, and what to type next."""

import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from statistics import stdev
from typing import Any

from gpbackprop import checkpoint
from gpbackprop.cli import screen
from gpbackprop.cli.progress import curve, mean, words
from gpbackprop.errors import CheckpointError
from gpbackprop.run import Run

SPLITS = ("train", "validation", "test")


def print_report(run: Run, outcome: Mapping[str, Any]) -> None:
    """The learning curve, the metrics of each split, the model's place and the next commands."""
    trainer, path = run.trainer, shlex.quote(str(run.path))
    if lines := curve(trainer.history, screen.speaks_unicode(sys.stdout)):
        screen.result(lines + "\n")
    screen.result(metrics_table({split: outcome[split] for split in SPLITS if split in outcome}))
    if "folds" in outcome:
        screen.result("\n" + folds_table(outcome["validation"], outcome["folds"]) + "\n")
    if trainer.train.shuffle or trainer.batch_size < len(trainer.data.splits["train"]):
        screen.result("  (train: as it went, over the steps of the last epoch)")
    if trainer.monitor.exhausted and trainer.epoch < trainer.epochs:
        patience = trainer.train.early_stopping.patience  # type: ignore[union-attr]
        screen.result(f"\nStopped early: {words(trainer.monitor.column)} has not improved for {patience} epochs.")
    screen.result("\nmodel     " + _model(run))
    screen.result(f"evaluate  gpbackprop evaluate {path}")
    screen.result(f"predict   gpbackprop predict {path} FILE")
    if not trainer.monitor.exhausted:
        screen.result(f"go on     gpbackprop resume {path} --epochs {trainer.epoch + trainer.train.epochs}")


def _model(run: Run) -> str:
    """The newest checkpoint, and the best one where that is another."""
    directory, trainer = run.path / "checkpoints", run.trainer
    newest = directory / f"step-{trainer.step:09d}.h5"
    try:
        best = checkpoint.best(directory)
    except CheckpointError:
        best = None
    monitor = trainer.monitor
    if best is None or best == newest or monitor.column.startswith("train"):  # the training loss tells nothing of it
        return str(newest)
    value = f"{words(monitor.column)} {screen.number(monitor.best)}, epoch {monitor.best_epoch}"
    return f"{newest}\nbest      {best}  ({value}; --best takes it)"


def metrics_table(splits: Mapping[str, Mapping[str, Any]]) -> str:
    """A line for each split; of a population the mean over its members, and their spread where it is known."""
    names = list(dict.fromkeys(name for row in splits.values() for name in row if name != "confusion"))
    table = [["", *map(words, names)]]
    table += [[split, *(spread(row.get(name)) for name in names)] for split, row in splits.items()]
    members = max(
        (len(row[name]) for row in splits.values() for name in names if isinstance(row.get(name), list)), default=1
    )
    lines = screen.table(table)
    return (
        lines if members == 1 else f"{lines}\n  (mean ± deviation over {members} members)".replace("±", _plus_minus())
    )


def over_folds(validation: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    """The mean and deviation of each validation metric over the folds whose value is finite."""
    numbers = {name: values for name, values in validation.items() if name != "confusion"}
    return {
        "mean": {name: mean(values) for name, values in numbers.items()},
        "deviation": {name: deviation(values) for name, values in numbers.items()},
    }


def folds_table(validation: Mapping[str, Any], over: Mapping[str, Mapping[str, Any]]) -> str:
    """A line for each fold with its validation metrics, then their mean and deviation."""
    names = list(over["mean"])
    table = [["fold", *map(words, names)]]
    each = zip(*(validation[name] for name in names), strict=True)
    table += [[str(k), *map(screen.number, values)] for k, values in enumerate(each)]
    table += [[what, *(screen.number(over[what][name]) for name in names)] for what in ("mean", "deviation")]
    return screen.table(table)


def _plus_minus() -> str:
    return "±" if screen.speaks_unicode(sys.stdout) else "+-"


def spread(value: Any) -> str:
    """A number; of a population "mean ± deviation"."""
    if not isinstance(value, list):
        return screen.number(value)
    known = [item for item in value if item is not None and math.isfinite(item)]
    apart = deviation(known)
    return screen.number(mean(known)) + ("" if apart is None else f" {_plus_minus()} {apart:.2g}")


def deviation(values: Sequence[float | None]) -> float | None:
    """The standard deviation of a sample, over the values that there are; None of fewer than two."""
    known = [value for value in values if value is not None]
    return stdev(known) if len(known) > 1 else None
