"""What `inspect` shows of a checkpoint file that cannot be used."""

import tomllib
from pathlib import Path
from typing import Any

from gpbackprop import checkpoint
from gpbackprop.cli import screen
from gpbackprop.errors import CheckpointError

MOST = 40  # arrays that are listed
LINES = 12  # of the config


def show(path: Path, as_json: bool) -> None:
    """Print what can be seen of the file. Raises CheckpointError where there is no file to look into."""
    remains = checkpoint.salvage(path)
    found = remains.checkpoint
    facts: dict[str, Any] = {
        "checkpoint": str(path),
        "bytes": remains.size,
        "whole": not remains.why,
        "why": remains.why,
        "config": _text(found, "config"),
        "progress": {name: _number(found, f"progress/{name}") for name in ("step", "epoch", "batch_in_epoch")},
        "arrays": {name: [list(entry.shape), str(entry.dtype)] for name, entry in found.entries.items()},
    }
    if as_json:
        screen.print_json(facts)
        return
    screen.result(f"{path} ({remains.size} bytes)\n")
    screen.result("What can be seen of it, none of which is to be trusted:\n" if remains.why else "It is whole, but:\n")
    progress = [f"{name.replace('_', ' ')} {value}" for name, value in facts["progress"].items() if value is not None]
    rows = [["progress", ", ".join(progress) or "not to be seen"], ["config", _said_of(facts["config"])]]
    rows += [["arrays", str(len(facts["arrays"])) if facts["arrays"] else "not to be seen"]]
    screen.result(screen.table(rows))
    if facts["arrays"]:
        table = [[name, "x".join(map(str, shape)) or "1", dtype] for name, (shape, dtype) in facts["arrays"].items()]
        more = f"\n    and {len(table) - MOST} more" if len(table) > MOST else ""
        screen.result("\n" + screen.table(table[:MOST], indent="    ") + more)
    if facts["config"]:
        lines = facts["config"].splitlines()
        rest = [f"... ({len(lines)} lines in all; --json shows them)"] if len(lines) > LINES else []
        screen.result("\n" + "\n".join(f"    {printable(line)}" for line in [*lines[:LINES], *rest]))
    screen.result()


def printable(text: str) -> str:
    """Text that somebody else chose, without what a terminal would obey."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _text(found: checkpoint.Checkpoint, name: str) -> str | None:
    try:
        return found.text(name)
    except CheckpointError:
        return None


def _number(found: checkpoint.Checkpoint, name: str) -> int | None:
    entry = found.entries.get(name)
    return int(entry.array()) if entry is not None and entry.shape == () and entry.dtype.kind in "iu" else None


def _said_of(config: str | None) -> str:
    if config is None:
        return "not to be seen"
    try:
        tomllib.loads(config)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        return f"is not TOML any more: {printable(str(error))[:200]}"
    return f"{len(config.splitlines())} lines of TOML"
