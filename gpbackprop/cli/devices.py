"""gpbackprop devices"""

import click

from gpbackprop.cli import options, screen


@click.command(short_help="What can be used, and the reason where something cannot.")
@options.as_json
@screen.verbosity_options
def command(as_json):
    """The devices of this machine: what --device may name, and why where something cannot be used.

    It also says whether the CPU can have its steps compiled (train.compile).
    """
    screen.listen(screen.verbosity)
    from gpbackprop.backend import compiler, devices

    found, compiled = devices(), compiler()
    if as_json:
        screen.print_json({"devices": [_facts(row) for row in found], "compiler": _facts(compiled)})
        return
    screen.result(_table("device", found))
    screen.result("\n" + _table("setting", [compiled]))


def _facts(row):
    return dict(zip(("name", "usable", "description"), row, strict=True))


def _table(heading, found):
    rows = [[name, "yes" if usable else "no", text.removeprefix(f"{name}: ")] for name, usable, text in found]
    return screen.table([[heading, "usable", ""], *rows], indent="")
