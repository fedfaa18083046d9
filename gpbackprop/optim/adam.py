"""Adam and its relatives. These are the rules of PyTorch.

    m = beta1 m + (1 - beta1) g,  v = beta2 v + (1 - beta2) g^2;  t counts the updates from 1

The count is state, in float64, because 1 - beta2^t loses its digits in float32.
"""

from dataclasses import field

import numpy as np

from gpbackprop.optim.rule import GradientRule
from gpbackprop.spec import Flag, Fraction, NonNegative, Positive, spec


@spec
class Moments(GradientRule):
    """What they share: the two moments and the root of the second."""

    __abstract__ = True
    lr: NonNegative | tuple[NonNegative, ...] = 0.001
    beta1: Fraction | tuple[Fraction, ...] = 0.9
    beta2: Fraction | tuple[Fraction, ...] = 0.999
    eps: Positive | tuple[Positive, ...] = 1e-8

    def _moments(self, at):
        """m, v, t, and the call that brings them up to date; it leaves `at.delta` as it likes."""
        xp, g, delta = at.xp, at.g, at.delta
        (m, first), (v, second), t = at.mean("m", "beta1"), at.mean("v", "beta2"), at.scalar("t")

        def moments():
            xp.add(t, 1, out=t)
            first(g, delta)
            xp.multiply(g, g, out=delta)
            second(delta, delta)

        return m, v, t, moments

    def _denominator(self, at, v, t):
        """The call that writes sqrt(v / (1 - beta2^t)) + eps into `at.delta`."""
        xp, delta = at.xp, at.delta
        beta2, eps, correction = at.column("beta2", dtype=np.float64), at.column("eps"), at.xp.empty_like(t)
        factor = xp.empty_like(at.rate)

        def denominator():
            xp.power(beta2, t, out=correction)
            xp.subtract(1, correction, out=correction)
            xp.sqrt(correction, out=correction)
            xp.divide(1, correction, out=factor, casting="same_kind")
            xp.sqrt(v, out=delta)
            xp.multiply(delta, factor, out=delta)
            xp.add(delta, eps, out=delta)

        return denominator


@spec
class Adam(Moments):
    """w = w - lr (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)   (D. Kingma and J. Ba, 2015)

    `amsgrad` takes the largest v so far (S. Reddi et al., 2018).
    """

    amsgrad: Flag = False

    def rule(self, at):
        xp, delta, rate = at.xp, at.delta, at.rate
        m, v, t, moments = self._moments(at)
        largest = at.array("largest_v") if self.amsgrad else v
        denominator = self._denominator(at, largest, t)
        beta1, correction = at.column("beta1", dtype=np.float64), xp.empty_like(t)
        size = xp.empty_like(rate)

        def step():
            moments()
            if self.amsgrad:
                xp.maximum(largest, v, out=largest)
            denominator()
            xp.power(beta1, t, out=correction)
            xp.subtract(1, correction, out=correction)
            xp.divide(rate, correction, out=size, casting="same_kind")
            xp.divide(m, delta, out=delta)
            xp.multiply(delta, size, out=delta)

        return step

    @classmethod
    def example(cls):
        return cls(lr=0.05, weight_decay=0.01, amsgrad=True)


@spec
class AdamW(Adam):
    """Adam whose weight decay is no part of the gradient: w = w - lr weight_decay w besides, for matrices, not biases.

    (I. Loshchilov and F. Hutter, 2019)
    """

    __type__ = "adamw"
    decoupled = True
    weight_decay: NonNegative | tuple[NonNegative, ...] = field(default=0.01, kw_only=True)

    def rule(self, at):
        adam = super().rule(at)
        if not at.uses("weight_decay"):
            return adam
        xp, w, delta, rate = at.xp, at.w, at.delta, at.rate
        t, strength = at.scratch(), at.on_matrices(at.column("weight_decay"))

        def step():
            adam()
            xp.multiply(w, strength, out=t)
            xp.multiply(t, rate, out=t)
            xp.add(delta, t, out=delta)

        return step

    @classmethod
    def example(cls):
        return cls(lr=0.05, weight_decay=0.1)


@spec
class NAdam(Moments):
    """Adam with Nesterov's momentum (T. Dozat, 2016), mu(t) = beta1 (1 - 0.96^(t momentum_decay) / 2):

    w = w - lr (g (1 - mu(t)) / (1 - prod_(s<=t) mu(s)) + m mu(t+1) / (1 - prod_(s<=t+1) mu(s)))
            / (sqrt(v / (1 - beta2^t)) + eps)
    """

    __type__ = "nadam"
    lr: NonNegative | tuple[NonNegative, ...] = 0.002
    momentum_decay: NonNegative | tuple[NonNegative, ...] = 0.004

    def rule(self, at):
        xp, g, delta, rate = at.xp, at.g, at.delta, at.rate
        m, v, t, moments = self._moments(at)
        product, denominator = at.scalar("mu_product", 1.0), self._denominator(at, v, t)
        beta1, decay = (at.column(name, dtype=np.float64) for name in ("beta1", "momentum_decay"))
        mu, after, spare = (xp.empty_like(t) for _ in range(3))
        of_g, of_m, both = xp.empty_like(rate), xp.empty_like(rate), at.scratch()

        def momentum(out):
            xp.multiply(spare, decay, out=out)
            xp.power(0.96, out, out=out)
            xp.multiply(out, -0.5, out=out)
            xp.add(out, 1, out=out)
            xp.multiply(out, beta1, out=out)

        def step():
            moments()
            xp.copyto(spare, t)
            momentum(mu)
            xp.add(t, 1, out=spare)
            momentum(after)
            xp.multiply(product, mu, out=product)
            xp.subtract(1, mu, out=mu)
            xp.subtract(1, product, out=spare)
            xp.divide(mu, spare, out=mu)
            xp.multiply(mu, rate, out=of_g, casting="same_kind")
            xp.multiply(product, after, out=spare)
            xp.subtract(1, spare, out=spare)
            xp.divide(after, spare, out=after)
            xp.multiply(after, rate, out=of_m, casting="same_kind")
            xp.multiply(g, of_g, out=both)
            xp.multiply(m, of_m, out=delta)
            xp.add(both, delta, out=both)
            denominator()
            xp.divide(both, delta, out=delta)

        return step

    @classmethod
    def example(cls):
        return cls(lr=0.05, weight_decay=0.01)
