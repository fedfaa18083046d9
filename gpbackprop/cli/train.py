"""gpbackprop train"""

from pathlib import Path

import click

from gpbackprop.cli import options, screen

EPILOG = """
\b
Examples:
  gpbackprop train digits.toml --epochs 20 --set optimizer.lr=0.1 --set model.0.units=64
  gpbackprop train digits.toml --run-dir runs/a --resume     the same line starts, continues, or reports
  gpbackprop train digits.toml --population 8                eight networks with seeds of their own, as one
  gpbackprop train iris.toml --folds 5                       a network for each fold of a cross-validation, as one

Ctrl-C stops at the next step, saves, and says how to go on; so do SIGTERM and SIGUSR1, with exit code 75. A second
signal ends the program at once.
"""


@click.command(epilog=EPILOG, short_help="Train a network from a config file.")
@click.argument("config", type=click.Path(path_type=Path))
@options.device
@options.epochs
@click.option(
    "--seed", type=int, metavar="N", help="In place of seed: of the initial weights, the order and the masks."
)
@click.option("--population", type=int, metavar="K", help="Train K networks at once, with the seeds N, N+1, ...")
@click.option("--folds", type=int, metavar="F", help="Cross-validate: F networks at once, each without one fold.")
@options.settings
@click.option(
    "--run-dir", type=click.Path(path_type=Path), help="Where the run lies; runs/NAME, or runs/NAME-2, ... by default."
)
@click.option("--resume", is_flag=True, help="Continue the run in --run-dir, if there is one.")
@options.allow_inexact
@options.grace
@options.as_json
@screen.verbosity_options
def command(config, device, epochs, seed, population, folds, settings, run_dir, resume, allow_inexact, grace, as_json):
    """Train a network as CONFIG says, and leave all of it in a run directory."""
    if resume and run_dir is None:
        raise click.UsageError("--resume needs --run-dir DIR: the run to continue")
    screen.listen(screen.verbosity)
    from gpbackprop.cli import training
    from gpbackprop.cli.device import choose
    from gpbackprop.config import differences, parse, placed, read_text
    from gpbackprop.errors import ConfigError
    from gpbackprop.run import Run, fresh_directory, is_run, stored_config

    given = read_text(config)
    named = {"train.epochs": epochs, "seed": seed, "population": population, "data.folds": folds}
    settings = [*settings, *(f"{key}={value}" for key, value in named.items() if value is not None)]
    wanted = parse(given, str(config), settings, config.parent)
    path = run_dir or fresh_directory(wanted.name)
    if not (resume and is_run(path)):
        with placed(given, str(config), settings):
            return training.run(Run.start(path, wanted, given, choose(device or "auto")), as_json, grace)
    changed = [line for line in differences(wanted, stored_config(path)) if not line.startswith("train.epochs:")]
    if changed:
        raise ConfigError(
            f"{config} is not the config of the run in {path}, which differs in\n" + "\n".join(changed)
            + "\nchange them back, or train in another directory"
        )  # fmt: skip
    run = Run.open(path, training.device_of(path, device), wanted.train.epochs, allow_inexact)
    return training.run(run, as_json, grace)
