"""Rules that divide the gradient of each weight by its size so far. These are the rules of PyTorch."""

from gpbackprop.optim.rule import GradientRule
from gpbackprop.spec import Flag, Fraction, NonNegative, Positive, spec


@spec
class Adagrad(GradientRule):
    """s = s + g^2,  w = w - lr g / (sqrt(s) + eps);  s starts from `initial`   (J. Duchi et al., 2011)"""

    lr: NonNegative | tuple[NonNegative, ...] = 0.01
    initial: NonNegative | tuple[NonNegative, ...] = 0.0
    eps: Positive | tuple[Positive, ...] = 1e-10

    def rule(self, at):
        xp, g, delta, rate = at.xp, at.g, at.delta, at.rate
        s, root, eps = at.array("squares", at.column("initial")), at.scratch(), at.column("eps")

        def step():
            xp.multiply(g, g, out=delta)
            xp.add(s, delta, out=s)
            xp.sqrt(s, out=root)
            xp.add(root, eps, out=root)
            xp.divide(g, root, out=delta)
            xp.multiply(delta, rate, out=delta)

        return step

    @classmethod
    def example(cls):
        return cls(lr=0.2)


@spec
class RMSProp(GradientRule):
    """s = alpha s + (1 - alpha) g^2,  v = momentum v + g / (sqrt(s) + eps),  w = w - lr v   (G. Hinton, 2012)

    `centered` takes the variance s - a^2 for s, where a = alpha a + (1 - alpha) g.
    """

    __type__ = "rmsprop"
    lr: NonNegative | tuple[NonNegative, ...] = 0.01
    alpha: Fraction | tuple[Fraction, ...] = 0.99
    momentum: Fraction | tuple[Fraction, ...] = 0.0
    centered: Flag = False
    eps: Positive | tuple[Positive, ...] = 1e-8

    def rule(self, at):
        xp, g, delta, rate = at.xp, at.g, at.delta, at.rate
        momentum, eps, root = at.column("momentum"), at.column("eps"), at.scratch()
        s, squares = at.mean("squares", "alpha")
        a, mean = at.mean("mean", "alpha") if self.centered else (None, None)
        v = at.array("velocity") if at.uses("momentum") else None

        def step():
            xp.multiply(g, g, out=delta)
            squares(delta, delta)
            if mean is None:
                xp.sqrt(s, out=root)
            else:
                mean(g, delta)
                xp.multiply(a, a, out=root)
                xp.subtract(s, root, out=root)
                xp.maximum(root, 0, out=root)  # rounding alone can take it below
                xp.sqrt(root, out=root)
            xp.add(root, eps, out=root)
            xp.divide(g, root, out=delta)
            if v is not None:
                xp.multiply(v, momentum, out=v)
                xp.add(v, delta, out=v)
                xp.copyto(delta, v)
            xp.multiply(delta, rate, out=delta)

        return step

    @classmethod
    def example(cls):
        return cls(lr=0.02, momentum=0.5, centered=True)


@spec
class Adadelta(GradientRule):
    """s = rho s + (1 - rho) g^2,  d = g sqrt(u + eps) / sqrt(s + eps),  u = rho u + (1 - rho) d^2,  w = w - lr d

    (M. Zeiler, 2012)
    """

    lr: NonNegative | tuple[NonNegative, ...] = 1.0
    rho: Fraction | tuple[Fraction, ...] = 0.9
    eps: Positive | tuple[Positive, ...] = 1e-6

    def rule(self, at):
        xp, g, delta, rate = at.xp, at.g, at.delta, at.rate
        eps, t = at.column("eps"), at.scratch()
        (s, squares), (u, changes) = at.mean("squares", "rho"), at.mean("changes", "rho")

        def step():
            xp.multiply(g, g, out=t)
            squares(t, t)
            xp.add(u, eps, out=delta)
            xp.sqrt(delta, out=delta)
            xp.add(s, eps, out=t)
            xp.sqrt(t, out=t)
            xp.divide(delta, t, out=delta)
            xp.multiply(delta, g, out=delta)
            xp.multiply(delta, delta, out=t)
            changes(t, t)
            xp.multiply(delta, rate, out=delta)

        return step

    @classmethod
    def example(cls):
        return cls(lr=1.0, eps=1e-3)
