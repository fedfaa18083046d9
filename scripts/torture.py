"""Do to a run what machines do to it, many times, and count what was lost.

    python scripts/torture.py kill|bits|hostile|resume|signals|io|data [--short] [--seed N] [--json FILE] [more options]

Needs gpbackprop alone. Every fault is put into a real run over a small network, which is then resumed to its end and
compared with one that nothing happened to. The table has a line for each kind of fault:

    injected   how many times it happened
    survived   nothing was lost, and it was told as it should be
    lost       a checkpoint that cannot be read, or a step that was said to be saved and is not
    silent     other final bits, or a failure that nobody was told of

It exits with 1 unless all are survived. `--short` takes seconds; the long form is meant for a night at low priority.

Some faults are tried by tests alone: two trainers in one directory and what a dead one leaves there
(tests/test_lock.py); a loss that is not finite (tests/test_trainer.py, tests/test_resume.py); cupy that is absent,
broken or fails within a run (tests/test_backend.py, tests/test_cuda_runs.py); metrics.jsonl that is torn or finds no
room (tests/test_resume.py, tests/test_saving.py).
"""

import argparse
import dataclasses
import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

# One thread for each product: a process that is forked has none of the others. NumPy reads it once.
for library in ("OPENBLAS", "OMP", "MKL"):
    os.environ[f"{library}_NUM_THREADS"] = "1"

# Each is a module `torture_NAME` with `options(parser)` and `run(arguments) -> Iterable[Row]`.
SUBCOMMANDS = {
    "kill": "SIGKILL at random moments, and before, in and after every call that a save makes",
    "bits": "bits, bytes and blocks of a checkpoint change, or its end goes, and it is read",
    "hostile": "files that were made to harm, and files changed at random inside with the right digest, are read",
    "resume": "every step of small runs of every kind is one to stop after, and to go on from",
    "signals": "SIGTERM, SIGINT and SIGUSR1 at random moments, once and twice, with and without a grace time",
    "io": "every n-th call to the disk fails, a disk that is full, a limit on the size of files, a power cut",
    "data": "data files of every kind are damaged, cut off, badly written or made to harm, and are read",
}


@dataclasses.dataclass
class Row:
    """A line of the table; `notes` say what happened at the faults that were not survived, and what was left out."""

    name: str
    injected: int = 0
    survived: int = 0
    lost: int = 0
    silent: int = 0
    notes: list[str] = dataclasses.field(default_factory=list)

    def count(self, verdict: str, note: str = "") -> None:
        """One more fault; `verdict` is "survived", "lost" or "silent"."""
        self.injected += 1
        setattr(self, verdict, getattr(self, verdict) + 1)
        if note and len(self.notes) < 20:
            self.notes.append(note)


def table(rows: list[Row]) -> str:
    columns = ("injected", "survived", "lost", "silent")
    width = max(len(row.name) for row in rows)
    lines = [" " * width + "".join(f"{name:>10}" for name in columns)]
    lines += [f"{row.name:<{width}}" + "".join(f"{getattr(row, name):>10}" for name in columns) for row in rows]
    return "\n".join(lines + [f"{row.name}: {note}" for row in rows for note in row.notes])


def tell(rows: Iterable[Row]) -> list[Row]:
    """The rows, each shown on stderr as it comes: the long form takes long."""
    seen = []
    for row in rows:
        print(f"{row.name}: {row.survived} of {row.injected} survived", file=sys.stderr, flush=True)
        seen.append(row)
    return seen


def parse() -> tuple[argparse.Namespace, Callable[[argparse.Namespace], Iterable[Row]]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="|".join(SUBCOMMANDS))
    for name, about in SUBCOMMANDS.items():
        command = commands.add_parser(name, help=about, description=about)
        command.add_argument("--short", action="store_true", help="a few of each, in seconds")
        command.add_argument("--seed", type=int, default=1, help="of what is drawn (default: %(default)s)")
        command.add_argument("--place", type=Path, metavar="DIR", help="where the runs lie, instead of the usual one")
        command.add_argument("--json", type=Path, metavar="FILE", help="write the table there too")
        if name in sys.argv:
            importlib.import_module(f"torture_{name}").options(command)
    arguments = parser.parse_args()
    return arguments, importlib.import_module(f"torture_{arguments.command}").run


def main() -> int:
    arguments, run = parse()
    start = time.monotonic()
    rows = tell(run(arguments))
    print(table(rows))
    if arguments.json:
        facts = {"command": arguments.command, "seed": arguments.seed, "short": arguments.short}
        found = {"seconds": time.monotonic() - start, "rows": [dataclasses.asdict(row) for row in rows]}
        arguments.json.write_text(json.dumps(facts | found, indent=2) + "\n", encoding="utf-8")
    return int(any(row.survived != row.injected for row in rows))


if __name__ == "__main__":
    sys.modules["torture"] = sys.modules["__main__"]  # the subcommands import `Row` from here
    root = Path(__file__).resolve().parent
    sys.path[:0] = [str(root), str(root.parent)]
    sys.exit(main())
