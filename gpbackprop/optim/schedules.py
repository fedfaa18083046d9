"""Schedules: the factor on the learning rate as a pure function of the time t, in epochs, and the end T of training."""

import math

from gpbackprop.spec import Count, Fraction, NonNegative, Positive, one_of, spec


class Schedule:
    """lr(t) = lr factor(t, T) for 0 <= t < T, t = (updates done) / (updates in an epoch)."""

    def factor(self, t: float, T: float) -> float:
        raise NotImplementedError

    @classmethod
    def example(cls) -> "Schedule":
        """A schedule of this class: what the tests prove it with."""
        return cls()


@spec
class Constant(Schedule):
    """1"""

    def factor(self, t, T):
        return 1.0


@spec
class Step(Schedule):
    """gamma^floor(t / every)"""

    every: Count
    gamma: Positive = 0.1

    def factor(self, t, T):
        return self.gamma ** math.floor(t / self.every)

    @classmethod
    def example(cls):
        return cls(every=2)


@spec
class Exponential(Schedule):
    """gamma^floor(t): the rate falls once an epoch."""

    gamma: Positive

    def factor(self, t, T):
        return self.gamma ** math.floor(t)

    @classmethod
    def example(cls):
        return cls(gamma=0.5)


@spec
class Cosine(Schedule):
    """floor + (1 - floor) (1 + cos(pi t / T)) / 2   (I. Loshchilov and F. Hutter, 2017)"""

    floor: Fraction = 0.0

    def factor(self, t, T):
        return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * min(t / T, 1))) / 2


@spec
class Warmup(Schedule):
    """start + (1 - start) t / epochs for t < epochs, then the schedule `then`, whose time begins there."""

    epochs: Positive
    start: NonNegative = 0.0
    then: one_of(Schedule) = Constant()

    def factor(self, t, T):
        if t < self.epochs:
            return self.start + (1 - self.start) * t / self.epochs
        return self.then.factor(t - self.epochs, max(T - self.epochs, 1e-9))

    @classmethod
    def example(cls):
        return cls(epochs=2, then=Cosine())
