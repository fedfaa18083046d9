"""gpbackprop as a contestant of scripts/bench.py, and what only its own step is asked: where the time goes."""

import importlib.util
import tracemalloc
from functools import partial

import numpy as np
from bench_work import Network, Rows

import gpbackprop as gp
from gpbackprop.backend import Backend, random

COMPILES = importlib.util.find_spec("llvmlite") is not None  # what the extra `compile` brings


class Ours:
    """The trainer as anybody uses it. Its time includes drawing the order of the epoch, which others are given."""

    name = "gpbackprop"

    def __init__(
        self, network: Network, rows: Rows, device: str | Backend, seed: int = 0, population: int = 0,
        compile: bool | None = None,
    ):  # fmt: skip
        self.trainer = gp.Trainer(
            gp.Chain(*network.layers), network.loss, network.optimizer, rows.dataset(), batch_size=network.batch,
            seed=seed, population=population or network.population, device=device, metrics=(),
            compile=COMPILES if compile is None else compile,
        )  # fmt: skip

    def parameters(self) -> dict[str, np.ndarray]:
        """Copies of the parameters (K, ...) by their paths."""
        content = self.trainer.content()
        return {path[7:]: np.array(a) for path, a in content.items() if path.startswith("params/")}

    def order(self) -> np.ndarray:
        """The rows of the next epoch, (steps, K, batch), which is a function of (seed, epoch)."""
        rows, epoch = len(self.trainer.data.splits["train"]), self.trainer.epoch
        orders = random.permutations(rows, self.trainer.seeds, epoch)
        return orders.reshape(len(orders), -1, self.trainer.batch_size).swapaxes(0, 1)

    def epoch(self, order: np.ndarray | None = None) -> np.ndarray:
        row = self.trainer.fit(self.trainer.epoch + 1)[-1]
        return np.atleast_1d(row["train_loss"])


class Plain(Ours):
    """The same without a compiler: NumPy alone."""

    name = "gpbackprop, NumPy alone"

    def __init__(self, network: Network, rows: Rows, parameters: dict[str, np.ndarray], device: str):
        super().__init__(network, rows, device, compile=False)

    @staticmethod
    def refuses(network: Network, epoch: bool, device: str) -> str:
        return "" if COMPILES and device == "cpu" else "there is no compiler, or the device needs none"


class OneByOne:
    """The members of a population as runs of their own."""

    name = "gpbackprop, one by one"

    def __init__(self, network: Network, rows: Rows, parameters: dict[str, np.ndarray], device: str):
        self.members = [Ours(network, rows, device, seed, 1) for seed in range(network.population)]

    @staticmethod
    def refuses(network: Network, epoch: bool, device: str) -> str:
        return "" if network.population > 1 else "for a population"

    def epoch(self, order: np.ndarray) -> np.ndarray:
        return np.concatenate([member.epoch() for member in self.members])


class Products:
    """The matrix products of our steps and nothing else: those that one step asks the backend for, over the same
    operands, in the same order. No step can be faster.

    Products with a vector are sums in disguise and do not count.
    """

    name = "products alone"

    @staticmethod
    def refuses(network: Network, epoch: bool, device: str) -> str:
        return "for a step" if epoch else ""

    def __init__(self, network: Network, rows: Rows, parameters: dict[str, np.ndarray], device: str):
        backend, calls = gp.backend.select(device).compiling(COMPILES), []
        gemm = backend.gemm

        def noted(a, b, out):
            calls.append((a, b, out))
            gemm(a, b, out)

        backend.gemm = noted  # type: ignore[method-assign]
        batch = Rows(rows.x[: network.batch], rows.labels[: network.batch])
        self.ours = Ours(network, batch, backend)  # which owns the operands
        self.ours.epoch()  # of one step
        del backend.gemm
        self.backend, self.calls = backend, [call for call in calls if min(call[2].shape[1:]) > 1]
        self.run = backend.capture([partial(gemm, *call) for call in self.calls])

    def epoch(self, order: np.ndarray) -> None:
        for _ in order:
            self.run()
        self.backend.sync()


def memory(ours: Ours) -> dict[str, float]:
    """KiB that Python and NumPy ask for in one epoch: at most at one time (`peak`), and not given back (`kept`).

    Nothing of it grows with the number of steps but the order of the rows, 8 bytes a row and member.
    """
    ours.epoch()
    tracemalloc.start()
    try:
        ours.epoch()  # what the tracing itself sets up
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        ours.epoch()
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return {"peak": (peak - before) / 1024, "kept": (after - before) / 1024}
