"""Floor 5: whether a checkpoint, or all that a run left behind, is whole, and what can be resumed.

Nothing is changed. What is checked of a checkpoint is what `load` needs and what `resume` needs but the data: its
digest, its structure, its config, that each array has the shape that the config asks for, its progress and history.
A run may go on meanwhile: a file that it has removed or replaced since the folder was listed is no damage.
"""

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpbackprop import checkpoint
from gpbackprop.errors import CheckpointError, GPError
from gpbackprop.model import outline
from gpbackprop.run import is_run, stored_config

STEP = re.compile(r"step-(\d{9,})\.h5")
ASIDE = re.compile(r"step-\d{9,}\.h5\.damaged(-\d+)?")


@dataclass(frozen=True)
class Finding:
    """A file, and what is wrong with it: `why` is "" where it is whole. `note` is worth knowing and no damage."""

    path: Path
    why: str = ""
    note: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    """Of a whole checkpoint its step, epoch and batch_in_epoch; of any its bytes."""


@dataclass(frozen=True)
class Report:
    """What was found at `path`: a file, or a run directory."""

    path: Path
    checkpoints: tuple[Finding, ...]
    """In the order of their steps."""
    records: tuple[Finding, ...]
    """The other files of a run."""

    @property
    def damaged(self) -> list[Finding]:
        return [finding for finding in (*self.checkpoints, *self.records) if finding.why]

    @property
    def newest(self) -> Finding | None:
        """The newest whole checkpoint, from which a run is resumed."""
        return next((finding for finding in reversed(self.checkpoints) if not finding.why), None)

    @property
    def begun(self) -> bool:
        """Whether a checkpoint was ever saved: then a resume does not start from the beginning, whatever is left."""
        return bool(self.checkpoints) or any(
            ASIDE.fullmatch(finding.path.name) or finding.path.name == "last.json" for finding in self.records
        )


def verify(path: Path, seen: Callable[[Finding], Any] = lambda finding: None) -> Report:
    """Check the checkpoint file or the run directory at `path`; `seen` hears of each file as it is done.

    Raises CheckpointError where there is neither.
    """
    if not path.is_dir():
        if not path.exists():
            raise CheckpointError(f"{path}: there is no such run directory or checkpoint file")
        finding = of_checkpoint(path)
        seen(finding)
        return Report(path, (finding,), ())
    folder = path / "checkpoints" if is_run(path) or (path / "checkpoints").is_dir() else path
    names = sorted(item.name for item in folder.iterdir()) if folder.is_dir() else []
    steps = sorted((name for name in names if STEP.fullmatch(name)), key=lambda name: int(name[5:-3]))
    if not steps and folder == path:
        raise CheckpointError(f"{path}: is no run directory, and holds no checkpoint")
    checkpoints, records = _Checkpoints(folder, seen), []
    for name in steps:
        checkpoints.check(name)
    for finding in _records(path, folder, names, checkpoints):
        records.append(finding)
        seen(finding)
    return Report(path, tuple(checkpoints.found[step] for step in sorted(checkpoints.found)), tuple(records))


class _Checkpoints:
    """The checkpoints of `folder` that were checked, by step."""

    def __init__(self, folder: Path, seen: Callable[[Finding], Any]):
        self.folder, self.seen, self.found = folder, seen, dict[int, Finding]()

    def check(self, name: str) -> Finding | None:
        """What there is to say of the file with this name, checked once; None where there is none, or none any more."""
        if not (named := STEP.fullmatch(name)):
            return None
        step, path = int(named[1]), self.folder / name
        if step not in self.found:
            finding = of_checkpoint(path)
            if finding.why and not os.path.lexists(path):
                return None
            self.found[step] = finding
            self.seen(finding)
        return self.found[step]


def of_checkpoint(path: Path) -> Finding:
    """One checkpoint file: everything in it is read."""
    facts: dict[str, Any] = {}
    try:
        facts["bytes"] = path.stat().st_size
        found = checkpoint.read(path)
        found.arrays()  # parameters that are not finite
        outline(found)
        progress = {name: found.section("progress").get(name) for name in ("step", "epoch", "batch_in_epoch")}
        for name, entry in progress.items():
            if entry is None or entry.shape or entry.dtype.kind != "i":
                raise CheckpointError(f"{path}: has no number progress/{name}")
            facts[name] = int(entry.array())
        named = STEP.fullmatch(path.name)
        if named and int(named[1]) != facts["step"]:
            raise CheckpointError(f"{path}: holds step {facts['step']}; it has the name of another")
        rows = _rows(found.text("history"))
        if [row.get("epoch") for row in rows] != list(range(1, facts["epoch"] + 1)):
            raise CheckpointError(f"{path}: has a history of {len(rows)} epochs, and is at epoch {facts['epoch']}")
    except (GPError, OSError, ValueError) as error:
        return Finding(path, str(error).removeprefix(f"{path}: "), facts={"bytes": facts.get("bytes", 0)})
    return Finding(path, facts=facts)


def _rows(text: str) -> list[dict[str, Any]]:
    """The objects of JSON lines. Raises ValueError where there is anything else."""
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise ValueError(f"line {number} is no JSON object")
        rows.append(row)
    return rows


def _records(path: Path, folder: Path, names: list[str], checkpoints: _Checkpoints) -> Iterator[Finding]:
    """What is beside the checkpoints."""
    for name in "last.json", "best.json":
        if name in names:
            yield _checked(folder / name, lambda at: _record(at, checkpoints))
        elif name == "last.json" and checkpoints.found:
            yield Finding(folder / name, note="missing; the newest checkpoint is taken")
    for name in names:
        if ASIDE.fullmatch(name):
            yield Finding(folder / name, note="was damaged, and set aside by an earlier resume; it may be removed")
        elif name.endswith(".tmp"):
            yield Finding(folder / name, note="being written, or left by a crash; the next save removes it")
    if not is_run(path):
        return
    yield _checked(path / "config.resolved.toml", _config)
    if (path / "run.json").exists():
        yield _checked(path / "run.json", _object)
    if (path / "metrics.jsonl").exists():
        yield _checked(path / "metrics.jsonl", lambda at: _metrics(at, checkpoints.found.values()))


def _checked(path: Path, check: Callable[[Path], str]) -> Finding:
    """A finding of what `check` returns, a note, or raises."""
    try:
        return Finding(path, note=check(path))
    except (GPError, OSError, ValueError, TypeError, RecursionError) as error:
        return Finding(path, str(error).removeprefix(f"{path}: ") or type(error).__name__)


def _config(path: Path) -> str:
    stored_config(path.parent)
    return ""


def _object(path: Path) -> str:
    if not isinstance(json.loads(path.read_text(encoding="utf-8")), dict):
        raise ValueError("is no JSON object")
    return ""


def _record(path: Path, checkpoints: _Checkpoints) -> str:
    """last.json or best.json. What it names may be newer than the list of the folder, and gone before it is read."""
    while True:
        text = path.read_bytes()
        try:
            return _named(path, checkpoints)
        except (OSError, ValueError):
            if path.read_bytes() == text:
                raise


def _named(path: Path, checkpoints: _Checkpoints) -> str:
    _object(path)
    facts = json.loads(path.read_text(encoding="utf-8"))
    name = facts.get("file")
    found = checkpoints.check(str(name))
    if not found:
        raise ValueError(f"names {name!r}, which is not there")
    if found.why:
        return f"names {name}, which is damaged"
    if facts.get("step") != found.facts["step"]:
        raise ValueError(f"says step {facts.get('step')} of {name}")
    if "sha256" in facts and facts["sha256"] != _digest(path.with_name(name)):
        raise ValueError(f"has another SHA-256 than {name}, which is whole: it is not the file that was saved")
    return ""


def _digest(path: Path) -> str:
    import hashlib

    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _metrics(path: Path, checkpoints: Iterable[Finding]) -> str:
    """metrics.jsonl: each epoch once, up to that of the newest checkpoint at least. A resume mends what is else."""
    text = path.read_text(encoding="utf-8")
    torn = bool(text) and not text.endswith("\n")
    rows = _rows("".join(text.splitlines(keepends=True)[: -1 if torn else None]))
    epochs = [row.get("epoch") for row in rows]
    if epochs != list(range(1, len(epochs) + 1)):
        return "has epochs that are missing or double; `resume` mends it from the checkpoint"
    reached = max((finding.facts["epoch"] for finding in checkpoints if not finding.why), default=0)
    if len(epochs) < reached:
        return f"ends at epoch {len(epochs)}, the newest checkpoint at {reached}; `resume` mends it"
    return "its last line is torn; `resume` drops it" if torn else ""
