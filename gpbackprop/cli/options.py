"""Options that several commands share."""

import click

device = click.option(
    "--device",
    metavar="D",
    help="auto, cpu, cuda or cuda:N. auto takes CUDA where it works, else the CPU, and says so.",
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead.")
epochs = click.option("--epochs", type=int, metavar="N", help="The epochs to end with, in place of train.epochs.")
settings = click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE",
    help="Change a key of the config, by its dotted path; may be given again. A path of a file starts here.",
)  # fmt: skip
grace = click.option(
    "--grace", type=click.FloatRange(min=0), metavar="SECONDS",
    help="After SIGTERM, SIGUSR1 or Ctrl-C: end at once, saved or not, when so many seconds have passed.",
)  # fmt: skip
allow_inexact = click.option(
    "--allow-inexact", is_flag=True, help="Go on although device, libraries or threads are others than before."
)
