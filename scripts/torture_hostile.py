"""Files that somebody made to harm whoever reads them: each is refused, with what was found in it, at once."""

import argparse
import multiprocessing
import os
import random
import re
import signal
import tempfile
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

from hostile import KINDS, content, make, sealed
from torture import Row

from gpbackprop import checkpoint
from gpbackprop.errors import CheckpointError

SECONDS, BYTES = 1.0, 64 << 20
"""What the reader may take of time, and of memory beside the size of the file."""
SLICE = 2000


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--changes", type=int, default=200_000, help="at random inside (default: %(default)s)")


def run(arguments: argparse.Namespace) -> Iterator[Row]:
    """A row for each kind, with the time and memory that it took; then files changed at random, their digests right."""
    changes = 2_000 if arguments.short else arguments.changes
    with tempfile.TemporaryDirectory(dir=arguments.place) as directory:
        for number, (name, (build, why)) in enumerate(KINDS.items()):
            folder = Path(directory) / str(number)
            folder.mkdir()
            path = make(folder, build)
            row = Row(name)
            verdict, seconds, memory = judged(path, why)
            row.name += f" ({1000 * seconds:.0f} ms, {memory / (1 << 20):.1f} MiB)"
            row.count("survived" if verdict is None else "silent" if "accepted" in verdict else "lost", verdict or "")
            yield row
        yield at_random(Path(directory), changes, arguments.seed)


def judged(path: Path, why: str) -> tuple[str | None, float, int]:
    """What is wrong with how `path` is refused, None where nothing is; the seconds and the bytes of memory it took.

    It is read in a process of its own, which may die.
    """
    ours, theirs = multiprocessing.get_context("fork").Pipe()
    pid = os.fork()
    if not pid:
        signal.alarm(20)
        theirs.send(measured(path))
        os._exit(0)
    theirs.close()
    try:
        said, seconds, memory = ours.recv()
    except EOFError:
        return f"the reader died: status {os.waitpid(pid, 0)[1]}", 0.0, 0
    os.waitpid(pid, 0)
    if said is None:
        return "accepted", seconds, memory
    if not re.search(why, said):
        return f"refused with {said!r}, expected {why!r}", seconds, memory
    if seconds > SECONDS or memory > BYTES:
        return f"took {seconds:.2f} s and {memory} bytes", seconds, memory
    return None, seconds, memory


def measured(path: Path) -> tuple[str | None, float, int]:
    """What the reader says of `path`, None where it reads all of it; seconds, and bytes beside those of the file."""
    start = time.perf_counter()
    said = refusal(path)
    seconds = time.perf_counter() - start
    tracemalloc.start()
    refusal(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return said, seconds, peak


def refusal(path: Path) -> str | None:
    try:
        checkpoint.read(path).arrays()
    except CheckpointError as error:
        return str(error)
    return None


def at_random(folder: Path, count: int, seed: int) -> Row:
    """Changes of the bytes between the arrays, in a file that is then given its right digest.

    Such a file is somebody's own, so there are no bits that it must give: it may be read, or refused.
    """
    row, image, path = Row("changed at random, digest right"), bytes(checkpoint.image(content())), folder / "random.h5"
    worst, done = 0.0, 0
    while done < count:
        reader, writer = os.pipe()
        pid = os.fork()
        if not pid:
            for number in range(done, min(done + SLICE, count)):
                signal.alarm(20)
                sealed(path, changed(image, random.Random(f"{seed} {number}")))
                start = time.perf_counter()
                try:
                    verdict = "refused" if refusal(path) else "read"
                except Exception as error:
                    verdict = f"number {number}: {error!r}"
                os.write(writer, f"{time.perf_counter() - start:.3f} {verdict}\n".encode())
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as pipe:
            lines = pipe.read().splitlines()
        status = os.waitpid(pid, 0)[1]
        for line in lines:
            seconds, _, verdict = line.partition(" ")
            worst = max(worst, float(seconds))
            row.count(
                "survived" if verdict in ("refused", "read") else "lost",
                "" if verdict in ("refused", "read") else verdict,
            )
        done += len(lines)
        if status:
            row.count("lost", f"number {done}: the reader died, status {status}")
            done += 1
    row.name += f" (at most {1000 * worst:.0f} ms)"
    return row


def changed(image: bytes, rng: random.Random) -> bytes:
    """`image` with a few bytes, bits or numbers of its structure changed."""
    out = bytearray(image)
    for _ in range(rng.choice((1, 1, 2, 3, 6))):
        at = rng.randrange(8, len(out) - 8)
        match rng.randrange(4):
            case 0:
                out[at] = rng.randrange(256)
            case 1:
                out[at] ^= 1 << rng.randrange(8)
            case 2:
                size = rng.choice((2, 4, 8))
                value = rng.choice(
                    (0, 1, 255, 1 << 15, (1 << 31) - 1, 1 << 31, (1 << 64) - 1, len(out), rng.randrange(len(out)))
                )
                out[at : at + size] = (value % (1 << 8 * size)).to_bytes(size, "little")
            case 3:
                size, source = rng.randrange(1, 32), rng.randrange(len(out) - 32)
                out[at : at + size] = out[source : source + size]
                del out[len(image) :]
    return bytes(out)
