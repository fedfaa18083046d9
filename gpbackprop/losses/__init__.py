"""Floor 2: losses. Each is the loss of a row and its derivative; weights and the mean or sum over rows are shared.

    L = sum_b w_b l_b / sum_b w_b  (reduce = "mean")     or     L = sum_b w_b l_b  (reduce = "sum")

w_b is the row's weight times its class's weight, 1 unless given. With outputs y (batch, ..., outputs) a row is every
leading index. Targets are numbers (batch, ..., outputs), or class indices (batch, ...), which a loss on vectors reads
through a table: one-hot, +-1 for the hinge, the second class as 1 where there is one output.
"""

from gpbackprop.losses.amounts import HalfSquaredError, Huber, MeanAbsoluteError, MeanSquaredError
from gpbackprop.losses.base import Loss
from gpbackprop.losses.classes import BinaryCrossEntropy, Hinge, Perceptron, SoftmaxCrossEntropy

__all__ = [
    "BinaryCrossEntropy",
    "HalfSquaredError",
    "Hinge",
    "Huber",
    "Loss",
    "MeanAbsoluteError",
    "MeanSquaredError",
    "Perceptron",
    "SoftmaxCrossEntropy",
]
