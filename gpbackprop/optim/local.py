"""Rules in which each weight has a step of its own, from how its own slope changes. For full batches."""

from typing import Annotated

from pydantic import Field

from gpbackprop.optim.rule import GradientRule
from gpbackprop.spec import Fraction, NonNegative, Positive, spec

Growth = Annotated[float, Field(strict=True, ge=1, allow_inf_nan=False)]


@spec
class Rprop(GradientRule):
    """w = w - size sign(g);  size = up size where g has the sign it had, down size where it changed (and g = 0 there)

    Sizes start from lr and stay within [least, most]; a schedule scales them all. This is the rule of PyTorch.
    (M. Riedmiller and H. Braun, 1993)
    """

    lr: NonNegative | tuple[NonNegative, ...] = 0.01
    down: Fraction | tuple[Fraction, ...] = 0.5
    up: Growth | tuple[Growth, ...] = 1.2
    least: Positive | tuple[Positive, ...] = 1e-6
    most: Positive | tuple[Positive, ...] = 50.0

    def rule(self, at):
        xp, g, delta, rate = at.xp, at.g, at.delta, at.rate
        before, size, t = at.array("gradient"), at.array("size", 1.0), at.scratch()  # sizes in units of lr
        grow, shrink = at.column("up", lambda up: up - 1), at.column("down", lambda down: 1 - down)
        some = xp.maximum(at.lr, 1e-30)
        least, most = (xp.divide(at.column(name), some) for name in ("least", "most"))

        def step():
            xp.multiply(g, before, out=before)
            xp.greater(before, 0, out=t)
            xp.multiply(t, grow, out=delta)
            xp.less(before, 0, out=t)
            xp.multiply(t, shrink, out=t)
            xp.subtract(delta, t, out=delta)
            xp.multiply(delta, size, out=delta)
            xp.add(size, delta, out=size)
            xp.maximum(size, least, out=size)
            xp.minimum(size, most, out=size)
            xp.greater_equal(before, 0, out=t)
            xp.multiply(g, t, out=before)
            xp.sign(before, out=delta)
            xp.multiply(delta, size, out=delta)
            xp.multiply(delta, rate, out=delta)

        return step

    @classmethod
    def example(cls):
        return cls(lr=0.01)


@spec
class Quickprop(GradientRule):
    """d = d r / (1 - r) + lr g [g g' >= 0],  r = min(g / g', growth / (1 + growth)),  w = w - d

    g' and the d on the right are those of the step before. The first term jumps to the minimum of the parabola through
    both slopes, at most `growth` times as far as the last step; the second starts it, and is left out behind a minimum.
    (S. Fahlman, "An Empirical Study of Learning Speed in Back-Propagation Networks", 1988)
    """

    growth: Growth | tuple[Growth, ...] = 1.75

    def rule(self, at):
        xp, g, delta, rate = at.xp, at.g, at.delta, at.rate
        before, last, t = at.array("gradient"), at.array("change"), at.scratch()
        most = at.column("growth", lambda growth: growth / (1 + growth))

        def step():
            xp.equal(before, 0, out=t)  # where there was no slope there was no step: any r will do
            xp.add(before, t, out=delta)
            xp.divide(g, delta, out=t)
            xp.minimum(t, most, out=t)
            xp.maximum(t, -1e6, out=t)
            xp.subtract(1, t, out=delta)
            xp.divide(t, delta, out=t)
            xp.multiply(last, t, out=last)
            xp.multiply(g, before, out=t)
            xp.greater_equal(t, 0, out=t)
            xp.multiply(t, g, out=t)
            xp.multiply(t, rate, out=t)
            xp.add(last, t, out=last)
            xp.copyto(before, g)
            xp.copyto(delta, last)

        return step

    @classmethod
    def example(cls):
        return cls(lr=0.02)


@spec
class DeltaBarDelta(GradientRule):
    """w = w - lr gain g;  gain = gain + kappa where g has the sign of its mean m, (1 - phi) gain where it has not

    m = theta m + (1 - theta) g; each gain starts from 1.
    (R. Jacobs, "Increased Rates of Convergence Through Learning Rate Adaptation", 1988)
    """

    kappa: NonNegative | tuple[NonNegative, ...] = 0.1
    phi: Fraction | tuple[Fraction, ...] = 0.2
    theta: Fraction | tuple[Fraction, ...] = 0.7

    def rule(self, at):
        xp, g, delta, rate = at.xp, at.g, at.delta, at.rate
        (m, mean), gain, t = at.mean("mean", "theta"), at.array("gain", 1.0), at.scratch()
        kappa, phi = at.column("kappa"), at.column("phi")

        def step():
            xp.multiply(m, g, out=delta)
            xp.less(delta, 0, out=t)
            xp.multiply(t, phi, out=t)
            xp.multiply(t, gain, out=t)
            xp.subtract(gain, t, out=gain)
            xp.greater(delta, 0, out=t)
            xp.multiply(t, kappa, out=t)
            xp.add(gain, t, out=gain)
            mean(g, t)
            xp.multiply(g, gain, out=delta)
            xp.multiply(delta, rate, out=delta)

        return step

    @classmethod
    def example(cls):
        return cls(lr=0.05)
