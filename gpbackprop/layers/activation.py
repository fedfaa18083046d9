"""Elementwise functions, and softmax. Each is its equation and its derivative.

`apply` writes y = f(x); `derivative` writes f'(x) into `out`, from x or y, whichever is cheaper. `t` is scratch.
"""

import math

from gpbackprop.backend.functions import sigmoid, softplus
from gpbackprop.layers.base import Layer
from gpbackprop.plan import Plan, Slot
from gpbackprop.spec import Fraction, Positive, spec


class Activation(Layer):
    """y = f(x), elementwise; dx = dy f'(x)."""

    __abstract__ = True

    def apply(self, xp, x, y, t) -> None:
        raise NotImplementedError

    def derivative(self, xp, x, y, out, t) -> None:
        raise NotImplementedError

    def trace(self, plan: Plan, x: Slot) -> Slot:
        xp, y, t = plan.xp, plan.slot(x.shape), plan.scratch(x.shape)
        guard = plan.backend.tape.guard
        apply, derivative = guard(self.apply), guard(self.derivative)

        def forward():
            apply(xp, x.value, y.value, t)

        def backward():
            derivative(xp, x.value, y.value, x.grad, t)
            xp.multiply(x.grad, y.grad, out=x.grad)

        plan.step(forward, backward if x.grad is not None else None)
        return y


@spec
class Linear(Activation):
    """y = x: the layer is not there."""

    def trace(self, plan, x):
        return x


@spec
class Sigmoid(Activation):
    """y = 1 / (1 + exp(-x));  y' = y (1 - y)"""

    def apply(self, xp, x, y, t):
        sigmoid(xp, x, y)

    def derivative(self, xp, x, y, out, t):
        xp.subtract(1, y, out=out)
        xp.multiply(out, y, out=out)


@spec
class Tanh(Activation):
    """y = tanh(x);  y' = 1 - y^2"""

    def apply(self, xp, x, y, t):
        xp.tanh(x, out=y)

    def derivative(self, xp, x, y, out, t):
        xp.multiply(y, y, out=out)
        xp.subtract(1, out, out=out)


@spec
class Relu(Activation):
    """y = max(x, 0);  y' = [x > 0]"""

    def apply(self, xp, x, y, t):
        xp.maximum(x, 0, out=y)

    def derivative(self, xp, x, y, out, t):
        xp.greater(x, 0, out=out)


@spec
class LeakyRelu(Activation):
    """y = max(x, slope x);  y' = 1 where x > 0, else slope.  0 <= slope < 1"""

    slope: Fraction = 0.01

    def apply(self, xp, x, y, t):
        xp.multiply(x, self.slope, out=y)
        xp.maximum(x, y, out=y)

    def derivative(self, xp, x, y, out, t):
        xp.greater(x, 0, out=out)
        xp.maximum(out, self.slope, out=out)


@spec
class Elu(Activation):
    """y = x where x > 0, else alpha (exp(x) - 1);  y' = 1 where x > 0, else alpha exp(x)"""

    alpha: Positive = 1.0

    def apply(self, xp, x, y, t):
        xp.minimum(x, 0, out=t)
        xp.expm1(t, out=t)
        xp.multiply(t, self.alpha, out=t)
        xp.maximum(x, 0, out=y)
        xp.add(y, t, out=y)

    def derivative(self, xp, x, y, out, t):
        # exp(min(x, 0)) is 1 where x > 0; only the factor alpha has to be taken out there.
        xp.greater(x, 0, out=t)
        xp.multiply(t, 1 - self.alpha, out=t)
        xp.add(t, self.alpha, out=t)
        xp.minimum(x, 0, out=out)
        xp.exp(out, out=out)
        xp.multiply(out, t, out=out)


@spec
class Gelu(Activation):
    """y = x (1 + tanh u) / 2,  u = sqrt(2/pi) (x + 0.044715 x^3)   (D. Hendrycks and K. Gimpel, 2016, the tanh form)

    y' = (1 + tanh u) / 2 + x (1 - tanh^2 u) u' / 2,  u' = sqrt(2/pi) (1 + 0.134145 x^2)
    """

    def apply(self, xp, x, y, t):
        self._tanh_u(xp, x, t)
        xp.add(t, 1, out=t)
        xp.multiply(t, x, out=y)
        xp.multiply(y, 0.5, out=y)

    def derivative(self, xp, x, y, out, t):
        self._tanh_u(xp, x, t)
        xp.multiply(x, x, out=out)
        xp.multiply(out, 3 * 0.044715, out=out)
        xp.add(out, 1, out=out)
        xp.multiply(out, x, out=out)
        xp.multiply(out, math.sqrt(2 / math.pi), out=out)  # x u'
        xp.add(t, 1, out=t)
        xp.multiply(out, t, out=out)
        xp.subtract(2, t, out=t)
        xp.multiply(out, t, out=out)  # x u' (1 - tanh^2 u)
        xp.subtract(2, t, out=t)
        xp.add(out, t, out=out)
        xp.multiply(out, 0.5, out=out)

    @staticmethod
    def _tanh_u(xp, x, t):
        xp.multiply(x, x, out=t)
        xp.multiply(t, 0.044715, out=t)
        xp.add(t, 1, out=t)
        xp.multiply(t, x, out=t)
        xp.multiply(t, math.sqrt(2 / math.pi), out=t)
        xp.tanh(t, out=t)


@spec
class Silu(Activation):
    """y = x s,  s = 1 / (1 + exp(-x));  y' = s + y (1 - s)"""

    def apply(self, xp, x, y, t):
        sigmoid(xp, x, t)
        xp.multiply(x, t, out=y)

    def derivative(self, xp, x, y, out, t):
        sigmoid(xp, x, t)
        xp.subtract(1, t, out=out)
        xp.multiply(out, y, out=out)
        xp.add(out, t, out=out)


@spec
class Softplus(Activation):
    """y = log(1 + exp(x));  y' = 1 / (1 + exp(-x))"""

    def apply(self, xp, x, y, t):
        softplus(xp, x, y, t)

    def derivative(self, xp, x, y, out, t):
        sigmoid(xp, x, out)


@spec
class Softmax(Activation):
    """y_o = exp(x_o) / sum_j exp(x_j) over the last axis;  dx_o = y_o (dy_o - sum_j dy_j y_j)"""

    def trace(self, plan, x):
        xp, y = plan.xp, plan.slot(x.shape)
        row = plan.scratch((*x.shape[:-1], 1))

        def forward():
            xp.max(x.value, axis=-1, keepdims=True, out=row)
            xp.subtract(x.value, row, out=y.value)
            xp.exp(y.value, out=y.value)
            xp.sum(y.value, axis=-1, keepdims=True, out=row)
            xp.divide(y.value, row, out=y.value)

        def backward():
            xp.multiply(y.grad, y.value, out=x.grad)
            xp.sum(x.grad, axis=-1, keepdims=True, out=row)
            xp.subtract(y.grad, row, out=x.grad)
            xp.multiply(x.grad, y.value, out=x.grad)

        plan.step(forward, backward if x.grad is not None else None)
        return y
