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
        if not plan.training or self.rate == 0:
            return x
        xp, y, mask = plan.xp, plan.slot(x.shape), plan.scratch(x.shape)
        draw = plan.uniform(mask)

        def forward():
            draw()
            xp.greater_equal(mask, self.rate, out=mask)
            xp.multiply(mask, 1 / (1 - self.rate), out=mask)
            xp.multiply(x.value, mask, out=y.value)

        def backward():
            xp.multiply(y.grad, mask, out=x.grad)

        plan.step(forward, backward if x.grad is not None else None)
        return y
