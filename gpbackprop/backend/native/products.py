"""Matrix products of a program: small ones as loops of their own, all others by the BLAS that NumPy has loaded.

BLAS first copies its operands into an order that it likes, which for a small product takes longer than the product.
Here a tile of the result, some rows by a vector or two of columns, stays in registers while j runs:

    out[m,n] = sum_j a[m,j] b[j,n]

The sums run from the first j to the last, whatever the tile. A tile that would reach over the edge begins earlier, and
computes some elements a second time.
"""

import ctypes
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir

from gpbackprop.backend.blas import layout, openblas
from gpbackprop.backend.native import emit, engine
from gpbackprop.backend.native.emit import I32, I64, POINTER
from gpbackprop.backend.tape import Call
from gpbackprop.backend.views import address

ROW, TRANSPOSED, PLAIN = 101, 112, 111  # of CBLAS
SMALL = 2**20  # multiplications of a product that loops of our own do


@dataclass(frozen=True, eq=False)
class Part:
    """A call of the function at an address with `arguments`; `work` is what it costs, in additions."""

    function: int
    arguments: np.ndarray
    work: int


def part(call: Call) -> Part | None:
    """out[k] = a[k] b[k] for all members k; None where there is neither a loop nor a BLAS for these matrices."""
    (a, b), out = call.inputs, call.out
    if not (a.dtype == b.dtype == out.dtype and a.size and b.size and out.dtype.kind == "f"):
        return None
    if np.may_share_memory(out, a) or np.may_share_memory(out, b):
        return None
    return _small(a, b, out) or _large(a, b, out)


# Small products.


def _small(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> Part | None:
    size = out.itemsize
    m, n, j = *out.shape[1:], a.shape[2]
    beside = b.strides[2] == size == out.strides[2] or n == 1  # columns that a vector can take
    if m * n * j > SMALL or not beside or "fma" not in engine.features():
        return None
    steps = [tuple(step // size for step in _steps(x, len(out))) for x in (a, b, out)]
    where = engine.built(*_tiles(out.dtype.name, len(out), m, n, j, *steps))
    return Part(where, np.array([address(x) for x in (a, b, out)], np.int64), out.size * j)


def _steps(x: np.ndarray, members: int) -> tuple[int, ...]:
    """The strides in bytes; from member to member 0 where all have the same."""
    return (x.strides[0] if len(x) == members > 1 else 0, *x.strides[1:])


Steps = tuple[int, ...]


@cache
def _tiles(dtype: str, members: int, m: int, n: int, j: int, a: Steps, b: Steps, c: Steps) -> tuple[str, str]:
    """Name and source of the function that multiplies (members, m, j) by (members, j, n); strides are in elements."""
    kind = np.dtype(dtype)
    register = 64 if "avx512f" in engine.features() else 32 if "avx" in engine.features() else 16
    most = 2 * register // kind.itemsize
    wide = next(lane for lane in (32, 16, 8, 4, 2, 1) if lane <= min(n, most))
    tall = min((4, 5, 6), key=lambda rows: (-(-m // rows) * (rows + 1), -rows)) if m > 6 else m
    function = ir.Function(ir.Module(), emit.KERNEL, "kernel")
    e = ir.IRBuilder(function.append_basic_block("entry"))
    (table,) = function.args
    bases = [e.load(e.gep(table, [I64(i)], source_etype=I64), typ=POINTER) for i in range(3)]
    vector = emit.of(kind, wide)

    def place(base: Any, *indices: tuple[Any, int]) -> Any:
        total: Any = I64(0)
        for index, step in indices:
            total = e.add(total, e.mul(index, I64(step)))
        return e.gep(base, [total], source_etype=emit.TYPES[dtype])

    def edge(start: Any, size: int, whole: int) -> Any:
        """`start`, or earlier where a tile would reach over the edge."""
        last = I64(whole - size)
        return e.select(e.icmp_signed("<", start, last), start, last)

    with emit.loop(e, I64(0), I64(members)) as k:
        first, second, result = (place(base, (k, x[0])) for base, x in zip(bases, (a, b, c), strict=True))
        with emit.loop(e, I64(0), I64(m), tall) as row, emit.loop(e, I64(0), I64(n), wide) as column:
            top, left = edge(row, tall, m), edge(column, wide, n)
            sums = [emit.variable(e, emit.constant(0, kind, wide)) for _ in range(tall)]
            with emit.loop(e, I64(0), I64(j)) as i:
                across = e.load(place(second, (i, b[1]), (left, b[2])), typ=vector, align=kind.itemsize)
                for r, total in enumerate(sums):
                    one = e.load(place(first, (e.add(top, I64(r)), a[1]), (i, a[2])), typ=emit.TYPES[dtype])
                    both = emit.splat(e, one, wide), across
                    e.store(emit.intrinsic(e, "fma", *both, e.load(total, typ=vector)), total)
            for r, total in enumerate(sums):
                where = place(result, (e.add(top, I64(r)), c[1]), (left, c[2]))
                e.store(e.load(total, typ=vector), where, align=kind.itemsize)
    e.ret_void()
    return engine.named(str(function.module))


# Large products.


def _large(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> Part | None:
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
    (arguments,) = function.args

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
    ctypes.CFUNCTYPE(None, ctypes.c_void_p)(function)(arguments.ctypes.data)
    return np.array_equal(out, a @ b)
