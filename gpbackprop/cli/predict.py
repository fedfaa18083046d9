"""gpbackprop predict"""

import sys
from pathlib import Path
from typing import Any

import click

from gpbackprop.cli import files, options, screen


@click.command(short_help="Predictions for a file of raw rows.")
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("input", type=click.Path(path_type=Path))
@click.option("--output", type=click.Path(path_type=Path), help="A .csv or .npz file; CSV on stdout by default.")
@click.option("--probabilities", is_flag=True, help="The probability of each class beside the prediction.")
@click.option("--member", type=int, metavar="K", help="One member of a population, from 0; all of them by default.")
@click.option("--best", is_flag=True, help="The best checkpoint of a run, in place of the newest.")
@options.device
@screen.verbosity_options
def command(model, input, output, probabilities, member, best, device):
    """Predict the target of each row of INPUT, a CSV, NPZ, HDF5 or IDX file of raw rows.

    MODEL is a run directory or a checkpoint file; it holds the preparation of the data and the names of the classes. A
    CSV file needs the input columns by name, in any order; others, such as the target, are left aside.
    """
    if output and output.suffix not in (".csv", ".npz"):
        raise click.UsageError(f"--output {output}: expected a name that ends in .csv or .npz")
    screen.listen(screen.verbosity)
    import numpy as np

    from gpbackprop.cli.device import choose
    from gpbackprop.data import read_rows
    from gpbackprop.data.streaming import half_free
    from gpbackprop.errors import UsageError
    from gpbackprop.model import find, from_checkpoint
    from gpbackprop.run import log

    found = from_checkpoint(find(model, best), choose(device or "auto", log.debug))
    members = found.network.K
    if member is not None and not 0 <= member < members:
        raise UsageError(f"--member {member}: expected a number from 0 to {members - 1}, {found.path} has {members}")
    chosen = list(range(members)) if member is None else [member]
    x, lengths = read_rows(found.preparation, input, found.network.dtype, half_free(found.network.backend))
    y = found.predict(x, lengths)[chosen]
    p = found.probabilities(x, lengths)[chosen] if probabilities else None
    arrays = {"predictions": np.array(found.classes)[y] if found.classes else y.astype(found.network.dtype)}
    if p is not None:
        arrays |= {"probabilities": p, "classes": np.array(found.classes)}
    if output and output.suffix == ".npz":
        single = {k: v[0] if k != "classes" and len(chosen) == 1 else v for k, v in arrays.items()}
        files.write(output, "--output", lambda file: np.savez(file, **single))  # type: ignore[arg-type]  # no name of ours is `allow_pickle`
        return
    head, columns = _columns(found, arrays, chosen)
    text = lambda file: _csv(file, head, columns)  # noqa: E731
    if output:
        files.write(output, "--output", lambda file: _as_text(file, text))
    else:
        with screen.writing_results():
            text(sys.stdout)
            sys.stdout.flush()


def _columns(model, arrays: dict[str, Any], chosen: list[int]) -> tuple[list[str], list[Any]]:
    """The names and values of the columns: the target's name, with the member where there are several."""
    head, columns = [], []
    several = len(chosen) > 1
    for i, k in enumerate(chosen):
        mark = f"[{k}]" if several else ""
        y = arrays["predictions"][i].reshape(len(arrays["predictions"][i]), -1)
        given = list(model.preparation.target)
        names = given if len(given) == y.shape[1] else [f"{(given or ['y'])[0]}{j}" for j in range(y.shape[1])]
        head += [f"{name}{mark}" for name in names]
        columns += list(y.T)
        if "probabilities" in arrays:
            head += [f"p({name}){mark}" for name in model.classes]
            columns += list(arrays["probabilities"][i].T)
    return head, columns


def _csv(file, head: list[str], columns: list[Any]) -> None:
    """Numbers with the fewest digits that give the same float back."""
    import csv

    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(zip(*(map(str, column) for column in columns), strict=True))


def _as_text(file, write) -> None:
    import io

    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    write(text)
    text.flush()
    text.detach()
