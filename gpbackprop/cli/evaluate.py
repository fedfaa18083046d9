"""gpbackprop evaluate"""

from pathlib import Path

import click

from gpbackprop.cli import options, screen

FEW = 12  # classes whose confusion fits a screen


@click.command(short_help="The loss and metrics of a model on a split, or on a file.")
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--split", type=click.Choice(["train", "validation", "test"]),
    help="Of the data that the model was trained on; by default the test split, else validation, else train.",
)  # fmt: skip
@click.option("--data", "file", type=click.Path(path_type=Path), help="A file with inputs and targets instead.")
@click.option("--best", is_flag=True, help="The best checkpoint of a run, in place of the newest.")
@options.device
@options.as_json
@screen.verbosity_options
def command(model, split, file, best, device, as_json):
    """The loss and metrics of MODEL, a run directory or a checkpoint file."""
    if split and file:
        raise click.UsageError("--split and --data exclude each other: a file is not split")
    screen.listen(screen.verbosity)
    from gpbackprop.cli.device import choose
    from gpbackprop.data import read_labelled
    from gpbackprop.data.streaming import half_free
    from gpbackprop.metrics import Confusion
    from gpbackprop.model import find, from_checkpoint
    from gpbackprop.passes import Evaluation
    from gpbackprop.run import log

    found = from_checkpoint(find(model, best), choose(device or "auto", log.debug))
    if file:
        missing, dtype = found.config.data.missing, found.network.dtype
        most = half_free(found.network.backend)
        name, rows = str(file), read_labelled(found.preparation, file, missing, dtype, most)
    else:
        name, rows = _split(found, split)
    metrics = found.config.train.metrics_for(found.preparation)
    confusion = () if not found.classes or any(isinstance(m, Confusion) for m in metrics) else (Confusion(),)
    results = Evaluation(found.network, found.config.loss, (*metrics, *confusion), rows, found.preparation)()
    if as_json:
        facts = {
            "model": str(model),
            "checkpoint": str(found.path),
            "data": name,
            "rows": len(rows),
            "results": results,
        }
        if found.classes:
            facts["classes"] = found.classes
        screen.print_json(facts)
        return
    from gpbackprop.cli.report import metrics_table

    screen.result(f"{found.path}: {name}, {len(rows)} rows\n")
    screen.result(metrics_table({"": results} if file else {name: results}))
    if found.classes and len(found.classes) <= FEW:
        screen.result("\n" + _confusion(found.classes, results["confusion"]))


def _split(model, asked: str | None):
    """The name and rows of a split of the data in the model's config; those rows are prepared as the model's were."""
    from gpbackprop.data import load
    from gpbackprop.errors import DataError

    data = load(model.config.data, dtype=model.network.dtype)
    name = asked or next(name for name in ("test", "validation", "train") if name in data.splits)
    if name not in data.splits:
        raise DataError(f"{data.name}: there is no {name} split; there are {', '.join(data.splits)}")
    ours, theirs = model.preparation.arrays(), data.preparation.arrays()
    if ours.keys() != theirs.keys() or any((ours[key].tobytes() != theirs[key].tobytes()) for key in ours):
        raise DataError(
            f"{data.name}: the data are not those that {model.path} was trained on, so its splits are lost; "
            "name a file of rows by --data FILE"
        )
    return name, data.splits[name]


def _confusion(classes: tuple[str, ...], counts: list) -> str:
    """Rows: the class of a row; columns: the class that was predicted. Of a population the sum over its members."""
    import numpy as np

    table = np.asarray(counts)
    table = table if table.ndim == 2 else table.sum(axis=0)
    rows = [
        ["true \\ predicted", *classes],
        *([name, *map(str, row)] for name, row in zip(classes, table, strict=True)),
    ]
    return screen.table(rows) + ("\n  (the sum over the members)" if np.asarray(counts).ndim == 3 else "")
