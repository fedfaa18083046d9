"""What disks, cables and copies do to a checkpoint: changed bits, lost ends, lost and exchanged blocks."""

import argparse
import os
import random
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from hostile import content
from torture import Row

from gpbackprop import checkpoint
from gpbackprop.errors import CheckpointError

SECTOR = 512
SLICE = 2000
MEMORY = Path("/dev/shm")
"""Where the files lie unless --place is given: in memory, where there is such a place."""

Damage = Callable[[bytes, bytes, random.Random], bytes]
"""The bytes of a file, those of another checkpoint of the run, and a die -> the bytes that came back."""


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--files", type=int, default=120_000, help="that are damaged (default: %(default)s)")


def bits(data: bytes, other: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 8, 64))):
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def cut(data: bytes, other: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def zeroed(data: bytes, other: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(0, len(data), SECTOR)
    size = min(SECTOR * rng.choice((1, 1, 8, 64)), len(data) - at)
    return data[:at] + bytes(size) + data[at + size :]


def swapped(data: bytes, other: bytes, rng: random.Random) -> bytes:
    a, b = sorted(rng.randrange(0, len(data), SECTOR) for _ in range(2))
    parts = data[:a], data[a : a + SECTOR], data[a + SECTOR : b], data[b : b + SECTOR], data[b + SECTOR :]
    return parts[0] + parts[3] + parts[2] + parts[1] + parts[4] if b > a else data


def appended(data: bytes, other: bytes, rng: random.Random) -> bytes:
    return data + rng.choice((bytes(rng.randrange(1, 5000)), rng.randbytes(rng.randrange(1, 5000)), data, data[-48:]))


def mixed(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """Up to somewhere this checkpoint, then another: a write over an older file that was not finished."""
    at = rng.randrange(len(data))
    return data[:at] + other[at:]


def gone(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """Bytes out of the middle, or out of the front."""
    at = rng.choice((0, rng.randrange(len(data))))
    return data[:at] + data[at + rng.randrange(1, 2 * SECTOR) :]


KINDS: dict[str, Damage] = {
    "bits that flip": bits,
    "an end that is lost": cut,
    "sectors of zeros": zeroed,
    "sectors that are exchanged": swapped,
    "bytes behind the end": appended,
    "two checkpoints mixed": mixed,
    "bytes that are gone": gone,
}


def run(arguments: argparse.Namespace) -> Iterator[Row]:
    """Each damaged file is read; every 20th also as the newest of two, where the older one has to be found."""
    files = 2_000 if arguments.short else arguments.files
    place = arguments.place or (MEMORY if MEMORY.is_dir() else None)
    with tempfile.TemporaryDirectory(dir=place) as directory:
        for name, damage in KINDS.items():
            yield damaged(Path(directory), name, damage, -(-files // len(KINDS)), arguments.seed)


def damaged(directory: Path, name: str, damage: Damage, count: int, seed: int) -> Row:
    """`count` files with one kind of damage, read by processes that may die."""
    row, done = Row(name), 0
    wholes, (other, _) = [written(directory, 1, big) for big in (False, True)], written(directory, 2, big=False)
    while row.injected < count:
        reader, writer = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(reader)
            with os.fdopen(writer, "w") as pipe:
                for number in range(done, done + min(SLICE, count - row.injected)):
                    signal.alarm(20)
                    rng = random.Random(f"{seed} {name} {number}")
                    data, wanted = wholes[rng.random() < 0.05]
                    changed = damage(data, other, rng)
                    if changed in (data, other):
                        said = "unchanged"
                    else:
                        said = verdict(directory, changed, data, wanted, series=number % 20 == 0)
                    print(said, file=pipe, flush=True)
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as pipe:
            lines = pipe.read().splitlines()
        status = os.waitpid(pid, 0)[1]
        for number, said in enumerate(lines, done):
            if said != "unchanged":
                what = said.split(":")[0]
                row.count(what, "" if what == "survived" else f"number {number}: {said}")
        done += len(lines)
        if status:
            row.count("lost", f"number {done}: the reader died, status {status}")
            done += 1
    return row


def written(directory: Path, step: int, big: bool) -> tuple[bytes, dict[str, np.ndarray]]:
    """The bytes of a checkpoint, and what it holds: small, or of some 100 KiB."""
    extra = {"state/big": np.arange(25_000, dtype="f4")} if big else {}
    checkpoint.write(directory / "whole.h5", {**content(step), **extra})
    return (directory / "whole.h5").read_bytes(), checkpoint.read(directory / "whole.h5").arrays()


def verdict(directory: Path, data: bytes, whole: bytes, wanted: dict[str, np.ndarray], series: bool) -> str:
    """What happens to who reads `data` in the place of `whole`."""
    path = directory / "step-000000002.h5"
    path.write_bytes(data)
    try:
        found = checkpoint.read(path).arrays()
    except CheckpointError:
        return fallen_back(directory, whole) if series else "survived"
    except Exception as error:
        return f"lost: {error!r}"
    same = found.keys() == wanted.keys() and all(found[key].tobytes() == wanted[key].tobytes() for key in wanted)
    return "survived" if same else "silent: other bits"


def fallen_back(directory: Path, whole: bytes) -> str:
    """Whether the series goes back to the older checkpoint, and says why."""
    (directory / "step-000000001.h5").write_bytes(whole)
    told: list[str] = []
    try:
        found = checkpoint.latest(directory, warn=told.append)
    except CheckpointError as error:
        return f"lost: {error}"
    finally:
        for left in directory.glob("step-*"):
            left.unlink()
    if found is None or found.path.name != "step-000000001.h5":
        return "lost: did not fall back"
    return "survived" if told else "silent: fell back without a word"
