"""gpbackprop gradcheck"""

from pathlib import Path
from typing import Any

import click

from gpbackprop.cli import options, screen

EPILOG = """
\b
  a = dL/dw from backward,  n = (L(w + h) - L(w - h)) / 2h,  error = |a - n| / max(|a|, |n|, floor)
in float64. The floor, 0.00036 max(L, |outputs|), is where the rounding of L leaves six digits of n.

Checked are the parameters, the output y of each layer, and what its activation takes, z; of arrays with more than
200 entries a sample and random directions. An entry that disagrees because one-sided differences do, at a kink such as
relu at 0, has no derivative: it is counted and not judged. The exit code is 1 where an error exceeds the tolerance.
"""


@click.command(epilog=EPILOG, short_help="Every gradient of a network, held to differences of its loss.")
@click.argument("config", type=click.Path(path_type=Path))
@click.option(
    "--batch", type=click.IntRange(min=1), default=8, show_default=True, metavar="N",
    help="The first N rows of the training split.",
)  # fmt: skip
@click.option(
    "--tolerance", type=click.FloatRange(0, 1, min_open=True, max_open=True), default=1e-6, show_default=True,
    metavar="X", help="The largest error allowed.",
)  # fmt: skip
@click.option("--random", is_flag=True, help="Random inputs in place of those of the rows; the targets stay.")
@options.settings
@options.as_json
@screen.verbosity_options
def command(config, batch, tolerance, random, settings, as_json):
    """Hold every gradient of the network in CONFIG, at its initial parameters, to differences of the loss."""
    screen.listen(screen.verbosity)
    from gpbackprop.config import opened
    from gpbackprop.data import load
    from gpbackprop.gradcheck import check
    from gpbackprop.layers.combine import Chain

    with opened(config, settings) as found:
        seed = found.seed if isinstance(found.seed, int) else found.seed[0]
        data = load(found.data, dtype="float64")
        report = check(
            Chain(*found.model), found.loss, data,
            rows=batch, tolerance=tolerance, seed=seed, random=random, train=found.train,
        )  # fmt: skip
    if as_json:
        screen.print_json({"config": str(config), "name": found.name, "random": random, **_facts(report)})
    else:
        inputs = "random inputs" if random else "the training split"
        rows = "1 row" if report.rows == 1 else f"{report.rows} rows"
        screen.result(f"{found.name}: {rows} of {inputs}, loss {report.loss:.6g}\n")
        _print(report)
    return 1 if report.wrong else 0


def _facts(report) -> dict[str, Any]:
    from dataclasses import asdict

    wrong = [check.path for check in report.wrong]
    checks = [{"path": check.path, **asdict(check), "ok": check.path not in wrong} for check in report.checks]
    return {
        "rows": report.rows,
        "loss": report.loss,
        "tolerance": report.tolerance,
        "ok": not wrong,
        "wrong": wrong,
        "suspect": report.suspect or None,
        "checks": checks,
    }


def _print(report) -> None:
    table = [["gradient of", "shape", "entries", "worst at", "analytic", "numeric", "error", ""]]
    for check in report.checks:
        shape = "x".join(map(str, check.shape)) or "1"
        entries = f"{check.entries} + {check.directions} directions" if check.directions else f"{check.entries}"
        remarks = ["WRONG"] if check in report.wrong else []
        if check.kinks:
            remarks.append(f"{check.kinks} at a kink")
        worst = ["-"] * 4
        if check.worst:
            at = "a direction" if check.worst.index is None else f"[{', '.join(map(str, check.worst.index))}]"
            worst = [at, f"{check.worst.analytic:.9g}", f"{check.worst.numeric:.9g}", f"{check.worst.error:.1e}"]
        table.append([check.path, shape, entries, *worst, ", ".join(remarks)])
    screen.result(screen.table(table) + "\n")
    for line in _summary(report):
        screen.result(line)


def _summary(report) -> list[str]:
    lines, judged = [], [check for check in report.checks if check.worst]
    if kinks := sum(check.kinks for check in report.checks):
        all_of = "" if len(judged) == len(report.checks) else "; all of some arrays: --random inputs lie elsewhere"
        lines.append(f"{kinks} entries lie at a kink, where there is no derivative to check{all_of}.")
    if report.wrong:
        of = f"{len(report.wrong)} of {len(judged)} gradients are wrong by more than {report.tolerance:g}."
        return [*lines, f"{of} Look at {report.suspect}."]
    worst = max((check.worst.error for check in judged), default=0.0)
    return [*lines, f"All {len(judged)} gradients checked agree: the largest error is {worst:.1e}."]
