"""Let a fuzzer, led by the lines that it reaches, look for bytes that a reader does not expect.

    pip install atheris      # Linux and macOS; no part of the extras
    python scripts/fuzz.py checkpoint|config|csv [--minutes M] [--corpus DIR]

A reader takes any bytes and gives what they hold, or an error that is meant for people; anything else is a finding: an
exception of another kind, more than ten seconds, more than two gigabytes. The bytes of a finding are kept in the corpus
as crash-..., timeout-... or oom-...; `python scripts/fuzz.py checkpoint FILE` repeats it. A finding becomes a test.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

for library in ("OPENBLAS", "OMP", "MKL"):
    os.environ[f"{library}_NUM_THREADS"] = "1"
ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

Target = Callable[[bytes], None]


def checkpoint_target() -> tuple[Target, list[bytes]]:
    """An HDF5 image, its digest taken as right; what can be salvaged where it is not."""
    from hostile import content, image_of

    from gpbackprop.checkpoint import structure
    from gpbackprop.errors import CheckpointError

    def target(data: bytes) -> None:
        for damaged in False, True:
            walk = structure.Walk(Path("x"), memoryview(data), damaged)
            try:
                for entry in walk.entries().values():
                    assert entry.array().shape == entry.shape
            except CheckpointError:
                for entry in walk.found.values():
                    entry.array()

    small = {"config": b"", "params/a": content()["params/0-dense/W"]}
    return target, [image_of(small), image_of(content()), *(path.read_bytes()[:-48] for path in golden())]


def config_target() -> tuple[Target, list[bytes]]:
    """The text of a config, as `train` and every checkpoint have it."""
    from gpbackprop.config import parse
    from gpbackprop.errors import ConfigError, DataError

    def target(data: bytes) -> None:
        try:
            text = data.decode()
        except UnicodeDecodeError:
            return
        try:
            config = parse(text, "fuzz.toml", base=Path("."))
        except (ConfigError, DataError):
            return
        parse(config.text(), "again.toml")

    return target, [path.read_bytes() for path in sorted((ROOT / "configs").rglob("*.toml"))]


def csv_target() -> tuple[Target, list[bytes]]:
    """A CSV file, each of its columns read as what it seems to be."""
    from gpbackprop.data import csv
    from gpbackprop.errors import DataError

    memory = Path("/dev/shm")
    place = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else None)) / "fuzz.csv"

    def target(data: bytes) -> None:
        place.write_bytes(data)
        try:
            layout = csv.scan(place)
            columns, lines = csv.read(layout, dict(zip(layout.names, layout.numeric, strict=True)))
        except DataError:
            return
        assert len(lines) == layout.rows
        assert len(columns) == len(layout.names)

    seeds = [path.read_bytes()[:2000] for path in sorted((ROOT / "gpbackprop" / "data" / "files").glob("*.csv"))]
    return target, [*seeds, b'a;b\n1;2\n"x;""y";\r\n', b"\xef\xbb\xbfa\tb\n1e999\tnan\n", b"1,2\n3,?\n"]


def golden() -> list[Path]:
    return [path for path in sorted((ROOT / "tests" / "golden").glob("*.h5")) if path.stat().st_size < 30_000]


TARGETS = {"checkpoint": checkpoint_target, "config": config_target, "csv": csv_target}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("file", nargs="?", type=Path, help="one finding to repeat, without a fuzzer")
    parser.add_argument("--minutes", type=float, default=10, help="(default: %(default)s)")
    parser.add_argument("--corpus", type=Path, help="where what is interesting is kept (default: fuzz-TARGET)")
    arguments = parser.parse_args()
    if arguments.file:
        TARGETS[arguments.target]()[0](arguments.file.read_bytes())
        print(f"{arguments.file}: read or refused, as it should be")
        return
    try:
        import atheris
    except ModuleNotFoundError:
        sys.exit("fuzzing needs atheris: pip install atheris (Linux and macOS)")
    with atheris.instrument_imports(include=["gpbackprop", "tomllib", "csv", "json"]):
        target, seeds = TARGETS[arguments.target]()
    corpus = arguments.corpus or Path(f"fuzz-{arguments.target}")
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds):
        (corpus / f"seed-{number}").write_bytes(seed)
    limits = [f"-max_total_time={int(60 * arguments.minutes)}", "-timeout=10", "-rss_limit_mb=2048", "-max_len=30000"]
    atheris.Setup([sys.argv[0], *limits, f"-artifact_prefix={corpus}/", "-print_final_stats=1", str(corpus)], target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
