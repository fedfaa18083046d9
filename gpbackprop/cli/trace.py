"""gpbackprop trace"""

from pathlib import Path
from typing import Any

import click

from gpbackprop.cli import files, options, screen

EPILOG = """
\b
Examples:
  gpbackprop trace mazur.toml                           two hidden units, all by the book
  gpbackprop trace xor.toml --row 2 --steps 20 --html xor.html
"""


@click.command(epilog=EPILOG, short_help="The numbers of forward, backward and update, step by step.")
@click.argument("config", type=click.Path(path_type=Path))
@click.option(
    "--row", type=click.IntRange(min=0), default=0, show_default=True, metavar="N",
    help="The row of the training split, counted from 0.",
)  # fmt: skip
@click.option("--steps", type=click.IntRange(min=1), default=1, show_default=True, metavar="N", help="So many updates.")
@click.option(
    "--html", type=click.Path(path_type=Path), metavar="FILE",
    help="Write a page that draws the network, with the numbers on it, instead.",
)  # fmt: skip
@options.settings
@options.as_json
@screen.verbosity_options
def command(config, row, steps, html, settings, as_json):
    """The numbers of a small network while it learns one row: inputs, sums, outputs, gradients, old and new weights.

    Every step takes the same row, as with batch_size = 1. Gradients are those of backward, before the optimizer clips,
    decays or freezes them.
    """
    screen.listen(screen.verbosity)
    from gpbackprop.config import opened
    from gpbackprop.tracing import page, record

    with opened(config, settings) as found:
        trace = record(found, row, steps)
    if html:
        whole = page(trace).encode()
        files.write(html, "--html", lambda file: file.write(whole))
        screen.note(f"{html}: open it in a browser")
    if as_json:
        screen.print_json(trace)
    elif not html:
        _print(trace)


def _print(trace: dict[str, Any]) -> None:
    optimizer, digits = trace["optimizer"], 13 if trace["dtype"] == "float64" else 7
    given = ", ".join(f"{key} {value}" for key, value in optimizer["settings"].items())
    screen.result(f"{trace['name']}: row {trace['row']} of the training split, {trace['dtype']}")
    for step in trace["steps"]:
        screen.result(f"\nSTEP {step['step']}\n\nforward\n")
        _forward(trace, step, digits)
        screen.result("\nbackward\n")
        _backward(trace, step, digits)
        rate = ", ".join(
            f"{rate:.{digits}g}" for rate in (step["lr"] if isinstance(step["lr"], list) else [step["lr"]])
        )
        screen.result(f"\nupdate    {optimizer['type']}: {given}; learning rate of this step {rate}\n")
        for line in optimizer["equations"]:
            screen.result(f"  {line}")
        _update(trace, step, digits)
    screen.result(f"\nAFTER STEP {len(trace['steps'])}\n")
    screen.result(_rows([*_named("y", trace["y"], digits), ["L", _exact(trace["L"], digits)]]))


def _forward(trace: dict[str, Any], step: dict[str, Any], digits: int) -> None:
    screen.result(_rows(_named("x", step["x"], digits)))
    for layer in trace["layers"]:
        _title(layer["path"], layer["equations"]["forward"])
        values = step["values"][layer["path"]]
        screen.result(_rows([row for name in values for row in _named(name, values[name]["value"], digits)]))
    _title(trace["loss"]["type"], trace["loss"]["equations"])
    rows = _named("t", step["t"], digits)
    if "probabilities" in step:
        rows += _named("p", step["probabilities"], digits)
    if "terms" in step:
        rows += _named("l", step["terms"], digits)
    screen.result(_rows([*rows, ["L", _exact(step["L"], digits)]]))


def _backward(trace: dict[str, Any], step: dict[str, Any], digits: int) -> None:
    for place, layer in enumerate(reversed(trace["layers"])):
        if place:
            screen.result()
        _title(layer["path"], layer["equations"]["backward"], gap=False)
        values, rows = step["values"][layer["path"]], []
        for name in reversed(values):  # dL/dy comes from above, then dL/dz
            if values[name]["grad"] is not None:
                rows += _named(f"dL/d{name}", values[name]["grad"], digits)
        for parameter in layer["parameters"]:
            gradient = step["parameters"][f"{layer['path']}/{parameter['name']}"]["gradient"]
            rows += _named(f"dL/d{parameter['name']}", gradient, digits)
        screen.result(_rows(rows))


def _update(trace: dict[str, Any], step: dict[str, Any], digits: int) -> None:
    frozen = {f"{layer['path']}/{p['name']}" for layer in trace["layers"] for p in layer["parameters"] if p["frozen"]}
    own = [name for name in next(iter(step["parameters"].values()), {}) if name not in ("old", "gradient", "new")]
    table = [["parameter", "old", "gradient", *own, "new", ""]]
    for path, arrays in step["parameters"].items():
        flat = {name: dict(_entries(path, array)) for name, array in arrays.items()}
        for entry in flat["old"]:
            cells = [f"{flat[name][entry]:.{digits}g}" for name in ("old", "gradient", *own, "new")]
            table.append([entry, *cells, "frozen" if path in frozen else ""])
    screen.result("\n" + screen.table(table))


def _exact(value: float, digits: int) -> str:
    """The loss, with all its digits where they mean something."""
    return repr(value) if digits > 7 else f"{value:.{digits}g}"


def _title(name: str, equations: list[str], gap: bool = True) -> None:
    """A layer's name with its equations beside it."""
    lead = "\n" if gap else ""
    width = max(len(name) + 2, 20)
    lines = equations or [""]
    screen.result((lead + f"  {name:{width}}{lines[0]}").rstrip())
    for line in lines[1:]:
        screen.result(f"  {'':{width}}{line}")


def _named(name: str, array: Any, digits: int) -> list[list[str]]:
    """Rows of cells: the last axis runs along a row, and each earlier index has a row of its own."""
    if not isinstance(array, list):
        return [[name, f"{array:.{digits}g}"]]
    if array and isinstance(array[0], list):
        rows = []
        for index, item in enumerate(array):
            inner = name[:-1] + f",{index}]" if name.endswith("]") else f"{name}[{index}]"
            rows += _named(inner, item, digits)
        return rows
    return [[name, *(f"{value:.{digits}g}" for value in array)]]


def _entries(path: str, array: Any) -> list[tuple[str, float]]:
    if not isinstance(array, list):
        return [(path, array)]
    found = []
    for index, item in enumerate(array):
        found += _entries(path[:-1] + f",{index}]" if path.endswith("]") else f"{path}[{index}]", item)
    return found


def _rows(rows: list[list[str]]) -> str:
    """Names of one width, and numbers of another."""
    name = max([10, *(len(row[0]) for row in rows)])
    cell = max([14, *(len(cell) for row in rows for cell in row[1:] if len(row) > 2)])
    return "\n".join(f"    {row[0]:{name}}" + "".join(f"  {text:{cell}}" for text in row[1:]).rstrip() for row in rows)
