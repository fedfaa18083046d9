"""Layers made of layers.

Fan-out lives here: each branch reads a fork of x with a gradient of its own, and the sum of these gradients is a step.
It is registered before the branches, because backward runs in the reverse order.
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import PlainValidator

from gpbackprop.backend import Array
from gpbackprop.layers.activation import Tanh
from gpbackprop.layers.base import Layer
from gpbackprop.layers.dense import Dense
from gpbackprop.plan import Plan, Slot
from gpbackprop.spec import build, one_of, spec, type_name


def trace_row(layers: Sequence[Layer], plan: Plan, x: Slot) -> Slot:
    """The layers one after the other; each one's path is its place and type, "2-dense"."""
    for i, layer in enumerate(layers):
        with plan.scope(f"{i}-{type_name(type(layer))}"):
            x = layer.trace(plan, x)
            plan.note("y", x)
    return x


def fork(plan: Plan, x: Slot) -> Slot:
    """The same value with a gradient of its own."""
    return Slot(x.value, None if x.grad is None else plan.scratch(x.shape))


class Group(Layer):
    """Takes its layers one after the other, `Chain(a, b)`, as the first field."""

    __abstract__ = True
    __spread__ = True


@spec
class Chain(Group):
    """y = f_n(... f_2(f_1(x)))"""

    layers: tuple[one_of(Layer), ...]

    if TYPE_CHECKING:

        def __init__(self, *layers: Layer): ...

    def trace(self, plan: Plan, x: Slot) -> Slot:
        return trace_row(self.layers, plan, x)

    @classmethod
    def example(cls):
        return cls(Dense(4, activation=Tanh()), Dense(3)), (5,)


@spec
class Residual(Group):
    """y = x + f(x),  f = the layers in a row;  dx = dy + (df/dx)^T dy   (K. He et al., 2016)"""

    layers: tuple[one_of(Layer), ...]

    if TYPE_CHECKING:

        def __init__(self, *layers: Layer): ...

    def trace(self, plan: Plan, x: Slot) -> Slot:
        xp, inner = plan.xp, fork(plan, x)

        def join():
            xp.add(f.grad, inner.grad, out=x.grad)

        plan.step(None, join if x.grad is not None else None)
        f = trace_row(self.layers, plan, inner)
        plan.expect(f.shape == x.shape, f"inner layers that keep the shape {x.shape}", f.shape)
        y = Slot(plan.scratch(x.shape), f.grad)  # dy/df = 1: one buffer for both

        def forward():
            xp.add(x.value, f.value, out=y.value)

        plan.step(forward, None)
        return y

    @classmethod
    def example(cls):
        return cls(Dense(5), Tanh()), (5,)


def _branch(value: Any) -> Layer:
    return build(Layer, {"type": "chain", "layers": value} if isinstance(value, list | tuple) else value)


@spec
class Parallel(Group):
    """y = [f_1(x), f_2(x), ...] joined along the last axis, or their sum, or their product, element by element

    dx = sum_i (df_i/dx)^T dy_i,  where dy_i is its part of dy, or dy itself, or dy prod_{j != i} f_j(x)
    """

    branches: tuple[Annotated[Layer, PlainValidator(_branch)], ...]
    combine: Literal["concat", "sum", "product"] = "concat"

    if TYPE_CHECKING:

        def __init__(self, *branches: Layer, combine: Literal["concat", "sum", "product"] = "concat"): ...

    def trace(self, plan: Plan, x: Slot) -> Slot:
        xp, forks = plan.xp, [fork(plan, x) for _ in self.branches]
        plan.expect(len(forks) > 0, "at least one branch", "none")

        dx: Array = x.grad

        def join():
            xp.copyto(dx, forks[0].grad)
            for branch in forks[1:]:
                xp.add(dx, branch.grad, out=dx)

        plan.step(None, join if dx is not None else None)
        outs = []
        for i, (branch, x_i) in enumerate(zip(self.branches, forks, strict=True)):
            with plan.scope(f"{i}-{type_name(type(branch))}"):
                outs.append(branch.trace(plan, x_i))
                plan.note("y", outs[-1])
        shapes = [out.shape for out in outs]
        if self.combine == "concat":
            return self._concat(plan, outs, shapes)
        plan.expect(len(set(shapes)) == 1, f"branches of one shape for their {self.combine}", shapes)
        return self._sum(plan, outs) if self.combine == "sum" else self._product(plan, outs)

    def _sum(self, plan, outs):
        xp, y = plan.xp, plan.slot(outs[0].shape)

        def forward():
            xp.copyto(y.value, outs[0].value)
            for out in outs[1:]:
                xp.add(y.value, out.value, out=y.value)

        def backward():
            for out in outs:
                if out.grad is not None:
                    xp.copyto(out.grad, y.grad)

        plan.step(forward, backward)
        return y

    def _product(self, plan, outs):
        """The others of branch i are those before it times those after it: nothing is divided by f_i, it may be 0."""
        xp, y = plan.xp, plan.slot(outs[0].shape)
        inner = [plan.scratch(y.shape) for _ in outs[1:-1]]
        upto = [outs[0].value, *inner, y.value]  # upto[i] = f_0 ... f_i
        after = plan.scratch(y.shape)  # dy f_(i+1) ... f_(n-1)

        def forward():
            xp.copyto(y.value, outs[0].value)
            for i in range(1, len(outs)):
                xp.multiply(upto[i - 1], outs[i].value, out=upto[i])

        def backward():
            xp.copyto(after, y.grad)
            for i in range(len(outs) - 1, 0, -1):
                if outs[i].grad is not None:
                    xp.multiply(upto[i - 1], after, out=outs[i].grad)
                xp.multiply(after, outs[i].value, out=after)
            if outs[0].grad is not None:
                xp.copyto(outs[0].grad, after)

        plan.step(forward, backward)
        return y

    def _concat(self, plan, outs, shapes):
        plan.expect(len({shape[:-1] for shape in shapes}) == 1, "branches that differ in the last axis alone", shapes)
        ends = [0, *accumulate(shape[-1] for shape in shapes)]
        y = plan.slot((*shapes[0][:-1], ends[-1]))
        values = [y.value[..., a:b] for a, b in pairwise(ends)]
        grads = [None if y.grad is None else y.grad[..., a:b] for a, b in pairwise(ends)]

        def forward():
            for out, part in zip(outs, values, strict=True):
                plan.xp.copyto(part, out.value)

        def backward():
            for out, part in zip(outs, grads, strict=True):
                if out.grad is not None:
                    plan.xp.copyto(out.grad, part)

        plan.step(forward, backward)
        return y

    @classmethod
    def example(cls):
        return cls(Dense(2), Tanh()), (5,)
