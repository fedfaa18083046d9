"""A training step of gpbackprop beside the same step of PyTorch, in one process, turn by turn.

    python scripts/bench.py [--rounds N] [--steps N] [--json FILE]

needs gpbackprop and PyTorch in the environment. Both sides start from the same weights, take the same batches from data
in memory (784 float32 inputs, 10 classes) and update by plain SGD; their losses after the first steps must agree before
anything is timed. The times are medians over the rounds, with the quartiles behind; the ratio is PyTorch's median over
ours. Machines are noisy: compare the ratios, not the times.
"""

import argparse
import itertools
import json
import platform
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

import gpbackprop as gp

ROWS, INPUTS, CLASSES = 6000, 784, 10

# hidden units, batch, activation, loss, learning rate
NETWORKS = {
    "784-30-10, batch 10": ((30,), 10, "sigmoid", gp.HalfSquaredError(), 0.1),
    "784-128-64-10, batch 64": ((128, 64), 64, "relu", gp.SoftmaxCrossEntropy(), 0.01),
    "784-512-512-10, batch 128": ((512, 512), 128, "relu", gp.SoftmaxCrossEntropy(), 0.01),
    "784-1024-1024-10, batch 512": ((1024, 1024), 512, "relu", gp.SoftmaxCrossEntropy(), 0.01),
}

Step = Callable[[int], None]


def ours(hidden, batch, activation, loss, lr, x, labels, order) -> tuple[Step, Callable[[], float], list[np.ndarray]]:
    """Our step on batch i, the loss of the last step, and the initial parameters."""
    last = activation if isinstance(loss, gp.HalfSquaredError) else None
    model = gp.Chain(*(gp.Dense(units, activation=activation) for units in hidden), gp.Dense(CLASSES, activation=last))
    prepared = gp.data.Preparation(
        (), ("class",), None, False, tuple(map(str, range(CLASSES))), (INPUTS,), np.zeros(1), np.ones(1)
    )
    data = gp.data.Dataset("bench", {"train": gp.data.Split(x, labels, None, np.arange(ROWS))}, prepared, "")
    trainer = gp.Trainer(model, loss, gp.SGD(lr), data, batch_size=batch, device="cpu", metrics=())
    plan, load = trainer.training.plan(batch)
    trainer._set_rate()

    def step(i: int) -> None:
        load(order[i % len(order)][None])
        plan.forward()
        plan.backward()
        trainer.update.step()

    def last_loss() -> float:
        return trainer.training.results()["loss"]

    views = trainer.network.params.views(trainer.network.w)
    return step, last_loss, [np.array(view[0]) for view in views.values()]


def theirs(hidden, batch, activation, loss, lr, x, labels, order, parameters) -> tuple[Step, Callable[[], float]]:
    """PyTorch's eager step on batch i, and the mean loss of the steps so far."""
    act = {"sigmoid": torch.nn.Sigmoid, "relu": torch.nn.ReLU}[activation]
    half_squared = isinstance(loss, gp.HalfSquaredError)
    layers: list[torch.nn.Module] = []
    sizes = (INPUTS, *hidden, CLASSES)
    for k, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
        dense = torch.nn.Linear(inputs, outputs)
        with torch.no_grad():
            dense.weight.copy_(torch.from_numpy(parameters[2 * k].T))
            dense.bias.copy_(torch.from_numpy(parameters[2 * k + 1]))
        layers += [dense] if k == len(hidden) and not half_squared else [dense, act()]
    model = torch.nn.Sequential(*layers)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    inputs, classes = torch.from_numpy(x), torch.from_numpy(labels)
    one_hot, index = torch.eye(CLASSES)[classes], torch.from_numpy(order)
    cross_entropy = torch.nn.CrossEntropyLoss()
    total = torch.zeros(())
    steps = 0

    def step(i: int) -> None:
        nonlocal steps
        rows = index[i % len(index)]
        optimizer.zero_grad()
        y = model(inputs[rows])
        value = 0.5 * ((y - one_hot[rows]) ** 2).sum() / batch if half_squared else cross_entropy(y, classes[rows])
        value.backward()
        optimizer.step()
        total.add_(value.detach())
        steps += 1

    return step, lambda: total.item() / steps


def turn_by_turn(sides: dict[str, Step], rounds: int, steps: int) -> dict[str, list[float]]:
    """Microseconds a step of each side, one figure a round."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, step in sides.items():
            start = time.perf_counter()
            for i in range(steps):
                step(i)
            times[name].append((time.perf_counter() - start) / steps * 1e6)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=200, help="steps of a round for the smallest network")
    parser.add_argument("--json", help="a file to write the figures to as well")
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    x = rng.random((ROWS, INPUTS), np.float32)
    labels = rng.integers(0, CLASSES, ROWS)
    results = {}
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, NumPy {np.__version__}, "
          f"PyTorch {torch.__version__}")  # fmt: skip
    print(f"{'network':29}{'gpbackprop':>24}{'PyTorch eager':>24}{'ratio':>8}")
    for name, (hidden, batch, *rest) in NETWORKS.items():
        order = rng.integers(0, ROWS, (50, batch))
        step, loss, parameters = ours(hidden, batch, *rest, x, labels, order)
        their_step, their_loss = theirs(hidden, batch, *rest, x, labels, order, parameters)
        for i in range(20):
            step(i)
            their_step(i)
        assert abs(loss() - their_loss()) < 1e-4 * abs(loss()), f"{name}: {loss()} and {their_loss()} are not one loss"
        steps = max(5, arguments.steps * 30 * 10 // (hidden[0] * batch))
        times = turn_by_turn({"gpbackprop": step, "PyTorch eager": their_step}, arguments.rounds, steps)
        medians = {side: statistics.median(each) for side, each in times.items()}
        ratio = medians["PyTorch eager"] / medians["gpbackprop"]
        results[name] = {"microseconds": times, "median": medians, "ratio": ratio}
        cells = ""
        for side, each in times.items():
            low, _, high = statistics.quantiles(each, n=4)
            cells += f"{f'{medians[side]:.0f} us ({low:.0f}-{high:.0f})':>24}"
        print(f"{name:29}{cells}{ratio:8.2f}")
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(results, file, indent=2)


if __name__ == "__main__":
    with np.errstate(all="ignore"):
        main()
