"""gpbackprop data"""

import signal
from pathlib import Path

import click

from gpbackprop.cli import options, screen
from gpbackprop.cli.group import Suggesting


@click.group("data", cls=Suggesting, short_help="The data sets that have a name.")
def command():
    """The data sets that have a name, ready for `source = "NAME"` in a config."""


@command.command("list")
@options.as_json
@screen.verbosity_options
def list_(as_json):
    """Every data set that has a name."""
    screen.listen(screen.verbosity)
    from gpbackprop.data import catalog

    found = catalog()
    if as_json:
        keys = ("name", "rows", "inputs", "task", "about", "source", "licence", "available", "where")
        screen.print_json({"data": [{key: getattr(entry, key) for key in keys} for entry in found]})
        return
    rows = [["name", "rows", "inputs", "task", "where"]]
    for entry in found:
        where = (
            "embedded"
            if entry.file
            else "generated"
            if not entry.remote
            else "ready"
            if entry.available
            else "to fetch"
        )
        rows.append([entry.name, str(entry.rows), entry.inputs, entry.task, where])
    screen.result(screen.table(rows, indent=""))


@command.command("info")
@click.argument("name")
@options.as_json
@screen.verbosity_options
def info_(name, as_json):
    """What is known of NAME: task, source, licence, digest, where it lies."""
    screen.listen(screen.verbosity)
    from gpbackprop.data import info

    facts = info(name)
    if as_json:
        screen.print_json(facts)
    else:
        screen.result(screen.table([[key, value] for key, value in facts.items()], indent=""))


@command.command("fetch")
@click.argument("name")
@click.option(
    "--directory", type=click.Path(path_type=Path), help="Where to put it; the cache of this user by default."
)
@screen.verbosity_options
def fetch_(name, directory):
    """Download NAME and verify its digest. No other command downloads anything."""
    screen.listen(screen.verbosity)
    from gpbackprop.data import fetch

    signal.signal(signal.SIGINT, signal.default_int_handler)  # so that half a download is removed
    folder = fetch(name, directory, progress=screen.verbosity >= 0)
    screen.result(f"{name} is in {folder}")
    if directory:
        screen.note(f"set GPBACKPROP_DATA={folder} so that it is found there")
