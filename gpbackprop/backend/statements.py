"""A recorded call as mathematics: what it computes at each point of its space."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gpbackprop.backend.expressions import ANY, DTYPES, FLOAT, SAME, Apply, Expression, Number, Operand, cast
from gpbackprop.backend.tape import Call
from gpbackprop.backend.views import Shape, View, address, squeeze, view

_NUMBERS = (bool, int, float)


@dataclass(frozen=True, eq=False)
class Row:
    """table[index]: `table` is row 0 over the space, the `rows` are `step` elements apart, `whole` is all of them."""

    table: View
    index: View
    step: int
    rows: int
    whole: View

    def laid(self, shape: Shape) -> "Row":
        """The same over a finer shape."""
        return replace(self, table=self.table.laid(shape), index=self.index.laid(shape))

    def at(self, axis: int, i: int) -> "Row":
        """Those with index i along an axis."""
        return replace(self, table=self.table.at(axis, i), index=self.index.at(axis, i))


@dataclass(frozen=True, eq=False)
class Statement:
    """out = value(reads) at each point of `shape`; or out = tail(join over the `inner` axes of value(reads)).

    `join` is "" or one of sum, max, min and argmax, done in the dtype of `value`.
    """

    call: Call
    shape: Shape
    inner: tuple[bool, ...]
    reads: tuple[View | Row, ...]
    out: View
    value: Expression
    join: str = ""
    tail: Any = None  # an Expression over the join

    @property
    def name(self) -> str:
        return self.call.name

    def laid(self, shape: Shape) -> "Statement":
        """The same over a finer shape; for statements that join nothing."""
        reads = tuple(read.laid(shape) for read in self.reads)
        return replace(self, shape=shape, inner=(False,) * len(shape), reads=reads, out=self.out.laid(shape))

    def blocks(self, axis: int) -> list["Statement"]:
        """The same for each index along an axis, which is not one that is joined over."""
        return [self._block(axis, i) for i in range(self.shape[axis])]

    def _block(self, axis: int, i: int) -> "Statement":
        shape, inner = (*self.shape[:axis], *self.shape[axis + 1 :]), (*self.inner[:axis], *self.inner[axis + 1 :])
        reads = tuple(read.at(axis, i) for read in self.reads)
        return replace(self, shape=shape, inner=inner, reads=reads, out=self.out.at(axis, i))


def statement(call: Call) -> Statement | None:
    """The call as a statement; None where it is of another kind."""
    out = call.out
    if getattr(out, "size", 0) == 0 or str(out.dtype) not in DTYPES:
        return None
    if call.name in _OTHERS:
        return _OTHERS[call.name](call)
    return _map(call) if SAME.get(call.name, call.name) in ANY | FLOAT and not call.verb else None


# Elementwise.


def _map(call: Call) -> Statement | None:
    name = SAME.get(call.name, call.name)
    if set(call.options) - {"casting"}:
        return None
    loop = _loop(name, call.inputs)
    if loop is None:
        return None
    *takes, gives = loop
    if (name in FLOAT and {dtype.kind for dtype in takes} != {"f"}) or (name == "add" and gives.kind == "b"):
        return None  # the sum of truth values is true or false
    if name.endswith("_shift") and not (
        isinstance(call.inputs[1], int) and 0 <= call.inputs[1] < 8 * takes[0].itemsize
    ):
        return None  # compilers leave open what a longer shift gives
    return _pointwise(call, takes, lambda *operands: Apply(name, operands, gives))


def _loop(name: str, inputs: Sequence[Any]) -> list[np.dtype] | None:
    """The dtypes that a ufunc computes in: of its operands and of its result."""
    kinds = [type(x) if type(x) in _NUMBERS[1:] else getattr(x, "dtype", None) for x in inputs]
    try:
        found = [np.dtype(dtype) for dtype in getattr(np, name).resolve_dtypes((*kinds, None))]
    except TypeError:
        return None
    return found if all(dtype.name in DTYPES for dtype in found) else None


def _pointwise(call: Call, takes: Sequence[np.dtype], value: Callable[..., Expression]) -> Statement | None:
    """out = value(inputs), the operands cast to `takes` and the result to the dtype of out."""
    operands: list[Expression] = []
    reads: list[View | Row] = []
    for x, dtype in zip(call.inputs, takes, strict=True):
        if isinstance(x, _NUMBERS):
            if dtype.kind in "iu" and not np.iinfo(dtype).min <= x <= np.iinfo(dtype).max:
                return None  # NumPy compares with such a number as it is
            operands.append(Number(x, dtype))
            continue
        if getattr(x, "ndim", 99) > call.out.ndim or str(x.dtype) not in DTYPES:
            return None
        operands.append(cast(Operand(len(reads), np.dtype(x.dtype)), dtype))
        reads.append(view(x, call.out.shape))
    whole, shape = cast(value(*operands), call.out.dtype), squeeze(call.out.shape)
    return Statement(call, shape, (False,) * len(shape), tuple(reads), view(call.out, call.out.shape), whole)


def _copy(call: Call) -> Statement | None:
    if set(call.options) - {"casting"}:
        return None
    dtype = np.dtype(getattr(call.inputs[0], "dtype", call.out.dtype))
    return _pointwise(call, [dtype], lambda x: x)


def _clip(call: Call) -> Statement | None:
    """min(max(x, low), high)"""
    loop = _loop("maximum", call.inputs[:2]) if len(call.inputs) == 3 else None
    if loop is None or call.options or loop != _loop("maximum", call.inputs[::2]):
        return None
    dtype = loop[0]
    return _pointwise(
        call, loop, lambda x, low, high: Apply("minimum", (Apply("maximum", (x, low), dtype), high), dtype)
    )


def _gather(call: Call) -> Statement | None:
    """out[i...,:] = table[index[i...],:]"""
    (table, index), out = call.inputs, call.out
    shape = (*index.shape, *table.shape[1:])
    if out.shape != shape or str(table.dtype) not in DTYPES or np.dtype(index.dtype).kind not in "iu":
        return None
    own = squeeze(shape)
    lead = len(squeeze(index.shape))
    strides = [s for n, s in zip(table.shape[1:], table.strides[1:], strict=True) if n != 1]
    start, dtype = address(table), np.dtype(table.dtype)
    first = View(table, start, dtype, own, (*(0,) * lead, *strides))
    at = view(index, index.shape)
    at = View(index, at.address, at.dtype, own, (*at.strides, *(0,) * len(strides)))
    row = Row(first, at, table.strides[0] // dtype.itemsize, len(table), view(table, table.shape))
    return Statement(call, own, (False,) * len(own), (row,), view(out, shape), cast(Operand(0, dtype), out.dtype))


# Reductions.


def _reduction(call: Call) -> Statement | None:
    (x, *more), out, options = call.inputs, call.out, dict(call.options)
    axis, keepdims, dtype = options.pop("axis", None), options.pop("keepdims", False), options.pop("dtype", None)
    if more or options or not x.size or str(x.dtype) not in DTYPES:
        return None
    axes = range(x.ndim) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    inner = [a in {axis % x.ndim for axis in axes} for a in range(x.ndim)]
    dtype, name = np.dtype(dtype or x.dtype), call.name
    if (dtype.kind != "f" and not (name == "sum" and dtype == np.int64)) or str(dtype) not in DTYPES:
        return None
    strides = iter(out.strides)
    kept = [0 if flag else next(strides) for flag in inner] if not keepdims else list(out.strides)
    over = View(
        out, address(out), np.dtype(out.dtype), squeeze(x.shape),
        tuple(0 if flag else s for s, n, flag in zip(kept, x.shape, inner, strict=True) if n != 1),
    )  # fmt: skip
    flags = tuple(flag for flag, n in zip(inner, x.shape, strict=True) if n != 1)
    join = {"mean": "sum"}.get(name, name) if any(flags) else ""
    value = cast(Operand(0, np.dtype(x.dtype)), dtype)
    if name == "argmax" and not join:  # of one element each
        value = Number(0, np.dtype(np.int64))
    tail = cast(Operand(0, np.dtype(np.int64) if name == "argmax" else dtype) if join else value, out.dtype)
    if name == "mean":
        count = math.prod(n for n, flag in zip(x.shape, inner, strict=True) if flag)
        tail = Apply("divide", (tail, Number(count, tail.dtype)), tail.dtype)
    reads = (view(x, x.shape),)
    if not join:
        return Statement(call, squeeze(x.shape), flags, reads, over, tail)
    return Statement(call, squeeze(x.shape), flags, reads, over, value, join, tail)


_OTHERS: dict[str, Callable[[Call], Statement | None]] = {
    "copyto": _copy, "clip": _clip, "gather": _gather,
    "sum": _reduction, "mean": _reduction, "max": _reduction, "min": _reduction, "argmax": _reduction,
}  # fmt: skip
