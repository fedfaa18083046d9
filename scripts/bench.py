"""A training step and an epoch of gpbackprop beside those of other libraries, in one process, turn by turn.

    python scripts/bench.py [--only NAME] [--rivals torch,jax] [--threads N] [--json FILE] [--picture FILE] [--quick]

needs gpbackprop; whatever is installed of PyTorch, JAX and scikit-learn takes part. Our steps are compiled where
llvmlite is installed; then they run without it, too ("NumPy alone"). All start from the same parameters and take the
same batches of the same rows by the same rule; their losses are compared in every turn, and a difference ends the
program. A step is the whole of it: gather of the rows, forward, loss, backward, update, and the loss added up.

    step    from 784 float32 pixels in memory; the time of a turn of many steps, divided by their number
    epoch   over as many rows as MNIST has, stored as uint8 (fewer for the last three networks)

Times are medians over the rounds, with the quartiles behind. A ratio is another's time over ours, taken round by round,
so that what slows a whole round down cancels. All have the same number of threads. Every turn ends with the loss on the
host: that is also what waits for a GPU. Rounds in which other programs took a tenth of a core or more are repeated, up
to three times as often. "Cores" are CPU seconds a second; "new memory" is what the process takes from the system, at
most, in one more turn. "Products alone" are the matrix products of our step: nothing made of them can be faster.
"""

import argparse
import importlib
import json
import statistics
import sys
import time
from pathlib import Path

import bench_machine as machine

# What takes part beside our trainer: its module, imported when wanted, and the class there.
RIVALS = {
    "numpy": ("bench_ours", "Plain"),
    "torch": ("bench_torch", "Eager"),
    "loader": ("bench_torch", "Loader"),
    "compile": ("bench_torch", "Compiled"),
    "graph": ("bench_torch", "Graphed"),
    "jax": ("bench_jax", "Scan"),
    "sklearn": ("bench_sklearn", "PartialFit"),
    "vmap": ("bench_torch", "Stacked"),
    "alone": ("bench_ours", "OneByOne"),
    "products": ("bench_ours", "Products"),
}

# Largest relative difference of the losses of two contestants. A product over n inputs rounds by about sqrt(n) 2^-24,
# 2e-6 for 784, and losses of the first turn, means over hundreds of rows, differ by that at most (measured: 2e-7, 2e-6
# with Adam). There a rate that is 1 % off changes the loss by 5e-5 or more, a batch taken twice or in another order by
# 1e-4, a bias that is not trained by 1e-5. Later steps let roundings grow: over an epoch, or many turns, to some 1e-4.
FIRST, LATER = 1e-5, 1e-3

# Cores' worth of other processes that a round may have beside it and still count.
BUSY = 0.1

UNITS = {"step": "us", "epoch": "ms"}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", action="append", metavar="NAME", help="networks whose names hold NAME; can be repeated"
    )
    parser.add_argument("--measure", default="step,epoch", help="step, epoch, or both (the default)")
    parser.add_argument("--rivals", default=",".join(RIVALS), help='some of %(default)s; "" for none')
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=machine.cores(), help="of everybody (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=15, help="of steps; epochs take a third (default: %(default)s)")
    parser.add_argument(
        "--quick", action="store_true", help="a few steps of each network: does it run, do losses agree?"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to FILE")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw the ratios (needs matplotlib)")
    arguments = parser.parse_args()
    arguments.rivals = [name for name in arguments.rivals.split(",") if name]
    if unknown := set(arguments.rivals) - set(RIVALS):
        parser.error(f"--rivals: {', '.join(sorted(unknown))} is none of {', '.join(RIVALS)}")
    return arguments


def rivals(names: list[str]) -> dict[str, type]:
    """The classes that are installed; of others it says that they are not."""
    found = {}
    for name in names:
        module, cls = RIVALS[name]
        try:
            found[name] = getattr(importlib.import_module(module), cls)
        except ModuleNotFoundError as error:
            print(f"{name}: left out, {error.name} is not installed")
    return found


def take_turns(contestants: list, rounds: int, first: float = FIRST) -> dict[str, dict]:
    """The seconds, CPU seconds and losses of each turn of each contestant, after a first one that is not timed.

    A round in which other processes took more than `BUSY` of a core does not count; there are up to three times as many
    rounds until `rounds` count. Where fewer than three are left, all do. The first contestant is ours: it knows the
    order of the rows. One that does not train has no loss. Raises ValueError where a loss is not that of ours, within
    `first` in the first turn and LATER in later ones.
    """
    results: dict[str, dict] = {each.name: {"seconds": [], "cpu": [], "difference": 0.0} for each in contestants}
    busy: list[float] = []
    while len(busy) <= rounds or (quiet(busy).count(True) < rounds and len(busy) <= 3 * rounds):
        turn, order, before, start = len(busy), contestants[0].order(), machine.others(), time.perf_counter()
        losses = {}
        shift = turn % len(contestants)  # who comes first, and finds which caches, changes
        for each in contestants[shift:] + contestants[:shift]:
            machine.settle()
            wall, cpu = time.perf_counter(), time.process_time()
            losses[each.name] = each.epoch(order)
            results[each.name]["seconds"].append(time.perf_counter() - wall)
            results[each.name]["cpu"].append(time.process_time() - cpu)
        busy.append(0.0 if before is None else (machine.others() - before) / (time.perf_counter() - start))
        compare(losses, turn, results, LATER if turn else first)
    counts = quiet(busy)
    if counts.count(True) < min(3, rounds):
        counts = [turn > 0 for turn in range(len(busy))]
    for result in results.values():
        for name in ("seconds", "cpu"):
            result[name] = [value for value, count in zip(result[name], counts, strict=True) if count]
    results[contestants[0].name]["others"] = statistics.mean(b for b, count in zip(busy, counts, strict=True) if count)
    return results


def quiet(busy: list[float]) -> list[bool]:
    """Which rounds count; never the first, in which libraries compile and warm up."""
    return [turn > 0 and each < BUSY for turn, each in enumerate(busy)]


def compare(losses: dict, turn: int, results: dict[str, dict], tolerance: float) -> None:
    ours, expected = next(iter(results)), losses[next(iter(results))]
    for name, loss in losses.items():
        if loss is None:
            continue
        difference = float(max(abs(loss / expected - 1)))
        results[name]["difference"] = max(results[name]["difference"], difference)
        if not difference <= tolerance:  # NaN too
            raise ValueError(
                f"after {turn} rounds the losses of {name}, {loss}, and of {ours}, {expected}, differ by "
                f"{difference:.1e}, more than {tolerance:g}: they do not do the same work"
            )


def quartiles(values: list[float]) -> list[float]:
    return statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3


def measure(name: str, network, epoch: bool, chosen: dict[str, type], arguments: argparse.Namespace) -> dict:
    """All contestants at one network; prints the block of it and returns the figures."""
    import bench_ours
    import bench_work
    import numpy as np

    device, quick = arguments.device, arguments.quick
    steps = 3 if quick else network.rows // network.batch if epoch else network.steps
    rows = bench_work.draw(steps * network.batch, network.shape, np.uint8 if epoch else np.float32)
    ours = bench_ours.Ours(network, rows, device)
    parameters = ours.parameters()
    takes = [cls for cls in chosen.values() if not cls.refuses(network, epoch, device)]
    contestants = [ours, *(cls(network, rows, parameters, device) for cls in takes)]
    rounds = 2 if quick else max(3, arguments.rounds // 3) if epoch else arguments.rounds
    results = take_turns(contestants, rounds, LATER if epoch and not quick else FIRST)

    print(f"\n{name}: {'an epoch' if epoch else 'a step'}, {steps} steps a turn")
    print(f"{'':26}{'median':>12}{'quartiles':>20}{'ratio':>8}{'quartiles':>14}{'cores':>7}{'new memory':>13}")
    unit, scale = UNITS["epoch" if epoch else "step"], 1e3 if epoch else 1e6 / steps
    order = ours.order()
    for each in contestants:
        result = results[each.name]
        result[unit] = low, middle, high = quartiles([scale * second for second in result["seconds"]])
        pairs = zip(result["seconds"], results[ours.name]["seconds"], strict=True)
        result["ratio"] = quartiles([their / our for their, our in pairs])
        result["cores"] = sum(result["cpu"]) / sum(result["seconds"])
        result["resident"] = machine.resident(each, order)
        ratio = result["ratio"]
        memory = "" if result["resident"] is None else f"{result['resident']:,.0f} KiB"
        print(
            f"{each.name:26}{f'{middle:,.0f} {unit}':>12}{f'({low:,.0f} - {high:,.0f})':>20}{ratio[1]:8.2f}"
            f"{f'({ratio[0]:.2f} - {ratio[2]:.2f})':>14}{result['cores']:7.2f}{memory:>13}"
        )
    if (others := results[ours.name]["others"]) >= BUSY:
        print(f"{'':26}other programs took {others:.1f} cores: times are too long; with several threads repeat it")
    found = {"network": name, "measure": "epoch" if epoch else "step", "steps": steps, "contestants": results}
    if not epoch:
        found["memory"] = kept = bench_ours.memory(ours)
        print(f"{'':26}our turn asks Python for {kept['peak']:,.0f} KiB at most and keeps {kept['kept']:.1f} KiB")
    return found


def summary(results: list[dict], which: str) -> str:
    """The ratios of all networks as a table in Markdown."""
    rows, unit = [result for result in results if result["measure"] == which], UNITS[which]
    names = list(dict.fromkeys(name for row in rows for name in row["contestants"]))
    lines = [[which, f"{names[0]}, {unit}", *names[1:]], ["---"] * (len(names) + 1)]
    for row in rows:
        each = row["contestants"]
        ratios = [f"{each[name]['ratio'][1]:.2f}" if name in each else "" for name in names[1:]]
        lines.append([row["network"], f"{each[names[0]][unit][1]:,.0f}", *ratios])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    arguments = parse()
    machine.with_settings(machine.settings(arguments.threads, arguments.device))
    import bench_work

    chosen = rivals(arguments.rivals)
    facts = machine.facts(arguments.threads, arguments.device, list(chosen.values()))
    print(
        f"{facts['cpu']}, {facts['cores']} cores, load {facts['load']}; {facts['device']}; {facts['threads']} threads"
    )
    print(", ".join(f"{name} {version}" for name, version in facts["versions"].items()), "| BLAS:", facts["blas"])
    wanted, results = [only.lower() for only in arguments.only or [""]], []
    for epoch in (False, True):
        for name, network in bench_work.NETWORKS.items():
            here = network.device in ("", arguments.device) and any(only in name.lower() for only in wanted)
            if here and ("epoch" if epoch else "step") in arguments.measure:
                results.append(measure(name, network, epoch, chosen, arguments))
                if arguments.json:  # as far as it has come
                    arguments.json.write_text(json.dumps({"machine": facts, "results": results}, indent=2) + "\n")
    if not results:
        sys.exit(f"--only: no network has that in its name; there are {'; '.join(bench_work.NETWORKS)}")
    for which in UNITS:
        if any(result["measure"] == which for result in results):
            print(f"\n{summary(results, which)}")
    if arguments.picture:
        import bench_picture

        bench_picture.draw({"machine": facts, "results": results}, arguments.picture)


if __name__ == "__main__":
    main()
