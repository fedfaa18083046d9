"""A tape as machine code: loops compiled by LLVM, and matrix products that go to BLAS without a detour through Python.

A program is a table of functions with their arguments, which one call runs from the first to the last. What has no
compiled form, such as Python code, stands between two programs. This is the one room that wants llvmlite.
"""

import ctypes
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
from llvmlite import ir

from gpbackprop.backend import parallel, replay
from gpbackprop.backend.fuse import Group, groups
from gpbackprop.backend.native import emit, engine, loops, products
from gpbackprop.backend.native.emit import I64, POINTER
from gpbackprop.backend.native.loops import Loops
from gpbackprop.backend.native.products import SIGNATURE, Part
from gpbackprop.backend.replay import Step
from gpbackprop.backend.tape import Call

LINE = 64  # elements of some lines of the cache
LEAST = 2**20  # additions of loops that threads share; less is not worth the handing over


def compile(*tapes: Sequence[Call], workers: int = 1) -> Step:
    """One call that makes all calls of the tapes in order, large loops on `workers` threads.

    Sums, and functions such as exp, round otherwise than NumPy's; no call joins one of another tape in a loop.
    """
    items = [item for calls in tapes for item in groups([_sum_of_rows(call) or call for call in calls], np.empty)]
    return assembled(items, workers)


def assembled(items: Sequence[Group | Call], workers: int = 1) -> Step:
    """One call that does what `items` say, in order."""
    steps: list[Step] = []
    program: list[Part] = []
    written = [loops.write(item) if isinstance(item, Group) else item for item in items]
    engine.build([(item.name, item.source) for item in written if isinstance(item, Loops)])
    for item in written:
        if isinstance(item, Loops):
            shares = _shares(item, workers if item.work >= LEAST else 1)
            if len(shares) == 1:
                program += shares
                continue
            done = parallel.together([_program([share], item)[0] for share in shares])
        elif item.name == "gemm" and (part := products.part(item)):
            program.append(part)
            continue
        else:
            done = replay.compile([item])
        steps += [*_program(program, written), done]
        program = []
    steps += _program(program, written)
    return steps[0] if len(steps) == 1 else replay.in_order(steps)


def _shares(item: Loops, workers: int) -> list[Part]:
    """The loops as one part for each worker, each with whole lines of the cache where there are many elements."""
    line = LINE if item.count >= LINE * workers else 1
    cuts = [item.count * n // workers // line * line for n in range(workers)]
    arguments = np.array(item.addresses, np.int64)
    ends = [(start, stop) for start, stop in pairwise([*cuts, item.count]) if stop > start]
    return [(engine.address(item.source), arguments, start, stop) for start, stop in ends]


def _sum_of_rows(call: Call) -> Call | None:
    """A product of constant ones with a matrix as the sum of its rows, which a loop does on the way."""
    if call.name != "gemm":
        return None
    (a, b), out = call.inputs, call.out
    if a.shape[1] > 1 or a.flags.writeable or not (a == 1).all() or len(b) != len(out):
        return None
    return Call("sum", np.sum, (b,), out, {"axis": 1, "keepdims": True})


def _program(parts: Sequence[Part], memory: Any) -> list[Step]:
    """One call of all parts, which work on what is in `memory`; none where there are no parts."""
    if not parts:
        return []
    rows = np.array([(function, arguments.ctypes.data, *ends) for function, arguments, *ends in parts], np.int64)
    run, start, count = _runner(), rows.ctypes.data, len(rows)

    def step() -> None:
        run(start, count)

    step.kept = rows, parts, memory  # type: ignore[attr-defined]  # as long as the step
    return [step]


@cache
def _runner() -> Callable[[int, int], None]:
    """What runs `count` rows (function, arguments, begin, end) at an address."""
    module = ir.Module()
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [POINTER, I64]), "gpb_run")
    b = ir.IRBuilder(function.append_basic_block())
    rows, count = function.args
    with emit.loop(b, I64(0), count) as i:
        function, *values = (
            b.load(b.gep(rows, [b.add(b.mul(i, I64(4)), I64(n))], source_etype=I64), typ=kind)
            for n, kind in enumerate((ir.PointerType(SIGNATURE), POINTER, I64, I64))
        )
        b.call(function, values)
    b.ret_void()
    source = str(module)
    engine.build([("gpb_run", source)])
    return ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)(engine.address(source))
