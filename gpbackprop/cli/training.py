"""What `train` and `resume` have in common: a run is trained, watched and reported."""

import shlex
from pathlib import Path

from gpbackprop.backend import Backend
from gpbackprop.cli import progress, screen
from gpbackprop.cli.device import choose
from gpbackprop.cli.report import over_folds, print_report
from gpbackprop.errors import DeviceError
from gpbackprop.run import Run, log, read_facts


def device_of(path: Path, device: str | None) -> Backend:
    """The device asked for, or the one the run was on: another one rounds otherwise."""
    before = read_facts(path).get("device")
    if device is not None or before is None:
        return choose(device or "auto")
    try:
        return choose(before)
    except DeviceError as error:
        raise DeviceError(
            f"the run was on {before}. {error}. --device cpu --allow-inexact goes on there, with other rounding"
        ) from None


def run(run: Run, as_json: bool, grace: float | None = None) -> int:
    """Train `run`, report, and return the exit code; see `Run.train` for `grace`."""
    trainer, path = run.trainer, shlex.quote(str(run.path))
    log.debug("%s: %s", run.path, _facts(run))
    if trainer.epoch >= trainer.train.epochs or trainer.monitor.exhausted:
        log.info("%s is complete: %d epochs are done", run.path, trainer.epoch)
    elif trainer.step:
        log.info("%s: going on after step %d, in epoch %d", run.path, trainer.step, trainer.epoch + 1)
    watch = progress.hook(trainer)
    try:
        code, outcome = run.train(hooks=[watch], grace=grace)
    finally:
        watch.close()
    if trainer.data.preparation.folds and "validation" in outcome:
        outcome["folds"] = over_folds(outcome["validation"])
    if as_json:
        screen.print_json(outcome)
    elif not code:
        print_report(run, outcome)
    if code:
        log.warning("stopped after step %d and saved; `gpbackprop resume %s` goes on from there", trainer.step, path)
    return code


def _facts(run: Run) -> str:
    trainer = run.trainer
    rows = ", ".join(f"{len(split)} {name}" for name, split in trainer.data.splits.items())
    return (
        f"{trainer.network.parameter_count} parameters, {trainer.data.name} with {rows} rows, "
        f"{trainer.steps_per_epoch} steps an epoch, {trainer.backend.name}, seeds {', '.join(map(str, trainer.seeds))}"
    )
