"""Expressions as instructions of LLVM, for one element or for several lanes at a time."""

import ctypes
import sys
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir

from gpbackprop.backend.expressions import Apply, Cast, Expression, Number, Operand
from gpbackprop.backend.native import polynomials
from gpbackprop.backend.native.emit import FLOAT32, bound, called, constant, converted, elements, intrinsic, joined

_COMPARED = {"equal": "==", "not_equal": "!=", "less": "<", "less_equal": "<=", "greater": ">", "greater_equal": ">="}
_FLOATS = {"add": "fadd", "subtract": "fsub", "multiply": "fmul", "divide": "fdiv"}
_INTEGERS = {
    "add": "add", "subtract": "sub", "multiply": "mul", "bitwise_xor": "xor", "bitwise_and": "and_",
    "bitwise_or": "or_", "left_shift": "shl",
}  # fmt: skip
_INTRINSIC = {"abs": "fabs", "sqrt": "sqrt", "floor": "floor", "ceil": "ceil", "rint": "rint"}
_NAMED = {"power": "pow"}  # functions of C that NumPy calls otherwise


def value(b: ir.IRBuilder, what: Expression, values: Sequence[Any], lanes: int) -> Any:
    """`what` over `values`, each of `lanes` elements."""
    if isinstance(what, Operand):
        return values[what.place]
    if isinstance(what, Number):
        return constant(what.value, what.dtype, lanes)
    if isinstance(what, Cast):
        return converted(b, value(b, what.of, values, lanes), what.of.dtype, what.dtype, lanes)
    return applied(b, what, [value(b, part, values, lanes) for part in what.of], lanes)


def applied(b: ir.IRBuilder, what: Apply, parts: Sequence[Any], lanes: int) -> Any:
    """The ufunc `what` of operands that are values already."""
    name, dtype = what.name, what.of[0].dtype
    float_, signed = dtype.kind == "f", dtype.kind == "i"
    if name in _COMPARED:
        if float_:
            compare = b.fcmp_unordered if name == "not_equal" else b.fcmp_ordered
        else:
            compare = b.icmp_signed if signed else b.icmp_unsigned
        return compare(_COMPARED[name], *parts)
    if name in ("maximum", "minimum"):
        return bound(b, ">" if name == "maximum" else "<", parts[0], parts[1], dtype)
    if name == "negative":
        return b.fneg(*parts) if float_ else b.sub(constant(0, dtype, lanes), *parts)
    if name == "square":
        return b.fmul(*parts, *parts)
    if name == "sign":
        return _sign(b, parts[0], dtype, lanes)
    if name == "right_shift":
        return b.ashr(*parts) if signed else b.lshr(*parts)
    if float_ and name in _FLOATS:
        return getattr(b, _FLOATS[name])(*parts)
    if not float_:
        return getattr(b, _INTEGERS[name])(*parts)
    if name in _INTRINSIC:
        return intrinsic(b, _INTRINSIC[name], *parts)
    if dtype == FLOAT32 and name in polynomials.NAMES:
        return b.call(polynomials.function(b.module, name, lanes), parts)
    return _one_by_one(b, _NAMED.get(name, name) + ("f" if dtype == FLOAT32 else ""), parts, lanes)


def _sign(b: ir.IRBuilder, x: Any, dtype: np.dtype, lanes: int) -> Any:
    zero, one = constant(0, dtype, lanes), constant(1, dtype, lanes)
    if dtype.kind != "f":
        above = b.icmp_signed(">", x, zero) if dtype.kind == "i" else b.icmp_unsigned(">", x, zero)
        below = b.select(b.icmp_signed("<", x, zero), b.sub(zero, one), zero) if dtype.kind == "i" else zero
        return b.select(above, one, below)
    below = b.select(b.fcmp_ordered("<", x, zero), constant(-1, dtype, lanes), zero)
    return b.select(b.fcmp_unordered("uno", x, x), x, b.select(b.fcmp_ordered(">", x, zero), one, below))


@cache
def of_c(name: str) -> int:
    """The address of a function of C's library."""
    library = ctypes.cdll.ucrtbase if sys.platform == "win32" else ctypes.CDLL(None)
    return ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0


def _one_by_one(b: ir.IRBuilder, name: str, parts: Sequence[Any], lanes: int) -> Any:
    rows = list(zip(*(elements(b, part, lanes) for part in parts), strict=True))
    kind = rows[0][0].type
    return joined(b, [called(b, of_c(name), kind, row) for row in rows])


def cost(what: Expression | None) -> int:
    """About how many additions take as long."""
    if isinstance(what, Cast):
        return 1 + cost(what.of)
    if isinstance(what, Apply):
        own = (
            1
            if what.name in _COMPARED | _FLOATS | _INTEGERS | _INTRINSIC or what.name in ("maximum", "minimum")
            else 16
        )
        return own + sum(map(cost, what.of))
    return 0
