"""gpbackprop verify"""

from pathlib import Path

import click

from gpbackprop.cli import options, screen


@click.command(short_help="Whether a checkpoint, or all of a run, is whole.")
@click.argument("path", type=click.Path(path_type=Path))
@options.as_json
@screen.verbosity_options
def command(path, as_json):
    """Check every byte that PATH, a run directory or a checkpoint file, has: digests, structure, configs, records.

    It says what can be resumed from, and changes nothing. Exit code 0 when all is whole, 4 when something is damaged.
    """
    screen.listen(screen.verbosity)
    from gpbackprop.run import is_run
    from gpbackprop.verification import verify

    report = verify(path)
    newest = report.newest
    if as_json:
        screen.print_json(
            {
                "path": str(path),
                "whole": not report.damaged,
                "checkpoints": [_facts(finding) for finding in report.checkpoints],
                "records": [_facts(finding) for finding in report.records],
                "resume": newest and {"file": str(newest.path), **newest.facts},
            }
        )
    else:
        _print(report, is_run(path))
    return 4 if report.damaged else 0


def _facts(finding):
    return {
        "file": str(finding.path), "whole": not finding.why, "why": finding.why, "note": finding.note, **finding.facts
    }  # fmt: skip


def _print(report, is_run: bool) -> None:
    import shlex

    damaged, newest = report.damaged, report.newest
    rows = [["checkpoint", "step", "epoch", "bytes", ""]]
    for finding in report.checkpoints:
        facts = finding.facts
        state = "damaged" if finding.why else "whole"
        rows.append([finding.path.name, *(str(facts.get(name, "-")) for name in ("step", "epoch", "bytes")), state])
    if report.checkpoints:
        screen.result(screen.table(rows, indent=""))
    if report.records:
        rows = [
            [finding.path.name, "damaged" if finding.why else finding.note or "whole"] for finding in report.records
        ]
        screen.result("\n" + screen.table([["record", ""], *rows], indent=""))
    for finding in damaged:
        screen.result(f"\n{finding.path}: {finding.why}")
    screen.result()
    if is_run and newest:
        done = f"step {newest.facts['step']}, epoch {newest.facts['epoch']}"
        if newest.facts["batch_in_epoch"]:
            done += f" and {newest.facts['batch_in_epoch']} steps"
        screen.result(f"resumes from {newest.path.name} ({done}): gpbackprop resume {shlex.quote(str(report.path))}")
    elif is_run and report.begun:
        screen.result("no checkpoint is whole: copy one back from elsewhere, or train from the start elsewhere")
    elif is_run:
        screen.result(f"no checkpoint yet: gpbackprop resume {shlex.quote(str(report.path))} starts from the beginning")
    files = len(report.checkpoints) + len(report.records)
    screen.result(f"{len(damaged)} of {files} files damaged" if damaged else f"all is whole ({files} files)")
