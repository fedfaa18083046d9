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
        xp, gemm, h, H, B = plan.xp, plan.backend.gemm, walk.h, walk.units, plan.batch
        _, c = walk.states()
        blocks, z = walk.blocks(5), [walk.by_gate(z) for z in walk.z]
        sigmoids = [a[:, :3] for a in blocks]
        i, f, o, g, tanh_c = ([a[:, n] for a in blocks] for n in range(5))
        product, t, last = plan.scratch((B, 4 * H)), plan.scratch((B, H)), walk.steps - 1
        recurrent, carry = walk.by_gate(product), plan.carry("c", (B, H))

        def forward(s):
            if s == 0:
                xp.copyto(c[0], 0 if carry is None else carry)
            gemm(h[s], U.value, product)
            xp.add(walk.z[s], product, out=product)
            sigmoid(xp, recurrent[:, :3], sigmoids[s])
            xp.tanh(recurrent[:, 3], out=g[s])
            if walk.past:  # beyond the end of a row c stays as it is
                xp.multiply(i[s], walk.valid[s], out=i[s])
                xp.maximum(f[s], walk.gone[s], out=f[s])
            xp.multiply(f[s], c[s], out=c[s + 1])
            xp.multiply(i[s], g[s], out=t)
            xp.add(c[s + 1], t, out=c[s + 1])
            xp.tanh(c[s + 1], out=tanh_c[s])
            xp.multiply(o[s], tanh_c[s], out=h[s + 1])
            if s == last and carry is not None:
                xp.copyto(carry, c[s + 1])

        if not plan.training:
            return forward, None
        dh, dc, slope, d = walk.dh, plan.scratch((B, H)), plan.scratch((3, B, H)), plan.scratch((3, B, H))
        di, df, do = (d[:, n] for n in range(3))

        def backward(s):
            xp.multiply(dh, tanh_c[s], out=do)
            xp.multiply(tanh_c[s], tanh_c[s], out=t)
            xp.subtract(1, t, out=t)
            xp.multiply(t, o[s], out=t)
            xp.multiply(t, dh, out=t)
            if s == last:
                xp.copyto(dc, t)
            else:
                xp.add(dc, t, out=dc)
            xp.multiply(dc, g[s], out=di)
            xp.multiply(dc, c[s], out=df)
            xp.subtract(1, sigmoids[s], out=slope)
            xp.multiply(slope, sigmoids[s], out=slope)
            xp.multiply(d, slope, out=z[s][:, :3])
            xp.multiply(g[s], g[s], out=t)
            xp.subtract(1, t, out=t)
            xp.multiply(t, i[s], out=t)
            xp.multiply(t, dc, out=z[s][:, 3])
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
        xp, gemm, h, H, B = plan.xp, plan.backend.gemm, walk.h, walk.units, plan.batch
        bias = self.param(plan, "c", (H,)).reshape(1, H)
        blocks, x = walk.blocks(4), [walk.by_gate(z) for z in walk.z]
        gates, (r, z, n, q) = [a[:, :2] for a in blocks], ([a[:, i] for a in blocks] for i in range(4))
        product, t = plan.scratch((B, 3 * H)), plan.scratch((B, H))
        recurrent = walk.by_gate(product)

        def forward(s):
            gemm(h[s], U.value, product)
            xp.add(x[s][:, :2], recurrent[:, :2], out=gates[s])
            sigmoid(xp, gates[s], gates[s])
            xp.add(recurrent[:, 2], bias.value, out=q[s])
            xp.multiply(r[s], q[s], out=t)
            xp.add(x[s][:, 2], t, out=t)
            xp.tanh(t, out=n[s])
            xp.subtract(h[s], n[s], out=t)
            xp.multiply(t, z[s], out=t)
            xp.add(n[s], t, out=h[s + 1])

        if not plan.training:
            return forward, None
        walk.dU = plan.scratch(walk.Z.shape[1:])
        walk.du = walk.visit(walk.dU)
        dh, dU, rows = walk.dh, [walk.by_gate(du) for du in walk.du], walk.steps * B
        ones, dq = plan.constant(np.ones((1, 1, rows))), walk.dU.reshape(plan.K, rows, 3 * H)[..., 2 * H :]
        slope, d = plan.scratch((2, B, H)), plan.scratch((3, B, H))
        dgates, (dr, dz, dn) = d[:, :2], (d[:, i] for i in range(3))

        def backward(s):
            xp.subtract(h[s], n[s], out=t)
            xp.multiply(t, dh, out=dz)
            xp.subtract(1, z[s], out=t)
            xp.multiply(t, dh, out=dn)
            xp.multiply(n[s], n[s], out=t)
            xp.subtract(1, t, out=t)
            xp.multiply(dn, t, out=dn)
            xp.multiply(dn, q[s], out=dr)
            xp.subtract(1, gates[s], out=slope)
            xp.multiply(slope, gates[s], out=slope)
            xp.multiply(dgates, slope, out=dgates)
            xp.copyto(x[s], d)
            xp.copyto(dU[s][:, :2], dgates)
            xp.multiply(dn, r[s], out=dU[s][:, 2])
            xp.multiply(dh, z[s], out=dh)

        plan.step(None, lambda: gemm(ones, dq, bias.grad))  # after the steps: backwards run in the reverse order
        return forward, backward

    @classmethod
    def example(cls):
        return cls(3), (4, 2)
