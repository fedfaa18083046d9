"""The loss of a batch as a function of the parameters: what an optimizer asks that looks before it steps."""

from typing import Any, Protocol

import numpy as np

from gpbackprop.backend import Array
from gpbackprop.plan import Plan, Target


class RowLoss(Protocol):
    """What a loss is to an objective: see `losses`."""

    @property
    def reduce(self) -> Any: ...
    @property
    def class_weights(self) -> Any: ...
    def curvature(self, outputs: int) -> float | None: ...


class Objective:
    """The rows that are loaded in `plan`, their target, and the loss (K, 1, 1) and mass (K, 1, 1) of the last forward.

    What it evaluates on the way is not counted in the tallies of the epoch. Layers that keep state (running moments)
    see each evaluation as a step.
    """

    def __init__(self, plan: Plan, loss: RowLoss, target: Target, total: Array, mass: Array):
        self.plan, self.loss, self.target, self.total, self.mass = plan, loss, target, total, mass

    def value(self) -> np.ndarray:
        """The loss of each member (K,) at the last forward, in float64 on the host."""
        host = self.plan.backend.host
        total, mass = (host(array)[:, 0, 0].astype(np.float64) for array in (self.total, self.mass))
        return total / mass if self.loss.reduce == "mean" else total

    def evaluate(self, gradient: bool = True) -> np.ndarray:
        """The loss of each member (K,) at the present parameters; its gradient, if asked for, is then in network.g."""
        kept = {name: tally.copy() for name, tally in self.plan.tallies.items()}
        self.plan.forward()
        if gradient:
            self.plan.backward()
        for name, tally in kept.items():
            self.plan.tallies[name][...] = tally
        return self.value()
