"""A tape as machine code: loops compiled by LLVM, and matrix products that go to BLAS without a detour through Python.

A program is a table of functions with their arguments, which one call runs from the first to the last. What has no
compiled form, such as Python code, stands between two programs. This is the one room that wants llvmlite.
"""

import ctypes
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import numpy as np
from llvmlite import ir

from gpbackprop.backend import parallel, replay
from gpbackprop.backend.fuse import Fixed, Group, groups
from gpbackprop.backend.native import emit, engine, loops, products
from gpbackprop.backend.native.emit import I64, POINTER
from gpbackprop.backend.native.loops import Loops
from gpbackprop.backend.native.products import Part
from gpbackprop.backend.replay import Step
from gpbackprop.backend.tape import Call
from gpbackprop.backend.views import View, view

SHORT = 2**22  # additions of a step that a call of several steps gains something by


def compile(*tapes: Sequence[Call], spare: Sequence[np.ndarray] = ()) -> Step:
    """One call that makes all calls of the tapes in order.

    Sums, and functions such as exp, round otherwise than NumPy's; no call joins one of another tape in a loop. What a
    loop writes into the arrays `spare`, and nothing else of its tape touches, need not get there.
    """
    items: list[Group | Call] = []
    for calls in tapes:
        own = groups([_sum_of_rows(call) or call for call in calls], np.empty)
        _forget(own, [view(x, x.shape) for x in spare])
        items += own
    return assembled(items)


def _forget(items: Sequence[Group | Call], spare: Sequence[View]) -> None:
    """Note in each group which of the places that it writes nobody reads: those in `spare` that no other item has."""
    touched = [Fixed(item).places if isinstance(item, Call) else item.touched for item in items]
    for n, item in enumerate(items):
        if isinstance(item, Group) and not any(item.inner):  # a second loop over a row would read them again
            others = [places for m, places in enumerate(touched) if m != n]
            item.forgotten = [
                part.out for part, _ in item.members
                if any(part.out.inside(x) for x in spare)
                and not any(places is None or any(part.out.overlaps(p) for p, _ in places) for places in others)
            ]  # fmt: skip


def assembled(items: Sequence[Group | Call]) -> Step:
    """One call that does what `items` say, in order."""
    steps: list[Step] = []
    program: list[Part] = []
    written = [loops.write(item) if isinstance(item, Group) else item for item in items]
    engine.build({item.name: item.source for item in written if isinstance(item, Loops) and item.source})
    for item in written:
        if isinstance(item, Loops):
            program.append(Part(engine.address(item.name), np.array(item.addresses, np.int64), item.work))
        elif item.name == "gemm" and (part := products.part(item)):
            program.append(part)
        else:
            steps += [*([Program(program, written)] if program else []), *replay.lowered(item)]
            program = []
    steps += [Program(program, written)] if program else []
    return steps[0] if len(steps) == 1 else replay.in_order(steps)


def _sum_of_rows(call: Call) -> Call | None:
    """A product of constant ones with a matrix as the sum of its rows, which a loop does on the way."""
    if call.name != "gemm":
        return None
    (a, b), out = call.inputs, call.out
    if a.shape[1] > 1 or a.flags.writeable or not (a == 1).all() or len(b) != len(out):
        return None
    return Call("sum", np.sum, (b,), out, {"axis": 1, "keepdims": True})


class Program:
    """One call of all `parts`, which work on what is in `memory`."""

    def __init__(self, parts: Sequence[Part], memory: Any):
        self.parts, self.memory = parts, memory
        self.rows = np.array([(part.function, part.arguments.ctypes.data) for part in parts], np.int64)
        self.place, self.count, self.run = self.rows.ctypes.data, len(self.rows), _runner()

    def __call__(self) -> None:
        self.run(self.place, self.count)

    @property
    def work(self) -> int:
        return sum(part.work for part in self.parts)


def repeated(steps: Sequence[Step], times: int, watched: np.ndarray) -> Callable[[], int] | None:
    """One call of two steps in turn, `times` times over, and how often that was.

    It ends between the two as soon as an element of `watched`, of float64, is not finite. None where the steps are
    long, or not a program each.
    """
    programs = [step for step in steps if isinstance(step, Program)]
    if len(programs) != len(steps) or sum(program.work for program in programs) > SHORT:
        return None
    there, back = programs
    run, place, size = _repeater(), watched.ctypes.data, watched.size

    def steps_together() -> int:  # which keeps the programs, and with them their memory
        return run(there.place, there.count, back.place, back.count, place, size, times)

    return steps_together


def repeated_by_members(
    tapes: Sequence[Sequence[Call]], compile: Callable[..., Step], times: int, watched: np.ndarray, near: int
) -> Callable[[], int] | None:
    """The same for tapes of several members, as far as these have nothing to do with each other; `compile` makes a step
    of a tape.

    Each thread does all steps of some members, as many as fit into `near` bytes, before it comes to the next ones.
    """
    members = len(watched)
    workers = min(members, parallel.threads())
    count = min(members, max(workers, -(-parallel.touched(tapes) // near)))
    found = parallel.apart(tapes, members, count)
    if found is None:
        return None
    lists, begin = found
    parts = [
        repeated([compile(calls) for calls in own], times, watched[place])
        for own, place in zip(lists, parallel.places(members, count), strict=True)
    ]
    runs = [part for part in parts if part is not None]
    if len(runs) < count:
        return None
    done = [0] * workers

    def work(n: int) -> None:
        done[n] = min(run() for run in runs[n::workers])

    together = parallel.together([partial(work, n) for n in range(workers)])

    def run() -> int:
        begin()
        together()
        return min(done)

    return run


def _run(b: ir.IRBuilder, rows: Any, count: Any) -> None:
    """Call what `count` rows (function, arguments) say."""
    with emit.loop(b, I64(0), count) as i:
        function, arguments = (
            b.load(b.gep(rows, [b.add(b.mul(i, I64(2)), I64(n))], source_etype=I64), typ=kind)
            for n, kind in enumerate((ir.PointerType(emit.KERNEL), POINTER))
        )
        b.call(function, [arguments])


@cache
def _runner() -> Callable[[int, int], None]:
    """What runs `count` rows at an address."""
    function = ir.Function(ir.Module(), ir.FunctionType(ir.VoidType(), [POINTER, I64]), "gpb_run")
    b = ir.IRBuilder(function.append_basic_block())
    _run(b, *function.args)
    b.ret_void()
    return ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)(engine.built("gpb_run", str(b.module)))


@cache
def _repeater() -> Callable[..., int]:
    """What runs two programs in turn until a number at an address is not finite, and gives how often."""
    program = [POINTER, I64]
    function = ir.Function(ir.Module(), ir.FunctionType(I64, [*program, *program, *program, I64]), "gpb_repeat")
    b = ir.IRBuilder(function.append_basic_block("entry"))
    there, back, (numbers, size, times) = function.args[:2], function.args[2:4], function.args[4:]
    zero, finite = ir.Constant(ir.DoubleType(), 0.0), emit.variable(b, ir.IntType(1)(1))
    with emit.loop(b, I64(0), times) as done:
        _run(b, *there)
        with emit.loop(b, I64(0), size) as i:
            number = b.load(b.gep(numbers, [i], source_etype=ir.DoubleType()), typ=ir.DoubleType())
            same = b.fcmp_ordered("==", b.fsub(number, number), zero)  # infinity less infinity is no number
            b.store(b.and_(same, b.load(finite, typ=ir.IntType(1))), finite)
        with b.if_then(b.not_(b.load(finite, typ=ir.IntType(1)))):
            b.ret(done)
        _run(b, *back)
    b.ret(times)
    kinds = [ctypes.c_void_p, ctypes.c_int64]
    address = engine.built("gpb_repeat", str(b.module))
    return ctypes.CFUNCTYPE(ctypes.c_int64, *kinds * 3, ctypes.c_int64)(address)
