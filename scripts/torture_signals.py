"""SIGTERM, SIGINT and SIGUSR1 at random moments: of the start, a step, a save, an evaluation, the end.

A process that is told once saves the step that it is in and says 75 or 130; told twice, it ends at once; with a grace
time it has ended by then. What it leaves is resumed to its end, to the same bits. Where the second signal or the end of
the grace time is to find something, steps are made long.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import torture_run as tortured
from torture import Row

from gpbackprop import checkpoint, cli
from gpbackprop.errors import CheckpointError
from gpbackprop.run import Run, is_run
from gpbackprop.stopping import CODES, ECHO
from gpbackprop.trainer import Hook, Trainer

LONG, SHORT = 0.4, 0.1
"""Seconds that a long step takes, and of a grace time that is over before it."""

KINDS = {  # seconds of a step, of the grace time, and whether there is a second signal
    "once": (0.0, None, False),
    "once, grace 30 s": (0.0, 30.0, False),
    f"once, grace {SHORT} s": (LONG, SHORT, False),
    "twice": (LONG, None, True),
    "twice, grace 30 s": (LONG, 30.0, True),
}


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=60, help="of each kind and signal (default: %(default)s)")


def run(arguments: argparse.Namespace) -> Iterator[Row]:
    rounds = 1 if arguments.short else arguments.rounds
    rng, config = random.Random(arguments.seed), tortured.config(2)
    with tempfile.TemporaryDirectory(dir=arguments.place) as directory:
        place = Path(directory)
        tortured.train(place / "whole", config)
        wanted = tortured.Outcome.of(place / "whole")
        start = time.monotonic()
        ended(begun(place / "timed", config, None, 0.0)[0])
        quick = time.monotonic() - start
        for number in CODES:
            for kind in KINDS if not arguments.short else rng.sample(list(KINDS), 2):
                row = Row(f"{signal.Signals(number).name} {kind}")
                for turn in range(rounds):
                    once(row, place / f"{number}-{turn}", config, wanted, number, *KINDS[kind], quick, rng)
                yield row


def once(row, path, config, wanted, number, long, grace, twice, quick, rng) -> None:
    """One process, one or two signals, and what came of them."""
    pid, said = begun(path, config, grace, long)
    time.sleep(rng.uniform(0, quick + 2 * long))
    told = time.monotonic()
    os.kill(pid, number)
    if twice:
        time.sleep(ECHO + rng.uniform(0.02, 0.1))
        os.kill(pid, number)  # it may have ended: it is there until it is waited for
    code, steps = ended(pid, said)
    seconds, note = time.monotonic() - told, f"turn {row.injected}, exit code {code}"
    expected = {0, CODES[number], *((128 + number,) if twice else ())}
    saved = newest(path)
    if code not in expected:
        row.count("silent", f"{note}: expected {expected}")
    elif seconds > (30 if grace is None else grace + 5) or (twice and seconds > 5):
        row.count("silent", f"{note}: took {seconds:.1f} s to end")
    elif isinstance(saved, str):
        row.count("lost", f"{note}: {saved}")
    elif long == 0 and code and steps and saved != steps:
        row.count("lost", f"{note}: {steps} steps were done, {saved} are saved")
    else:
        tortured.train(path, config)
        tortured.judge(row, path, wanted, note)
    shutil.rmtree(path, ignore_errors=True)


class Telling(Hook):
    """Says how many steps are done, through a pipe, and makes them long."""

    def __init__(self, pipe: int, seconds: float):
        self.pipe, self.seconds = pipe, seconds

    def on_step(self, trainer: Trainer) -> None:
        os.write(self.pipe, trainer.step.to_bytes(4, "little"))
        time.sleep(self.seconds)


def begun(path: Path, config, grace: float | None, long: float) -> tuple[int, int]:
    """A process that trains the run in `path` as the command line does, and the pipe that it says its steps through."""
    reader, writer = os.pipe()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, CODES)  # until the process has handlers
    if pid := os.fork():
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.close(writer)
        return pid, reader
    code = 1
    try:
        for number in CODES:
            signal.signal(number, cli._leave)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.close(reader)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        trained = Run.open(path, "cpu") if is_run(path) else Run.start(path, config, config.text(), "cpu")
        code = trained.train(hooks=[Telling(writer, long)], grace=grace)[0]
    except BaseException:
        traceback.print_exc(file=sys.__stdout__)
    finally:
        os._exit(code)


def ended(pid: int, pipe: int | None = None) -> tuple[int, int]:
    """The exit code of the process, and the last step that it said."""
    said = b""
    if pipe is not None:
        with os.fdopen(pipe, "rb") as file:
            said = file.read()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), int.from_bytes(said[-4:], "little")


def newest(path: Path) -> int | str | None:
    """The step of the newest checkpoint, None where there is none, or what is wrong with one of them."""
    steps = []
    for file in sorted((path / "checkpoints").glob("*.h5")):
        try:
            steps.append(int(checkpoint.read(file).arrays("progress")["step"]))
        except CheckpointError as error:
            return str(error)
    return max(steps, default=None)
