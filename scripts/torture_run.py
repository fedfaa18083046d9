"""The small run that is tortured, what is known of it when nothing happens, and the judgement on its directory."""

import dataclasses
import logging
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

from torture import Row

from gpbackprop import checkpoint
from gpbackprop.checkpoint import disk
from gpbackprop.config import Config, parse
from gpbackprop.errors import CheckpointError
from gpbackprop.run import Run, is_run, read_metrics

# What could be lost: moments, dropout's place in its draws, the schedule, the running mean of a norm, the best epoch.
CONFIG = """
name = "tortured"
seed = 3

[data]
source = "spirals"
rows = 120
noise = 0.02
validation = 0.2

[[model]]
type = "dense"
units = 8
activation = "relu"

[[model]]
type = "batch_norm"

[[model]]
type = "dropout"
rate = 0.1

[[model]]
type = "dense"
units = 2

[loss]
type = "softmax_cross_entropy"

[optimizer]
type = "adam"
lr = 0.02
schedule = "cosine"

[train]
epochs = {epochs}
batch_size = 16
checkpoint_every = "2 steps"
keep = 2
on_save_error = "{policy}"
"""

CLOCK = ("seconds", "samples_per_second", "save_error")


def config(epochs: int, policy: str = "stop") -> Config:
    return parse(CONFIG.replace("{epochs}", str(epochs)).replace("{policy}", policy), "tortured.toml")


Say = Callable[[int], object]


class Telling(checkpoint.Saver):
    """Says each step aloud at the moment when it counts as saved."""

    say: Say = staticmethod(lambda step: None)

    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, value)
        if name == "saved" and isinstance(value, int):
            self.say(value)


@contextmanager
def listening():
    """Inside, the warnings of the log go to the list that is given, and nowhere else."""
    told: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: told.append(record.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger("gpbackprop")
    log.addHandler(handler)
    log.propagate = False
    try:
        yield told
    finally:
        log.removeHandler(handler)
        log.propagate = True


def train(path: Path, config: Config, calls: disk.Calls | None = None, say: Say | None = None) -> int:
    """Train the run in `path` to its end, as `train --resume` does; returns the exit code.

    `calls` stand in the place of the disk's once the run is opened; `say` hears of each step that counts as saved.
    """
    run = Run.open(path, "cpu") if is_run(path) else Run.start(path, config, config.text(), "cpu")
    Telling.say = staticmethod(say or (lambda step: None))
    before = checkpoint.Saver, disk.calls
    checkpoint.Saver, disk.calls = Telling, calls or disk.calls  # type: ignore[misc]
    try:
        return run.train()[0]
    finally:
        checkpoint.Saver, disk.calls = before  # type: ignore[misc]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What of a finished run does not depend on the clock."""

    checkpoint: bytes
    best: bytes
    metrics: list[dict]

    @classmethod
    def of(cls, path: Path) -> "Outcome":
        directory = path / "checkpoints"
        rows = [{key: row[key] for key in row if key not in CLOCK} for row in read_metrics(path / "metrics.jsonl")]
        newest = max(directory.glob("step-*.h5"))
        return cls(newest.read_bytes(), (directory / "best.json").read_bytes(), rows)

    def differs(self, other: "Outcome") -> str:
        """The names of the parts that differ from those of `other`; "" where none does."""
        names = [field.name for field in dataclasses.fields(self)]
        return ", ".join(name for name in names if getattr(self, name) != getattr(other, name))


def lost(path: Path, acknowledged: int) -> str:
    """What is lost in the directory of a run that said that step `acknowledged` is saved; "" where nothing is."""
    directory = path / "checkpoints"
    steps = []
    for file in sorted(directory.glob("*.h5")):
        try:
            steps.append(int(checkpoint.read(file).arrays("progress")["step"]))
        except CheckpointError as error:
            return f"unreadable: {error}"
    newest = max(steps, default=0)
    return f"step {acknowledged} was said to be saved, the newest is {newest}" if newest < acknowledged else ""


def judge(row: Row, path: Path, wanted: Outcome, note: str) -> None:
    """Count a fault whose run has been brought to its end by what came of it."""
    found = Outcome.of(path).differs(wanted)
    row.count("silent" if found else "survived", f"{note}: other {found} than without a fault" if found else "")
