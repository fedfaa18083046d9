"""Small matrix products as loops that copy nothing.

A BLAS first copies its operands into an order that it likes, which for a small product takes longer than the product.
Here a tile of the result, some rows by a vector or two of columns, stays in registers while j runs:

    out[m,n] = sum_j a[m,j] b[j,n]

The sums run from the first j to the last, whatever the tile. A tile that would reach over the edge begins earlier, and
computes some elements a second time.
"""

from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir

from gpbackprop.backend.native import emit, engine
from gpbackprop.backend.native.emit import I64, POINTER
from gpbackprop.backend.native.part import Part, steps
from gpbackprop.backend.views import address

Steps = tuple[int, ...]


def part(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> Part | None:
    """The product; None where a vector cannot take neighbouring columns."""
    members, m, n = out.shape
    size, j = out.itemsize, a.shape[2]
    if n > 1 and not b.strides[2] == size == out.strides[2]:
        return None
    where = engine.built(*_function(out.dtype.name, members, m, n, j, *(steps(x, members) for x in (a, b, out))))
    return Part(where, np.array([address(x) for x in (a, b, out)], np.int64), out.size * j, members)


@cache
def _function(dtype: str, members: int, m: int, n: int, j: int, a: Steps, b: Steps, c: Steps) -> tuple[str, str]:
    """Name and source of the function that multiplies (members, m, j) by (members, j, n); strides are in elements."""
    kind = np.dtype(dtype)
    register = 64 if "avx512f" in engine.features() else 32 if "avx" in engine.features() else 16
    most = 2 * register // kind.itemsize
    wide = next(lane for lane in (32, 16, 8, 4, 2, 1) if lane <= min(n, most))
    tall = min((4, 5, 6), key=lambda rows: (-(-m // rows) * (rows + 1), -rows)) if m > 6 else m
    function = ir.Function(ir.Module(), emit.KERNEL, "kernel")
    e = ir.IRBuilder(function.append_basic_block("entry"))
    table, begin, end, _ = function.args
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

    with emit.loop(e, begin, end) as k:
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
