"""Pooling: one number for each window of an image or series and each channel. Padding is never part of a window."""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from gpbackprop.backend import Array
from gpbackprop.layers.base import Layer
from gpbackprop.layers.windows import Axis, Counts, Padding, axes, expect_images, expect_series
from gpbackprop.plan import Closure, Plan, Slot
from gpbackprop.spec import Count, Whole, spec


@spec
class Pool(Layer):
    """y[b,p,q,c] = f of the x[b, s p + i - a, s q + j - a, c] that lie on the image, i and j inside the kernel.

    The stride s is the kernel's size unless given; the padding a is a number, "valid" (none) or "same" (as much as
    gives ceil(size / s) outputs).
    """

    __abstract__ = True
    kernel: Counts = 2
    stride: Counts | None = None
    padding: Padding = "valid"

    def trace(self, plan: Plan, x: Slot) -> Slot:
        expect_images(plan, x)
        windows = self._axes(plan, x.shape[1:3])
        y = plan.slot((x.shape[0], *(axis.out for axis in windows), x.shape[3]))
        self.pool(plan, x, y, windows)
        return y

    def pool(self, plan: Plan, x: Slot, y: Slot, windows: Sequence[Axis]) -> None:
        """Register y = the pooled x, (batch, height, width, channels) both."""
        raise NotImplementedError

    def _axes(self, plan: Plan, sizes: Sequence[int]) -> list[Axis]:
        found = axes(plan, sizes, self.kernel, self.stride or self.kernel, self.padding)
        for axis in found:
            fits = max(axis.before, axis.after) < axis.kernel
            plan.expect(fits, f"less padding than the kernel's {axis.kernel}", max(axis.before, axis.after))
        return found

    @staticmethod
    def _places(windows: Sequence[Axis]) -> list[tuple[tuple, tuple]]:
        """For each place of the kernel, in rows: where it meets the image, as (indices of y, indices of x)."""
        height, width = windows
        every = (slice(None), slice(None))
        rows, columns = map(height.inside, range(height.kernel)), [width.inside(j) for j in range(width.kernel)]
        return [((*every, p, q), (*every, y, x)) for p, y in rows for q, x in columns]

    @staticmethod
    def _over(
        plan: Plan, x: Slot, y: Slot, places: Sequence[tuple], join: Callable[..., Array], start: float
    ) -> Closure:
        """The call that fills y with `join` of what lies in each window, from `start` on."""
        copy, inputs = plan.xp.copyto, [(y.value[o], x.value[i]) for o, i in places]

        def fill() -> None:
            copy(y.value, start)
            for out, seen in inputs:
                join(out, seen, out=out)

        return fill


@spec
class MaxPool2d(Pool):
    """y = the maximum of each window;  dx = dy at the first place, row by row, where the window holds its maximum"""

    def pool(self, plan, x, y, windows):
        xp, t, left = plan.xp, plan.scratch(y.shape), plan.scratch(y.shape)
        places = self._places(windows)
        plan.step(self._over(plan, x, y, places, xp.maximum, -np.inf), None)
        if x.grad is None:
            return
        routes = [(y.value[o], x.value[i], x.grad[i], t[o], left[o]) for o, i in places]
        # Where windows are tiles each place of x lies in one of them, and its gradient is written, not added up.
        tiles = all(axis.kernel == axis.stride and axis.out * axis.stride == axis.size for axis in windows)

        def backward():
            xp.copyto(left, y.grad)
            if not tiles:
                xp.copyto(x.grad, 0)
            for out, seen, dx, share, rest in routes:
                xp.equal(seen, out, out=share)
                xp.multiply(share, rest, out=share)
                if tiles:
                    xp.copyto(dx, share)
                else:
                    xp.add(dx, share, out=dx)
                xp.subtract(rest, share, out=rest)

        plan.step(None, backward)

    @classmethod
    def example(cls):
        return cls(3, stride=2, padding=1), (5, 4, 2)


@spec
class AveragePool2d(Pool):
    """y = the mean of each window, over the inputs that it holds (padding is not counted);  dx = sum of dy / count"""

    def pool(self, plan, x, y, windows):
        xp, t = plan.xp, plan.scratch(y.shape)
        places = self._places(windows)
        counts = np.zeros((1, *y.shape[:3], 1))
        for o, _ in places:
            counts[o] += 1
        share = plan.constant(1 / counts[:, :1])
        add_up = self._over(plan, x, y, places, xp.add, 0)
        grads = [] if x.grad is None else [(t[o], x.grad[i]) for o, i in places]

        def forward():
            add_up()
            xp.multiply(y.value, share, out=y.value)

        def backward():
            xp.multiply(y.grad, share, out=t)
            xp.copyto(x.grad, 0)
            for part, dx in grads:
                xp.add(dx, part, out=dx)

        plan.step(forward, backward if x.grad is not None else None)

    @classmethod
    def example(cls):
        return cls((2, 3), stride=(2, 1), padding="same"), (5, 4, 2)


@spec
class Series(Pool):
    """The same for series (batch, time, channels), which are images of width 1."""

    __abstract__ = True
    kernel: Count = 2
    stride: Count | None = None
    padding: Literal["valid", "same"] | Whole = "valid"

    def trace(self, plan: Plan, x: Slot) -> Slot:
        expect_series(plan, x)
        batch, time, channels = x.shape
        windows = [*self._axes(plan, (time,)), Axis(1, 1)]
        y = plan.slot((batch, windows[0].out, channels))
        self.pool(plan, x.reshape(batch, time, 1, channels), y.reshape(batch, windows[0].out, 1, channels), windows)
        return y

    @classmethod
    def example(cls):
        return cls(3, stride=2, padding=1), (6, 2)


@spec
class MaxPool1d(Series):
    """MaxPool2d for series (batch, time, channels)."""

    pool = MaxPool2d.pool


@spec
class AveragePool1d(Series):
    """AveragePool2d for series (batch, time, channels)."""

    pool = AveragePool2d.pool


@spec
class GlobalAveragePool(Layer):
    """y[b,c] = the mean of x[b, ..., c] over all places of an image or series;  dx = dy / their number"""

    def trace(self, plan: Plan, x: Slot) -> Slot:
        plan.expect(len(x.shape) > 2, "images (height, width, channels) or series (time, channels)", x.shape[1:])
        xp, y = plan.xp, plan.slot((x.shape[0], x.shape[-1]))
        places = x.reshape(x.shape[0], -1, x.shape[-1])
        share = 1 / places.shape[1]
        dy = None if y.grad is None else y.grad[:, :, None]

        def forward():
            xp.sum(places.value, axis=2, out=y.value)
            xp.multiply(y.value, share, out=y.value)

        def backward():
            xp.multiply(dy, share, out=places.grad)

        plan.step(forward, backward if x.grad is not None else None)
        return y

    @classmethod
    def example(cls):
        return cls(), (3, 2, 4)
