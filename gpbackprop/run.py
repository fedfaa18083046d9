"""Floor 5: one run and its directory.

config.toml            as given                      config.resolved.toml   every default written out; loads again
run.json               versions, device, digest      metrics.jsonl          one object an epoch
log.txt                what was said                 checkpoints/           step-000001200.h5, last.json, best.json
"""

import dataclasses
import json
import logging
import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

import gpbackprop
from gpbackprop import checkpoint
from gpbackprop.backend import Backend
from gpbackprop.checkpoint import disk
from gpbackprop.config import Config, parse, read_text
from gpbackprop.data import Dataset, folds
from gpbackprop.data.stored import Stored
from gpbackprop.errors import CheckpointError, DataError, GPError, NumericalError, OutOfMemoryError, UsageError
from gpbackprop.lock import Lock
from gpbackprop.logfile import log_file
from gpbackprop.numerics import differences, numerics
from gpbackprop.recorder import Recorder
from gpbackprop.restoring import restore, roll_back
from gpbackprop.sizes import table
from gpbackprop.stopping import stopping_at_signals
from gpbackprop.trainer import Hook, Row, Trainer, member_row

log = logging.getLogger("gpbackprop")

TEMPORARY = re.compile(r"\.(run\.json|metrics\.jsonl|config\.resolved\.toml)\.[0-9a-f]{16}\.tmp")


class Run:
    """A trainer and the directory that it leaves behind.

    `Run.start` makes a directory, `Run.open` continues one from its newest checkpoint; `train()` goes on until the
    epochs are done or a signal asks it to stop, and returns the exit code.
    """

    def __init__(self, path: Path, config: Config, trainer: Trainer, lock: Lock):
        self.path, self.config, self.trainer, self._lock = path, config, trainer, lock
        self._numerics, self._inexact = numerics(trainer.backend), list[str]()

    @classmethod
    def start(
        cls, path: Path, config: Config, given: str, device: str | Backend = "auto", data: Dataset | None = None
    ) -> "Run":
        """A new run in an empty or missing directory; `given` is the config's text as the user wrote it."""
        if is_run(path):
            raise UsageError(f"{path} holds a run already; add --resume to continue it, or choose another --run-dir")
        if (path / "checkpoints").is_dir() and checkpoint.files(path / "checkpoints"):
            raise UsageError(
                f"{path} holds checkpoints, but the config.resolved.toml of their run is gone; bring it back (each of "
                "them holds its text, as /config), or choose another --run-dir"
            )
        trainer = config.trainer(device, data)  # before anything is written: most mistakes end here
        config = config.settled(trainer.data)
        try:
            (path / "checkpoints").mkdir(parents=True, exist_ok=True)
            disk.sync(path.parent)
            lock = Lock(path)
            if is_run(path):
                lock.close()
                raise UsageError(
                    f"{path} holds a run by now, which another process has begun; `resume` goes on with it"
                )
            (path / "config.toml").write_text(given, encoding="utf-8")
            _replace(path / "config.resolved.toml", config.text())  # last: it makes the directory a run
        except OSError as error:
            raise UsageError(f"{path}: the run directory cannot be made: {error.strerror or error}") from None
        return cls(path, config, trainer, lock)

    @classmethod
    def open(
        cls, path: Path, device: str | Backend = "auto", epochs: int | None = None, allow_inexact: bool = False
    ) -> "Run":
        """The run in `path`, at its newest whole checkpoint; at its start where it has none yet.

        `epochs` is a new number of epochs to end with; it goes into the resolved config, so that whoever resumes the
        run the next time means the same. Raises DataError where the data are not those that the run began with, and,
        unless `allow_inexact`, UsageError where training would go on with other bits than on the machine before.
        """
        config = stored_config(path)
        if epochs is not None and epochs != config.train.epochs:
            config = dataclasses.replace(config, train=dataclasses.replace(config.train, epochs=epochs))
        lock = Lock(path)
        try:
            trainer = config.trainer(device)
            run = cls(path, config.settled(trainer.data), trainer, lock)
            run._continue(allow_inexact)
        except BaseException:
            lock.close()
            raise
        return run

    def _continue(self, allow_inexact: bool) -> None:
        """Bring the trainer and the files to the newest whole checkpoint."""
        data, known = self.trainer.data, read_facts(self.path).get("data_digest")
        if known not in (None, data.digest):
            raise DataError(
                f"{data.name}: the rows differ from those that the run {self.path} began with; bring the old ones back "
                "(or the version of gpbackprop that is in its run.json), or train anew in another directory"
            )
        found = checkpoint.latest(self.path / "checkpoints", warn=log.warning)
        if found:
            restore(self.trainer, found)
            self._expect_same_bits(allow_inexact)
        for left in filter(TEMPORARY.fullmatch, os.listdir(self.path)):  # a kill in the middle of _replace
            with suppress(OSError):
                (self.path / left).unlink()
        _replace(self.path / "config.resolved.toml", self.config.text())
        self._cut_metrics()

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    def _expect_same_bits(self, allow_inexact: bool) -> None:
        """Raise UsageError, unless it is allowed, where training would go on with what may round otherwise."""
        before, trainer = read_facts(self.path).get("numerics"), self.trainer
        if not isinstance(before, dict):
            log.warning("%s: does not say on what the run was trained; the bits may differ", self.path / "run.json")
            return
        if trainer.epoch >= trainer.train.epochs or trainer.monitor.exhausted:
            self._numerics = before  # nothing is trained here
            return
        self._inexact = differences(before, self._numerics)
        if self._inexact and not allow_inexact:
            raise UsageError(
                f"{self.path}: going on here would not end with the same bits as before:\n  "
                + "\n  ".join(self._inexact)
                + "\ngo back to what it was, or add --allow-inexact, which run.json then tells of"
            )

    def _cut_metrics(self) -> None:
        """Bring metrics.jsonl to the checkpoint: each of its epochs once, none after it, and no torn line.

        What a crash has kept from the file comes from the checkpoint, which knows all but the seconds.
        """
        written = {row["epoch"]: row for row in read_metrics(self.metrics_file)}
        rows = []
        for row in self.trainer.history:
            found = written.get(row["epoch"], {})
            rows.append(found if found | row == found else row)
        _replace(self.metrics_file, "".join(json.dumps(row) + "\n" for row in rows))

    def train(
        self, epochs: int | None = None, hooks: Sequence[Hook] = (), grace: float | None = None
    ) -> tuple[int, Row]:
        """Train and save; returns the exit code and the outcome for --json.

        The code is 0, or after a signal, which the run is saved at, 75 (SIGTERM, SIGUSR1) or 130 (SIGINT). What is not
        done `grace` seconds after it, or at a second signal, ends the program at once.
        """
        start, code = time.perf_counter(), 1
        session: dict[str, Any] = {"start": now(), "end": None, "device": self.trainer.backend.name, "exit_code": None}
        if self._inexact:
            session["inexact"] = self._inexact
        sessions = [*read_facts(self.path).get("sessions", []), session]
        with stopping_at_signals(self.trainer.stop, grace) as stop:
            try:
                self._write_facts(sessions)
                with log_file(self.path / "log.txt"):
                    self._fit(epochs, hooks)
                    code = stop.code or 0
                    outcome = self.outcome(time.perf_counter() - start, evaluate=not code)
            except GPError as error:
                code = error.exit_code
                raise
            except MemoryError as error:
                code = OutOfMemoryError.exit_code
                raise OutOfMemoryError(
                    f"out of memory: {error or 'no more could be had'}. Training takes, beside what is written:\n"
                    f"{table(self.trainer.sizes)}\nmake train.batch_size, the model or the population smaller"
                ) from error
            finally:
                session |= {"end": now(), "exit_code": code}
                self._write_facts(sessions)
                self._lock.close()
        return code, outcome

    def _fit(self, epochs: int | None, hooks: Sequence[Hook]) -> None:
        """Train, and go back to the last checkpoint where that is what a number that is not finite calls for."""
        trainer, train = self.trainer, self.trainer.train
        if self._lock.stale:
            log.info("%s: taken over from %s, which is gone", self.path, self._lock.stale)
        split = trainer.data.splits["train"]
        if split.stream:
            where = "their file" if isinstance(split.inputs, Stored) else "memory"
            log.info("the rows come from %s in portions of %g MB (data.stream)", where, split.stream.size / 1e6)
        if self._inexact:
            log.warning("the bits may differ from here on:\n  %s", "\n  ".join(self._inexact))
        stopped = False
        while True:
            try:
                with Recorder(self.path, trainer) as recorder:
                    if train.on_nan == "rollback" and recorder.saved is None:
                        recorder.save()  # the start is a state to go back to
                    if not stopped:
                        trainer.fit(epochs, hooks=[_Holding(self._lock), recorder, *hooks])
                        stopped = trainer.epoch < trainer.epochs and not trainer.monitor.exhausted
                    recorder.save()
                return
            except NumericalError as error:
                if train.on_nan == "stop" or trainer.rollbacks >= train.rollbacks:
                    raise
                if not roll_back(trainer, self.path / "checkpoints"):
                    raise
                self._cut_metrics()
                log.warning(
                    "%s. Rolled back: on from step %d (epoch %d) with half the learning rate, rollback %d of up to %d",
                    error, trainer.step, trainer.epoch + 1, trainer.rollbacks, train.rollbacks,
                )  # fmt: skip

    def member(self, k: int, path: Path) -> "Run":
        """Member `k` of the population as a run of its own in the new directory `path`, as if trained alone.

        Its checkpoint holds the present step, with the bits of that seed (and that member's fold, and its entry of
        hyper-parameters given as lists) trained alone; it is marked as the best one where it is. The seconds in
        metrics.jsonl are those of the whole population. The directory appears at once and whole. Raises UsageError
        where there is one already, and for a swarm, whose members are not networks of their own.
        """
        if self.config.optimizer.swarm:
            raise UsageError(f"{self.path}: all particles of a swarm make one network, which is that of the run itself")
        if path.exists():
            raise UsageError(f"{path}: is there already; remove it, or choose another place for the run of one member")
        config, data = self.config.member(k), self.trainer.data
        if data.preparation.folds:
            data = folds.alone(data, k)
        temporary = path.with_name(f".{path.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        given = read_text(self.path / "config.toml")
        alone = Run.start(temporary, config, given, self.trainer.backend, data)
        alone.trainer.take(self.trainer, k)
        rows = [member_row(row, k) for row in read_metrics(self.metrics_file)]
        _replace(alone.metrics_file, "".join(json.dumps(row) + "\n" for row in rows))
        alone._write_facts(read_facts(self.path).get("sessions", []))
        Recorder(temporary, alone.trainer).save()
        alone._lock.close()
        os.replace(temporary, path)
        alone.path = path
        return alone

    def outcome(self, seconds: float, evaluate: bool = True) -> Row:
        """What --json prints: where the run lies, how far it came, and the results on each split."""
        trainer = self.trainer
        last = trainer.history[-1] if trainer.history else {}
        results: Row = {"train": {}, "validation": {}}
        for name, value in last.items():
            split, _, metric = name.partition("_")
            if split in results:
                results[split][metric] = value
        if evaluate and "test" in trainer.data.splits:
            with np.errstate(all="ignore"):
                results["test"] = trainer.evaluate("test")
        return {
            "run_dir": str(self.path),
            "device": trainer.backend.name,
            "epochs": trainer.epoch,
            "steps": trainer.step,
            "seconds": seconds,
            **{split: metrics for split, metrics in results.items() if metrics},
        }

    def _write_facts(self, sessions: list[dict]) -> None:
        trainer = self.trainer
        facts: dict[str, Any] = {
            "name": self.config.name,
            "gpbackprop": gpbackprop.__version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
            "platform": platform.platform(),
            "device": trainer.backend.name,
            "device_description": trainer.backend.description,
            "precision": trainer.train.precision,
            "numerics": self._numerics,
            "seeds": list(trainer.seeds),
            "parameters": trainer.network.parameter_count,
            "data": trainer.data.name,
            "data_digest": trainer.data.digest,
            "arguments": sys.argv,
            "sessions": sessions,
        }
        try:
            _replace(self.path / "run.json", json.dumps(facts, indent=2) + "\n")
        except CheckpointError as error:  # a resume that finds none says so
            log.warning("%s", error)


def is_run(path: Path) -> bool:
    """Whether `path` is a run directory."""
    return (path / "config.resolved.toml").is_file()


def stored_config(path: Path) -> Config:
    """The config of the run in `path`. Raises UsageError where there is no run."""
    if not is_run(path):
        found = "it has no config.resolved.toml" if path.is_dir() else "there is no such directory"
        raise UsageError(f"{path} is not a run directory: {found}")
    return parse(read_text(path / "config.resolved.toml"), str(path / "config.resolved.toml"))


def read_facts(path: Path) -> dict[str, Any]:
    """What the run.json of a run directory says; nothing where there is none, or none that can be read."""
    try:
        facts = json.loads((path / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


def _replace(path: Path, text: str) -> None:
    """Write a small file, unless it says the same already; a crash or a power cut leaves the old or the new text."""
    if path.exists() and path.read_bytes() == text.encode():
        return
    disk.replace(path, text.encode())


def read_metrics(path: Path) -> list[Row]:
    """The rows of a metrics.jsonl up to the first line that is torn; nothing where there is no such file."""
    rows: list[Row] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except ValueError:
            break
        if not isinstance(row, dict) or not isinstance(row.get("epoch"), int):
            break
        rows.append(row)
    return rows


def fresh_directory(name: str, root: Path = Path("runs")) -> Path:
    """runs/NAME, or runs/NAME-2, -3, ... where that is taken."""
    path, count = root / name, 1
    while path.exists() and any(path.iterdir()):
        count += 1
        path = root / f"{name}-{count}"
    return path


class _Holding(Hook):
    """Stops a run whose directory is another process's by now, before it writes there again."""

    def __init__(self, lock: Lock):
        self.lock = lock

    def on_step(self, trainer: Trainer) -> None:
        self.lock.check()


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
