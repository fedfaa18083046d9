"""Expressions as instructions of LLVM, for one element or for several lanes at a time.

exp, expm1, log, log1p and tanh of float32 are polynomials, within 5 units of the last place (S. Moshier, Cephes Math
Library): lanes cannot call C's functions, which all others do element by element.
"""

import ctypes
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir

from gpbackprop.backend.expressions import Apply, Cast, Expression, Number, Operand

TYPES: dict[str, Any] = {
    "float32": ir.FloatType(), "float64": ir.DoubleType(), "uint8": ir.IntType(8), "bool": ir.IntType(1),
    "int32": ir.IntType(32), "uint32": ir.IntType(32), "int64": ir.IntType(64),
}  # fmt: skip
I1, I8, I32, I64, POINTER = ir.IntType(1), ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.PointerType()
FLOAT32 = np.dtype(np.float32)

_COMPARED = {"equal": "==", "not_equal": "!=", "less": "<", "less_equal": "<=", "greater": ">", "greater_equal": ">="}
_FLOATS = {"add": "fadd", "subtract": "fsub", "multiply": "fmul", "divide": "fdiv"}
_INTEGERS = {
    "add": "add", "subtract": "sub", "multiply": "mul", "bitwise_xor": "xor", "bitwise_and": "and_",
    "bitwise_or": "or_", "left_shift": "shl",
}  # fmt: skip
_INTRINSIC = {"abs": "fabs", "sqrt": "sqrt", "floor": "floor", "ceil": "ceil", "rint": "rint"}
_NAMED = {"power": "pow"}  # functions of C that NumPy calls otherwise


def of(dtype: np.dtype, lanes: int) -> Any:
    """The type of `lanes` elements; of one they are a plain number."""
    return TYPES[dtype.name] if lanes == 1 else ir.VectorType(TYPES[dtype.name], lanes)


def constant(value: Any, dtype: np.dtype, lanes: int) -> Any:
    kind = of(dtype, lanes)
    number = float(dtype.type(value)) if dtype.kind == "f" else int(value)
    return ir.Constant(kind, number if lanes == 1 else [number] * lanes)


def value(b: ir.IRBuilder, what: Expression, values: Sequence[Any], lanes: int) -> Any:
    """`what` over `values`, each of `lanes` elements; `b` appends the instructions."""
    if isinstance(what, Operand):
        return values[what.place]
    if isinstance(what, Number):
        return constant(what.value, what.dtype, lanes)
    if isinstance(what, Cast):
        return converted(b, value(b, what.of, values, lanes), what.of.dtype, what.dtype, lanes)
    return applied(b, what, [value(b, part, values, lanes) for part in what.of], lanes)


def converted(b: ir.IRBuilder, x: Any, dtype: np.dtype, to: np.dtype, lanes: int) -> Any:
    """x, of `dtype`, as a value of the dtype `to`."""
    kind = of(to, lanes)
    if to.kind == "b":
        zero = constant(0, dtype, lanes)
        return b.fcmp_unordered("!=", x, zero) if dtype.kind == "f" else b.icmp_signed("!=", x, zero)
    if dtype.kind == "f" and to.kind == "f":
        return x if dtype == to else b.fpext(x, kind) if to.itemsize > dtype.itemsize else b.fptrunc(x, kind)
    if dtype.kind == "f":
        return b.fptosi(x, kind) if to.kind == "i" else b.fptoui(x, kind)
    if to.kind == "f":
        return b.sitofp(x, kind) if dtype.kind == "i" else b.uitofp(x, kind)
    here, there = TYPES[dtype.name].width, TYPES[to.name].width
    if here == there:
        return x
    return b.trunc(x, kind) if here > there else b.sext(x, kind) if dtype.kind == "i" else b.zext(x, kind)


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
    if dtype == FLOAT32 and name in POLYNOMIALS:
        return b.call(_polynomial(b.module, name, lanes), parts)
    return _one_by_one(b, _NAMED.get(name, name) + ("f" if dtype == FLOAT32 else ""), parts, lanes)


def bound(b: ir.IRBuilder, sign: str, x: Any, y: Any, dtype: np.dtype) -> Any:
    """The larger (sign ">") or the smaller ("<") of x and y; NaN where one of them is."""
    if dtype.kind == "f":
        return b.select(b.or_(b.fcmp_ordered(sign, x, y), b.fcmp_unordered("uno", x, x)), x, y)
    return b.select((b.icmp_signed if dtype.kind == "i" else b.icmp_unsigned)(sign, x, y), x, y)


def _sign(b: ir.IRBuilder, x: Any, dtype: np.dtype, lanes: int) -> Any:
    zero, one = constant(0, dtype, lanes), constant(1, dtype, lanes)
    if dtype.kind != "f":
        above = b.icmp_signed(">", x, zero) if dtype.kind == "i" else b.icmp_unsigned(">", x, zero)
        below = b.select(b.icmp_signed("<", x, zero), b.sub(zero, one), zero) if dtype.kind == "i" else zero
        return b.select(above, one, below)
    below = b.select(b.fcmp_ordered("<", x, zero), constant(-1, dtype, lanes), zero)
    return b.select(b.fcmp_unordered("uno", x, x), x, b.select(b.fcmp_ordered(">", x, zero), one, below))


def called(b: ir.IRBuilder, where: int, gives: Any, values: Sequence[Any]) -> Any:
    """What the function at an address returns, of the type `gives`."""
    signature = ir.FunctionType(gives, [each.type for each in values])
    return b.call(b.inttoptr(I64(where), ir.PointerType(signature)), values)


@contextmanager
def loop(b: ir.IRBuilder, start: Any, stop: Any, step: int = 1) -> Iterator[Any]:
    """What is appended inside is done for i = start, start + step, ... below stop."""
    before, body, behind = b.block, b.append_basic_block("loop"), b.append_basic_block("behind")
    b.cbranch(b.icmp_signed("<", start, stop), body, behind)
    b.position_at_end(body)
    i = b.phi(I64)
    i.add_incoming(start, before)
    yield i
    following = b.add(i, I64(step))
    i.add_incoming(following, b.block)
    b.cbranch(b.icmp_signed("<", following, stop), body, behind)
    b.position_at_end(behind)


def variable(b: ir.IRBuilder, start: Any) -> Any:
    """A place on the stack that holds `start`; it becomes a register."""
    with b.goto_entry_block():
        place = b.alloca(start.type)
    b.store(start, place)
    return place


def intrinsic(b: ir.IRBuilder, name: str, *parts: Any) -> Any:
    """One of LLVM's own functions, of operands of one type, which it returns."""
    kind = parts[0].type
    element, lanes = (kind.element, f"v{kind.count}") if isinstance(kind, ir.VectorType) else (kind, "")
    whole = f"llvm.{name}.{lanes}{'f32' if element == TYPES['float32'] else 'f64'}"
    declared = b.module.globals.get(whole)
    return b.call(declared or ir.Function(b.module, ir.FunctionType(kind, [kind] * len(parts)), whole), parts)


def splat(b: ir.IRBuilder, x: Any, lanes: int) -> Any:
    """A vector of x everywhere."""
    if lanes == 1:
        return x
    first = b.insert_element(ir.Constant(ir.VectorType(x.type, lanes), ir.Undefined), x, I32(0))
    return b.shuffle_vector(first, first, ir.Constant(ir.VectorType(I32, lanes), [0] * lanes))


def elements(b: ir.IRBuilder, x: Any, lanes: int) -> list[Any]:
    return [x] if lanes == 1 else [b.extract_element(x, I32(i)) for i in range(lanes)]


def joined(b: ir.IRBuilder, parts: Sequence[Any]) -> Any:
    """A vector of numbers."""
    if len(parts) == 1:
        return parts[0]
    whole: Any = ir.Constant(ir.VectorType(parts[0].type, len(parts)), ir.Undefined)
    for i, part in enumerate(parts):
        whole = b.insert_element(whole, part, I32(i))
    return whole


@cache
def of_c(name: str) -> int:
    """The address of a function of C's library."""
    library = ctypes.cdll.ucrtbase if sys.platform == "win32" else ctypes.CDLL(None)
    return ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0


def _one_by_one(b: ir.IRBuilder, name: str, parts: Sequence[Any], lanes: int) -> Any:
    rows = list(zip(*(elements(b, part, lanes) for part in parts), strict=True))
    kind = rows[0][0].type
    return joined(b, [called(b, of_c(name), kind, row) for row in rows])


def _polynomial(module: ir.Module, name: str, lanes: int) -> ir.Function:
    """A function of the module that becomes part of those that call it."""
    whole, kind = f"gpb_{name}_{lanes}", of(FLOAT32, lanes)
    if whole not in module.globals:
        function = ir.Function(module, ir.FunctionType(kind, [kind]), whole)
        function.linkage = "internal"
        function.attributes.add("alwaysinline")
        inside = ir.IRBuilder(function.append_basic_block("entry"))
        inside.ret(POLYNOMIALS[name](Lanes(inside, lanes), *function.args))
    return module.globals[whole]


class Lanes:
    """Numbers of float32, written as in mathematics, for the polynomials below."""

    def __init__(self, b: ir.IRBuilder, lanes: int):
        self.b, self.lanes = b, lanes
        self.integer = ir.IntType(32) if lanes == 1 else ir.VectorType(I32, lanes)
        self.float = of(FLOAT32, lanes)

    def number(self, x: float) -> Any:
        return constant(x, FLOAT32, self.lanes)

    def whole(self, n: int) -> Any:
        return ir.Constant(self.integer, n if self.lanes == 1 else [n] * self.lanes)

    def polynomial(self, x: Any, *coefficients: float) -> Any:
        """By Horner's rule, the coefficient of the highest power first."""
        total = self.number(coefficients[0])
        for coefficient in coefficients[1:]:
            total = self.fused(total, x, self.number(coefficient))
        return total

    def fused(self, x: Any, y: Any, z: Any) -> Any:
        """x y + z, rounded once where the processor does so"""
        return intrinsic(self.b, "fmuladd", x, y, z)

    def plus(self, x: Any, y: Any) -> Any:
        return self.b.fadd(x, y)

    def minus(self, x: Any, y: Any) -> Any:
        return self.b.fsub(x, y)

    def times(self, x: Any, y: Any) -> Any:
        return self.b.fmul(x, y)

    def where(self, x: Any, sign: str, y: float, this: Any, that: Any) -> Any:
        """`this` where x is as `sign` says to y, else, and for NaN, `that`."""
        return self.b.select(self.b.fcmp_ordered(sign, x, self.number(y)), this, that)


def _series(t: Lanes, r: Any) -> Any:
    """(exp(r) - 1 - r) / r^2 for |r| <= log(2) / 2"""
    return t.polynomial(
        r, 1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1
    )


def _exp(t: Lanes, x: Any) -> Any:
    """exp(x) = 2^n exp(x - n log(2)), with n the whole number nearest to x / log(2)"""
    b = t.b
    x = t.where(x, "<", -104.0, t.number(-104.0), t.where(x, ">", 89.0, t.number(89.0), x))  # 0 and infinity
    magic = 1.5 * 2**23  # added to a number it leaves the nearest whole one in the last bits
    shifted = t.fused(x, t.number(1 / np.log(2)), t.number(magic))
    n = t.minus(shifted, t.number(magic))
    r = t.fused(n, t.number(2.12194440e-4), t.fused(n, t.number(-0.693359375), x))
    y = t.plus(t.fused(t.times(_series(t, r), r), r, r), t.number(1))
    power = b.sub(b.bitcast(shifted, t.integer), t.whole(int(np.float32(magic).view(np.int32))))
    half = b.ashr(power, t.whole(1))  # 2^n in two factors, since 2^128 is none of float32
    for part in (half, b.sub(power, half)):
        y = t.times(y, b.bitcast(b.shl(b.add(part, t.whole(127)), t.whole(23)), t.float))
    return y


def _expm1(t: Lanes, x: Any) -> Any:
    """exp(x) - 1, by the series where that would lose digits"""
    near = t.fused(t.times(_series(t, x), x), x, x)
    size = intrinsic(t.b, "fabs", x)
    y = t.where(size, "<", 0.34657359, near, t.minus(_exp(t, x), t.number(1)))
    return t.where(x, "==", 0.0, x, y)  # of either sign


def _tanh(t: Lanes, x: Any) -> Any:
    """tanh(x) = x p(x^2) / q(x^2) up to 7.9, where it begins to be 1 (the coefficients of the library Eigen)"""
    b, size = t.b, intrinsic(t.b, "fabs", x)
    bound = 7.90531110763549805
    near = t.where(size, ">", bound, t.number(bound), size)
    square = t.times(near, near)
    above = t.polynomial(
        square, -2.76076847742355e-16, 2.00018790482477e-13, -8.60467152213735e-11, 5.12229709037114e-08,
        1.48572235717979e-05, 6.37261928875436e-04, 4.89352455891786e-03,
    )  # fmt: skip
    below = t.polynomial(square, 1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03)
    y = b.fdiv(t.times(near, above), below)
    y = t.where(size, ">", bound, t.number(1), t.where(size, "<", 4e-4, size, y))
    return intrinsic(b, "copysign", y, x)


def _log(t: Lanes, x: Any) -> Any:
    """log(x) = log(m) + e log(2), with x = m 2^e and m from sqrt(1/2) to sqrt(2)"""
    b, tiny = t.b, 2.0**-126
    normal = t.where(x, "<", tiny, t.times(x, t.number(2.0**23)), x)
    bits = b.bitcast(normal, t.integer)
    power = b.sub(b.and_(b.lshr(bits, t.whole(23)), t.whole(255)), t.whole(126))
    e = t.plus(b.sitofp(power, t.float), t.where(x, "<", tiny, t.number(-23), t.number(0)))
    m = b.bitcast(b.or_(b.and_(bits, t.whole(0x7FFFFF)), t.whole(0x3F000000)), t.float)
    small = float(np.sqrt(0.5))
    e = t.minus(e, t.where(m, "<", small, t.number(1), t.number(0)))
    m = t.minus(t.plus(m, t.where(m, "<", small, m, t.number(0))), t.number(1))
    square = t.times(m, m)
    series = t.polynomial(
        m, 7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1,
        -1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1,
    )  # fmt: skip
    y = t.fused(t.times(series, m), square, t.times(e, t.number(-2.12194440e-4)))
    y = t.fused(square, t.number(-0.5), y)
    y = t.fused(e, t.number(0.693359375), t.plus(m, y))
    y = t.where(x, "==", 0.0, t.number(-np.inf), t.where(x, "<", 0.0, t.number(np.nan), y))
    y = t.where(x, "==", float("inf"), x, y)
    return b.select(b.fcmp_unordered("uno", x, x), x, y)


def _log1p(t: Lanes, x: Any) -> Any:
    """log(1 + x) = log(u) - ((u - 1) - x) / u, where u is 1 + x as it was rounded"""
    b, u = t.b, t.plus(x, t.number(1))
    lost = b.fdiv(t.minus(t.minus(u, t.number(1)), x), u)
    lost = b.select(b.fcmp_unordered("uno", lost, lost), t.number(0), lost)  # of -1 and infinity
    return t.where(x, "==", 0.0, x, t.minus(_log(t, u), lost))  # 0 of either sign


POLYNOMIALS: dict[str, Callable[..., Any]] = {
    "exp": _exp, "expm1": _expm1, "log": _log, "log1p": _log1p, "tanh": _tanh,
}  # fmt: skip
