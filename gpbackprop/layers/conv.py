"""Convolutions: the same small kernel at every place of an image or a series.

Images are (batch, height, width, channels), series (batch, time, channels). With X the columns of x, what the kernel
sees from each of its places, a convolution is the product X W (K. Chellapilla et al., 2006). A kernel of 1 is a dense
layer over the channels: `Dense` is that without a copy.
"""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np

from gpbackprop.backend import Array
from gpbackprop.initializers import Glorot
from gpbackprop.layers.activation import Activation
from gpbackprop.layers.base import Parametric
from gpbackprop.layers.windows import Axis, Columns, Counts, Padding, axes, expect_images, expect_series, opposite, pair
from gpbackprop.plan import Closure, Plan, Slot
from gpbackprop.spec import Count, Flag, Whole, one_of, spec


class Convolution(Parametric):
    """What all convolutions share: W (*kernel, inputs / groups, outputs), b unless bias = false, an activation."""

    __abstract__ = True
    parameters = ("W", "b")

    if TYPE_CHECKING:  # fields, each in its place among those of the class
        groups: int
        bias: bool
        activation: Activation | None

    def __post_init__(self):
        super().__post_init__()
        key = "init.b" if "b" in self.init else "freeze" if "b" in self.freeze else None
        if key and not self.bias:
            raise ValueError(f"{key}: there is no parameter 'b' where bias = false; leave it out, or set bias = true")

    def weights(
        self, plan: Plan, kernel: tuple[int, ...], inputs: int, outputs: int, bias: int = 0
    ) -> tuple[Slot, Slot | None]:
        """The slots of W and b, which has `bias` entries, one for each output unless told; None where there is no b."""
        for count, name in ((inputs, "inputs"), (outputs, "outputs")):
            plan.expect(count % self.groups == 0, f"{name} that {self.groups} groups can share", f"{count} {name}")
        W = self.param(plan, "W", (*kernel, inputs // self.groups, outputs), Glorot())
        return W, self.param(plan, "b", (bias or outputs,)) if self.bias else None

    def activated(self, plan: Plan, z: Slot) -> Slot:
        """The activation of z, if there is one."""
        if not self.activation:
            return z
        plan.note("z", z)
        return self.activation.trace(plan, z)


@spec
class Conv2d(Convolution):
    """y[b,p,q,o] = sum_{i,j,c} x[b, s p + d i - a, s q + d j - a, c] W[i,j,c,o] + bias[o], then the activation

    s is the stride, d the dilation, a the padding: a number of zeros on each side, "valid" (none) or "same" (as many as
    give ceil(size / stride) outputs; an odd one comes last). Each of the `groups` parts of the channels has units /
    groups units of its own. Kernel, stride, padding and dilation are one number or (vertical, horizontal). W is
    (height, width, channels / groups, units) and starts from Glorot's uniform distribution, b from zero.

    dW = X^T dy,  db = 1^T dy,  dx = dy W^T added up where windows overlap.
    """

    units: Count
    kernel: Counts
    stride: Counts = 1
    padding: Padding = "valid"
    dilation: Counts = 1
    groups: Count = 1
    bias: Flag = True
    activation: one_of(Activation) | None = None

    def trace(self, plan: Plan, x: Slot) -> Slot:
        expect_images(plan, x)
        windows = axes(plan, x.shape[1:3], self.kernel, self.stride, self.padding, self.dilation)
        W, b = self.weights(plan, pair(self.kernel), x.shape[-1], self.units)
        y = plan.slot((x.shape[0], *(axis.out for axis in windows), self.units))
        convolve(plan, x, W, b, y, windows, self.groups)
        return self.activated(plan, y)

    @classmethod
    def example(cls):
        return cls(2, (2, 3), padding="same", activation="tanh"), (4, 3, 2)


@spec
class Conv1d(Convolution):
    """y[b,t,o] = sum_{i,c} x[b, s t + d i - a, c] W[i,c,o] + bias[o], then the activation: Conv2d with one axis

    W is (kernel, channels / groups, units).
    """

    units: Count
    kernel: Count
    stride: Count = 1
    padding: Literal["valid", "same"] | Whole = "valid"
    dilation: Count = 1
    groups: Count = 1
    bias: Flag = True
    activation: one_of(Activation) | None = None

    def trace(self, plan: Plan, x: Slot) -> Slot:
        expect_series(plan, x)
        batch, time, channels = x.shape
        windows = axes(plan, (time,), self.kernel, self.stride, self.padding, self.dilation)
        W, b = self.weights(plan, (self.kernel,), channels, self.units)
        y = plan.slot((batch, windows[0].out, self.units))
        convolve(plan, x.reshape(batch, time, 1, channels), W, b, y, [*windows, Axis(1, 1)], self.groups)
        return self.activated(plan, y)

    @classmethod
    def example(cls):
        return cls(4, 3, stride=2, padding=1, groups=2), (6, 10)


@spec
class ConvTranspose2d(Convolution):
    """y[b, s p + d i - a, s q + d j - a, o] = sum_{i,j,c} x[b,p,q,c] W[i,j,o,c] + bias[o], summed over all p, q, i, j

    The transpose of the Conv2d of the same fields, which would lead from y to x with these weights (H. Noh et al.,
    2015): W is (height, width, units / groups, channels). y has (size - 1) s + d (kernel - 1) + 1 - 2 a places on each
    axis; with "same", size s of them.

    With Y the columns of dy: dW = Y^T x,  db = 1^T dy,  dx = Y W.
    """

    units: Count
    kernel: Counts
    stride: Counts = 1
    padding: Padding = "valid"
    dilation: Counts = 1
    groups: Count = 1
    bias: Flag = True
    activation: one_of(Activation) | None = None

    def trace(self, plan: Plan, x: Slot) -> Slot:
        expect_images(plan, x)
        windows = opposite(plan, x.shape[1:3], self.kernel, self.stride, self.padding, self.dilation)
        W, b = self.weights(plan, pair(self.kernel), self.units, x.shape[-1], bias=self.units)
        y = plan.slot((x.shape[0], *(axis.size for axis in windows), self.units))
        convolve_back(plan, x, W, b, y, windows, self.groups)
        return self.activated(plan, y)

    @classmethod
    def example(cls):
        return cls(2, 3, stride=2, padding=1, groups=2), (3, 2, 4)


class Kernel:
    """W over images of `channels` channels and rows (K, batch windows, units): with X the columns of the images,

    see: X,  times: rows = X W,  spread: images = rows W^T added up where windows overlap,  learn: dW = X^T rows.

    Each is a list of calls, one for each block of the batch and each group of channels in it; `times` and `learn` go by
    the X that was seen last, `spread` writes over it.
    """

    def __init__(self, plan: Plan, W: Slot, windows: Sequence[Axis], batch: int, channels: int, groups: int):
        self.plan, self.W, self.groups = plan, W, groups
        self.w = split(W.rows.value, groups)
        self.columns = Columns(plan, windows, batch, channels, groups)

    def parts(self, rows: Array) -> list[tuple[int, Array, Array]]:
        """(group, X, the windows and units in `rows` that belong to it) of each call."""
        columns, groups = self.columns, self.groups
        return [
            (g, columns.of(block), part)
            for block in columns.blocks
            for g, part in enumerate(split(rows[:, block.windows], groups))
        ]

    def see(self, images: Array) -> list[Closure]:
        return [call for calls in self.columns.read(images) for call in calls]

    def times(self, rows: Array, b: Slot | None = None) -> list[Closure]:
        """rows = X W, plus b"""
        gemm, products = self.plan.backend.gemm, self.parts(rows)
        calls: list[Closure] = [partial(gemm, X, self.w[g], part) for g, X, part in products]
        if b is None:
            return calls
        biases = split(b.reshape(1, b.shape[0]).value, self.groups)
        adds = [partial(self.plan.xp.add, part, biases[g], out=part) for g, _, part in products]
        return [in_order(pair) for pair in zip(calls, adds, strict=True)]

    def spread(self, images: Array, rows: Array) -> list[Closure]:
        return [call for calls in self.columns.write(images, rows, self.w) for call in calls]

    def learn(self, rows: Array) -> list[Closure]:
        """dW as a sum of products, one for each block, in their order; the first overwrites what was there."""
        gemm, add, grads = self.plan.backend.gemm, self.plan.xp.add, split(self.W.rows.grad, self.groups)
        term = self.plan.scratch(grads[0].shape[1:]) if len(self.columns.blocks) > 1 else None

        def call(first: bool, X: Array, part: Array, grad: Array) -> Closure:
            if first:
                return partial(gemm, X.swapaxes(-1, -2), part, grad)
            return in_order([partial(gemm, X.swapaxes(-1, -2), part, term), partial(add, grad, term, out=grad)])

        return [call(i < self.groups, X, part, grads[g]) for i, (g, X, part) in enumerate(self.parts(rows))]


def convolve(plan: Plan, x: Slot, W: Slot, b: Slot | None, y: Slot, windows: Sequence[Axis], groups: int) -> None:
    """Register y = X W + b, X of x, and its gradients."""
    kernel, dy = Kernel(plan, W, windows, x.shape[0], x.shape[-1], groups), y.rows.grad
    see = kernel.see(x.value)
    plan.step(alternately(see, kernel.times(y.rows.value, b)), None)
    if plan.training:
        again = see if len(see) > 1 else []  # else X is still that of the forward pass
        dx = [] if x.grad is None else kernel.spread(x.grad, dy)
        plan.step(None, in_order([alternately(again, kernel.learn(dy), dx), *bias_gradient(plan, b, y)]))


def convolve_back(plan: Plan, x: Slot, W: Slot, b: Slot | None, y: Slot, windows: Sequence[Axis], groups: int) -> None:
    """Register y = the sum, where windows of y overlap, of x W^T, plus b, and its gradients, X of dy."""
    kernel, dx = Kernel(plan, W, windows, x.shape[0], y.shape[-1], groups), x.rows.grad
    add = [] if b is None else [partial(plan.xp.add, y.rows.value, b.reshape(1, y.shape[-1]).value, out=y.rows.value)]
    plan.step(in_order([*kernel.spread(y.value, x.rows.value), *add]), None)
    if plan.training:
        see, learn = kernel.see(y.grad), kernel.learn(x.rows.value)
        times = [] if dx is None else kernel.times(dx)
        plan.step(None, in_order([alternately(see, learn, times), *bias_gradient(plan, b, y)]))


def bias_gradient(plan: Plan, b: Slot | None, y: Slot) -> list[Closure]:
    """db = 1^T dy"""
    if b is None:
        return []
    ones = plan.constant(np.ones((1, 1, y.rows.shape[0])))
    return [partial(plan.backend.gemm, ones, y.rows.grad, b.reshape(1, y.shape[-1]).grad)]


def split(a: Array, groups: int) -> list[Array]:
    """Views of equal parts of the last axis."""
    share = a.shape[-1] // groups
    return [a[..., g * share : (g + 1) * share] for g in range(groups)]


def alternately(*rows: Sequence[Closure]) -> Closure:
    """One call of the first of each of the rows, then of the second of each, and so on; a row may be empty."""
    return in_order([call for turn in zip(*filter(None, rows), strict=True) for call in turn])


def in_order(calls: Sequence[Closure]) -> Closure:
    """One call of all `calls`."""

    def run() -> None:
        for call in calls:
            call()

    return run
