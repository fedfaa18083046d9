"""SIGKILL, at random moments of training and saving, and at every point of every save."""

import argparse
import itertools
import os
import random
import shutil
import signal
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import torture_run as tortured
from torture import Row
from torture_disk import Disk, kills

from gpbackprop.checkpoint import disk


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--kills", type=int, default=1000, help="at random moments (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=6, help="of the small run (default: %(default)s)")


def run(arguments: argparse.Namespace) -> Iterator[Row]:
    """A process is forked for each kill: it opens the run as a new one would, without the second of its imports."""
    if arguments.short:
        arguments.kills, arguments.epochs = 90, 2
    with tempfile.TemporaryDirectory(dir=arguments.place) as directory:
        place = Path(directory)
        config = tortured.config(arguments.epochs)
        counted = Disk()
        tortured.train(place / "whole", config, counted)
        wanted = tortured.Outcome.of(place / "whole")
        points = list(range(1, len(counted.log) + 1))
        rng = random.Random(arguments.seed)
        if arguments.short:
            points = rng.sample(points, 8)
        yield at_random(place, config, wanted, arguments.kills, rng)
        named: dict[str, list[int]] = {}
        for point in points:
            named.setdefault(counted.named(point), []).append(point)
        for name, group in named.items():
            yield at_points(place, config, wanted, name, group)


def at_random(place: Path, config, wanted: tortured.Outcome, kills: int, rng: random.Random) -> Row:
    """Kills at any moment: of the start, of a step, of a save. A run is killed until it happens to reach its end."""
    row, path, begun, acknowledged = Row("kill at a random moment"), place / "random", 0, 0
    start = time.monotonic()
    child(path / "timed", config)
    whole = time.monotonic() - start
    shutil.rmtree(path / "timed")
    while row.injected + begun < kills or begun:
        enough = row.injected + begun >= kills
        code, said = child(path / "run", config, seconds=None if enough else rng.uniform(0, whole / 2))
        acknowledged = max(acknowledged, said)
        if what := tortured.lost(path / "run", acknowledged):
            row.count("lost", f"kill {row.injected + begun}: {what}")
        elif code == -signal.SIGKILL:
            begun += 1
            continue
        else:  # it ended before it was killed: now all kills of it are judged at once
            found = f"exit code {code}" if code else tortured.Outcome.of(path / "run").differs(wanted)
            for _ in range(begun):
                row.count("silent" if found else "survived", found)
        shutil.rmtree(path / "run")
        begun = acknowledged = 0
    return row


def at_points(place: Path, config, wanted: tortured.Outcome, name: str, points: list[int]) -> Row:
    """Kills at the calls with the numbers `points`, each in a run of its own that is then resumed."""
    row = Row(f"kill at {name}")
    for point, when in itertools.product(points, ("before", "in", "after") if "write" in name else ("before", "after")):
        path, note = place / f"{point}-{when}", f"{when} call {point}"
        code, said = child(path, config, Disk(point, kills(when)))
        if code != -signal.SIGKILL:
            row.count("silent", f"{note}: it was to be killed there, and ended with exit code {code}")
        elif what := tortured.lost(path, said):
            row.count("lost", f"{note}: {what}")
        elif code := child(path, config)[0]:
            row.count("lost", f"{note}: the run that was resumed ended with exit code {code}")
        else:
            tortured.judge(row, path, wanted, note)
        shutil.rmtree(path)
    return row


def child(path: Path, config, calls: disk.Calls | None = None, seconds: float | None = None) -> tuple[int, int]:
    """Train in a process of its own, which is killed after `seconds`; its exit code, and the newest step it said."""
    reader, writer = os.pipe()
    if not (pid := os.fork()):
        code = 1
        try:
            os.close(reader)
            code = tortured.train(path, config, calls, lambda step: os.write(writer, step.to_bytes(4, "little")))
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writer)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(pid, signal.SIGKILL)
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read()  # to its end, which is that of the process
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return code, int.from_bytes(said[-4:], "little")
