"""Layers that exist only while training."""

from gpbackprop.layers.base import Layer
from gpbackprop.plan import Plan, Slot
from gpbackprop.spec import Fraction, spec


@spec
class Dropout(Layer):
    """y = x m / (1 - rate),  m = 1 with probability 1 - rate, else 0;  dx = dy m / (1 - rate)

    The mask is a function of (seed, layer path, step, index). At inference y = x: the layer is not there
    (N. Srivastava et al., 2014).
    """

    rowwise = False
    rate: Fraction = 0.5

    def trace(self, plan: Plan, x: Slot) -> Slot:
        return masked(plan, x, self.rate, x.shape)


@spec
class Dropout2d(Layer):
    """y[b,...,c] = x[b,...,c] m[b,c] / (1 - rate): whole channels of an image or series are kept or dropped

    Neighbouring places of a channel say much the same, so that dropping single ones would hide little
    (J. Tompson et al., 2015). The mask is drawn as that of Dropout; at inference y = x.
    """

    rowwise = False
    rate: Fraction = 0.5

    def trace(self, plan: Plan, x: Slot) -> Slot:
        wanted = "images (height, width, channels) or series (time, channels)"
        plan.expect(len(x.shape) > 2, wanted, x.shape[1:], "for single features use dropout")
        return masked(plan, x, self.rate, (x.shape[0], *(1,) * (len(x.shape) - 2), x.shape[-1]))

    @classmethod
    def example(cls):
        return cls(), (3, 2, 4)


def masked(plan: Plan, x: Slot, rate: float, shape: tuple[int, ...]) -> Slot:
    """y = x m / (1 - rate) with a mask m of `shape`, broadcast to that of x."""
    if not plan.training or rate == 0:
        return x
    xp, y, mask = plan.xp, plan.slot(x.shape), plan.scratch(shape)
    draw = plan.uniform(mask)

    def forward():
        draw()
        xp.greater_equal(mask, rate, out=mask)
        xp.multiply(mask, 1 / (1 - rate), out=mask)
        xp.multiply(x.value, mask, out=y.value)

    def backward():
        xp.multiply(y.grad, mask, out=x.grad)

    plan.step(forward, backward if x.grad is not None else None)
    return y
