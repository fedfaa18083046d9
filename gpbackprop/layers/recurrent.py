"""Recurrent layers: sequences x (batch, T, features), one state a step, and backpropagation through time.

    h_t = cell(x_t, h_{t-1}),  h_0 = 0 or what the window before left (`Plan.carry`)

Inside, arrays are (K, T, B, ...): a step is then one block of memory. The products x_t W of all steps are one gemm, as
are dW, dU and dx; only h_{t-1} U and its gradient need one a step. Rows may end early (`Plan.lengths`): beyond its end
a row keeps its state, so that the last state is that of its last valid step, and a backward direction starts there.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import ClassVar, Literal

import numpy as np

from gpbackprop.backend import Array
from gpbackprop.initializers import Given, Glorot, Orthogonal
from gpbackprop.layers.base import Parametric
from gpbackprop.plan import Plan, Slot
from gpbackprop.spec import Count, Flag, spec


class Ends:
    """Which steps lie beyond the end of their row, (K, T, B, 1): `past` is true there, `gone` 1 and `valid` 0."""

    def __init__(self, plan: Plan, steps: int, lengths: Array):
        xp, batch, lengths = plan.xp, plan.batch, lengths.reshape(plan.K, 1, plan.batch, 1)
        self.past = plan.scratch((steps, batch, 1), np.bool_)
        self.valid, self.gone = (plan.scratch((steps, batch, 1)) for _ in range(2))
        step = plan.constant(np.arange(steps).reshape(1, steps, 1, 1))

        def forward():
            xp.greater_equal(step, lengths, out=self.past)
            xp.less(step, lengths, out=self.valid)
            xp.subtract(1, self.valid, out=self.gone)

        plan.step(forward, None)


class Walk:
    """The arrays of one direction of one layer, as lists in the order in which the steps are visited.

    z[s] is the input product x_t W + b of step s, which backward replaces by its gradient; `du[s]` is the gradient of
    the recurrent product (the same array, unless a cell says otherwise). h[s] is the state before step s, h[s + 1] the
    one after, and `dh` the gradient of the latter.
    """

    def __init__(self, plan: Plan, steps: int, units: int, gates: int, ends: Ends | None, backward: bool):
        self.plan, self.steps, self.units, self.turned = plan, steps, units, backward
        self.Z = self.dU = plan.scratch((steps, plan.batch, gates * units))
        self.z = self.du = self.visit(self.Z)
        self.H, self.h = self.states()
        self.past: list[Array] = []
        if ends:
            self.past, self.valid, self.gone = map(self.visit, (ends.past, ends.valid, ends.gone))
        if plan.training:
            self.dh = plan.scratch((plan.batch, units))

    def visit(self, a: Array) -> list[Array]:
        """a (K, T, ...) step by step."""
        order = range(a.shape[1])
        return [a[:, t] for t in (reversed(order) if self.turned else order)]

    def states(self) -> tuple[Array, list[Array]]:
        """T + 1 states: (K, T + 1, B, H), and one by one."""
        whole = self.plan.scratch((self.steps + 1, self.plan.batch, self.units))
        return whole, self.visit(whole)

    def blocks(self, n: int) -> list[Array]:
        """n arrays (B, H) for each step, (K, n, B, H): a gate is then one block of memory."""
        return self.visit(self.plan.scratch((self.steps, n, self.plan.batch, self.units)))

    def by_gate(self, a: Array) -> Array:
        """a (K, B, n H) seen as (K, n, B, H)."""
        return a.reshape(*a.shape[:2], -1, self.units).swapaxes(1, 2)

    @property
    def before(self) -> Array:
        """The state before each step, (K, T, B, H)."""
        return self.H[:, 1:] if self.turned else self.H[:, :-1]

    @property
    def after(self) -> Array:
        return self.H[:, :-1] if self.turned else self.H[:, 1:]


Step = Callable[[int], None]


@spec
class Recurrent(Parametric):
    """What the recurrent layers share.

    x is (batch, T, features). y is (batch, T, units) with returns = "sequence" and (batch, units), the state after the
    last valid step, with returns = "last"; twice as many units where `bidirectional` joins a second network that reads
    from the end, whose last state is the one at the first step. `layers` are stacked, each reads the whole sequence of
    the one below it; their paths are layer-0, layer-1, ..., each with forward and backward where there are two.
    Weights W start from Glorot's uniform distribution, U as orthogonal rows, b from zero.
    """

    __abstract__ = True
    parameters: ClassVar[tuple[str, ...]] = ("W", "U", "b")
    gates: ClassVar[int] = 1
    direct: ClassVar[bool] = False
    units: Count
    layers: Count = 1
    bidirectional: Flag = False
    returns: Literal["last", "sequence"] = "last"

    def cell(self, plan: Plan, walk: Walk, U: Slot) -> tuple[Step, Step]:
        """(forward, backward) of step s: from z[s] and h[s] to h[s + 1]; from dh, the gradient of h[s + 1], to those
        of z[s] and of the recurrent product. A `direct` class leaves in dh what reaches h[s] beside that product.
        """
        raise NotImplementedError

    def bias(self) -> np.ndarray:
        return np.zeros(self.gates * self.units)

    def trace(self, plan: Plan, x: Slot) -> Slot:
        plan.expect(
            len(x.shape) == 3,
            "sequences (batch, T, features)",
            x.shape,
            "`shape` in [data], a reshape or an embedding makes them",
        )
        plan.expect(
            not (self.bidirectional and plan.carried is not None), "a whole sequence where it is bidirectional",
            "windows of it", "leave out train.bptt or bidirectional",
        )  # fmt: skip
        steps = x.shape[1]
        wanted = plan.network.row_shape[0]
        plan.expect(
            plan.lengths is None or steps == wanted, f"the {wanted} steps of a row", steps, "its lengths count those"
        )
        ends = None if plan.lengths is None else Ends(plan, steps, plan.lengths)
        slot = time_major(plan, x)
        for i in range(self.layers):
            with plan.scope(f"layer-{i}") if self.layers > 1 else nullcontext():
                last = self.returns == "last" and i == self.layers - 1
                slot = self._both(plan, slot, ends, last) if self.bidirectional else self._one(plan, slot, ends, last)
        return slot if self.returns == "last" else time_major(plan, slot)

    def _both(self, plan: Plan, x: Slot, ends: Ends | None, last: bool) -> Slot:
        """[forward, backward] along the last axis."""
        xp, H = plan.xp, self.units
        forks = [Slot(x.value, None if x.grad is None else plan.scratch(x.shape)) for _ in range(2)]

        def join():
            xp.add(forks[0].grad, forks[1].grad, out=x.grad)

        plan.step(None, join if x.grad is not None else None)
        outs = []
        for name, fork in zip(("forward", "backward"), forks, strict=True):
            with plan.scope(name):
                outs.append(self._one(plan, fork, ends, last, name == "backward"))
        y = plan.slot((*outs[0].shape[:-1], 2 * H))

        def forward():
            xp.copyto(y.value[..., :H], outs[0].value)
            xp.copyto(y.value[..., H:], outs[1].value)

        def backward():
            xp.copyto(outs[0].grad, y.grad[..., :H])
            xp.copyto(outs[1].grad, y.grad[..., H:])

        plan.step(forward, backward)
        return y

    def _one(self, plan: Plan, x: Slot, ends: Ends | None, last: bool, turned: bool = False) -> Slot:
        """One direction: x (T, B, features) to (T, B, units) or, with `last`, (B, units)."""
        xp, gemm, steps = plan.xp, plan.backend.gemm, x.shape[0]
        G, H, rows = self.gates * self.units, self.units, steps * plan.batch
        W = self.param(plan, "W", (x.shape[-1], G), Glorot())
        U = self.param(plan, "U", (H, G), Orthogonal())
        b = self.param(plan, "b", (G,), Given(self.bias().tolist())).reshape(1, G)
        walk = Walk(plan, steps, H, self.gates, ends, turned)
        step, step_back = self.cell(plan, walk, U)
        carry, flat = plan.carry("h", (plan.batch, H)), x.reshape(rows, x.shape[-1])
        Z = walk.Z.reshape(plan.K, rows, G)
        out = walk.h[-1] if last else walk.after
        y = Slot(out, plan.scratch(out.shape[1:]) if plan.training else None)

        def forward():
            gemm(flat.value, W.value, Z)
            xp.add(Z, b.value, out=Z)
            xp.copyto(walk.h[0], 0 if carry is None else carry)
            for s in range(steps):
                step(s)
                if ends:
                    xp.copyto(walk.h[s + 1], walk.h[s], where=walk.past[s])
            if carry is not None:
                xp.copyto(carry, walk.h[-1])

        if not plan.training:
            plan.step(forward, None)
            return y
        dh, through, kept = walk.dh, plan.scratch((plan.batch, H)), plan.scratch((plan.batch, H))
        dy = None if last else walk.visit(y.grad)
        dU, ones = walk.dU.reshape(plan.K, rows, G), np.ones((1, 1, rows))
        before, ones = walk.before.reshape(plan.K, rows, H).swapaxes(-1, -2), plan.constant(ones)

        def backward():
            xp.copyto(dh, y.grad if dy is None else dy[-1])
            for s in reversed(range(steps)):
                if ends:  # beyond the end the gradient goes past the cell, which then sees none
                    xp.multiply(dh, walk.gone[s], out=kept)
                    xp.multiply(dh, walk.valid[s], out=dh)
                step_back(s)
                if s == 0:
                    break
                gemm(walk.du[s], U.transposed, through if self.direct else dh)
                if self.direct:
                    xp.add(dh, through, out=dh)
                if ends:
                    xp.add(dh, kept, out=dh)
                if dy is not None:
                    xp.add(dh, dy[s - 1], out=dh)
            gemm(before, dU, U.grad)
            gemm(flat.transposed, Z, W.grad)
            gemm(ones, Z, b.grad)
            if x.grad is not None:
                gemm(Z, W.transposed, flat.grad)

        plan.step(forward, backward)
        return y


def time_major(plan: Plan, x: Slot) -> Slot:
    """A copy of x (B, T, n) as (T, B, n), or back."""
    y = plan.slot((x.shape[1], x.shape[0], x.shape[2]))
    turned: list[Array] = [None if a is None else a.swapaxes(1, 2) for a in (x.value, x.grad)]

    def forward():
        plan.xp.copyto(y.value, turned[0])

    def backward():
        plan.xp.copyto(turned[1], y.grad)

    plan.step(forward, backward if x.grad is not None else None)
    return y if x.grad is not None else Slot(y.value, None)


@spec
class SimpleRNN(Recurrent):
    """h_t = f(x_t W + h_{t-1} U + b),  f = tanh or relu   (J. Elman, 1990)

    W (features, units), U (units, units), b (units).
    """

    activation: Literal["tanh", "relu"] = "tanh"

    def cell(self, plan, walk, U):
        xp, gemm, z, h, tanh = plan.xp, plan.backend.gemm, walk.z, walk.h, self.activation == "tanh"
        slope = plan.scratch((plan.batch, self.units)) if plan.training else None

        def forward(s):
            gemm(h[s], U.value, h[s + 1])
            xp.add(z[s], h[s + 1], out=h[s + 1])
            if tanh:
                xp.tanh(h[s + 1], out=h[s + 1])
            else:
                xp.maximum(h[s + 1], 0, out=h[s + 1])

        def backward(s):
            if tanh:
                xp.multiply(h[s + 1], h[s + 1], out=slope)
                xp.subtract(1, slope, out=slope)
            else:
                xp.greater(h[s + 1], 0, out=slope)
            xp.multiply(walk.dh, slope, out=z[s])

        return forward, backward

    @classmethod
    def example(cls):
        return cls(3), (4, 2)
