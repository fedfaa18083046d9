"""What every optimizer is: fields, and one function that builds its step over the flat arrays."""

import copy
import dataclasses
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Any, ClassVar

import numpy as np

from gpbackprop.backend import Array, Backend
from gpbackprop.errors import ConfigError
from gpbackprop.optim.objective import Objective
from gpbackprop.optim.schedules import Constant, Schedule
from gpbackprop.plan import Closure, Declared, Flat, Network
from gpbackprop.spec import NonNegative, Text, one_of, spec


@dataclasses.dataclass(frozen=True)
class Update:
    """A bound optimizer: `step()` updates `network.w` from `network.g`.

    `lr` (K, 1) holds the learning rates as given, `rate` (K, 1) those of the next step. A checkpoint holds `state`, the
    optimizer's own arrays, each (K, P), and `scalars`, each (K, 1), by name. `result` (K, P) are the parameters that
    training leads to where those are not `network.w` itself: a running average, the best that a swarm has found. With
    `every` > 1 a step is taken at every so many batches; the gradients of those between go to `gather()`. `fixed` says
    that the step is the same calls on the same arrays every time. `arrays` is how many of (K, P) it took in all.
    """

    step: Closure
    lr: Array
    rate: Array
    state: dict[str, Array]
    scalars: dict[str, Array] = dataclasses.field(default_factory=dict)
    result: Array | None = None
    every: int = 1
    gather: Closure = lambda: None
    fixed: bool = False
    arrays: int = 0


@spec
class Optimizer:
    """w = w + an update. The learning rate of a step is `lr` times the schedule's factor.

    `freeze` lists patterns of parameter paths, as in "0-dense/*" or "*/b": training leaves what they match alone.
    """

    __abstract__ = True
    whole: ClassVar[bool] = False  # every step needs all rows, and the loss at other parameters: see Objective
    gradient: ClassVar[bool] = True  # the step reads network.g
    swarm: ClassVar[bool] = False  # the members of the population learn from each other, and result in one network
    lr: NonNegative | tuple[NonNegative, ...]
    schedule: one_of(Schedule) = Constant()
    freeze: tuple[Text, ...] = dataclasses.field(default=(), kw_only=True)

    def bind(self, network: Network, objective: Objective | None = None) -> Update:
        """The update of a network. `objective` is the loss of the rows of a step; only those that search need it."""
        raise NotImplementedError

    def size(self, network: Network, batch: int) -> int:
        """The bytes that it takes beside parameters and gradients, of a network that is measured, without arrays.

        It is bound to a network with the same paths, each a parameter of one number, and its arrays are counted.
        """
        small, shapes = copy.copy(network), network.params
        small.params, small.states = Flat(), Flat()
        for path, place in shapes.items():
            facts = {"init": place.init, "decay": place.decay, "frozen": place.frozen}
            small.params.declare(path, (1,) * len(place.shape), **facts)
        small.backend = Backend()
        small.allocate()
        return self.bind(small).arrays * network.K * shapes.size * network.dtype.itemsize

    @classmethod
    def example(cls) -> "Optimizer":
        """An optimizer of this class: what the tests prove it with."""
        return cls(lr=0.1)


class Binding:
    """What a rule works with: arrays over all parameters of K members, and the optimizer's numbers as columns.

    `g` (K, P) is the gradient. The rule fills `delta` (K, P), which is then taken off the parameters `w`; until then it
    is scratch. Where the gradient of a parameter has always been 0, `delta` must be 0.
    """

    def __init__(self, optimizer: Optimizer, network: Network):
        self.optimizer, self.network, self.xp = optimizer, network, network.backend.xp
        self.w, self.g = network.w, network.g
        self.taken = 0
        self.delta = network.backend.spare(self.scratch())
        self.lr = self.column("lr")
        self.rate = self.lr.copy()
        self.arrays: dict[str, Array] = {}
        self.scalars: dict[str, Array] = {}
        frozen = {network.params[path].offset for path in matching(network, "freeze", optimizer.freeze)}
        self.trained: Callable[[Declared], bool] = lambda place: not place.frozen and place.offset not in frozen

    def scratch(self) -> Array:
        """Work memory (K, P)."""
        self.taken += 1
        return self.network.backend.zeros(self.w.shape, self.w.dtype)

    def array(self, name: str, start: float | Array = 0.0) -> Array:
        """State (K, P)."""
        self.arrays[name] = self.scratch()
        self.arrays[name][...] = start
        return self.arrays[name]

    def scalar(self, name: str, start: float = 0.0) -> Array:
        """State (K, 1) in float64."""
        self.scalars[name] = self.xp.full((self.network.K, 1), start, np.float64)
        return self.scalars[name]

    def mean(self, name: str, keep: str) -> tuple[Array, Callable[[Array, Array], None]]:
        """State m (K, P), and mean(value, t), which makes it m = keep m + (1 - keep) value with t (K, P) as scratch.

        `keep` names a hyper-parameter. Where the value is not needed again, t may be the value itself.
        """
        xp, m, kept, rest = self.xp, self.array(name), self.column(keep), self.column(keep, lambda keep: 1 - keep)

        def mean(value: Array, t: Array) -> None:
            xp.multiply(value, rest, out=t)
            xp.multiply(m, kept, out=m)
            xp.add(m, t, out=m)

        return m, mean

    def column(self, name: str, of: Callable[[np.ndarray], Any] = lambda value: value, dtype: Any = None) -> Array:
        """A hyper-parameter, or a function of it computed in float64, as an array (K, 1).

        It is one number for all members, or a list with one for each. Raises ConfigError for a list of a wrong length,
        and for a number that is an infinity in the network's dtype.
        """
        values = np.atleast_1d(np.asarray(getattr(self.optimizer, name), np.float64))
        if len(values) not in (1, self.network.K):
            raise ConfigError(f"optimizer.{name}: has {len(values)} entries for a population of {self.network.K}")
        with np.errstate(over="ignore"):
            columns = np.broadcast_to(of(values), self.network.K)[:, None].astype(dtype or self.network.dtype)
        if not np.isfinite(columns).all():
            raise ConfigError(f"optimizer.{name}: found {values.max():g}, which is too large for {columns.dtype}")
        return self.network.backend.array(columns)

    def on_matrices(self, column: Array) -> Array:
        """A column, with 0 for what is frozen and for the parameters that are not decayed: (K, 1) or (K, P)."""
        mask = self.network.mask(lambda place: place.decay and self.trained(place))
        return column if mask is None else self.xp.multiply(column, mask)

    def uses(self, name: str) -> bool:
        """Whether a hyper-parameter, or one member's, is given and differs from 0."""
        value = getattr(self.optimizer, name)
        return any(value) if isinstance(value, tuple) else bool(value)

    def update(self, step: Closure, **facts: Any) -> Update:
        taken = self.taken + (facts.get("result") is not None)
        return Update(step, self.lr, self.rate, self.arrays, self.scalars, **facts, arrays=taken)


def matching(network: Network, name: str, patterns: tuple[str, ...] | Mapping[str, Any]) -> dict[str, str]:
    """The parameter paths that match one of the patterns, each with the last pattern that it matches.

    Raises ConfigError, with the paths there are, where a pattern matches none.
    """
    found = {path: pattern for pattern in patterns for path in network.params if fnmatchcase(path, pattern)}
    for pattern in patterns:
        if not any(fnmatchcase(path, pattern) for path in network.params):
            paths = ", ".join(network.params) or "none"
            raise ConfigError(f"optimizer.{name}: {pattern!r} matches no parameter; the parameters are {paths}")
    return found
