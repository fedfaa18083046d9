"""The fully connected layer."""

import numpy as np

from gpbackprop.initializers import Glorot
from gpbackprop.layers.activation import Activation
from gpbackprop.layers.base import Parametric
from gpbackprop.plan import Plan, Slot
from gpbackprop.spec import Count, one_of, spec


@spec
class Dense(Parametric):
    """y[k,b,o] = sum_i x[k,b,i] W[k,i,o] + b[k,o], then the activation if one is given.

    x is (batch, ..., inputs) and y (batch, ..., units). W starts from Glorot's uniform distribution, b from zero.
    dW = x^T dy,  db = 1^T dy,  dx = dy W^T.
    """

    parameters = ("W", "b")
    units: Count
    activation: one_of(Activation) | None = None

    def trace(self, plan: Plan, x: Slot) -> Slot:
        gemm, xp = plan.backend.gemm, plan.xp
        plan.expect(len(x.shape) > 1, "rows of features (batch, ..., inputs)", x.shape)
        W = self.param(plan, "W", (x.shape[-1], self.units), Glorot())
        b = self.param(plan, "b", (self.units,)).reshape(1, self.units)
        out = plan.slot((*x.shape[:-1], self.units))
        x_rows, y = x.rows, out.rows
        ones = plan.constant(np.ones((1, 1, x_rows.shape[0])))

        def forward():
            gemm(x_rows.value, W.value, y.value)
            xp.add(y.value, b.value, out=y.value)

        def backward():
            gemm(x_rows.transposed, y.grad, W.grad)
            gemm(ones, y.grad, b.grad)
            if x.grad is not None:
                gemm(y.grad, W.transposed, x_rows.grad)

        plan.step(forward, backward)
        if not self.activation:
            return out
        plan.note("z", out)
        return self.activation.trace(plan, out)

    @classmethod
    def example(cls):
        return cls(3, activation="tanh"), (5,)
