"""gpbackprop init"""

import shlex
from functools import partial
from pathlib import Path
from shutil import copyfileobj

import click

from gpbackprop.cli import files as output_files
from gpbackprop.cli import screen


@click.command(short_help="Write a commented config to start from.")
@click.argument("name", required=False)
@click.option(
    "--output", type=click.Path(path_type=Path), help="The file to write, - for stdout; NAME.toml by default."
)
@click.option("--force", is_flag=True, help="Write over a file that is there.")
@screen.verbosity_options
def command(name, output, force):
    """Write the commented config NAME, with the data that it brings, to start from. Without NAME: list them."""
    screen.listen(screen.verbosity)
    found = {path.stem: path for path in sorted(_folder().glob("*.toml"))}
    if name is None:
        rows = [[stem, _title(path)] for stem, path in found.items()]
        screen.result(screen.table([["name", ""], *rows], indent=""))
        return
    if name not in found:
        from gpbackprop.cli.group import hint

        raise click.UsageError(f"no config {name!r}{hint(name, list(found))}")
    if str(output) == "-":
        screen.result(found[name].read_text(encoding="utf-8").rstrip("\n"))
        for other in [path.name for path in _folder().glob(f"{name}.*") if path != found[name]]:
            screen.note(f"it reads {other}, which `gpbackprop init {name}` writes beside it")
        return
    target = output or Path(f"{name}.toml")
    files = {found[name]: target}
    files |= {other: target.parent / other.name for other in _folder().glob(f"{name}.*") if other != found[name]}
    taken = [str(path) for path in files.values() if path.exists()]
    if taken and not force:
        raise click.UsageError(
            f"{', '.join(taken)} is there already; give another --output, or --force to write over it"
        )
    for source, path in files.items():
        with open(source, "rb") as content:
            output_files.write(path, "--output", partial(copyfileobj, content))
    screen.result(f"next: gpbackprop train {shlex.quote(str(target))}")


def _folder() -> Path:
    """The shipped configs: inside an installed package, beside it in a clone."""
    inside = Path(__file__).with_name("configs")
    return inside if inside.is_dir() else Path(__file__).parents[2] / "configs"


def _title(path: Path) -> str:
    """The first comment line of a config."""
    return path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")
