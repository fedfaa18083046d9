"""The checkpoints of one run, in one directory: `step-000001200.h5`, `last.json`, `best.json`.

One trainer writes a directory at a time, and its steps only grow; keeping a second one out is the run's business. A
file is never removed before a newer one is on the disk, nor while it is the best one, nor unless it has a name of ours.
"""

import json
import os
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gpbackprop.checkpoint import disk, writer
from gpbackprop.checkpoint.reader import Checkpoint, read
from gpbackprop.checkpoint.structure import DamagedError
from gpbackprop.errors import CheckpointError

Warn = Callable[[str], Any]

_FILE = re.compile(r"step-(\d{9,})\.h5")
_ASIDE = re.compile(r"step-\d{9,}\.h5\.damaged(-\d+)?")
_TEMPORARY = re.compile(r"\.(step-\d{9,}\.h5|last\.json|best\.json)\.[0-9a-f]{16}\.tmp")


def save(
    directory: Path,
    step: int,
    content: writer.Content,
    keep: int,
    warn: Warn = warnings.warn,
    best: Mapping[str, Any] | None = None,
    counted: Callable[[int], bool] | None = None,
) -> Path:
    """Write the checkpoint of `step`, record it in last.json, then remove all but the newest `keep` and the best one.

    Steps that are not `counted` take no place among those: they stay while they are the newest.
    With `best`, plain numbers for best.json, it is that one from now on. The checkpoint is safe once this returns.
    Raises CheckpointError when it could not be written, or the directory holds a later step; the earlier checkpoints
    are untouched then. `warn` hears of an old file that stays.
    """
    directory = Path(directory)
    path = directory / f"step-{step:09d}.h5"
    try:
        if not directory.is_dir():
            disk.calls.mkdir(directory)
            disk.sync(directory.parent)
        newest = max(_steps(directory), default=0)
    except OSError as error:
        raise CheckpointError(f"{directory}: {error.strerror}; make it a directory that this user can write") from error
    if step >= newest:
        digest = writer.write(path, content)
        _record(directory / "last.json", {"file": path.name, "step": step, "sha256": digest})
        if best is not None:
            mark_best(directory, step, best)
        _prune(directory, max(keep, 1), warn, counted)
        return path
    raise CheckpointError(
        f"{directory}: holds step {newest} already, later than step {step} that was to be saved; it is another run's. "
        "Nothing was changed. Train in another directory, or continue that run with `resume`"
    )


def mark_best(directory: Path, step: int, metrics: Mapping[str, Any]) -> None:
    """Record in best.json that the saved checkpoint of `step` is the best so far; `metrics` are plain numbers.

    Raises CheckpointError, with the earlier best.json untouched, when there is no such checkpoint or the disk refuses.
    """
    path = Path(directory) / f"step-{step:09d}.h5"
    if not path.exists():
        raise CheckpointError(f"{path}: cannot be the best checkpoint, there is no such file; save it first")
    _record(path.with_name("best.json"), {"file": path.name, "step": step, **metrics})


def best(directory: Path) -> Path | None:
    """The checkpoint that best.json names, or None without a best.json. Raises CheckpointError if that is damaged."""
    named = _named(Path(directory) / "best.json")
    return Path(directory) / named if named else None


def latest(
    directory: Path, warn: Warn = warnings.warn, set_aside: bool = True, whole: bool = True
) -> Checkpoint | None:
    """The newest checkpoint that is whole, or None where none was ever saved.

    Of a damaged one `warn` is told why, and the next older one is tried. It is renamed to `*.damaged`, unless
    `set_aside` is False: who only reads a run changes nothing in it. Raises CheckpointError when none is whole, when
    one cannot be read by this user, or is of a newer version.
    """
    directory = Path(directory)
    try:
        last = _named(directory / "last.json")  # before the list, which is newer then where a run goes on meanwhile
    except CheckpointError as error:
        warn(f"{error}; taking the newest checkpoint in its place")
        last = None
    try:
        steps = _steps(directory)
        aside = sorted(name for name in disk.calls.listdir(directory) if _ASIDE.fullmatch(name))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CheckpointError(f"{directory}: cannot be listed: {error.strerror}; change its permissions") from error
    if last and int(last[5:-3]) > max(steps, default=-1):
        warn(f"{directory / last}: last.json names it and it is gone; falling back to the next older checkpoint")
    for step in sorted(steps, reverse=True):
        path = directory / steps[step]
        try:
            return read(path, whole=whole)
        except DamagedError as error:
            kept = _set_aside(path) if set_aside else path.name
            aside.append(kept)
            warn(f"{error}. {'Kept as' if set_aside else 'It stays'} {kept}; falling back to the next older checkpoint")
        except CheckpointError:
            if os.path.lexists(path):
                raise
            return latest(directory, warn, set_aside, whole)  # a run that goes on has a newer one by now
    if not aside and not last:
        return None
    lost = ", ".join(aside) or f"only a last.json that names {last}"
    raise CheckpointError(
        f"{directory}: no checkpoint is whole; it holds {lost}. Copy one back from elsewhere under its name, or train "
        "from the start in another directory"
    )


def files(directory: Path) -> dict[int, Path]:
    """The checkpoint files of a directory by step, damaged ones among them."""
    return {step: Path(directory) / name for step, name in _steps(directory).items()}


def go_back(directory: Path, step: int) -> None:
    """Make the checkpoint of `step` the newest: later ones are removed, and with them a best.json that names one.

    Raises CheckpointError where the disk refuses. Whatever is done by then, `latest` finds a checkpoint of the run.
    """
    directory = Path(directory)
    try:
        later = {name for other, name in _steps(directory).items() if other > step}
        if _named(directory / "best.json") in later:
            disk.calls.unlink(directory / "best.json")
        _record(directory / "last.json", {"file": f"step-{step:09d}.h5", "step": step})
        for name in sorted(later, reverse=True):
            disk.calls.unlink(directory / name)
    except OSError as error:
        raise CheckpointError(f"{directory}: could not go back to step {step}: {error.strerror or error}") from error


def _steps(directory: Path) -> dict[int, str]:
    """The files of ours, by step."""
    return {int(found[1]): name for name in disk.calls.listdir(directory) if (found := _FILE.fullmatch(name))}


def _record(path: Path, facts: Mapping[str, Any]) -> None:
    disk.replace(path, json.dumps(facts, indent=2).encode() + b"\n")


def _named(record: Path) -> str | None:
    """The file that last.json or best.json names, or None where there is no such record."""
    try:
        name = json.loads(record.read_bytes())["file"]
        if _FILE.fullmatch(name):
            return name
        why = f"names {name!r}, which is no checkpoint of this directory"
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        why = f"cannot be read ({error})"
    raise CheckpointError(f"{record}: {why}; name a checkpoint file instead, or remove the record")


def _prune(directory: Path, keep: int, warn: Warn, counted: Callable[[int], bool] | None) -> None:
    try:
        steps = _steps(directory)
        spared = _named(directory / "best.json")
        known = [step for step in sorted(steps) if counted is None or counted(step)]
        kept = {*known[-keep:], max(steps)}
        old = [name for step, name in sorted(steps.items()) if step not in kept and name != spared]
        for name in old + [name for name in disk.calls.listdir(directory) if _TEMPORARY.fullmatch(name)]:
            disk.calls.unlink(directory / name)
    except (OSError, CheckpointError) as error:
        warn(f"the checkpoint is saved, but old ones were not removed: {error}")


def _set_aside(path: Path) -> str:
    """Rename a damaged file, over no other one, and return its new name; its old one where the disk refuses."""
    aside, count = path.with_name(f"{path.name}.damaged"), 1
    while aside.exists():
        count += 1
        aside = path.with_name(f"{path.name}.damaged-{count}")
    try:
        disk.calls.replace(path, aside)
    except OSError:
        return path.name
    return aside.name
