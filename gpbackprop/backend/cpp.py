"""Expressions as C++ writes them, for CUDA's compiler and for that of the host."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from gpbackprop.backend.expressions import Cast, Expression, Number, Operand

TYPES = {
    "float32": "float", "float64": "double", "uint8": "unsigned char", "bool": "bool",
    "int32": "int", "uint32": "unsigned int", "int64": "long long",
}  # fmt: skip

PRELUDE = """\
#ifndef GPB_PRELUDE
#define GPB_PRELUDE
#define GPB_INFINITY __longlong_as_double(0x7ff0000000000000ll)
#define GPB_NAN __longlong_as_double(0x7ff8000000000000ll)
// NaN where one of them is.
template <typename T> __device__ inline T gpb_maximum(T a, T b) { return a > b || a != a ? a : b; }
template <typename T> __device__ inline T gpb_minimum(T a, T b) { return a < b || a != a ? a : b; }
template <typename T> __device__ inline T gpb_sign(T a) { return a != a ? a : (T)((a > 0) - (a < 0)); }
// Whether element a, at place i, is the maximum rather than b, at place j: NaN before all, then the first.
template <typename T> __device__ inline bool gpb_first(T a, long long i, T b, long long j) {
  if (a != a || b != b) return a != a && (b == b || i < j);
  return a > b || (a == b && i < j);
}
#endif
"""

_ANY = {
    "add": "{0} + {1}", "subtract": "{0} - {1}", "multiply": "{0} * {1}", "negative": "-{0}",
    "maximum": "gpb_maximum({0}, {1})", "minimum": "gpb_minimum({0}, {1})", "sign": "gpb_sign({0})",
    "bitwise_xor": "{0} ^ {1}", "bitwise_and": "{0} & {1}", "bitwise_or": "{0} | {1}",
    "right_shift": "{0} >> {1}", "left_shift": "{0} << {1}",
    "equal": "{0} == {1}", "not_equal": "{0} != {1}", "less": "{0} < {1}", "less_equal": "{0} <= {1}",
    "greater": "{0} > {1}", "greater_equal": "{0} >= {1}", "divide": "{0} / {1}", "square": "{0} * {0}",
}  # fmt: skip
_NAMED = {"abs": "fabs", "power": "pow"}  # functions of C that NumPy calls otherwise


def text(what: Expression, values: Sequence[str]) -> str:
    """`what` over the variables `values`."""
    if isinstance(what, Operand):
        return values[what.place]
    if isinstance(what, Number):
        return literal(what.value, what.dtype)
    if isinstance(what, Cast):
        inner = text(what.of, values)
        return f"(({inner}) != 0)" if what.dtype == np.dtype(bool) else f"({TYPES[what.dtype.name]})({inner})"
    parts = [text(part, values) for part in what.of]
    if what.name in _ANY:
        whole = _ANY[what.name].format(*parts)
    else:
        suffix = "f" if what.dtype == np.float32 else ""
        whole = f"{_NAMED.get(what.name, what.name)}{suffix}({', '.join(parts)})"
    widened = what.dtype.kind in "iu" and what.dtype.itemsize < 4  # C++ computes with int
    return f"({TYPES[what.dtype.name]})({whole})" if widened else whole


def literal(value: Any, dtype: np.dtype) -> str:
    """A number of `dtype`, to the last bit."""
    if dtype.kind == "f":
        number = float(dtype.type(value))
        if not math.isfinite(number):
            return (
                f"({TYPES[dtype.name]}){'-' if number < 0 else ''}{'GPB_NAN' if math.isnan(number) else 'GPB_INFINITY'}"
            )
        return number.hex() + ("f" if dtype.itemsize == 4 else "")
    if dtype.kind == "b":
        return "true" if value else "false"
    digits = str(int(value)) + {"uint32": "u", "int64": "ll"}.get(dtype.name, "")
    return f"({TYPES[dtype.name]}){digits}" if dtype.itemsize < 4 else digits
