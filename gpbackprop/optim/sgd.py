"""Stochastic gradient descent."""

from gpbackprop.optim.rule import GradientRule
from gpbackprop.spec import Flag, Fraction, spec


@spec
class SGD(GradientRule):
    """v = momentum v + g,  w = w - lr v;  with Nesterov's momentum w = w - lr (g + momentum v)

    This is the rule of PyTorch; v starts from 0.
    """

    momentum: Fraction | tuple[Fraction, ...] = 0.0
    nesterov: Flag = False

    def rule(self, at):
        xp, g, delta, rate = at.xp, at.g, at.delta, at.rate
        if not at.uses("momentum"):
            return lambda: xp.multiply(g, rate, out=delta)
        v, momentum = at.array("velocity"), at.column("momentum")

        def step():
            xp.multiply(v, momentum, out=v)
            xp.add(v, g, out=v)
            if self.nesterov:
                xp.multiply(v, momentum, out=delta)
                xp.add(delta, g, out=delta)
                xp.multiply(delta, rate, out=delta)
            else:
                xp.multiply(v, rate, out=delta)

        return step

    @classmethod
    def example(cls):
        return cls(lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01)
