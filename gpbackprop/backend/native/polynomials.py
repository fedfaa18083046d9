"""exp, expm1, log, log1p and tanh of float32 for several lanes at a time, within 5 units of the last place.

Lanes cannot call C's functions. Coefficients are those of S. Moshier, Cephes Math Library, but for tanh.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir

from gpbackprop.backend.native.emit import FLOAT32, I32, constant, intrinsic, of


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


NAMES: dict[str, Callable[..., Any]] = {
    "exp": _exp, "expm1": _expm1, "log": _log, "log1p": _log1p, "tanh": _tanh,
}  # fmt: skip


def function(module: ir.Module, name: str, lanes: int) -> ir.Function:
    """A function of the module that becomes part of those that call it."""
    whole, kind = f"gpb_{name}_{lanes}", of(FLOAT32, lanes)
    if whole not in module.globals:
        made = ir.Function(module, ir.FunctionType(kind, [kind]), whole)
        made.linkage = "internal"
        made.attributes.add("alwaysinline")
        inside = ir.IRBuilder(made.append_basic_block("entry"))
        inside.ret(NAMES[name](Lanes(inside, lanes), *made.args))
    return module.globals[whole]
