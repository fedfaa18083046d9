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


def convolve(plan: Plan, x: Slot, W: Slot, b: Slot | None, y: Slot, windows: Sequence[Axis], groups: int) -> None:
    """Register y = X W + b, block by block, and its gradients."""
    gemm, w = plan.backend.gemm, split(W.rows.value, groups)
    columns = Columns(plan, windows, x.shape[0], x.shape[-1], groups)
    reads = columns.read(x.value)

    forwards: list[Closure] = []
    for block, read in zip(columns.blocks, reads, strict=True):
        rows = y.rows.value[:, block.windows]
        for g, part in enumerate(split(rows, groups)):
            forwards += [read[g], partial(gemm, columns.of(block), w[g], part)]
        if b:
            forwards.append(partial(plan.xp.add, rows, b.reshape(1, y.shape[-1]).value, out=rows))

    backwards: list[Closure] = []
    dy: Array = y.rows.grad
    if plan.training:
        grow = Sum(plan, W, groups)
        writes = None if x.grad is None else columns.write(x.grad, dy, w)
        for i, block in enumerate(columns.blocks):
            for g, part in enumerate(split(dy[:, block.windows], groups)):
                if len(reads) * groups > 1:  # else the columns are still those of the forward pass
                    backwards.append(reads[i][g])
                backwards += grow.by(g, columns.of(block).swapaxes(-1, -2), part)
                if writes:
                    backwards.append(writes[i][g])
        backwards += bias_gradient(plan, b, y)
    plan.step(in_order(forwards), in_order(backwards))


def convolve_back(plan: Plan, x: Slot, W: Slot, b: Slot | None, y: Slot, windows: Sequence[Axis], groups: int) -> None:
    """Register y = the sum, where windows of y overlap, of x W^T, plus b, block by block, and its gradients."""
    gemm, w = plan.backend.gemm, split(W.rows.value, groups)
    columns = Columns(plan, windows, x.shape[0], y.shape[-1], groups)

    forwards: list[Closure] = []
    for block, writes in zip(columns.blocks, columns.write(y.value, x.rows.value, w), strict=True):
        forwards += writes
        if b:
            part = y.value[:, block.rows]
            forwards.append(partial(plan.xp.add, part, b.reshape(1, 1, 1, y.shape[-1]).value, out=part))

    backwards: list[Closure] = []
    dx: Array = x.rows.grad
    if plan.training:
        grow = Sum(plan, W, groups)
        for block, read in zip(columns.blocks, columns.read(y.grad), strict=True):
            for g, part in enumerate(split(x.rows.value[:, block.windows], groups)):
                backwards += [read[g], *grow.by(g, columns.of(block).swapaxes(-1, -2), part)]
                if dx is not None:
                    grad = split(dx[:, block.windows], groups)[g]
                    backwards.append(partial(gemm, columns.of(block), w[g], grad))
        backwards += bias_gradient(plan, b, y)
    plan.step(in_order(forwards), in_order(backwards))


class Sum:
    """The gradient of W as a sum of products, one for each block of the batch, in their order."""

    def __init__(self, plan: Plan, W: Slot, groups: int):
        self.plan, self.grads, self.term = plan, split(W.rows.grad, groups), None
        self.begun = [False] * groups

    def by(self, group: int, left: Array, right: Array) -> list[Closure]:
        """The calls that add left right to the gradient of a group's weights; the first overwrites what was there."""
        gemm, add, grad = self.plan.backend.gemm, self.plan.xp.add, self.grads[group]
        if not self.begun[group]:
            self.begun[group] = True
            return [partial(gemm, left, right, grad)]
        if self.term is None:
            self.term = self.plan.scratch(grad.shape[1:])
        return [partial(gemm, left, right, self.term), partial(add, grad, self.term, out=grad)]


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


def in_order(calls: Sequence[Closure]) -> Closure:
    """One call of all `calls`."""

    def run() -> None:
        for call in calls:
            call()

    return run
