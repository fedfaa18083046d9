"""A disk that refuses: every n-th call fails, then all later ones too; no room; no large files; the power goes."""

import argparse
import errno
import os
import random
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torture_run as tortured
from torture import Row
from torture_disk import ERRNOS, Disk, Fault, fails, is_short, tears
from torture_power import power_cuts

from gpbackprop.errors import CheckpointError, GPError

KINDS: dict[str, tuple[Fault, bool]] = {
    **{f"{name} at the n-th call": (fails(code), False) for name, code in ERRNOS.items()},
    "half of a write, then ENOSPC": (tears(errno.ENOSPC), False),
    "a short write": (is_short, False),
    **{f"{name} from the n-th call on": (fails(ERRNOS[name]), True) for name in ("ENOSPC", "EIO", "EROFS")},
}


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--epochs", type=int, default=2, help="of the small run (default: %(default)s)")


def run(arguments: argparse.Namespace) -> Iterator[Row]:
    """Each fault meets both policies, `on_save_error = "stop"` and "continue"."""
    with tempfile.TemporaryDirectory(dir=arguments.place) as directory:
        place, rng = Path(directory), random.Random(arguments.seed)
        configs = [tortured.config(arguments.epochs, policy) for policy in ("stop", "continue")]
        undisturbed = []
        for config in configs:
            path = place / config.train.on_save_error
            tortured.train(path, config, counted := Disk())
            undisturbed.append(tortured.Outcome.of(path))
        calls = range(1, len(counted.log) + 1)
        for name, (fault, stays) in KINDS.items():
            row = Row(name)
            for config, wanted in zip(configs, undisturbed, strict=True):
                for at in rng.sample(calls, 1) if arguments.short else calls:
                    struck(row, place / "run", config, wanted, Disk(at, fault, stays))
            yield row
        config, wanted = configs[0], undisturbed[0]
        yield too_large(place, config, wanted, range(0, 40_000, 16_384 if arguments.short else 512))
        yield too_full(place, config, wanted, range(4, 160, 48 if arguments.short else 4))
        yield power_cuts(place, config, rng, 200 if arguments.short else None)


def struck(row: Row, path: Path, config, wanted: tortured.Outcome, calls: Disk) -> None:
    """One fault, what was told of it, what it left behind, and the run when it is resumed."""
    refused, said, policy = "", [0], config.train.on_save_error
    with tortured.listening() as told:
        try:
            tortured.train(path, config, calls, said.append)
        except CheckpointError as error:
            refused = str(error)
    note = f"on_save_error = {policy}, call {calls.at}: {calls.struck}"
    left = [name for name in os.listdir(path / "checkpoints") if name.endswith(".tmp")]
    if what := tortured.lost(path, said[-1]):
        row.count("lost", f"{note}: {what}")
    elif calls.fault is not is_short and not refused and not told:
        row.count("silent", f"{note}: nobody was told")
    elif refused and policy == "continue" and not calls.stays:
        row.count("silent", f"{note}: training should have gone on: {refused}")
    elif refused and "resume" not in refused:
        row.count("silent", f"{note}: the message does not say how to go on: {refused}")
    elif left and not calls.stays:
        row.count("silent", f"{note}: {left[0]} was left behind")
    else:
        if refused:
            tortured.train(path, config)
        tortured.judge(row, path, wanted, note)
    shutil.rmtree(path)


def too_large(place: Path, config, wanted: tortured.Outcome, sizes: range) -> Row:
    """No file of the run may have more than so many bytes."""
    row = Row("a limit on the size of files")
    try:
        import resource
    except ImportError:
        row.notes.append("left out: this system has no such limits")
        return row

    def limited(size: int) -> int:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        return attempt(place / "run", config)

    for size in sizes:
        told(row, place / "run", config, wanted, forked(limited, size), f"{size} bytes")
    return row


def too_full(place: Path, config, wanted: tortured.Outcome, sizes: range) -> Row:
    """The run lies on a file system of so many KiB, which is then made larger."""
    row, disk = Row("a full file system"), place / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(disk)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        row.notes.append("left out: this user may not mount a tmpfs")
        return row
    try:
        for size in sizes:
            for room in f"{size}k", "8m":
                subprocess.run(["mount", "-o", f"remount,size={room}", str(disk)], check=True)
                if room != "8m":
                    code = forked(lambda _: attempt(disk / "run", config), 0)
            told(row, disk / "run", config, wanted, code, f"{size} KiB")
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    return row


def attempt(path: Path, config) -> int:
    """Train; the exit code that the command line would end with. An error that nobody foresaw is raised."""
    try:
        return tortured.train(path, config)
    except GPError as error:
        return error.exit_code


def forked(call, argument) -> int:
    """The exit code of `call(argument)` in a process of its own."""
    if not (pid := os.fork()):
        code = 1
        try:
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), 2)
            code = call(argument)
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def told(row: Row, path: Path, config, wanted: tortured.Outcome, code: int, note: str) -> None:
    """Count an attempt that ended with `code`, after the run was brought to its end with room enough."""
    if code not in (0, CheckpointError.exit_code, 2):  # 2 where there is not even room for the run's config
        row.count("silent", f"{note}: exit code {code}, expected 4")
    elif what := tortured.lost(path, 0):
        row.count("lost", f"{note}: {what}")
    else:
        if code:
            tortured.train(path, config)
        tortured.judge(row, path, wanted, note)
    shutil.rmtree(path, ignore_errors=True)
