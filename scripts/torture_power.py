"""The power goes at any call, and of what was not yet synced the disk has kept any part.

Of a file that was not fsynced, nothing, half or all of its bytes are there; of the changes to the names in a directory
since it was fsynced, any are there and any are not. Whichever it is, the newest checkpoint must be whole, and no older
than the newest step that was said to be saved.
"""

import dataclasses
import hashlib
import itertools
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import torture_run as tortured
from torture import Row
from torture_disk import Disk

from gpbackprop import checkpoint
from gpbackprop.errors import CheckpointError


@dataclasses.dataclass
class File:
    """The bytes of a file, and whether the disk has them."""

    data: bytes = b""
    synced: bool = False


@dataclasses.dataclass
class Change:
    """`name` is a file from now on, or, without one, is gone; `old` is a name that it had."""

    name: str
    file: File | None
    old: str | None = None


class Directory:
    """What the disk has of a directory: its names, and the changes that it may have or not."""

    def __init__(self) -> None:
        self.seen: dict[str, File] = {}  # by whoever reads it now
        self.safe: dict[str, File] = {}
        self.open_changes: list[Change] = []

    def see(self, name: str, path: Path, arguments: tuple) -> None:
        """Take in one call."""
        if name == "open" and len(arguments) > 1:  # to write; to read, it has two arguments
            self._change(Change(path.name, File()))
        elif name == "write":
            self.seen[path.name].data += bytes(arguments[0])
            self.seen[path.name].synced = False
        elif name == "replace":
            self._change(Change(Path(arguments[0]).name, self.seen[path.name], path.name))
        elif name == "unlink":
            self._change(Change(path.name, None))
        elif name == "fsync" and path.name in self.seen:
            self.seen[path.name].synced = True
        elif name == "fsync":
            self.safe, self.open_changes = dict(self.seen), []

    def _change(self, change: Change) -> None:
        self.open_changes.append(change)
        apply(self.seen, change)

    def after_a_cut(self) -> Iterator[dict[str, bytes]]:
        """Every content of the directory that can be found when the power is back."""
        for kept in itertools.product((False, True), repeat=len(self.open_changes)):
            names = dict(self.safe)
            for change in itertools.compress(self.open_changes, kept):
                apply(names, change)
            for part in 0.0, 0.5, 1.0:
                yield {
                    name: file.data if file.synced else file.data[: int(part * len(file.data))]
                    for name, file in names.items()
                }


def apply(names: dict[str, File], change: Change) -> None:
    names.pop(change.old or change.name, None)
    if change.file is not None:
        names[change.name] = change.file


def power_cuts(place: Path, config, rng: random.Random, most: int | None) -> Row:
    """Every state that a cut at any call of a run can leave, or `most` of them, drawn at random."""
    row, calls, states = Row("a power cut at the n-th call"), Disk(), {}
    said = lambda step: calls.log.append(("said", "", (None, step)))  # noqa: E731
    tortured.train(place / "powered", config, calls, said)
    directory, acknowledged = Directory(), 0
    for name, _, (path, *arguments) in calls.log:
        if name == "said":
            acknowledged = arguments[0]
        elif "checkpoints" in (Path(path).name, Path(path).parent.name):
            directory.see(name, Path(path), tuple(arguments))
        for state in directory.after_a_cut():
            digest = hashlib.sha256(repr(sorted(state.items())).encode()).digest()
            states[digest] = state, acknowledged  # of the same state, the most that was promised of it
    found = list(states.values())
    for state, promised in found if most is None else rng.sample(found, min(most, len(found))):
        if what := _lost(place / "cut", state, promised):
            row.count("lost", f"after step {promised}: {what}")
        else:
            row.count("survived")
    return row


def _lost(path: Path, state: dict[str, bytes], promised: int) -> str:
    """What is lost in a directory with the files of `state`; "" where nothing is."""
    path.mkdir()
    try:
        for name, data in state.items():
            (path / name).write_bytes(data)
        told: list[str] = []
        newest = checkpoint.latest(path, told.append)
        step = int(newest.arrays("progress")["step"]) if newest else 0
        if best := checkpoint.best(path):
            checkpoint.read(best)
        return told[0] if told else f"the newest is {step}" if step < promised else ""
    except CheckpointError as error:
        return str(error)
    finally:
        shutil.rmtree(path)
