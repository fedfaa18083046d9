"""gpbackprop resume"""

from pathlib import Path

import click

from gpbackprop.cli import options, screen


@click.command(short_help="Go on with a run that was stopped.")
@click.argument("run_dir", type=click.Path(path_type=Path))
@options.epochs
@click.option(
    "--device", metavar="D", help="auto, cpu, cuda or cuda:N; by default the device of before, for the same bits."
)
@options.allow_inexact
@options.grace
@options.as_json
@screen.verbosity_options
def command(run_dir, epochs, device, allow_inexact, grace, as_json):
    """Go on with the run in RUN_DIR, from its newest checkpoint, to the same bits as if it had never been stopped."""
    screen.listen(screen.verbosity)
    from gpbackprop.cli import training
    from gpbackprop.errors import UsageError
    from gpbackprop.run import Run, stored_config

    stored_config(run_dir)
    if epochs is not None and epochs < 1:
        raise UsageError(f"--epochs {epochs}: expected 1 or more")
    run = Run.open(run_dir, training.device_of(run_dir, device), epochs, allow_inexact)
    return training.run(run, as_json, grace)
