"""scikit-learn's MLPClassifier as a contestant of scripts/bench.py: `partial_fit` is an epoch."""

import warnings

import numpy as np
import sklearn
from bench_work import CLASSES, Network, Rows
from sklearn.neural_network import MLPClassifier

LIBRARY, VERSION = "scikit-learn", sklearn.__version__


class PartialFit:
    """It gathers all rows of the epoch at once, in the given order, and takes its batches from them as views."""

    name = "scikit-learn"

    @staticmethod
    def refuses(network: Network, epoch: bool, device: str) -> str:
        if device != "cpu":
            return "for the CPU"
        if network.adam:
            return "its Adam adds epsilon to another number"
        fits = network.dense and not network.half_squared and network.population == 1
        return "" if fits else "for one classifier of dense layers with softmax cross-entropy"

    def __init__(self, network: Network, rows: Rows, parameters: dict[str, np.ndarray], device: str):
        self.x, self.labels, self.scale = rows.x, rows.labels, np.float32(rows.scale)
        rule, each = network.optimizer, [a[0] for a in parameters.values()]
        self.model = MLPClassifier(
            [layer.units for layer in network.layers[:-1]], "relu", solver="sgd", alpha=0,
            batch_size=network.batch, learning_rate_init=rule.lr, momentum=0, shuffle=False, tol=0,
            n_iter_no_change=2**31,
        )  # fmt: skip
        with warnings.catch_warnings(action="ignore"):  # of a label that a single batch does not hold
            self.model.partial_fit(
                self.rows(slice(network.batch)), self.labels[: network.batch], classes=range(CLASSES)
            )
        for own, given in zip((self.model.coefs_, self.model.intercepts_), (each[::2], each[1::2]), strict=True):
            own[:] = map(np.array, given)
        del self.model._optimizer  # the next call begins with a new one

    def rows(self, index) -> np.ndarray:
        x = self.x[index]
        return x * self.scale if x.dtype == np.uint8 else x

    def epoch(self, order: np.ndarray) -> np.ndarray:
        index = order.reshape(-1)
        self.model.partial_fit(self.rows(index), self.labels[index])
        return np.array([self.model.loss_])
