"""Losses of amounts: how far the outputs are from their targets."""

from typing import ClassVar

from gpbackprop.losses.base import Loss
from gpbackprop.spec import Positive, spec


@spec
class HalfSquaredError(Loss):
    """l = 1/2 sum_o (y_o - t_o)^2;  dl/dy_o = y_o - t_o"""

    factor: ClassVar[float] = 0.5

    def curvature(self, outputs):
        return 2 * (self.factor if self.factor else 1 / outputs)

    def rows(self, plan, y, t, each):
        xp, d, square = plan.xp, plan.scratch(y.shape), plan.scratch(y.shape)
        factor = self.factor if self.factor else 1 / y.shape[1]

        def forward():
            xp.subtract(y.value, t, out=d)
            xp.multiply(d, d, out=square)
            xp.sum(square, axis=-1, keepdims=True, out=each)
            xp.multiply(each, factor, out=each)

        def backward():
            xp.multiply(d, 2 * factor, out=y.grad)

        return forward, backward


@spec
class MeanSquaredError(HalfSquaredError):
    """l = 1/O sum_o (y_o - t_o)^2;  dl/dy_o = 2/O (y_o - t_o)"""

    factor = 0.0  # 1/O, known when the outputs are


@spec
class MeanAbsoluteError(Loss):
    """l = 1/O sum_o |y_o - t_o|;  dl/dy_o = sign(y_o - t_o) / O"""

    def rows(self, plan, y, t, each):
        xp, d, size = plan.xp, plan.scratch(y.shape), plan.scratch(y.shape)

        def forward():
            xp.subtract(y.value, t, out=d)
            xp.abs(d, out=size)
            xp.mean(size, axis=-1, keepdims=True, out=each)

        def backward():
            xp.sign(d, out=y.grad)
            xp.multiply(y.grad, 1 / y.shape[1], out=y.grad)

        return forward, backward


@spec
class Huber(Loss):
    """l = 1/O sum_o h(y_o - t_o),  h(d) = d^2/2 where |d| <= delta, else delta (|d| - delta/2)

    h'(d) = clip(d, -delta, delta). With c = h'(d): h(d) = c (d - c/2). (P. Huber, 1964)
    """

    delta: Positive = 1.0

    def rows(self, plan, y, t, each):
        xp, d, c, h = plan.xp, plan.scratch(y.shape), plan.scratch(y.shape), plan.scratch(y.shape)

        def forward():
            xp.subtract(y.value, t, out=d)
            xp.clip(d, -self.delta, self.delta, out=c)
            xp.multiply(c, 0.5, out=h)
            xp.subtract(d, h, out=h)
            xp.multiply(h, c, out=h)
            xp.mean(h, axis=-1, keepdims=True, out=each)

        def backward():
            xp.multiply(c, 1 / y.shape[1], out=y.grad)

        return forward, backward
