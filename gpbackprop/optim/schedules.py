"""Schedules: the factor on the learning rate as a pure function of the time t and the end T of training, in epochs."""

import math
from collections.abc import Sequence

from gpbackprop.spec import Count, Fraction, NonNegative, Positive, Whole, one_of, spec


class Schedule:
    """lr(t) = lr factor(t, T) for 0 <= t < T, t = (updates done) / (updates in an epoch).

    A schedule that `watches` is told of the past too: the monitored metric (the validation loss, or what early stopping
    monitors) after each epoch so far, so signed that less is better. It keeps no state: the past is the run's history.
    """

    @property
    def watches(self) -> bool:
        return False

    def factor(self, t: float, T: float, past: Sequence[float] = ()) -> float:
        raise NotImplementedError

    @classmethod
    def example(cls) -> "Schedule":
        """A schedule of this class: what the tests prove it with."""
        return cls()


@spec
class Constant(Schedule):
    """1"""

    def factor(self, t, T, past=()):
        return 1.0


@spec
class Step(Schedule):
    """gamma^floor(t / every)"""

    every: Count
    gamma: Positive = 0.1

    def factor(self, t, T, past=()):
        return self.gamma ** math.floor(t / self.every)

    @classmethod
    def example(cls):
        return cls(every=2)


@spec
class Exponential(Schedule):
    """gamma^floor(t): the rate falls once an epoch."""

    gamma: Positive

    def factor(self, t, T, past=()):
        return self.gamma ** math.floor(t)

    @classmethod
    def example(cls):
        return cls(gamma=0.5)


@spec
class Polynomial(Schedule):
    """floor + (1 - floor) (1 - t / T)^power"""

    power: Positive = 1.0
    floor: Fraction = 0.0

    def factor(self, t, T, past=()):
        return self.floor + (1 - self.floor) * max(1 - t / T, 0) ** self.power

    @classmethod
    def example(cls):
        return cls(power=2.0)


@spec
class Cosine(Schedule):
    """floor + (1 - floor) (1 + cos(pi t / T)) / 2   (I. Loshchilov and F. Hutter, 2017)"""

    floor: Fraction = 0.0

    def factor(self, t, T, past=()):
        return _between(1, self.floor, min(t / T, 1))


@spec
class WarmRestarts(Schedule):
    """The cosine over cycles of `period` epochs, each `growth` times as long as the one before   (ibid.)"""

    period: Count
    growth: Count = 1
    floor: Fraction = 0.0

    def factor(self, t, T, past=()):
        start, length = 0, self.period
        if self.growth == 1:
            start = t // length * length
        while t >= start + length:
            start, length = start + length, length * self.growth
        return _between(1, self.floor, (t - start) / length)

    @classmethod
    def example(cls):
        return cls(period=2, growth=2)


@spec
class OneCycle(Schedule):
    """Up from `start` to 1 over the share `rise` of the training, then down to `end`, both along half a cosine

    (L. Smith and N. Topin, 2019). The learning rate of the optimizer is the highest of the cycle.
    """

    rise: Fraction = 0.3
    start: Fraction = 0.04
    end: Fraction = 4e-6

    def factor(self, t, T, past=()):
        s = min(t / T, 1)
        if s < self.rise:
            return _between(self.start, 1, s / self.rise)
        return _between(1, self.end, (s - self.rise) / (1 - self.rise))


@spec
class Warmup(Schedule):
    """start + (1 - start) t / epochs for t < epochs, then the schedule `then`, whose time begins there."""

    epochs: Positive
    start: NonNegative = 0.0
    then: one_of(Schedule) = Constant()

    @property
    def watches(self):
        return self.then.watches

    def factor(self, t, T, past=()):
        if t < self.epochs:
            return self.start + (1 - self.start) * t / self.epochs
        return self.then.factor(t - self.epochs, max(T - self.epochs, 1e-9), past[math.ceil(self.epochs) :])

    @classmethod
    def example(cls):
        return cls(epochs=2, then=Cosine())


@spec
class ReduceOnPlateau(Schedule):
    """gamma^n, not below `floor`: n grows when the metric has not become better for more than `patience` epochs

    Better is by more than the share `threshold` of the best. After each reduction `cooldown` epochs are not counted.
    Each member of a population has its own.
    """

    gamma: Fraction = 0.1
    patience: Whole = 10
    threshold: NonNegative = 1e-4
    cooldown: Whole = 0
    floor: Fraction = 0.0

    @property
    def watches(self):
        return True

    def factor(self, t, T, past=()):
        factor, best, bad, rest = 1.0, math.inf, 0, 0
        for value in past:
            better = value < best - self.threshold * abs(best) if best < math.inf else value < best
            best, bad = (value, 0) if better else (best, bad + 1)
            if rest:
                rest, bad = rest - 1, 0
            if bad > self.patience:
                factor, rest, bad = max(factor * self.gamma, self.floor), self.cooldown, 0
        return factor

    @classmethod
    def example(cls):
        return cls(gamma=0.5, patience=1)


def _between(a: float, b: float, s: float) -> float:
    """From a (at s = 0) to b (at s = 1) along half a cosine."""
    return b + (a - b) * (1 + math.cos(math.pi * s)) / 2
