"""Train variations of configs with several seeds each, and compare them. Made to be copied, with comparison.py.

    python scripts/experiment.py configs/iris.toml --vary optimizer.lr=0.01,0.1 --vary model.0.units=3,10 --seeds 5

trains 2 x 2 variations with 5 seeds. The seeds of a variation train as one population, which takes hardly longer than
one of them; then each becomes a run directory of its own, with the bits of that seed trained alone. A `population` in
the config is replaced by --seeds.

    runs/experiment/
      iris,optimizer.lr=0.01,model.0.units=3/seed-1/    what `gpbackprop evaluate`, `predict`, `inspect`, `resume` take
      summary.csv                                       one row a run, with what it reached at its last epoch
      curves.png                                        mean and standard deviation over the seeds (needs matplotlib)

Stopped, killed or preempted, the same line goes on where it was. With early stopping each seed trains alone, because
each has a last epoch of its own; so do the seeds of a population in which one diverged. `--task I --of N` trains
every N-th variation, for a cluster (see slurm_array.sh). Exit code 0; 1 when a variation failed; 2 when a config is
wrong, and then nothing was trained; 75 or 130 when stopped by a signal.
"""

import argparse
import contextlib
import dataclasses
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

try:
    import gpbackprop  # noqa: F401
except ModuleNotFoundError:  # called by a Python that lacks it: by that of the environment beside this file, then
    from environment import prepare, run

    prepare("plot")
    run("python", *sys.argv)

from comparison import compare, result

from gpbackprop.config import Config, differences, read, read_text
from gpbackprop.errors import ConfigError, GPError, NumericalError
from gpbackprop.run import Run, is_run, read_facts, stored_config
from gpbackprop.trainer import Hook


def main() -> int:
    args = arguments()
    try:
        variations = plan(args)
        for variation in variations:
            variation.folder.mkdir(parents=True, exist_ok=True)
    except (ConfigError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    mine, code = variations[args.task :: args.of] if args.of else variations, 0
    if not args.summarize:
        code = in_processes(mine, variations, args.jobs) if args.jobs > 1 else in_turn(mine, args)
    if code:
        print("stopped and saved; the same line goes on from there", file=sys.stderr)
        return code
    if not args.of:
        compare([(v.facts, {seed: v.run(seed) for seed in v.seeds if v.is_done(seed)}) for v in variations], args.out)
    failed = [variation for variation in mine if variation.failed.exists()]
    for variation in failed:
        for reason in variation.failed.read_text().splitlines():
            print(f"failed: {variation.name}: {reason}", file=sys.stderr)
    return 1 if failed else 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n\n")[0], epilog=__doc__.partition("\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("configs", nargs="+", type=Path, metavar="CONFIG")
    add("--vary", action="append", default=[], metavar="KEY=A,B,..", help="a key and its values; several: all products")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="change a key in all variations")
    add("--seeds", default="5", metavar="N|A,B,..", help="how many, from the config's seed on; or which (5)")
    add("--out", type=Path, default=Path("runs/experiment"), metavar="DIR", help="where all lies (runs/experiment)")
    add("--device", help="auto, cpu, cuda or cuda:N")
    add("--jobs", type=int, default=1, metavar="N", help="train N variations at a time, in processes (1)")
    add("--task", type=int, default=0, metavar="I", help="train variations I, I+N, I+2N, ... only, I from 0")
    add("--of", type=int, default=0, metavar="N", help="the number of tasks; then --summarize when all are done")
    add("--allow-inexact", action="store_true", help="go on although libraries or threads are others than before")
    add("--summarize", action="store_true", help="train nothing, compare what there is")
    args = parser.parse_intermixed_args()  # configs may stand anywhere
    if not 0 <= args.task < max(args.of, 1):
        parser.error(f"--task {args.task} --of {args.of}: expected --of N, and a task from 0 to N - 1")
    if not re.fullmatch(r"\d+(,\d+)*,?", args.seeds) or set(args.seeds) == {"0"}:
        parser.error(f"--seeds {args.seeds}: expected how many (5), or which (1,2,3)")
    return args


# What is to be trained.


@dataclasses.dataclass(frozen=True)
class Variation:
    config: Config
    given: str  # the config file's text
    values: dict[str, str]  # of the varied keys
    seeds: list[int]
    out: Path

    @property
    def facts(self) -> dict[str, str]:
        return {"config": self.config.name, **self.values}

    @property
    def name(self) -> str:
        return ",".join([self.config.name, *(f"{key}={value}" for key, value in self.values.items())])

    @property
    def folder(self) -> Path:
        return self.out / re.sub(r"[^\w.,=+-]+", "-", self.name)

    @property
    def failed(self) -> Path:
        return self.folder / "failed.txt"

    def run(self, seed: int) -> Path:
        return self.folder / f"seed-{seed}"

    def is_done(self, seed: int) -> bool:
        return is_run(self.run(seed)) and any(self.run(seed).glob("checkpoints/step-*.h5"))


def plan(args: argparse.Namespace) -> list[Variation]:
    """Every variation. Raises ConfigError with all mistakes, and where the folder holds another experiment's runs."""
    keys = [text.partition("=")[0].strip() for text in args.vary]
    values = [re.findall(r'(?:\[[^]]*\]|\{[^}]*\}|"[^"]*"|[^,])+', text.partition("=")[2]) for text in args.vary]
    if not all(values):
        raise ConfigError("--vary: expected KEY=A,B,..., for example optimizer.lr=0.01,0.1")
    variations, mistakes = {}, {}  # the mistakes are keys, so that each is said once
    for path, chosen in itertools.product(args.configs, itertools.product(*values)):
        settings = [f"{key}={value}" for key, value in zip(keys, chosen, strict=True)]
        try:
            config = read(path, [*args.set, *settings])
            if any(isinstance(x, tuple) and isinstance((*x, "")[0], float) for x in vars(config.optimizer).values()):
                raise ConfigError(f"{path}: optimizer: has a list, an entry for each member; use --vary instead")
            if config.optimizer.swarm:
                raise ConfigError(
                    f"{path}: optimizer: is a swarm, whose population is one network; train it by `gpbackprop train` "
                    "with one --seed after the other"
                )
            if config.data.folds and config.data.fold is None:
                each = ",".join(map(str, range(config.data.folds)))
                raise ConfigError(f"{path}: data.folds: makes the population; use --vary data.fold={each} instead")
        except ConfigError as error:
            mistakes[str(error)] = None
            continue
        first = config.seed if isinstance(config.seed, int) else config.seed[0]
        listed = [int(seed) for seed in args.seeds.split(",") if seed]
        seeds = list(dict.fromkeys(listed)) if "," in args.seeds else list(range(first, first + listed[0]))
        config = dataclasses.replace(config, seed=seeds[0], population=1)
        variation = Variation(config, read_text(path), dict(zip(keys, chosen, strict=True)), seeds, args.out)
        if variation.folder in variations:
            mistakes[f"{path}: there are two variations {variation.name}; rename a config, or leave one out"] = None
        variations[variation.folder] = variation
        for run in filter(is_run, [variation.folder / "population", *map(variation.run, seeds)]):
            mistakes |= dict.fromkeys(f"{run}: is of another config: {line}" for line in changes(variation, run))
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    return list(variations.values())


def changes(variation: Variation, run: Path) -> list[str]:
    """Where the run in a directory differs from what is wanted; it may have been resumed to more epochs."""
    try:
        stored = stored_config(run)
    except GPError:  # removed right now by another process, or damaged: training will tell
        return []
    train = stored.train
    if train.epochs > variation.config.train.epochs:
        train = dataclasses.replace(train, epochs=variation.config.train.epochs)
    config = dataclasses.replace(stored, seed=variation.config.seed, population=1, train=train)
    return [f"{line}; change it back, or give another --out" for line in differences(config, variation.config)]


# Training.


def in_turn(variations: list[Variation], args: argparse.Namespace) -> int:
    """Train one after the other; returns 0, or 75 or 130 when a signal came. What goes wrong is noted in failed.txt."""
    for variation in variations:
        with locked(variation):
            variation.failed.unlink(missing_ok=True)
            try:
                code = train(variation, args.device, args.allow_inexact)
            except Exception as error:  # the others can still be trained
                if not isinstance(error, GPError):
                    traceback.print_exc()
                variation.failed.write_text(" ".join(f"{error or type(error).__name__}".split()) + "\n")
                code = 0
        if code:
            return code
    return 0


@contextlib.contextmanager
def locked(variation: Variation):
    """Wait for another process that trains the variation, as a child of a killed parent may; the lock ends with it."""
    with open(variation.folder / ".lock", "w") as file:
        with contextlib.suppress(ImportError):  # Windows has none
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def train(variation: Variation, device: str | None, inexact: bool = False) -> int:
    """Train the seeds that are not done, as one population; returns 0, or 75 or 130 when a signal came."""
    population, diverged = variation.folder / "population", {}
    alone = variation.config.train.early_stopping is not None
    while missing := [seed for seed in variation.seeds if seed not in diverged and not variation.is_done(seed)]:
        if is_run(population):
            before = read_facts(population).get("device", "auto")
            run = Run.open(population, device or before, allow_inexact=inexact)
        else:
            seeds = tuple(missing[:1] if alone else missing)
            config = dataclasses.replace(variation.config, seed=seeds, population=len(seeds))
            shutil.rmtree(population, ignore_errors=True)
            run = Run.start(population, config, variation.given, device or "auto")
        try:
            code, _ = run.train(hooks=[Progress(variation.name)])
            if code:
                return code
            for k, seed in enumerate(run.trainer.seeds):
                if not variation.is_done(seed):
                    shutil.rmtree(variation.run(seed), ignore_errors=True)
                    result(variation.run(seed), run.member(k, variation.run(seed)))
        except NumericalError as error:  # of one seed; the others train alone, unless this one did
            alone = True
            if len(run.trainer.seeds) == 1:
                diverged[run.trainer.seeds[0]] = error
        discard(population)
    discard(population)  # the program may have been killed right before
    if diverged:
        variation.failed.write_text("".join(f"seed {seed}: {error}\n" for seed, error in diverged.items()))
    return 0


def discard(run: Path) -> None:
    """Remove a run directory; killed in the middle, it leaves nothing that is taken for a run."""
    (run / "config.resolved.toml").unlink(missing_ok=True)
    shutil.rmtree(run, ignore_errors=True)


class Progress(Hook):
    """A line now and then."""

    def __init__(self, name: str):
        self.name, self.said = name, time.monotonic()

    def on_epoch(self, trainer, row):
        if time.monotonic() - self.said > 10 or trainer.epoch == trainer.epochs:
            seeds = ", ".join(map(str, trainer.seeds))
            print(f"{self.name}: epoch {trainer.epoch}/{trainer.epochs} of seed {seeds}", file=sys.stderr)
            self.said = time.monotonic()


def in_processes(mine: list[Variation], variations: list[Variation], jobs: int) -> int:
    """The same with `jobs` processes at a time, each of one variation and with its share of the cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    environment = dict.fromkeys(names, str(max(1, cores // jobs))) | os.environ
    children, stopped = [], []

    def stop(number, frame):
        stopped.append(130 if number == signal.SIGINT else 75)
        for child in children:
            child.terminate()  # which saves and ends

    def train_one(variation):
        if stopped:
            return stopped[0]
        task = ["--jobs=1", f"--task={variations.index(variation)}", f"--of={len(variations)}"]
        command = [sys.executable, __file__, *sys.argv[1:], *task]
        child = subprocess.Popen(command, env=environment, start_new_session=True)  # Ctrl-C comes from here, once
        children.append(child)
        if child.wait() not in (0, 1, 75, 130) and not stopped:
            variation.failed.write_text(f"its process ended with {child.returncode}\n")
        return child.returncode

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    with ThreadPoolExecutor(jobs) as pool:
        codes = list(pool.map(train_one, mine))
    return stopped[0] if stopped else max((code for code in codes if code in (75, 130)), default=0)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
