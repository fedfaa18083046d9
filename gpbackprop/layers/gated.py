"""Recurrent layers whose gates, numbers in (0, 1), say what is kept and what is written: LSTM and GRU."""

import numpy as np

from gpbackprop.backend.functions import sigmoid
from gpbackprop.layers.recurrent import Recurrent
from gpbackprop.spec import spec


@spec
class LSTM(Recurrent):
    """c_t = f c_{t-1} + i g,  h_t = o tanh(c_t)   (S. Hochreiter and J. Schmidhuber, 1997; F. Gers et al., 2000)

    (i, f, o, g) = x_t W + h_{t-1} U + b in this order, through the sigmoid for the gates i, f, o and tanh for g.
    W (features, 4 units), U (units, 4 units), b (4 units). The bias of f starts at 1: a cell that at first remembers
    (R. Jozefowicz et al., 2015).
    """

    gates = 4

    def bias(self):
        return np.repeat([0.0, 1.0, 0.0, 0.0], self.units)

    def cell(self, plan, walk, U):
        xp, gemm, H, h = plan.xp, plan.backend.gemm, walk.units, walk.h
        _, c = walk.states()
        _, tanh_c = walk.block(H)
        product, t = plan.scratch((plan.batch, 4 * H)), plan.scratch((plan.batch, H))
        carry = plan.carry("c", (plan.batch, H))
        sigmoids = [z[..., : 3 * H] for z in walk.z]
        i, f, o, g = ([z[..., n * H : (n + 1) * H] for z in walk.z] for n in range(4))
        last = walk.steps - 1

        def forward(s):
            if s == 0:
                c[0][...] = 0 if carry is None else carry
            gemm(h[s], U.value, product)
            xp.add(walk.z[s], product, out=walk.z[s])
            sigmoid(xp, sigmoids[s], sigmoids[s])
            xp.tanh(g[s], out=g[s])
            if walk.past:  # beyond the end of a row c stays as it is
                xp.multiply(i[s], walk.valid[s], out=i[s])
                xp.maximum(f[s], walk.gone[s], out=f[s])
            xp.multiply(f[s], c[s], out=c[s + 1])
            xp.multiply(i[s], g[s], out=t)
            xp.add(c[s + 1], t, out=c[s + 1])
            xp.tanh(c[s + 1], out=tanh_c[s])
            xp.multiply(o[s], tanh_c[s], out=h[s + 1])
            if s == last and carry is not None:
                carry[...] = c[s + 1]

        if not plan.training:
            return forward, None
        dh, dc = walk.dh, plan.scratch((plan.batch, H))
        dsigmoids = [dz[..., : 3 * H] for dz in walk.dz]
        di, df, do, dg = ([dz[..., n * H : (n + 1) * H] for dz in walk.dz] for n in range(4))
        slope = plan.scratch((plan.batch, 3 * H))

        def backward(s):
            xp.multiply(dh, tanh_c[s], out=do[s])
            xp.multiply(tanh_c[s], tanh_c[s], out=t)
            xp.subtract(1, t, out=t)
            xp.multiply(t, o[s], out=t)
            xp.multiply(t, dh, out=t)
            if s == last:
                dc[...] = t
            else:
                xp.add(dc, t, out=dc)
            xp.multiply(dc, g[s], out=di[s])
            xp.multiply(dc, c[s], out=df[s])
            xp.subtract(1, sigmoids[s], out=slope)
            xp.multiply(slope, sigmoids[s], out=slope)
            xp.multiply(dsigmoids[s], slope, out=dsigmoids[s])
            xp.multiply(g[s], g[s], out=t)
            xp.subtract(1, t, out=t)
            xp.multiply(t, i[s], out=t)
            xp.multiply(t, dc, out=dg[s])
            xp.multiply(dc, f[s], out=dc)

        return forward, backward

    @classmethod
    def example(cls):
        return cls(3), (4, 2)


@spec
class GRU(Recurrent):
    """h_t = (1 - z) n + z h_{t-1},  n = tanh(x_t W_n + b_n + r (h_{t-1} U_n + c))   (K. Cho et al., 2014)

    (r, z) = sigmoid(x_t W + h_{t-1} U + b). The gate r acts after the product with U, as in cuDNN and PyTorch.
    W (features, 3 units), U (units, 3 units), b (3 units) in the order r, z, n; c (units).
    """

    parameters = ("W", "U", "b", "c")
    gates = 3
    direct = True

    def cell(self, plan, walk, U):
        xp, gemm, H, h = plan.xp, plan.backend.gemm, walk.units, walk.h
        bias = self.param(plan, "c", (H,)).reshape(1, H)
        product, t = plan.scratch((plan.batch, 3 * H)), plan.scratch((plan.batch, H))
        _, q = walk.block(H)  # h U_n + c
        gates = [z[..., : 2 * H] for z in walk.z]
        r, z, n = ([z[..., i * H : (i + 1) * H] for z in walk.z] for i in range(3))

        def forward(s):
            gemm(h[s], U.value, product)
            xp.add(gates[s], product[..., : 2 * H], out=gates[s])
            sigmoid(xp, gates[s], gates[s])
            xp.add(product[..., 2 * H :], bias.value, out=q[s])
            xp.multiply(r[s], q[s], out=t)
            xp.add(n[s], t, out=n[s])
            xp.tanh(n[s], out=n[s])
            xp.subtract(h[s], n[s], out=t)
            xp.multiply(t, z[s], out=t)
            xp.add(n[s], t, out=h[s + 1])

        if not plan.training:
            return forward, None
        dh, rows = walk.dh, walk.steps * plan.batch
        walk.dU, walk.du = walk.block(3 * H)
        ones, dq = plan.constant(np.ones((1, 1, rows))), walk.dU[..., 2 * H :].reshape(plan.K, rows, H)
        dgates = [dz[..., : 2 * H] for dz in walk.dz]
        dr, dz, dn = ([dz[..., i * H : (i + 1) * H] for dz in walk.dz] for i in range(3))
        slope = plan.scratch((plan.batch, 2 * H))

        def backward(s):
            xp.subtract(h[s], n[s], out=t)
            xp.multiply(t, dh, out=dz[s])
            xp.subtract(1, z[s], out=t)
            xp.multiply(t, dh, out=dn[s])
            xp.multiply(n[s], n[s], out=t)
            xp.subtract(1, t, out=t)
            xp.multiply(dn[s], t, out=dn[s])
            xp.multiply(dn[s], q[s], out=dr[s])
            xp.subtract(1, gates[s], out=slope)
            xp.multiply(slope, gates[s], out=slope)
            xp.multiply(dgates[s], slope, out=dgates[s])
            walk.du[s][..., : 2 * H] = dgates[s]
            xp.multiply(dn[s], r[s], out=walk.du[s][..., 2 * H :])
            xp.multiply(dh, z[s], out=dh)

        plan.step(None, lambda: gemm(ones, dq, bias.grad))  # after the steps: backwards run in the reverse order
        return forward, backward

    @classmethod
    def example(cls):
        return cls(3), (4, 2)
