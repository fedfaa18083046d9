"""Data files that are damaged, cut off, badly written or made to harm: each loads to what it holds, or is refused.

Small valid files of every kind are changed, byte by byte and at random, and read as training rows and as rows for a
model that was trained before. Refused means a DataError that names the file and, where there is one, the line. NPZ and
gzip carry check sums: such a file must load to what was written, or not at all.
"""

import argparse
import hashlib
import os
import re
import resource
import signal
import tempfile
import warnings
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from torture import Row
from torture_damage import Case, Kind, at_random, each_byte, kinds, known

from gpbackprop import data
from gpbackprop.errors import DataError

SECONDS, BYTES = 5, 256 << 20
"""What a reader may take of time, and of memory beside what the process had before."""
SLICE = 500


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--changes", type=int, default=3_000, help="at random of each kind (default: %(default)s)")


def run(arguments: argparse.Namespace) -> Iterator[Row]:
    """For each kind a row of its known faults, one of each byte and each length, and one of changes at random."""
    stride = 61 if arguments.short else 1
    count = 50 if arguments.short else arguments.changes
    with tempfile.TemporaryDirectory(dir=arguments.place) as directory:
        for number, kind in enumerate(kinds()):
            folder = Path(directory) / str(number)
            folder.mkdir()
            for name, cases in [
                ("known", known(kind)),
                ("each byte", islice(each_byte(kind.content), 0, None, stride)),
                ("at random", at_random(kind.content, count, f"{arguments.seed} {kind.name}")),
            ]:
                row = Row(f"{kind.name}, {name}")
                judge(row, folder, kind, list(cases))
                if row.injected:
                    yield row


def judge(row: Row, folder: Path, kind: Kind, cases: list[Case]) -> None:
    """Count in `row` what becomes of each case. They are read in processes of their own, which may die."""
    for name, content in {kind.name: kind.content, **kind.beside}.items():
        (folder / name).write_bytes(content)
    preparation = data.load(str(folder / kind.name), **kind.options).preparation
    wanted, done = read(folder / kind.name, kind, None), 0
    while done < len(cases):
        reader, writer = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(reader)
            limit()
            for what, content, expected in cases[done : done + SLICE]:
                signal.alarm(SECONDS)
                (folder / kind.name).write_bytes(content)
                verdict, why = verdict_of(folder / kind.name, kind, preparation, wanted, expected)
                os.write(writer, f"{verdict} {what + ': ' + why if why else ''!r}\n".encode("utf-8", "replace"))
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader, encoding="utf-8") as pipe:
            lines = pipe.read().splitlines()
        status = os.waitpid(pid, 0)[1]
        for line in lines:
            verdict, _, why = line.partition(" ")
            row.count(verdict, why.strip("'"))
        done += len(lines)
        if status:
            row.count("lost", f"{cases[done][0]}: the reader died or took {SECONDS} s, status {status}")
            done += 1


def limit() -> None:
    """Let this process have BYTES more memory than it has now, and hide what libraries write when they fail."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("ignore")
    warnings.simplefilter("error", RuntimeWarning)


def verdict_of(path: Path, kind: Kind, preparation: data.Preparation, wanted: str, expected: str | None):
    """ "survived", "lost" or "silent", and why."""
    try:
        found, said = read(path, kind, None), ""
    except DataError as error:
        found, said = "", str(error)
    except Exception as error:
        return "lost", f"training: {error!r}"
    try:
        read(path, kind, preparation)
    except DataError as error:
        if str(path.parent) not in str(error):
            return "lost", f"does not name the file: {error}"
    except Exception as error:
        return "lost", f"prediction: {error!r}"
    if said and str(path.parent) not in said:
        return "lost", f"does not name the file: {said}"
    if said and (expected == "" or not re.search(expected or "", said)):
        return "lost", f"is refused with {said}, expected {expected or 'the rows'}"
    if found and (expected or (found != wanted and (kind.guarded or expected == ""))):
        return "silent", f"gives other rows, expected {expected or 'the old ones'}"
    return "survived", ""


def read(path: Path, kind: Kind, preparation: data.Preparation | None) -> str:
    """A digest of the rows and targets, read to train on or, with a preparation, to evaluate and to predict on."""
    if preparation is None:
        dataset = data.load(str(path), **kind.options)
        split, preparation = dataset.splits["train"], dataset.preparation
        assert np.isfinite(preparation.shift).all()
        assert np.isfinite(preparation.scale).all()
    else:
        data.read_inputs(preparation, path)
        split = data.read_labelled(preparation, path)
    words = [np.ascontiguousarray(a).tobytes() for a in (split.inputs, split.targets, split.index)]
    return hashlib.sha256(b"|".join(words) + repr((split.inputs.shape, preparation.classes)).encode()).hexdigest()
