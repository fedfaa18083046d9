"""Attention: each step of a sequence looks at the others."""

import math
from collections.abc import Iterator

import numpy as np

from gpbackprop.initializers import Glorot
from gpbackprop.layers.base import Parametric
from gpbackprop.plan import Plan, Slot
from gpbackprop.spec import Count, Flag, spec

FAR = -1e30  # added to the score of a step that is not to be seen: its weight is exactly zero


@spec
class SelfAttention(Parametric):
    """y = [A_1 v_1, ..., A_n v_n] Wo + bo,  A_j = softmax(q_j k_j^T / sqrt(d)),  (q, k, v) = x W + b

    x and y are (batch, T, D); each of the n = `heads` heads works on d = D / n columns of q, k and v. With `causal` a
    step sees itself and those before it; steps beyond the end of their row are not seen (A. Vaswani et al., 2017).
    W (D, 3 D) and Wo (D, D) start from Glorot's uniform distribution, b (3 D) and bo (D) from zero.
    dv = A^T do,  dA = do v^T,  dS = A (dA - sum_j A dA) / sqrt(d),  dq = dS k,  dk = dS^T q.
    """

    parameters = ("W", "b", "Wo", "bo")
    heads: Count = 1
    causal: Flag = False

    def trace(self, plan: Plan, x: Slot) -> Slot:
        xp, gemm = plan.xp, plan.backend.gemm
        plan.expect(len(x.shape) == 3, "sequences (batch, T, features)", x.shape)
        B, T, D = x.shape
        plan.expect(D % self.heads == 0, f"a number of features that {self.heads} heads share evenly", D)
        W = self.param(plan, "W", (D, 3 * D), Glorot())
        b = self.param(plan, "b", (3 * D,)).reshape(1, 3 * D)
        Wo = self.param(plan, "Wo", (D, D), Glorot())
        bo = self.param(plan, "bo", (D,)).reshape(1, D)
        ones = plan.constant(np.ones((1, 1, B * T)))
        x_rows, y, qkv, o = x.rows, plan.slot((B * T, D)), plan.slot((B * T, 3 * D)), plan.slot((B * T, D))
        q, k, v, out = (plan.slot((B, self.heads, T, D // self.heads)) for _ in range(4))
        views, (out_view,) = list(self._apart(qkv, q)), self._apart(o, out)
        look, look_back = self._look(plan, q, k, v, out)

        def forward():
            gemm(x_rows.value, W.value, qkv.value)
            xp.add(qkv.value, b.value, out=qkv.value)
            for part, view in zip((q, k, v), views, strict=True):
                xp.copyto(part.value, view.value)
            look()
            xp.copyto(out_view.value, out.value)
            gemm(o.value, Wo.value, y.value)
            xp.add(y.value, bo.value, out=y.value)

        def backward():
            gemm(o.transposed, y.grad, Wo.grad)
            gemm(ones, y.grad, bo.grad)
            gemm(y.grad, Wo.transposed, o.grad)
            xp.copyto(out.grad, out_view.grad)
            look_back()
            for part, view in zip((q, k, v), views, strict=True):
                xp.copyto(view.grad, part.grad)
            gemm(x_rows.transposed, qkv.grad, W.grad)
            gemm(ones, qkv.grad, b.grad)
            if x.grad is not None:
                gemm(qkv.grad, W.transposed, x_rows.grad)

        plan.step(forward, backward)
        return y.reshape(B, T, D)

    def _apart(self, flat: Slot, like: Slot) -> Iterator[Slot]:
        """The columns of `flat`, D at a time, seen as (B, heads, T, d)."""
        B, n, T, d = like.shape
        for start in range(0, flat.shape[-1], n * d):
            parts = (None if a is None else a[..., start : start + n * d] for a in (flat.value, flat.grad))
            yield Slot(*(p if p is None else p.reshape(-1, B, T, n, d).swapaxes(2, 3) for p in parts))

    def _look(self, plan: Plan, q: Slot, k: Slot, v: Slot, out: Slot):
        """The closures of out = A v; the matrices of all members, rows and heads are one stack for gemm."""
        xp, gemm, (B, n, T, d) = plan.xp, plan.backend.gemm, q.shape
        A, scale = plan.slot((B, n, T, T)), 1 / math.sqrt(d)
        weights, row = A.value, plan.scratch((B, n, T, 1))
        qs, ks, vs, outs, As = (
            Slot(*(a if a is None else a.reshape(-1, T, a.shape[-1]) for a in (s.value, s.grad)))
            for s in (q, k, v, out, A)
        )
        future = plan.constant(np.where(np.tri(T), 0.0, FAR)) if self.causal else None
        lengths, beyond = plan.lengths, plan.scratch((B, 1, 1, T)) if plan.lengths is not None else None
        step = plan.constant(np.arange(T))

        def forward():
            gemm(qs.value, ks.transposed, As.value)
            xp.multiply(weights, scale, out=weights)
            if future is not None:
                xp.add(weights, future, out=weights)
            if lengths is not None:
                xp.greater_equal(step, lengths.reshape(-1, B, 1, 1, 1), out=beyond)
                xp.multiply(beyond, FAR, out=beyond)
                xp.add(weights, beyond, out=weights)
            xp.max(weights, axis=-1, keepdims=True, out=row)
            xp.subtract(weights, row, out=weights)
            xp.exp(weights, out=weights)
            xp.sum(weights, axis=-1, keepdims=True, out=row)
            xp.divide(weights, row, out=weights)
            gemm(As.value, vs.value, outs.value)

        def backward():
            gemm(As.value.swapaxes(-1, -2), outs.grad, vs.grad)
            gemm(outs.grad, vs.transposed, As.grad)
            # sum_j A_ij dA_ij = sum_c do_ic o_ic, which is the smaller product
            xp.multiply(out.grad, out.value, out=out.grad)
            xp.sum(out.grad, axis=-1, keepdims=True, out=row)
            xp.subtract(A.grad, row, out=A.grad)
            xp.multiply(A.grad, weights, out=A.grad)
            xp.multiply(A.grad, scale, out=A.grad)
            gemm(As.grad, ks.value, qs.grad)
            gemm(As.grad.swapaxes(-1, -2), qs.value, ks.grad)

        return forward, backward

    @classmethod
    def example(cls):
        return cls(2, causal=True), (3, 4)
