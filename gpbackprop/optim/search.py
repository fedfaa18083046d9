"""What optimizers have in common that evaluate the loss at several parameters within one step."""

from collections.abc import Callable
from dataclasses import field

import numpy as np

from gpbackprop.backend import Array
from gpbackprop.optim.base import Binding, Optimizer
from gpbackprop.optim.objective import Objective
from gpbackprop.spec import NonNegative, spec


@spec
class Search(Optimizer):
    """The loss that is searched is that of all rows plus weight_decay/2 sum w^2 (of matrices, not of biases).

    Each member of a population searches for itself; members that are done wait for the others, at their own point.
    The decisions are made on the host, so a step waits for the device.
    """

    __abstract__ = True
    whole = True
    lr: NonNegative | tuple[NonNegative, ...] = 1.0
    weight_decay: NonNegative | tuple[NonNegative, ...] = field(default=0.0, kw_only=True)

    def _loss(self, at: Binding, objective: Objective) -> Callable[..., np.ndarray]:
        """loss(evaluate, gradient) gives the loss (K,) at `at.w`, in float64, and leaves its gradient in `at.g`.

        Without `evaluate` it takes the forward and backward pass that are done already.
        """
        xp, w, g = at.xp, at.w, at.g
        decay, trained = at.on_matrices(at.column("weight_decay")), at.network.mask(at.trained)

        def loss(evaluate: bool = True, gradient: bool = True) -> np.ndarray:
            value = objective.evaluate(gradient) if evaluate else objective.value()
            if at.uses("weight_decay"):
                value = value + dot(at, w, decay * w) / 2
                if gradient:
                    xp.add(g, decay * w, out=g)
            if gradient and trained is not None:
                xp.multiply(g, trained, out=g)
            return value

        return loss


def dot(at: Binding, a: Array, b: Array) -> np.ndarray:
    """sum_p a[k,p] b[k,p] in float64, on the host."""
    return at.network.backend.host(at.xp.multiply(a, b, dtype=np.float64).sum(axis=1))


def columns(at: Binding, values: np.ndarray) -> Array:
    """Numbers of the host (K,) as a device array (K, 1)."""
    return at.network.backend.array(np.asarray(values, at.network.dtype)[:, None])
