"""What every update rule is: fields, and one function that builds its step over the flat arrays."""

import dataclasses
from typing import Any

import numpy as np

from gpbackprop.backend import Array
from gpbackprop.errors import ConfigError
from gpbackprop.optim.schedules import Constant, Schedule
from gpbackprop.plan import Closure, Network
from gpbackprop.spec import NonNegative, one_of, spec


@dataclasses.dataclass(frozen=True)
class Update:
    """A bound optimizer: `step()` updates `network.w` from `network.g`.

    `lr` (K, 1) holds the learning rates as given, `rate` (K, 1) those of the next step; `state` holds the rule's own
    arrays, each (K, P), by name.
    """

    step: Closure
    lr: Array
    rate: Array
    state: dict[str, Array]


@spec
class Optimizer:
    """w = w + an update from the gradient. The learning rate of a step is `lr` times the schedule's factor."""

    __abstract__ = True
    lr: NonNegative | tuple[NonNegative, ...]
    schedule: one_of(Schedule) = Constant()

    def bind(self, network: Network) -> Update:
        raise NotImplementedError

    @classmethod
    def example(cls) -> "Optimizer":
        """An optimizer of this class: what the tests prove it with."""
        return cls(lr=0.1)


def column(network: Network, name: str, value: Any) -> Array:
    """A hyper-parameter as an array (K, 1): one number for all members, or a list with one for each."""
    values = np.atleast_1d(np.asarray(value, network.dtype))
    if len(values) not in (1, network.K):
        raise ConfigError(f"optimizer.{name}: has {len(values)} entries for a population of {network.K}")
    return network.backend.array(np.broadcast_to(values, network.K)[:, None].copy())
