"""What a call touches: at each point of its iteration space one element of each operand.

A space is a shape without axes of one element, walked in row-major order. A view lays memory over it: a stride for each
axis, 0 where it is broadcast. Two spaces of one size agree where a finer shape splits the axes of both; a stride s of
an axis that is split into (m, n) becomes (s n, s).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

Shape = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class View:
    """Elements of `array` over a space of `shape`: that at index i lies sum_a strides[a] i[a] bytes from `address`."""

    array: Any
    address: int
    dtype: np.dtype
    shape: Shape
    strides: Shape

    @cached_property
    def bounds(self) -> tuple[int, int]:
        """The first byte, and that behind the last."""
        spans = [(n - 1) * s for n, s in zip(self.shape, self.strides, strict=True)]
        low = self.address + sum(span for span in spans if span < 0)
        return low, self.address + sum(span for span in spans if span > 0) + self.dtype.itemsize

    @property
    def __array_interface__(self) -> dict[str, Any]:
        """Its place for NumPy, which computes with addresses here and reads nothing."""
        return {
            "version": 3, "typestr": self.dtype.str, "data": (self.address, True),
            "shape": self.shape, "strides": self.strides,
        }  # fmt: skip

    def overlaps(self, other: "View") -> bool:
        """Whether both touch a byte; True, too, where that is hard to say."""
        (low, high), (first, last) = self.bounds, other.bounds
        if high <= first or last <= low:
            return False
        most: Any = 10_000
        try:
            return np.shares_memory(np.asarray(self), np.asarray(other), max_work=most)
        except np.exceptions.TooHardError:
            return True

    def inside(self, other: "View") -> bool:
        """Whether it lies between the ends of another one."""
        (low, high), (first, last) = self.bounds, other.bounds
        return first <= low and high <= last

    def at(self, axis: int, i: int) -> "View":
        """The elements with index i along an axis."""
        start = self.address + i * self.strides[axis]
        rest = [(*x[:axis], *x[axis + 1 :]) for x in (self.shape, self.strides)]
        return View(self.array, start, self.dtype, *rest)

    def laid(self, shape: Shape) -> "View":
        """The same elements over a finer shape."""
        return View(self.array, self.address, self.dtype, shape, self.over(shape))

    def over(self, shape: Shape) -> Shape:
        """The strides over a finer shape."""
        strides: list[int] = []
        for stride, parts in zip(self.strides, pieces(self.shape, shape), strict=True):
            strides += (stride * math.prod(parts[i + 1 :]) for i in range(len(parts)))
        return tuple(strides)


def address(array: Any) -> int:
    """Where an array of NumPy or CuPy begins."""
    pointer = getattr(array.data, "ptr", None)
    return array.__array_interface__["data"][0] if pointer is None else pointer


def squeeze(shape: Sequence[int]) -> Shape:
    return tuple(n for n in shape if n != 1)


def view(array: Any, shape: Sequence[int]) -> View:
    """`array` broadcast over a space of `shape`, whose axes of one element are left out."""
    strides = [0 if n == 1 else s for n, s in zip(array.shape, array.strides, strict=True)]
    strides = [0] * (len(shape) - len(strides)) + strides
    kept = tuple(s for s, n in zip(strides, shape, strict=True) if n != 1)
    return View(array, address(array), np.dtype(array.dtype), squeeze(shape), kept)


def common(a: Shape, b: Shape) -> Shape | None:
    """The coarsest shape that splits the axes of both; None where there is none."""
    if math.prod(a) != math.prod(b):
        return None
    cuts = sorted({math.prod(shape[i:]) for shape in (a, b) for i in range(len(shape))} | {1}, reverse=True)
    if any(cut % below for cut, below in pairwise(cuts)):
        return None
    return tuple(cut // below for cut, below in pairwise(cuts))


def pieces(shape: Shape, finer: Shape) -> list[Shape]:
    """For each axis of `shape` the axes of the finer shape that make it up."""
    found, at = [], 0
    for n in shape:
        start, size = at, 1
        while size < n:
            size *= finer[at]
            at += 1
        found.append(finer[start:at])
    return found


def levels(place: View, shape: Shape, inner: Sequence[bool], full: bool) -> tuple[Shape, Shape]:
    """The strides of a view over the outer and the inner axes; none for the latter where a row has but one element."""
    if full:
        strides = place.over(shape)
        within = tuple(s for s, flag in zip(strides, inner, strict=True) if flag)
        return tuple(s for s, flag in zip(strides, inner, strict=True) if not flag), within if any(within) else ()
    return place.over(tuple(n for n, flag in zip(shape, inner, strict=True) if not flag)), ()
