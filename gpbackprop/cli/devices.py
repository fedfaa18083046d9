"""gpbackprop devices"""

import click

from gpbackprop.cli import options, screen


@click.command(short_help="What can be used, and the reason where something cannot.")
@options.as_json
@screen.verbosity_options
def command(as_json):
    """The devices of this machine: what --device may name, and why where something cannot be used."""
    screen.listen(screen.verbosity)
    from gpbackprop.backend import devices

    found = devices()
    if as_json:
        screen.print_json(
            {"devices": [dict(zip(("name", "usable", "description"), row, strict=True)) for row in found]}
        )
        return
    rows = [[name, "yes" if usable else "no", text.removeprefix(f"{name}: ")] for name, usable, text in found]
    screen.result(screen.table([["device", "usable", ""], *rows], indent=""))
