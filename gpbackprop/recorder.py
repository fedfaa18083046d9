"""Floor 5: what a run writes down while it trains: a line an epoch, and checkpoints when they are due."""

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpbackprop import checkpoint
from gpbackprop.due import Due
from gpbackprop.errors import CheckpointError
from gpbackprop.trainer import Hook, Row, Trainer

log = logging.getLogger("gpbackprop")


class Recorder(Hook):
    """Appends each epoch to metrics.jsonl, and saves checkpoints while training goes on.

    Used as a context: when it is left, nothing is in flight. What the disk refuses comes at the next step as
    CheckpointError, or, with `on_save_error = "continue"`, as a warning in the log and as `save_error` in the next line
    of metrics.jsonl.
    """

    def __init__(self, path: Path, trainer: Trainer):
        self.path, self.trainer = path, trainer
        self.directory, self.metrics = path / "checkpoints", path / "metrics.jsonl"
        saved = trainer.step if any(self.directory.glob("step-*.h5")) else None
        self._due = Due(trainer)
        self.saver = checkpoint.Saver(self.directory, trainer.train.keep, log.warning, saved, self._due.at)
        self._time = time.monotonic()
        self._size = self.metrics.stat().st_size if self.metrics.is_file() else 0
        self._lines: list[str] = []
        self._told: str | None = None
        best = self._best()
        if best and saved is not None:  # a crash may have come between the checkpoint and this record of it
            self._heed(lambda: checkpoint.mark_best(self.directory, saved, best))

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._settle()

    def on_step(self, trainer: Trainer) -> None:
        self._heed(self.saver.check)
        # The last step of an epoch is saved with the epoch's results.
        if trainer.batch_in_epoch < trainer.steps_per_epoch and self._is_due():
            self._begin()

    def on_epoch(self, trainer: Trainer, row: Row) -> None:
        self._append(row)
        best = self._best()
        if best:
            self._due.best.add(trainer.step)
        if self._is_due() or best:
            self._begin()

    def save(self) -> None:
        """Return when the present step is on the disk. Raises CheckpointError, whatever the policy, where it is not."""
        try:
            self.saver.wait()
        except CheckpointError as error:
            log.warning("%s; trying again", error)
        if self.saver.saved != self.trainer.step:
            try:
                self._begin()
                self.saver.wait()
            except CheckpointError as error:
                raise self._stopped(error) from error

    @property
    def saved(self) -> int | None:
        """The newest step that is known to be on the disk."""
        return self.saver.saved

    def _is_due(self) -> bool:
        """Whether `checkpoint_every` asks for a save of the present step."""
        if self._due.unit == "minute":
            return time.monotonic() - self._time >= 60 * self._due.every
        return self._due.asked(self.trainer.step)

    def _begin(self) -> None:
        self._heed(self.saver.wait)
        self._time = time.monotonic()
        self.saver.begin(self.trainer.step, self.trainer.content(), self._best())

    def _best(self) -> dict[str, Any] | None:
        """What best.json says of the present step, if it ends the best epoch."""
        monitor, trainer = self.trainer.monitor, self.trainer
        if monitor.saves and monitor.best_epoch == trainer.epoch > 0 and not trainer.batch_in_epoch:
            return {"metric": monitor.column, "value": monitor.best, "epoch": monitor.best_epoch}
        return None

    def _append(self, row: Row) -> None:
        """Add a line to metrics.jsonl, after those that found no room before."""
        if self._told:
            row, self._told = row | {"save_error": self._told}, None
        self._lines.append(json.dumps(row) + "\n")
        self._heed(self._write)

    def _write(self) -> None:
        text = "".join(self._lines).encode()
        try:
            with open(self.metrics, "ab") as file:
                if file.tell() > self._size:
                    file.truncate(self._size)  # what is left of a line that found no room
                file.write(text)
        except OSError as error:
            raise CheckpointError(
                f"{self.metrics}: could not be written: {error.strerror or error}. Make room in {self.path}, or let "
                "this user write there"
            ) from error
        self._size += len(text)
        self._lines.clear()

    def _heed(self, call: Callable[[], None]) -> None:
        """Make a call that may find out that something was not written, and do what the policy says then."""
        try:
            call()
        except CheckpointError as error:
            if self.trainer.train.on_save_error == "stop":
                raise self._stopped(error) from error
            log.warning("%s. Training goes on, and the next save tries again", error)
            self._told = str(error)

    def _settle(self) -> None:
        """Wait for a save in flight, when another error ends training."""
        try:
            self.saver.wait()
        except CheckpointError as lost:
            log.warning("%s", lost)

    def _stopped(self, error: CheckpointError) -> CheckpointError:
        """`error` with what it means for the run."""
        self._settle()  # which may make one more step safe
        trainer, saved = self.trainer, self.saver.saved
        epoch = trainer.epoch + bool(trainer.batch_in_epoch)
        safe = "No step of this run is saved yet" if saved is None else f"Step {saved} is saved, and whole"
        return CheckpointError(
            f"training stopped after step {trainer.step} (epoch {epoch}): {error}. {safe}; "
            f"`gpbackprop resume {self.path}` goes on from there"
        )
