"""Matrix products by the BLAS that NumPy has loaded, without a detour through Python."""

import ctypes
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir

from gpbackprop.backend.blas import layout, openblas
from gpbackprop.backend.native import emit, engine
from gpbackprop.backend.native.emit import I32, I64, POINTER
from gpbackprop.backend.native.part import Part
from gpbackprop.backend.views import address

ROW, TRANSPOSED, PLAIN = 101, 112, 111  # of CBLAS


def part(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> Part | None:
    """The product; None where there is no BLAS for these matrices."""
    members = len(out)
    left, right, result = layout(a, members), layout(b, members), layout(out, members)
    found = _blas().get(out.dtype.name)
    if found is None or not (left and right and result) or result[0]:
        return None
    places = [address(x) for x in (a, b, out)]
    sizes = [*out.shape[1:], a.shape[2], left[1], right[1], result[1]]
    flags = [TRANSPOSED if side[0] else PLAIN for side in (left, right)]
    steps = [side[2] * out.itemsize for side in (left, right, result)]
    arguments = np.array([*flags, *sizes, *steps, *places, members], np.int64)
    return Part(found, arguments, out.size * a.shape[2])


@cache
def _blas() -> dict[str, int]:
    """For each dtype the address of a function that multiplies matrices by the BLAS that NumPy has loaded."""
    found, library = {}, openblas()
    for name, letter in (("float32", "s"), ("float64", "d")):
        if library and (where := library.address(f"cblas_{letter}gemm")):
            function = _multiplier(np.dtype(name), where, library.bits)
            if _multiplies(np.dtype(name), function):
                found[name] = function
    return found


def _multiplier(dtype: np.dtype, where: int, bits: int) -> int:
    """The function of a program that calls cblas_?gemm, at an address, for each member."""
    module, size, kind = ir.Module(), ir.IntType(bits), emit.TYPES[dtype.name]
    name = f"gpb_{dtype.name}_product_{where}"
    function = ir.Function(module, emit.KERNEL, name)
    b = ir.IRBuilder(function.append_basic_block())
    arguments = function.args[0]

    def field(n: int, kind: Any = I64) -> Any:
        return b.load(b.gep(arguments, [I64(n)], source_etype=I64), typ=kind)

    with emit.loop(b, I64(0), field(14)) as k:
        flags = [b.trunc(field(n), I32) for n in (0, 1)]
        sizes = [field(n) if bits == 64 else b.trunc(field(n), size) for n in range(2, 8)]
        m, n, j, *leads = sizes
        first, second, out = (
            b.gep(field(11 + i, POINTER), [b.mul(k, field(8 + i))], source_etype=emit.I8) for i in range(3)
        )
        one, zero = ir.Constant(kind, 1.0), ir.Constant(kind, 0.0)
        values = [I32(ROW), *flags, m, n, j, one, first, leads[0], second, leads[1], zero, out, leads[2]]
        emit.called(b, where, ir.VoidType(), values)
    b.ret_void()
    return engine.built(name, str(module))


def _multiplies(dtype: np.dtype, function: int) -> bool:
    """Whether it gives what NumPy gives, for two members and one operand transposed."""
    rng = np.random.default_rng(0)
    a, b, out = rng.integers(-4, 5, (2, 3, 5)), rng.integers(-4, 5, (2, 4, 5)), np.zeros((2, 3, 4), dtype)
    a, b = a.astype(dtype), b.astype(dtype).swapaxes(1, 2)
    sizes, steps = (3, 4, 5, 5, 5, 4), [x.strides[0] for x in (a, b, out)]
    arguments = np.array([PLAIN, TRANSPOSED, *sizes, *steps, *(address(x) for x in (a, b, out)), 2], np.int64)
    place, size = ctypes.c_void_p, ctypes.c_int64
    ctypes.CFUNCTYPE(None, place, size, size, place)(function)(arguments.ctypes.data, 0, 2, None)
    return np.array_equal(out, a @ b)
