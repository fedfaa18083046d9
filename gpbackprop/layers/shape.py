"""The same numbers in another shape: no steps, only views."""

import math

from gpbackprop.layers.base import Layer
from gpbackprop.plan import Plan, Slot
from gpbackprop.spec import Count, spec


@spec
class Flatten(Layer):
    """y[b, :] = all features of row b, last axis fastest."""

    def trace(self, plan: Plan, x: Slot) -> Slot:
        return x.reshape(x.shape[0], math.prod(x.shape[1:]))

    @classmethod
    def example(cls):
        return cls(), (2, 3)


@spec
class Reshape(Layer):
    """y[b] = the features of row b in the shape `shape`, last axis fastest."""

    shape: tuple[Count, ...]

    def trace(self, plan: Plan, x: Slot) -> Slot:
        plan.expect(math.prod(x.shape[1:]) == math.prod(self.shape), f"{math.prod(self.shape)} features", x.shape)
        return x.reshape(x.shape[0], *self.shape)

    @classmethod
    def example(cls):
        return cls((3, 2)), (6,)
