"""Vectors for symbols, and for their places in a sequence."""

import numpy as np

from gpbackprop.initializers import Normal
from gpbackprop.layers.base import Layer, Parametric
from gpbackprop.plan import Plan, Slot
from gpbackprop.spec import Count, spec


@spec
class Embedding(Parametric):
    """y[k,b,...,:] = W[k, x[k,b,...], :],  dW[v] = sum of the dy whose x is v

    x holds whole numbers from 0 to vocabulary - 1, so the data are not normalised. Data with others are refused; what
    an earlier layer computes is rounded down and brought into this range. W (vocabulary, units) starts from the normal
    distribution; x has no gradient.

    The sum of fractions that many threads add up depends on their order. So dy is scaled, by a power of two that keeps
    every sum below 2^53, to whole numbers in float64, whose sums are exact in any order: the same bits on every device.
    """

    parameters = ("W",)
    vocabulary: Count
    units: Count

    def trace(self, plan: Plan, x: Slot) -> Slot:
        xp, K, rows = plan.xp, plan.K, int(np.prod(x.shape))
        gather, scatter_add = plan.backend.gather, plan.backend.scatter_add
        plan.look_up(x, self.vocabulary)
        W = self.param(plan, "W", (self.vocabulary, self.units), Normal())
        y = plan.slot((*x.shape, self.units))
        index, inside, flat = plan.scratch(x.shape, np.int64), plan.scratch(x.shape), y.reshape(rows, self.units)
        symbols = index.reshape(K, rows)
        whole = plan.scratch((rows, self.units), np.float64)
        sums = plan.scratch((self.vocabulary, self.units), np.float64)
        top = plan.scratch((1, 1), np.float64)

        def forward():
            xp.clip(x.value, 0, self.vocabulary - 1, out=inside)
            xp.copyto(index, inside, casting="unsafe")
            for k in range(K):
                gather(W.value[k], symbols[k], flat.value[k])

        def backward():
            xp.abs(flat.grad, out=whole)
            xp.max(whole, axis=(1, 2), keepdims=True, out=top)
            xp.maximum(top, 1e-200, out=top)
            xp.divide(2.0**52 / rows, top, out=top)
            xp.log2(top, out=top)
            xp.floor(top, out=top)
            xp.exp2(top, out=top)
            xp.multiply(flat.grad, top, out=whole)
            xp.rint(whole, out=whole)
            xp.copyto(sums, 0)
            for k in range(K):
                scatter_add(whole[k], symbols[k], sums[k])
            xp.divide(sums, top, out=W.grad)
            if x.grad is not None:
                xp.copyto(x.grad, 0)

        plan.step(forward, backward)
        return y

    @classmethod
    def example(cls):
        return cls(3, 2), (4,)


@spec
class PositionalEncoding(Layer):
    """y[b,t,:] = x[b,t,:] + p[t,:],  p[t,2i] = sin(t / 10000^(2i/D)),  p[t,2i+1] = cos(t / 10000^(2i/D))

    x is (batch, T, D). It tells attention, which treats all steps alike, where each is (A. Vaswani et al., 2017).
    """

    def trace(self, plan: Plan, x: Slot) -> Slot:
        plan.expect(len(x.shape) == 3, "sequences (batch, T, features)", x.shape)
        xp, (_, steps, width) = plan.xp, x.shape
        angle = np.arange(steps)[:, None] / 10000 ** (np.arange(width) // 2 * 2 / width)
        places = plan.constant(np.where(np.arange(width) % 2, np.cos(angle), np.sin(angle)))
        y = plan.scratch(x.shape)

        def forward():
            xp.add(x.value, places, out=y)

        plan.step(forward, None)
        return Slot(y, x.grad)  # dy/dx = 1: one buffer for both

    @classmethod
    def example(cls):
        return cls(), (4, 3)
