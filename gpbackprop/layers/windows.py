"""A kernel that moves over images (K, B, H, W, C): where its windows lie, and the copies between images and columns."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from gpbackprop.backend import Array
from gpbackprop.plan import Closure, Plan, Slot
from gpbackprop.spec import Count, Whole

# One number for both axes, or (vertical, horizontal).
Counts = Count | tuple[Count, Count]
Padding = Literal["valid", "same"] | Whole | tuple[Whole, Whole]


@dataclasses.dataclass(frozen=True)
class Axis:
    """One axis: the window of output o sees the inputs stride o + dilation i - before, for i in 0..kernel-1."""

    size: int
    kernel: int
    stride: int = 1
    dilation: int = 1
    before: int = 0
    after: int = 0

    @property
    def reach(self) -> int:
        """From the first input of a window to its last, both counted."""
        return self.dilation * (self.kernel - 1) + 1

    @property
    def padded(self) -> int:
        return self.before + self.size + self.after

    @property
    def out(self) -> int:
        """The number of windows."""
        return (self.padded - self.reach) // self.stride + 1

    @property
    def middle(self) -> slice:
        """Where the inputs lie among the padded ones."""
        return slice(self.before, self.before + self.size)

    def tap(self, i: int) -> slice:
        """The padded inputs under place i of the kernel, one for each window."""
        start = i * self.dilation
        return slice(start, start + (self.out - 1) * self.stride + 1, self.stride)

    def inside(self, i: int) -> tuple[slice, slice]:
        """The windows whose place i lies on an input, not on padding, and these inputs."""
        first = max(0, -(-(self.before - i * self.dilation) // self.stride))
        last = min(self.out, (self.size - 1 + self.before - i * self.dilation) // self.stride + 1)
        start = first * self.stride + i * self.dilation - self.before
        count = max(0, last - first)
        return slice(first, first + count), slice(start, start + max(0, (count - 1) * self.stride + 1), self.stride)


def pair(value: Any) -> tuple[Any, Any]:
    """(vertical, horizontal) of a field that may be one value for both."""
    return value if isinstance(value, tuple) else (value, value)


def axes(plan: Plan, sizes: Sequence[int], kernel: Any, stride: Any, padding: Any, dilation: Any = 1) -> list[Axis]:
    """The windows over images of `sizes` (height, width), or over series of (time,).

    "same" gives ceil(size / stride) of them. Raises ShapeError where the kernel is larger than the padded image.
    """
    found = []
    for size, k, s, p, d in zip(sizes, *map(pair, (kernel, stride, padding, dilation)), strict=False):
        reach = d * (k - 1) + 1
        before, after = _padding(p, (-(-size // s) - 1) * s + reach - size)
        found.append(Axis(size, k, s, d, before, after))
    what = "the kernel and its dilation" if any(axis.dilation > 1 for axis in found) else "the kernel"
    plan.expect(
        all(axis.out > 0 for axis in found),
        f"at least {_times(axis.reach for axis in found)} places for {what}",
        _times(axis.padded for axis in found) + " with padding" * any(axis.padded > axis.size for axis in found),
        'a smaller kernel or padding = "same" fits',
    )
    return found


def opposite(plan: Plan, sizes: Sequence[int], kernel: Any, stride: Any, padding: Any, dilation: Any = 1) -> list[Axis]:
    """The windows, `sizes` of them, over the images that a transposed convolution makes."""
    found = []
    for out, k, s, p, d in zip(sizes, *map(pair, (kernel, stride, padding, dilation)), strict=True):
        extent = (out - 1) * s + d * (k - 1) + 1
        before, after = _padding(p, extent - out * s)
        found.append(Axis(out * s if p == "same" else extent - before - after, k, s, d, before, after))
    plan.expect(all(axis.size > 0 for axis in found), "less padding", f"{padding}, which leaves nothing of the output")
    return found


def _padding(padding: Any, missing: int) -> tuple[int, int]:
    """The zeros before and after; "same" adds what is missing, the odd one after."""
    if padding == "same":
        return max(0, missing) // 2, max(0, missing) - max(0, missing) // 2
    return (0, 0) if padding == "valid" else (padding, padding)


def _times(sizes: Iterable[int]) -> str:
    return " x ".join(map(str, sizes))


def expect_images(plan: Plan, x: Slot) -> None:
    """Raise ShapeError unless x is (batch, height, width, channels)."""
    _expect_rank(plan, x, "images (height, width, channels)", "[28, 28, 1]", 3)


def expect_series(plan: Plan, x: Slot) -> None:
    """Raise ShapeError unless x is (batch, time, channels)."""
    _expect_rank(plan, x, "series (time, channels)", "[100, 1]", 2)


def _expect_rank(plan: Plan, x: Slot, wanted: str, shape: str, rank: int) -> None:
    advice = (
        f"rows of a table become so with `shape = {shape}` in [data], those of an array that has this shape with "
        '`shape = "stored"`, outputs of a layer with a reshape layer'
    )
    plan.expect(len(x.shape) == rank + 1, wanted, x.shape[1:], advice)


@dataclasses.dataclass(frozen=True)
class Block:
    """Some rows of the batch, `count` of them, and their windows among those of the whole batch."""

    rows: slice
    count: int
    windows: slice


class Columns:
    """Matrices of what the kernel sees of images, for a block of rows and a group of channels at a time.

    columns[k, r, (i, j, c)] = image[k, b, y, x, c] where r = (b, o_y, o_x), and (y, x) lies under place (i, j) of
    window (o_y, o_x). A block is as large as stays in the cache, so that the columns never travel to main memory. Where
    images have few channels the matrix is stored transposed: a copy is fast along what is contiguous on both sides.
    """

    def __init__(self, plan: Plan, windows: Sequence[Axis], batch: int, channels: int, groups: int = 1):
        height, width = self.height, self.width = windows
        self.plan, self.channels, self.groups = plan, channels, groups
        self.share = channels // groups
        taps, places = height.kernel * width.kernel * self.share, height.out * width.out
        self.n = min(batch, max(1, plan.backend.block // (taps * places)))
        self.transposed = self.share <= 4
        self.matrix = plan.scratch((taps, self.n * places) if self.transposed else (self.n * places, taps))
        self.blocks = []
        for b in range(0, batch, self.n):
            e = min(b + self.n, batch)
            self.blocks.append(Block(slice(b, e), e - b, slice(b * places, e * places)))

    def of(self, block: Block) -> Array:
        """The columns (K, windows, taps) of a block."""
        count = block.windows.stop - block.windows.start
        return self.matrix[:, :, :count].swapaxes(-1, -2) if self.transposed else self.matrix[:, :count]

    def read(self, x: Array) -> list[list[Closure]]:
        """For each block and group the call that fills the columns from images x; the groups are called in order."""
        frame = self._frame()
        return [self._read(x, frame, block) for block in self.blocks]

    def write(self, x: Array, y: Array, weights: list[Array]) -> list[list[Closure]]:
        """For each block and group the call that writes x = the sum over all windows that see it of columns = y W^T.

        `weights` has W (K, taps, units / groups) of each group, y is (K, windows, units). Where windows overlap they
        are added in a fixed order.
        """
        frame = self._frame()
        # One product for all taps; or, where many channels gain by it, one for each: what is added lies in one piece.
        by_taps = self.share >= self.plan.backend.by_taps
        term = self.plan.scratch((self.matrix.shape[1], self.share)) if by_taps else None
        return [self._write(x, y, weights, frame, term, block) for block in self.blocks]

    @property
    def _padded(self) -> bool:
        return self.height.padded > self.height.size or self.width.padded > self.width.size

    def _frame(self) -> Array:
        """A block of images with padding around them, or None where there is none."""
        size = self.n, self.height.padded, self.width.padded, self.channels
        return self.plan.scratch(size) if self._padded else None

    def _in(self, frame: Array, images: Array, block: Block) -> tuple[Array, Array, Array]:
        """The padded images of a block; their middle, or None where that is all; and the images themselves."""
        part = images[:, block.rows]
        if frame is None:
            return part, None, part
        padded = frame[:, : block.count]
        return padded, padded[:, :, self.height.middle, self.width.middle], part

    def _read(self, x: Array, frame: Array, block: Block) -> list[Closure]:
        padded, middle, part = self._in(frame, x, block)
        copy = self.plan.xp.copyto
        clear = frame is not None and block.rows.start == 0  # the padding stays zero from block to block

        def read(group: int) -> Closure:
            columns, seen = self._places(block, group), self._seen(padded, group)

            def call() -> None:
                if group == 0 and clear:
                    copy(frame, 0)
                if group == 0 and frame is not None:
                    copy(middle, part)
                copy(columns, seen)

            return call

        return [read(group) for group in range(self.groups)]

    def _write(
        self, x: Array, y: Array, weights: list[Array], frame: Array, term: Array, block: Block
    ) -> list[Closure]:
        copy, units = self.plan.xp.copyto, y.shape[-1] // self.groups
        padded, middle, part = self._in(frame, x, block)

        def write(group: int) -> Closure:
            part_of_y, W = y[:, block.windows, group * units : (group + 1) * units], weights[group].swapaxes(-1, -2)
            add = self._add_up(padded, part_of_y, W, term, block, group)

            def call() -> None:
                if group == 0:
                    copy(padded, 0)
                add()
                if group == self.groups - 1 and frame is not None:
                    copy(part, middle)

            return call

        return [write(group) for group in range(self.groups)]

    def _add_up(self, padded: Array, y: Array, W: Array, term: Array, block: Block, group: int) -> Closure:
        """The call that adds y W to what the windows see; `y` (K, windows, units), `W` (K, units, taps)."""
        gemm, add, height, width = self.plan.backend.gemm, self.plan.xp.add, self.height, self.width
        image = padded[..., group * self.share : (group + 1) * self.share]
        taps = [(i, j) for i in range(height.kernel) for j in range(width.kernel)]
        images = [image[:, :, height.tap(i), width.tap(j)] for i, j in taps]
        if term is None:
            columns, out = self._places(block, group), self.of(block)
            terms = [columns[:, :, :, :, i, j] for i, j in taps]
            products = [(y, W, out)]
            if self.transposed:  # gemm transposes what it reads, not what it writes
                products = [(W.swapaxes(-1, -2), y.swapaxes(-1, -2), out.swapaxes(-1, -2))]
        else:
            part = term[:, : y.shape[1]]
            products = [(y, W[:, :, n * self.share : (n + 1) * self.share], part) for n in range(len(taps))]
            terms = [part.reshape(images[0].shape)] * len(taps)

        def call() -> None:
            for n, (target, part) in enumerate(zip(images, terms, strict=True)):
                if n < len(products):
                    gemm(*products[n])
                add(target, part, out=target)

        return call

    def _places(self, block: Block, group: int) -> Array:
        """The columns of a block by window and place: (K, block, o_y, o_x, i, j, c)."""
        height, width, k = self.height, self.width, self.matrix.shape[0]
        taps, windows = (height.kernel, width.kernel, self.share), (self.n, height.out, width.out)
        if self.transposed:
            return self.matrix.reshape(k, *taps, *windows).transpose(0, 4, 5, 6, 1, 2, 3)[:, : block.count]
        return self.matrix.reshape(k, *windows, *taps)[:, : block.count]

    def _seen(self, padded: Array, group: int) -> Array:
        """What each window sees, (K, block, o_y, o_x, i, j, c), as a view of the padded images."""
        height, width = self.height, self.width
        image = padded[..., group * self.share : (group + 1) * self.share]
        k, b, y, x, c = image.strides
        shape = (*image.shape[:2], height.out, width.out, height.kernel, width.kernel, self.share)
        strides = (k, b, y * height.stride, x * width.stride, y * height.dilation, x * width.dilation, c)
        return self.plan.backend.strided(image, shape, strides)
