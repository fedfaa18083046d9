"""What the commands say: results on stdout, notes, progress and log on stderr."""

import json
import logging
import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import click

from gpbackprop.errors import GPError, UsageError

verbosity = 0
"""-1 after -q, 1 after -v."""


def verbosity_options(function: Callable) -> Callable:
    """-q and -v, which set up the log before the command runs."""

    def chosen(value: int) -> Callable:
        def callback(context, parameter, given):
            if given:
                listen(value)

        return callback

    shared: dict[str, Any] = {"is_flag": True, "expose_value": False}
    function = click.option("-v", "--verbose", callback=chosen(1), help="Say more.", **shared)(function)
    return click.option("-q", "--quiet", callback=chosen(-1), help="No progress; warnings and results only.", **shared)(
        function
    )


def listen(level: int) -> None:
    """Send the log of the package to stderr: -1 warnings only, 0 what is new to the user, 1 everything."""
    global verbosity
    verbosity = level
    log = logging.getLogger("gpbackprop")
    log.setLevel(logging.DEBUG)
    log.propagate = False
    for old in [handler for handler in log.handlers if isinstance(handler, _Screen)]:
        log.removeHandler(old)
    handler = _Screen({-1: logging.WARNING, 0: logging.INFO, 1: logging.DEBUG}[level])
    log.addHandler(handler)


class _Screen(logging.Handler):
    """Log records as lines on stderr, above a progress bar where there is one.

    Where stderr takes no more (its disk is full, its reader or its terminal is gone), training goes on: that is said
    once, for the log of the run.
    """

    refused = False

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.levelno >= logging.WARNING:
            text = f"{record.levelname.lower()}: {text}"
        try:
            if "tqdm" in sys.modules:
                sys.modules["tqdm"].tqdm.write(text, file=sys.stderr)
            else:
                click.echo(text, err=True)
        except OSError as error:
            if not self.refused:
                self.refused = True
                why = error.strerror or error
                logging.getLogger(record.name).warning("stderr: could not be written: %s. Training goes on", why)


def result(text: str = "") -> None:
    """A line of the result."""
    with writing_results():
        click.echo(text)


@contextmanager
def writing_results():
    """Inside, stdout is written: where it takes no more, UsageError is raised. A reader that went away is no error."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise refused(error) from error


def refused(error: OSError) -> GPError:
    """The error of the call that it is when stdout takes no more."""
    why = error.strerror or error
    return UsageError(f"stdout: could not be written: {why}; make room, or lead it elsewhere")


def note(text: str) -> None:
    """A line for the reader that is no part of the result; nothing is lost where stderr takes no more."""
    with suppress(OSError):
        click.echo(text, err=True)


def error(message: str) -> None:
    """What went wrong, one mistake a line."""
    lead = "error:"
    if sys.stderr.isatty() and not os.environ.get("NO_COLOR"):
        lead = click.style(lead, fg="red", bold=True)
    lines = message.splitlines() or [""]
    if len(lines) == 1:
        note(f"{lead} {lines[0]}")
    else:
        note("\n".join([lead, *(f"  {line}" for line in lines)]))


def print_json(value: Any) -> None:
    """One object on stdout; what is not a finite number is null, so that every reader of JSON takes it."""
    result(json.dumps(strict(value), allow_nan=False, ensure_ascii=not speaks_unicode(sys.stdout)))


def strict(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [strict(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def speaks_unicode(stream: Any) -> bool:
    return (getattr(stream, "encoding", None) or "").lower().replace("-", "").startswith("utf")


def table(rows: Sequence[Sequence[str]], indent: str = "  ") -> str:
    """Columns side by side: the first to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    numeric = [all(_is_number(cell) for cell in column[1:]) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ]
        lines.append((indent + "  ".join(cells)).rstrip())
    return "\n".join(lines)


def _is_number(cell: str) -> bool:
    """A number, with its spread or without, or a dash or nothing in the place of one."""
    return all(
        re.fullmatch(r"-|[-+]?[\d.]+(e[-+]?\d+)?|[-+]?inf", part) for part in re.split(" ± | \\+- ", cell) if part
    )


def number(value: float | None) -> str:
    """A measured value with four decimals, or four digits where that says nothing; "-" for none."""
    if value is None or not math.isfinite(value):
        return "-" if value is None or math.isnan(value) else str(value)
    return f"{value:.4f}" if 0.001 <= abs(value) < 1000 or value == 0 else f"{value:.4g}"


@contextmanager
def only_to_files():
    """What is logged inside goes to log files, not to the screen."""
    screens = [handler for handler in logging.getLogger("gpbackprop").handlers if isinstance(handler, _Screen)]
    levels = [handler.level for handler in screens]
    for handler in screens:
        handler.setLevel(logging.WARNING)
    yield
    for handler, level in zip(screens, levels, strict=True):
        handler.setLevel(level)
