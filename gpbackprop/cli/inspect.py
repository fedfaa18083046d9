"""gpbackprop inspect"""

from pathlib import Path
from typing import Any

import click

from gpbackprop.cli import options, screen


@click.command(short_help="What is in a model: layers, parameters, progress.")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--best", is_flag=True, help="The best checkpoint of a run, in place of the newest.")
@options.as_json
@screen.verbosity_options
def command(model, best, as_json):
    """What MODEL is: its layers, how far it was trained, how its data are prepared. The data are not needed.

    Of a damaged file it shows what can still be seen, and exits with 4. MODEL may also be a config: then it is what
    training would take of the memory, part by part, before any of it is asked for.
    """
    screen.listen(screen.verbosity)
    if model.suffix == ".toml":
        from gpbackprop.cli import plans

        return plans.show(model, as_json)
    from gpbackprop.errors import CheckpointError
    from gpbackprop.model import find, outline
    from gpbackprop.run import is_run, read_facts

    try:
        checkpoint = find(model, best, whole=False)
        found = outline(checkpoint)
    except CheckpointError:
        if model.is_file():
            from gpbackprop.cli.remains import show

            show(model, as_json)
        raise
    try:
        facts = _facts(checkpoint, found, read_facts(model) if is_run(model) else {})
    except (LookupError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{checkpoint.path}: its progress or history is not what gpbackprop writes ({type(error).__name__})"
        ) from error
    if as_json:
        screen.print_json(facts)
    else:
        _print(facts)


def _facts(checkpoint, model, run: dict[str, Any]) -> dict[str, Any]:
    import json

    from gpbackprop.checkpoint import VERSION
    from gpbackprop.spec import to_table, type_name

    config, network, prep = model.config, model.network, model.preparation
    progress = checkpoint.arrays("progress")
    history = [dict(json.loads(line)) for line in checkpoint.text("history").splitlines()]
    value, epoch = progress["monitor"][:2].tolist()
    return {
        "checkpoint": str(checkpoint.path),
        "bytes": checkpoint.path.stat().st_size,
        "name": config.name,
        "layers": _layers(network),
        "inputs": list(prep.row_shape),
        "outputs": list(network.output_shape),
        "parameters": network.parameter_count,
        "population": network.K,
        "seeds": progress["seeds"].tolist(),
        "dtype": str(network.dtype),
        "loss": type_name(type(config.loss)),
        "optimizer": to_table(config.optimizer),
        "epochs": int(progress["epoch"]),
        "of_epochs": config.train.epochs,
        "steps": int(progress["step"]),
        "steps_in_epoch": int(progress["batch_in_epoch"]),
        "best": {"epoch": int(epoch), "value": value} if epoch else None,
        "last": history[-1] if history else None,
        "data": {
            "source": config.data.source,
            "normalize": config.data.normalize,
            "missing": config.data.missing,
            "folds": config.data.folds,
            "fold": config.data.fold,
            "target": list(prep.target),
            "classes": list(prep.classes),
            "columns": [{"name": c.name, "categories": list(c.categories), "fill": c.fill} for c in prep.columns],
        },
        "versions": {
            "checkpoint": VERSION,
            **{key: run[key] for key in ("gpbackprop", "python", "numpy", "device") if key in run},
        },
    }


def _layers(network) -> list[dict[str, Any]]:
    """Each layer in order, those inside another after it, with its output and the parameters that are its own."""
    outputs = sorted(network.measured.outputs, key=lambda item: _order(item[0]))
    paths = [path for path, _ in outputs]
    layers = []
    for path, slot in outputs:
        own = {}
        for name, place in network.params.items():
            owner = max((p for p in paths if name.startswith(p + "/")), key=len, default=None)
            if owner == path:
                own[name.removeprefix(path + "/")] = list(place.shape)
        frozen = [n for n in own if network.params[f"{path}/{n}"].frozen]
        count = sum(network.params[f"{path}/{name}"].size for name in own)
        layers.append(
            {"path": path, "output": list(slot.shape[1:]), "parameters": count, "arrays": own, "frozen": frozen}
        )
    return layers


def _order(path: str) -> list[int]:
    return [int(part.partition("-")[0]) for part in path.split("/")]


def _print(facts: dict[str, Any]) -> None:
    from gpbackprop.cli.remains import printable

    data = facts["data"]
    rows = [["layer", "output", "parameters", "arrays"], ["input", _shape(facts["inputs"]), "", ""]]
    for layer in facts["layers"]:
        depth, name = layer["path"].count("/"), layer["path"].rsplit("/", 1)[-1]
        arrays = ", ".join(
            f"{n} {_shape(s)}{' frozen' if n in layer['frozen'] else ''}" for n, s in layer["arrays"].items()
        )
        rows.append(["  " * depth + name, _shape(layer["output"]), str(layer["parameters"]), arrays])
    members = f" x {facts['population']} members" if facts["population"] > 1 else ""
    screen.result(f"{printable(facts['name'])}: {facts['checkpoint']} ({facts['bytes']} bytes)\n")
    screen.result(screen.table(rows))
    screen.result(f"  {facts['parameters']} parameters of {facts['dtype']}{members}\n")
    done = f"{facts['epochs']} of {facts['of_epochs']} epochs, {facts['steps']} steps"
    if facts["steps_in_epoch"]:
        done += f" ({facts['steps_in_epoch']} of them in the next epoch)"
    optimizer = ", ".join(f"{k} {_short(v)}" for k, v in facts["optimizer"].items() if k != "type")
    folds = ""
    if data["folds"]:
        folds = f", {data['folds']} folds" if data["fold"] is None else f", fold {data['fold']} of {data['folds']}"
    lines = {
        "trained": done,
        "seed": ", ".join(map(str, facts["seeds"])),
        "loss": facts["loss"],
        "optimizer": f"{facts['optimizer']['type']}, {optimizer}",
        **_metrics(facts),
        "data": f"{data['source']}, normalize {data['normalize']}, missing {data['missing']}{folds}",
        "target": ", ".join(data["target"]),
    }
    if data["classes"]:
        lines["classes"] = f"{len(data['classes'])}: {_few(data['classes'])}"
    if data["columns"]:
        lines["columns"] = _few([_column(column) for column in data["columns"]])
    lines["versions"] = ", ".join(f"{name} {value}" for name, value in facts["versions"].items())
    screen.result(screen.table([[name, printable(text)] for name, text in lines.items()], indent=""))


def _metrics(facts: dict[str, Any]) -> dict[str, str]:
    from gpbackprop.cli.progress import metrics, words

    last, best = facts["last"], facts["best"]
    lines = {}
    if last:
        values = ", ".join(f"{words(name)} {screen.number(value)}" for name, value in metrics(last).items())
        lines["last epoch"] = values
    if best:
        lines["best epoch"] = f"{best['epoch']} ({screen.number(best['value'])})"
    return lines


def _shape(shape: list[int]) -> str:
    return "x".join(map(str, shape)) or "1"


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return value.get("type") or " ".join(f"{name}: {item}" for name, item in value.items())
    return str(value)


def _few(items: list[str], most: int = 12) -> str:
    return ", ".join(items[:most]) + (f", ... ({len(items)} in all)" if len(items) > most else "")


def _column(column: dict[str, Any]) -> str:
    return f"{column['name']} ({' | '.join(column['categories'])})" if column["categories"] else column["name"]
