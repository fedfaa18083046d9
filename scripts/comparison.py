"""Runs side by side: summary.csv, a table of means and standard deviations, and learning curves. See experiment.py."""

import csv
import json
import math
import statistics
from pathlib import Path

import numpy as np

from gpbackprop.run import Run, read_metrics

Groups = list[tuple[dict[str, str], dict[int, Path]]]
"""What each variation is, {"config": "iris", "optimizer.lr": "0.1"}, and its run directories by seed."""

SHOWN = 10  # curves in a figure; more cannot be told apart


def compare(groups: Groups, out: Path) -> None:
    """Write summary.csv, print the table and draw curves.png."""
    runs = {label: group for label, (_, group) in zip(labels(groups), groups, strict=True)}
    tables = {
        label: [row(facts, seed, path) for seed, path in group.items()]
        for label, (facts, group) in zip(runs, groups, strict=True)
    }
    rows = [row for table in tables.values() for row in table]
    if not rows:
        print("no run is finished yet")
        return
    columns = sorted(dict.fromkeys(name for row in rows for name in row), key="run_dir".__eq__)  # which goes last
    with open(out / "summary.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    measured = [name for name in columns if name.startswith(("train_", "validation_", "test_"))]
    column = criterion(measured)
    ranking = rank(tables, column)
    shown = [name for name in measured if not name.startswith("train_")] or measured
    print_table(tables, shown, ranking[0] if ranking else "")
    print(f"* the best mean {column.replace('_', ' ')} at the last epoch; {out / 'summary.csv'} has every run")
    if ranking:
        best = {label: list(runs[label].values()) for label in runs if label in ranking[:SHOWN]}
        draw(best, column, len(ranking), out / "curves.png")


def labels(groups: Groups) -> list[str]:
    """What tells the variations apart, as short as it is clear: "lr=0.1, units=32"."""
    keys = list(groups[0][0])
    ends = [key.rpartition(".")[2] for key in keys]
    short = {key: end if ends.count(end) == 1 else key for key, end in zip(keys, ends, strict=True)}
    configs = {facts["config"] for facts, _ in groups}
    name = {config: [config] * (len(configs) > 1 or len(keys) == 1) for config in configs}
    return [", ".join([*name[facts["config"]], *(f"{short[k]}={facts[k]}" for k in keys[1:])]) for facts, _ in groups]


def row(facts: dict[str, str], seed: int, path: Path) -> dict:
    """A row of summary.csv."""
    known = result(path)
    splits = {split: known.get(split, {}) for split in ("train", "validation", "test")}
    numbers = {f"{split}_{name}": x for split, values in splits.items() for name, x in values.items()}
    numbers = {name: x for name, x in numbers.items() if not isinstance(x, list)}  # a confusion matrix
    return {**facts, "seed": seed, "epochs": known["epochs"], "steps": known["steps"], **numbers, "run_dir": str(path)}


def result(path: Path, run: Run | None = None) -> dict:
    """The loss and metrics of a run on each split, kept in result.json while its last checkpoint stays the same."""
    file = path / "result.json"
    try:
        known = json.loads(file.read_text())
        if known["steps"] == json.loads((path / "checkpoints" / "last.json").read_text())["step"]:
            return known
    except (OSError, ValueError):
        pass  # never kept, or cut short
    known = (run or Run.open(path, "cpu")).outcome(0)
    known = {key: value for key, value in known.items() if key not in ("run_dir", "seconds")}
    file.write_text(json.dumps(known))
    return known


def criterion(columns: list[str]) -> str:
    """What decides: the first metric, or else the loss, on the validation split; without one on test, or on train."""
    for split in ("validation_", "test_", "train_"):
        if found := [name for name in columns if name.startswith(split)]:
            return next((name for name in found if not name.endswith("_loss")), found[0])
    raise ValueError("no run has a loss")


def mean(table: list[dict], column: str) -> float:
    return statistics.fmean(numbers(table, column)) if table else math.nan


def numbers(table: list[dict], column: str) -> list[float]:
    return [math.nan if row.get(column) is None else row[column] for row in table]


def rank(tables: dict[str, list[dict]], column: str) -> list[str]:
    """The variations from the best mean to the worst, of equal ones the one of less loss first."""
    loss = f"{column.partition('_')[0]}_loss"
    sign = 1 if column.endswith(("loss", "error")) else -1
    means = {label: (sign * mean(table, column), mean(table, loss)) for label, table in tables.items()}
    return sorted((label for label in means if not math.isnan(means[label][0])), key=means.__getitem__)


def print_table(tables: dict[str, list[dict]], columns: list[str], best: str) -> None:
    lines = [["", "runs", *(name.replace("_", " ") for name in columns)]]
    for label, table in tables.items():
        lines.append([f"{label} *" if label == best else label, str(len(table))])
        for column in columns:
            found = numbers(table, column)
            spread = f" ± {statistics.stdev(found):.2g}" if len(found) > 1 and not any(map(math.isnan, found)) else ""
            lines[-1].append(f"{statistics.fmean(found):.4g}{spread}" if found else "")
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for name, *cells in lines:
        print(
            name.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)), sep="  "
        )


def draw(runs: dict[str, list[Path]], column: str, of: int, path: Path) -> None:
    """The learning curves: a line for the mean over the seeds, and a band of one standard deviation about it."""
    try:
        import matplotlib
    except ModuleNotFoundError:
        print("no figure: it needs matplotlib, `pip install matplotlib`")
        return
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    histories = {label: [read_metrics(run / "metrics.jsonl") for run in group] for label, group in runs.items()}
    recorded = set.intersection(*({*history[-1]} for table in histories.values() for history in table))
    split = "validation" if "validation_loss" in recorded else "train"
    wanted = dict.fromkeys([f"{split}_loss", f"{split}_{column.partition('_')[2]}"])
    panels = [name for name in wanted if name in recorded]
    figure, axes = plt.subplots(1, len(panels), figsize=(1 + 4.5 * len(panels), 4), squeeze=False, layout="constrained")
    for name, axis in zip(panels, axes[0], strict=True):
        ends = []
        for label, table in histories.items():
            epochs = max(map(len, table))  # a run that stopped early keeps its last value
            curves = np.array([[row[name] for row in h] + [h[-1][name]] * (epochs - len(h)) for h in table], float)
            middle, x = curves.mean(axis=0), np.arange(1, epochs + 1)
            (line,) = axis.plot(x, middle, label=label, marker="o" if epochs == 1 else None)
            if len(curves) > 1:
                spread = curves.std(axis=0, ddof=1)
                axis.fill_between(x, middle - spread, middle + spread, color=line.get_color(), alpha=0.15, linewidth=0)
            ends += [np.nanmin(middle), np.nanmax(middle)]
        if name.endswith("loss") and 0 < 30 * min(ends) < max(ends):
            axis.set_yscale("log")
            axis.set_ylim(bottom=0.7 * min(ends))  # a band may reach below 0
        axis.set(xlabel="epoch", ylabel=name.replace("_", " "))
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    handles, names = axes[0][0].get_legend_handles_labels()
    title = "mean ± standard deviation over the seeds" + (f"; the {SHOWN} best of {of}" if of > SHOWN else "")
    columns = math.ceil(len(names) / math.ceil(len(names) / 3))
    figure.legend(handles, names, title=title, loc="outside lower center", ncols=columns, frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)
    print(f"{path} has the learning curves")
