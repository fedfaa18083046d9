"""How fast rows come out of an HDF5 file in portions, beside reading the file from one end to the other.

    python scripts/bench_stream.py [--size 1000] [--features 256] [--chunk ROWS] [--gzip LEVEL] [--cold] [--rounds 5]

makes a file of SIZE MB of float32 in a temporary folder, and then, turn by turn:

    reader    h5py reads all rows in their order, 4 MB at a time, into memory as large as that of the portions
    portions  an epoch of blocks in their shuffled order comes to the tables of a training, and nothing is done with it
    training  an epoch of a network with one layer, in batches of 256, with its loss, gradient and update
    memory    the same training on the same rows in memory

Each turn has rows a second; the ratios are those of a round, and what is printed are medians. At best the portions have
the speed of the reader, and training that of the slower one of reader and memory. --cold has the system forget the file
before each turn (Linux), so that it comes from the disk.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np

import gpbackprop as gp
from gpbackprop.data.portions import Tables
from gpbackprop.data.stored import READ


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1000, metavar="MB")
    parser.add_argument("--features", type=int, default=256)
    parser.add_argument(
        "--chunk", type=int, metavar="ROWS", help="rows of a chunk; by default the rows lie in one piece"
    )
    parser.add_argument("--gzip", type=int, metavar="LEVEL", help="pack the chunks")
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


def write(path: Path, asked: argparse.Namespace) -> None:
    rows, rng = asked.size * 10**6 // (4 * asked.features), np.random.default_rng(0)
    chunks = (asked.chunk or 1000, asked.features) if asked.chunk or asked.gzip is not None else None
    with h5py.File(path, "w") as file:
        x = file.create_dataset("x", (rows, asked.features), "f4", chunks=chunks, compression=asked.gzip)
        for start in range(0, rows, 10_000):
            x[start : start + 10_000] = rng.integers(-99, 99, (min(10_000, rows - start), asked.features)) / 64
        file["y"] = rng.integers(0, 2, rows)


def forget(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def trainer(path: Path, stream: bool) -> gp.Trainer:
    data = gp.data.load(path.as_posix(), stream=stream, normalize="none")
    return gp.Trainer(
        gp.Chain(gp.Dense(1)), gp.BinaryCrossEntropy(), gp.SGD(0.01), data, batch_size=256, device="cpu", metrics=()
    )


def main() -> None:
    asked = parse()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.h5"
        write(path, asked)
        streamed, held = trainer(path, True), trainer(path, False)
        portions, own = streamed.training.portions, streamed.training.feed.streamed
        tables = Tables(own.backend, own.columns, portions, own.backend.zeros)  # where no training has left anything
        room, source = own.backend.zeros(own.tables["inputs"].shape, "f4"), own.columns["inputs"].source
        rows, step = len(portions.index), max(1, READ // (4 * asked.features))

        def read() -> None:
            for start in range(0, rows, step):
                count, place = min(step, rows - start), start % (len(room) - step)
                source.read(start, room[place : place + count])

        def bring(epoch: int) -> None:
            places = [portions.place(epoch, number, True) for number in range(portions.count)]
            for here, following in zip(places, [*places[1:], None], strict=True):
                tables.turn(here, following)

        turns = {
            "reader": lambda n: read(),
            "portions": bring,
            "training": lambda n: streamed.fit(streamed.epoch + 1),
            "memory": lambda n: held.fit(held.epoch + 1),
        }
        speeds: dict[str, list[float]] = {name: [] for name in turns}
        for number in range(asked.rounds + 1):  # the first one makes what is made once, and does not count
            for name, turn in turns.items():
                if asked.cold:
                    forget(path)
                start = time.perf_counter()
                turn(number)
                speeds[name].append(rows / (time.perf_counter() - start))
        cut = f"{portions.count} portions of {portions.rows} rows, blocks of {portions.block}"
        print(f"{rows} rows of {4 * asked.features} bytes, {cut}")
        for name, each in speeds.items():
            speed, reader = statistics.median(each[1:]), speeds["reader"]
            ratio = statistics.median(a / b for a, b in zip(each[1:], reader[1:], strict=True))
            size = speed * 4 * asked.features / 1e6
            print(f"{name:9}{speed:12,.0f} rows/s{size:8,.0f} MB/s   {ratio:.2f} of the reader")


if __name__ == "__main__":
    main()
