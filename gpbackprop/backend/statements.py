"""A recorded call as mathematics: what it computes at each point of its space, as an expression of C++.

The dtypes are those of NumPy: operands are cast to the dtypes of the ufunc's loop, Python's numbers take the dtype that
they have beside arrays, and the result is cast to that of `out`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gpbackprop.backend.tape import Call
from gpbackprop.backend.views import Shape, View, address, squeeze, view

TYPES = {
    "float32": "float", "float64": "double", "uint8": "unsigned char", "bool": "bool",
    "int32": "int", "uint32": "unsigned int", "int64": "long long",
}  # fmt: skip
_NUMBERS = (bool, int, float)


@dataclass(frozen=True, eq=False)
class Row:
    """table[index]: `table` is row 0 over the space, `step` the elements from row to row, `whole` all of the table."""

    table: View
    index: View
    step: int
    whole: View

    def laid(self, shape: Shape) -> "Row":
        """The same over a finer shape."""
        return replace(self, table=self.table.laid(shape), index=self.index.laid(shape))

    def at(self, axis: int, i: int) -> "Row":
        """Those with index i along an axis."""
        return replace(self, table=self.table.at(axis, i), index=self.index.at(axis, i))


@dataclass(frozen=True, eq=False)
class Statement:
    """out = text(reads) at each point of `shape`; or out = tail(join over the `inner` axes of text(reads)).

    `join` is "" or one of sum, max, min and argmax, done in `dtype`.
    """

    call: Call
    shape: Shape
    inner: tuple[bool, ...]
    reads: tuple[View | Row, ...]
    out: View
    text: str
    join: str = ""
    dtype: Any = None
    tail: str = "{0}"

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
    if getattr(out, "size", 0) == 0 or str(out.dtype) not in TYPES:
        return None
    if call.name in _OTHERS:
        return _OTHERS[call.name](call)
    return _map(call) if call.name in _UFUNCS and not call.verb else None


def literal(value: Any, dtype: Any) -> str:
    """A number of `dtype` in C++, to the last bit."""
    dtype = np.dtype(dtype)
    if dtype.kind == "f":
        number = float(dtype.type(value))
        if not math.isfinite(number):
            return (
                f"({TYPES[dtype.name]}){'-' if number < 0 else ''}{'GPB_NAN' if math.isnan(number) else 'GPB_INFINITY'}"
            )
        return number.hex() + ("f" if dtype.itemsize == 4 else "")
    if dtype.kind == "b":
        return "true" if value else "false"
    text = str(int(value)) + {"uint32": "u", "int64": "ll"}.get(dtype.name, "")
    return f"({TYPES[dtype.name]}){text}" if dtype.itemsize < 4 else text


def cast(text: str, of: Any, to: Any) -> str:
    """`text`, of the dtype `of` (None where C++ has widened it), as a value of the dtype `to`."""
    if of == to:
        return text
    return f"(({text}) != 0)" if to == np.dtype(bool) else f"({TYPES[np.dtype(to).name]})({text})"


# Elementwise. f stands for the suffix of the float32 functions.

_ANY = {
    "add": "{0} + {1}", "subtract": "{0} - {1}", "multiply": "{0} * {1}", "negative": "-{0}",
    "maximum": "gpb_maximum({0}, {1})", "minimum": "gpb_minimum({0}, {1})", "sign": "gpb_sign({0})",
    "bitwise_xor": "{0} ^ {1}", "bitwise_and": "{0} & {1}", "bitwise_or": "{0} | {1}",
    "right_shift": "{0} >> {1}", "left_shift": "{0} << {1}",
    "equal": "{0} == {1}", "not_equal": "{0} != {1}", "less": "{0} < {1}", "less_equal": "{0} <= {1}",
    "greater": "{0} > {1}", "greater_equal": "{0} >= {1}",
}  # fmt: skip
_FLOAT = {
    "divide": "{0} / {1}", "abs": "fabsf({0})", "power": "powf({0}, {1})", "square": "{0} * {0}",
    **{name: name + "f({0})" for name in (
        "sqrt", "exp", "exp2", "expm1", "log", "log2", "log1p", "tanh", "floor", "ceil", "rint", "sin", "cos",
    )},
}  # fmt: skip
_FLOAT["true_divide"], _FLOAT["absolute"] = _FLOAT["divide"], _FLOAT["abs"]
_UFUNCS = _ANY | _FLOAT


def _map(call: Call) -> Statement | None:
    if set(call.options) - {"casting"}:
        return None
    loop = _loop(call.name, call.inputs)
    if loop is None:
        return None
    *takes, gives = loop
    kinds = {dtype.kind for dtype in takes}
    shifts = call.name.endswith("_shift")
    if (call.name in _FLOAT and kinds != {"f"}) or (call.name == "add" and gives.kind == "b"):
        return None  # the sum of truth values is true or false
    if shifts and not (isinstance(call.inputs[1], int) and 0 <= call.inputs[1] < 8 * takes[0].itemsize):
        return None  # C++ leaves open what a longer shift gives
    text = _UFUNCS[call.name]
    if call.name in _FLOAT and takes[0] == np.float64:
        text = text.replace("f(", "(")
    return _pointwise(call, text, takes, gives)


def _loop(name: str, inputs: Sequence[Any]) -> list[np.dtype] | None:
    """The dtypes that a ufunc computes in: of its operands and of its result."""
    kinds = [type(x) if type(x) in _NUMBERS[1:] else getattr(x, "dtype", None) for x in inputs]
    try:
        found = [np.dtype(dtype) for dtype in getattr(np, name).resolve_dtypes((*kinds, None))]
    except TypeError:
        return None
    return found if all(dtype.name in TYPES for dtype in found) else None


def _pointwise(call: Call, text: str, takes: Sequence[np.dtype], gives: np.dtype) -> Statement | None:
    """out = text(inputs), the operands cast to `takes` and the result, of the dtype `gives`, to that of out."""
    operands: list[str] = []
    reads: list[View | Row] = []
    for x, dtype in zip(call.inputs, takes, strict=True):
        if isinstance(x, _NUMBERS):
            operands.append(literal(x, dtype))
            continue
        if getattr(x, "ndim", 99) > call.out.ndim or str(x.dtype) not in TYPES:
            return None
        operands.append(cast(f"{{{len(reads)}}}", np.dtype(x.dtype), dtype))
        reads.append(view(x, call.out.shape))
    small = gives.kind in "iu" and gives.itemsize < 4 and text != "{0}"  # C++ computes with int
    whole = cast(cast(text.format(*operands), None if small else gives, gives), gives, np.dtype(call.out.dtype))
    shape = squeeze(call.out.shape)
    return Statement(call, shape, (False,) * len(shape), tuple(reads), view(call.out, call.out.shape), whole)


def _copy(call: Call) -> Statement | None:
    if set(call.options) - {"casting"}:
        return None
    dtype = np.dtype(getattr(call.inputs[0], "dtype", call.out.dtype))
    return _pointwise(call, "{0}", [dtype], dtype)


def _clip(call: Call) -> Statement | None:
    """min(max(x, low), high)"""
    loop = _loop("maximum", call.inputs[:2]) if len(call.inputs) == 3 else None
    if loop is None or call.options or loop != _loop("maximum", call.inputs[::2]):
        return None
    return _pointwise(call, "gpb_minimum(gpb_maximum({0}, {1}), {2})", loop, loop[0])


def _gather(call: Call) -> Statement | None:
    """out[i...,:] = table[index[i...],:]"""
    (table, index), out = call.inputs, call.out
    shape = (*index.shape, *table.shape[1:])
    if out.shape != shape or str(table.dtype) not in TYPES or np.dtype(index.dtype).kind not in "iu":
        return None
    own = squeeze(shape)
    lead = len(squeeze(index.shape))
    strides = [s for n, s in zip(table.shape[1:], table.strides[1:], strict=True) if n != 1]
    start, dtype = address(table), np.dtype(table.dtype)
    first = View(table, start, dtype, own, (*(0,) * lead, *strides))
    at = view(index, index.shape)
    at = View(index, at.address, at.dtype, own, (*at.strides, *(0,) * len(strides)))
    row = Row(first, at, table.strides[0] // dtype.itemsize, view(table, table.shape))
    return Statement(call, own, (False,) * len(own), (row,), view(out, shape), cast("{0}", dtype, np.dtype(out.dtype)))


# Reductions.


def _reduction(call: Call) -> Statement | None:
    (x, *more), out, options = call.inputs, call.out, dict(call.options)
    axis, keepdims, dtype = options.pop("axis", None), options.pop("keepdims", False), options.pop("dtype", None)
    if more or options or not x.size or str(x.dtype) not in TYPES:
        return None
    axes = range(x.ndim) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    inner = [a in {axis % x.ndim for axis in axes} for a in range(x.ndim)]
    dtype, name = np.dtype(dtype or x.dtype), call.name
    if (dtype.kind != "f" and not (name == "sum" and dtype == np.int64)) or str(dtype) not in TYPES:
        return None
    strides = iter(out.strides)
    kept = [0 if flag else next(strides) for flag in inner] if not keepdims else list(out.strides)
    over = View(
        out, address(out), np.dtype(out.dtype), squeeze(x.shape),
        tuple(0 if flag else s for s, n, flag in zip(kept, x.shape, inner, strict=True) if n != 1),
    )  # fmt: skip
    flags = tuple(flag for flag, n in zip(inner, x.shape, strict=True) if n != 1)
    tail = cast("{0}", np.dtype(np.int64) if name == "argmax" else dtype, np.dtype(out.dtype))
    if name == "mean":
        count = math.prod(n for n, flag in zip(x.shape, inner, strict=True) if flag)
        tail = f"{tail} / {literal(count, out.dtype)}"
    join = name if any(flags) else ""
    text = cast("{0}", np.dtype(x.dtype), dtype)
    if not join:  # of one element each
        text, tail = "0" if name == "argmax" else tail.format(text), "{0}"
    reads = (view(x, x.shape),)
    return Statement(call, squeeze(x.shape), flags, reads, over, text, {"mean": "sum"}.get(join, join), dtype, tail)


_OTHERS: dict[str, Callable[[Call], Statement | None]] = {
    "copyto": _copy, "clip": _clip, "gather": _gather,
    "sum": _reduction, "mean": _reduction, "max": _reduction, "min": _reduction, "argmax": _reduction,
}  # fmt: skip
