"""The work of scripts/bench.py: networks, the rows that they are trained on, and what a contestant is."""

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

import gpbackprop as gp

CLASSES, PIXELS = 10, 784


@dataclass(frozen=True)
class Network:
    """A model with its loss, optimizer and batch, and how much of it is timed at once.

    A turn of the measurement of a step is `steps` steps; an epoch has `rows` rows, a whole number of batches, because a
    scan cannot have a short last one. `device` is where the network is measured: "" is everywhere.
    """

    layers: tuple[gp.layers.base.Layer, ...]
    batch: int
    steps: int
    rows: int
    optimizer: Any = field(default_factory=lambda: gp.SGD(0.01))
    loss: Any = field(default_factory=gp.SoftmaxCrossEntropy)
    shape: tuple[int, ...] = (PIXELS,)
    population: int = 1
    device: str = ""

    @property
    def half_squared(self) -> bool:
        return isinstance(self.loss, gp.HalfSquaredError)

    @property
    def adam(self) -> bool:
        return isinstance(self.optimizer, gp.Adam)

    @property
    def dense(self) -> bool:
        """Whether all layers are dense ones."""
        return all(isinstance(layer, gp.Dense) for layer in self.layers)


def _perceptron(*hidden: int) -> tuple:
    return (*(gp.Dense(units, activation="relu") for units in hidden), gp.Dense(CLASSES))


_FIRST: dict[str, Any] = {
    "layers": (gp.Dense(30, activation="sigmoid"), gp.Dense(CLASSES, activation="sigmoid")),
    "batch": 10, "loss": gp.HalfSquaredError(), "optimizer": gp.SGD(0.1),
}  # fmt: skip
_CNN = (
    gp.Conv2d(32, 5, activation="relu"), gp.MaxPool2d(), gp.Conv2d(64, 5, activation="relu"), gp.MaxPool2d(),
    gp.Flatten(), *_perceptron(128),
)  # fmt: skip

NETWORKS = {
    "784-30-10, batch 10": Network(**_FIRST, steps=1000, rows=60000),
    "784-128-64-10, batch 64": Network(_perceptron(128, 64), 64, steps=300, rows=59904),
    "784-512-512-10, batch 128": Network(
        _perceptron(512, 512), 128, steps=50, rows=59904, optimizer=gp.SGD(0.005)
    ),
    "784-512-512-10, batch 128, Adam": Network(
        _perceptron(512, 512), 128, steps=50, rows=59904, optimizer=gp.Adam(3e-5)
    ),
    "784-1024-1024-10, batch 512": Network(_perceptron(1024, 1024), 512, steps=10, rows=59904),
    "784-4096-4096-10, batch 4096": Network(_perceptron(4096, 4096), 4096, steps=20, rows=57344, device="cuda"),
    "CNN 5x5x32-5x5x64-128, batch 128": Network(_CNN, 128, steps=10, rows=6400, shape=(28, 28, 1)),
    "LSTM 128, 28 steps, batch 128": Network(
        (gp.LSTM(128), gp.Dense(CLASSES)), 128, steps=20, rows=12800, shape=(28, 28), optimizer=gp.SGD(0.01)
    ),
    "64 x 784-30-10, batch 10": Network(**_FIRST, steps=320, rows=6400, population=64),
}  # fmt: skip


@dataclass(frozen=True)
class Rows:
    """Pixels (N, *shape), float32 in [0, 1] or uint8, which everybody divides by 255 in each step, and labels (N,)."""

    x: np.ndarray
    labels: np.ndarray

    @property
    def scale(self) -> float:
        return 1 / 255 if self.x.dtype == np.uint8 else 1.0

    def dataset(self) -> gp.data.Dataset:
        preparation = gp.data.Preparation(
            (), ("class",), None, False, tuple(map(str, range(CLASSES))), self.x.shape[1:],
            np.zeros(1), np.full(1, self.scale),
        )  # fmt: skip
        split = gp.data.Split(self.x, self.labels, None, np.arange(len(self.x)))
        return gp.data.Dataset("bench", {"train": split}, preparation, "")


def draw(count: int, shape: tuple[int, ...], dtype: Any) -> Rows:
    """Noisy images of ten classes. A fifth of the labels is wrong, so that the loss stays far from zero: a difference
    of two losses is then one of the work, not of the last digits of two small numbers.
    """
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, count)
    x = rng.integers(0, 128, (count, PIXELS), np.uint8)
    x += rng.integers(0, 128, (CLASSES, PIXELS), np.uint8)[labels]
    wrong = rng.random(count) < 0.2
    labels[wrong] = rng.integers(0, CLASSES, int(wrong.sum()))
    x = x.reshape(count, *shape)
    return Rows(x if dtype == np.uint8 else x * np.float32(1 / 255), labels)


class Contestant(Protocol):
    """Trains the network from the same initial parameters; made by the network, its rows, the parameters by their
    paths, (K, ...) each, and the device ("cpu" or "cuda").
    """

    name: str

    @staticmethod
    def refuses(network: Network, epoch: bool, device: str) -> str:
        """Why it does not take part, or ""."""

    def epoch(self, order: np.ndarray) -> np.ndarray:
        """Steps over the rows order[s, k] of each step s and member k, (steps, K, batch); the mean loss (K,) of the
        steps. That it is on the host means that the device has done all of the work.
        """
