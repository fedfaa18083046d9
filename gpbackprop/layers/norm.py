"""Normalisation: mean 0 and deviation 1 over some axes, then a scale gamma and a shift beta for each channel.

With n = (x - mean) / sqrt(variance + eps) the gradient of all of them is
dx = (dn - mean(dn) - n mean(dn n)) / sqrt(variance + eps),  dn = dy gamma,  the means over the same axes.
"""

import numpy as np

from gpbackprop.backend import Array
from gpbackprop.initializers import Constant, Zeros
from gpbackprop.layers.base import Parametric
from gpbackprop.plan import Plan, Slot
from gpbackprop.spec import Count, Fraction, Positive, spec

ONE = Constant(1.0)


@spec
class BatchNorm(Parametric):
    """y = gamma n + beta,  n = (x - mean) / sqrt(variance + eps) over the batch and all places of an image

    (S. Ioffe and C. Szegedy, 2015). gamma starts from 1, beta from 0, both (channels,). Training divides by the moments
    of the batch and notes them in the layer's state: running = (1 - momentum) running + momentum batch, the variance
    there by n - 1. Inference takes the running moments: y is then a function of each row alone.
    """

    rowwise = False
    parameters = ("gamma", "beta")
    momentum: Fraction = 0.1
    eps: Positive = 1e-5

    def trace(self, plan: Plan, x: Slot) -> Slot:
        channels = _channels(plan, x)
        gamma, beta = (p.reshape(1, channels) for p in _scale_and_shift(self, plan, channels))
        mean, variance = plan.state("mean", (1, channels), Zeros()), plan.state("variance", (1, channels), ONE)
        y = plan.slot(x.shape)
        if plan.training:
            self._by_the_batch(plan, x.rows, y.rows, gamma, beta, mean, variance)
        else:
            self._by_the_state(plan, x.rows, y.rows, gamma, beta, mean, variance)
        return y

    def _by_the_state(self, plan, x, y, gamma, beta, mean, variance):
        xp, scale, shift = plan.xp, plan.scratch(gamma.shape), plan.scratch(gamma.shape)

        def forward():
            _inverse_root(xp, variance, self.eps, scale)
            xp.multiply(scale, gamma.value, out=scale)
            xp.multiply(mean, scale, out=shift)
            xp.subtract(beta.value, shift, out=shift)
            xp.multiply(x.value, scale, out=y.value)
            xp.add(y.value, shift, out=y.value)

        plan.step(forward, None)

    def _by_the_batch(self, plan, x, y, gamma, beta, running_mean, running_variance):
        gemm, xp, count = plan.backend.gemm, plan.xp, x.shape[0]
        n, t = plan.scratch(x.shape), plan.scratch(x.shape)
        mean, variance, scale, row = (plan.scratch(gamma.shape) for _ in range(4))
        ones = plan.constant(np.ones((1, 1, count)))
        unbiased = count / max(1, count - 1)

        def note(running, value, factor):
            xp.multiply(running, 1 - self.momentum, out=running)
            xp.multiply(value, self.momentum * factor, out=row)
            xp.add(running, row, out=running)

        def forward():
            gemm(ones, x.value, mean)
            xp.multiply(mean, 1 / count, out=mean)
            xp.subtract(x.value, mean, out=n)
            xp.multiply(n, n, out=t)
            gemm(ones, t, variance)
            xp.multiply(variance, 1 / count, out=variance)
            _inverse_root(xp, variance, self.eps, scale)
            xp.multiply(n, scale, out=n)
            xp.multiply(n, gamma.value, out=y.value)
            xp.add(y.value, beta.value, out=y.value)
            note(running_mean, mean, 1)
            note(running_variance, variance, unbiased)

        def backward():
            xp.multiply(y.grad, n, out=t)
            gemm(ones, t, gamma.grad)
            gemm(ones, y.grad, beta.grad)
            if x.grad is not None:  # gamma leaves both means: mean(dn n) = gamma dgamma / count
                xp.multiply(gamma.grad, 1 / count, out=row)
                xp.multiply(n, row, out=t)
                xp.subtract(y.grad, t, out=t)
                xp.multiply(beta.grad, 1 / count, out=row)
                xp.subtract(t, row, out=t)
                xp.multiply(gamma.value, scale, out=row)
                xp.multiply(t, row, out=x.grad)

        plan.step(forward, backward)

    @classmethod
    def example(cls):
        return cls(), (3, 2, 4)


@spec
class GroupNorm(Parametric):
    """y = gamma n + beta,  n = (x - mean) / sqrt(variance + eps) over all places and the channels of a group

    (Y. Wu and K. He, 2018), for each row alone. One group is all channels; with as many groups as channels each has its
    own moments (instance normalisation). gamma starts from 1, beta from 0, both (channels,).
    """

    parameters = ("gamma", "beta")
    groups: Count
    eps: Positive = 1e-5

    def trace(self, plan: Plan, x: Slot) -> Slot:
        channels = _channels(plan, x)
        plan.expect(
            channels % self.groups == 0, f"channels that {self.groups} groups can share", f"{channels} channels"
        )
        return _standardised(self, plan, x, (x.shape[0], -1, self.groups, channels // self.groups))

    @classmethod
    def example(cls):
        return cls(2), (3, 2, 8)


@spec
class LayerNorm(Parametric):
    """y = gamma n + beta,  n = (x - mean) / sqrt(variance + eps) over the last axis   (J. Ba et al., 2016)

    gamma starts from 1, beta from 0, both (channels,).
    """

    parameters = ("gamma", "beta")
    eps: Positive = 1e-5

    def trace(self, plan: Plan, x: Slot) -> Slot:
        return _standardised(self, plan, x, (-1, 1, 1, _channels(plan, x)))

    @classmethod
    def example(cls):
        return cls(), (3, 6)


@spec
class RMSNorm(Parametric):
    """y = gamma n,  n = x / r,  r = sqrt(mean(x^2) + eps) over the last axis   (B. Zhang and R. Sennrich, 2019)

    gamma (channels,) starts from 1.  dx = (dn - n mean(dn n)) / r,  dn = dy gamma.
    """

    parameters = ("gamma",)
    eps: Positive = 1e-5

    def trace(self, plan: Plan, x: Slot) -> Slot:
        channels = _channels(plan, x)
        gemm, xp, out = plan.backend.gemm, plan.xp, plan.slot(x.shape)
        gamma = self.param(plan, "gamma", (channels,), ONE).reshape(1, channels)
        x_rows, y = x.rows, out.rows
        n, t, scale, row = (plan.scratch((*y.shape[:1], size)) for size in (channels, channels, 1, 1))
        ones = plan.constant(np.ones((1, 1, y.shape[0])))

        def forward():
            xp.multiply(x_rows.value, x_rows.value, out=t)
            _mean(xp, t, -1, channels, scale)
            _inverse_root(xp, scale, self.eps, scale)
            xp.multiply(x_rows.value, scale, out=n)
            xp.multiply(n, gamma.value, out=y.value)

        def backward():
            xp.multiply(y.grad, n, out=t)
            gemm(ones, t, gamma.grad)
            if x.grad is not None:
                xp.multiply(t, gamma.value, out=t)
                _mean(xp, t, -1, channels, row)
                xp.multiply(n, row, out=t)
                xp.multiply(y.grad, gamma.value, out=x_rows.grad)
                xp.subtract(x_rows.grad, t, out=x_rows.grad)
                xp.multiply(x_rows.grad, scale, out=x_rows.grad)

        plan.step(forward, backward)
        return out

    @classmethod
    def example(cls):
        return cls(), (3, 4)


def _standardised(layer, plan: Plan, x: Slot, shape: tuple[int, ...]) -> Slot:
    """y = gamma n + beta with the moments over the axes 1 and 3 of x as `shape` (rows, places, groups, c)."""
    gemm, xp, out = plan.backend.gemm, plan.xp, plan.slot(x.shape)
    gamma, beta = _scale_and_shift(layer, plan, x.shape[-1])
    x_in, y = x.reshape(*shape), out.reshape(*shape)
    rows, places, groups, c = y.shape
    n, t = plan.scratch(y.shape), plan.scratch(y.shape)
    mean, scale = plan.scratch((rows, 1, groups, 1)), plan.scratch((rows, 1, groups, 1))
    ones = plan.constant(np.ones((1, 1, rows * places)))
    over, count = (2, 4), places * c
    g, b = gamma.reshape(1, 1, groups, c), beta.reshape(1, 1, groups, c)
    dg, db = gamma.reshape(1, groups * c).grad, beta.reshape(1, groups * c).grad
    t_rows = t.reshape(t.shape[0], rows * places, groups * c)

    def forward():
        _mean(xp, x_in.value, over, count, mean)
        xp.subtract(x_in.value, mean, out=n)
        xp.multiply(n, n, out=t)
        _mean(xp, t, over, count, scale)
        _inverse_root(xp, scale, layer.eps, scale)
        xp.multiply(n, scale, out=n)
        xp.multiply(n, g.value, out=y.value)
        xp.add(y.value, b.value, out=y.value)

    def backward():
        xp.multiply(y.grad, n, out=t)
        gemm(ones, t_rows, dg)
        gemm(ones, out.rows.grad, db)
        if x.grad is not None:
            dx = x_in.grad
            xp.multiply(t, g.value, out=t)
            _mean(xp, t, over, count, mean)
            xp.multiply(n, mean, out=t)
            xp.multiply(y.grad, g.value, out=dx)
            xp.subtract(dx, t, out=t)
            _mean(xp, dx, over, count, mean)
            xp.subtract(t, mean, out=dx)
            xp.multiply(dx, scale, out=dx)

    plan.step(forward, backward)
    return out


def _channels(plan: Plan, x: Slot) -> int:
    plan.expect(len(x.shape) > 1, "rows of features (batch, ..., channels)", x.shape)
    return x.shape[-1]


def _scale_and_shift(layer, plan: Plan, channels: int) -> tuple[Slot, Slot]:
    return layer.param(plan, "gamma", (channels,), ONE), layer.param(plan, "beta", (channels,))


def _mean(xp, x: Array, axis, count: int, out: Array) -> None:
    """The mean over `axis`, `count` numbers each."""
    xp.sum(x, axis=axis, keepdims=True, out=out)
    xp.multiply(out, 1 / count, out=out)


def _inverse_root(xp, variance: Array, eps: float, out: Array) -> None:
    """1 / sqrt(variance + eps)"""
    xp.add(variance, eps, out=out)
    xp.sqrt(out, out=out)
    xp.divide(1, out, out=out)
