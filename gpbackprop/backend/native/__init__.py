"""A tape as machine code: loops and matrix products compiled by LLVM, and run by all cores.

A program is a table of functions with their arguments, which one call runs from the first to the last. What has no
compiled form, such as Python code, stands between two programs. This is the one room that wants llvmlite.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gpbackprop.backend import parallel, replay
from gpbackprop.backend.fuse import Fixed, Group, groups
from gpbackprop.backend.native import engine, loops, products, team
from gpbackprop.backend.native.loops import Loops
from gpbackprop.backend.native.part import Part
from gpbackprop.backend.replay import Step
from gpbackprop.backend.tape import Call
from gpbackprop.backend.views import View, view

PIECE = 2**16  # additions of a piece of a part that several cores share, at least
SHORT = 2**24  # additions of a step that a call of several steps gains something by


def workers() -> int:
    """The cores that one program can use: all, or one where other threads than ours multiply."""
    return parallel.threads() if products.fuses() else 1


def compile(*tapes: Sequence[Call], spare: Sequence[np.ndarray] = (), workers: int = 1) -> Step:
    """One call that makes all calls of the tapes in order, on as many cores as there are `workers`.

    Sums, and functions such as exp, round otherwise than NumPy's; no call joins one of another tape in a loop. What a
    loop writes into the arrays `spare`, and nothing else of its tape touches, need not get there.
    """
    items: list[Group | Call] = []
    for calls in tapes:
        own = groups([_sum_of_rows(call) or call for call in calls], np.empty)
        _forget(own, [view(x, x.shape) for x in spare])
        items += own
    return assembled(items, workers)


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


def assembled(items: Sequence[Group | Call], workers: int = 1) -> Step:
    """One call that does what `items` say, in order."""
    steps: list[Step] = []
    program: list[Part] = []
    texts: dict[str, str] = {}
    written = [loops.write(item, texts) if isinstance(item, Group) else item for item in items]
    engine.build(texts)
    for item in written:
        if isinstance(item, Loops):
            arguments = np.array(item.addresses, np.int64)
            program.append(Part(engine.address(item.name), arguments, item.work, item.places, item.grain))
        elif item.name == "gemm" and (part := products.part(item, workers)):
            program.append(part)
        else:
            steps += [*([Program(program, written, workers)] if program else []), *replay.lowered(item)]
            program = []
    steps += [Program(program, written, workers)] if program else []
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
    """One call of all `parts`, which work on what is in `memory`; `workers` share those that are long."""

    def __init__(self, parts: Sequence[Part], memory: Any, workers: int = 1):
        self.parts, self.memory = parts, memory
        steps = [_step(part, workers) for part in parts]
        self.rows = np.array(
            [(part.function, part.arguments.ctypes.data, part.places, step)
             for part, step in zip(parts, steps, strict=True)], np.int64,
        )  # fmt: skip
        self.place = [self.rows.ctypes.data, len(self.rows)]
        shared = any(step < part.places for part, step in zip(parts, steps, strict=True))
        self.team = team.of(workers) if shared else None
        self.run = team.once(self.team, self.rows)

    def __call__(self) -> None:
        self.run()

    @property
    def work(self) -> int:
        return sum(part.work for part in self.parts)


def _step(part: Part, workers: int) -> int:
    """The places of each piece of a part."""
    pieces = min(workers, part.work // PIECE)
    each = -(-part.places // max(1, pieces))
    return max(1, -(-each // part.grain) * part.grain)


class Repeated:
    """One call of two programs in turn, `times` times over."""

    def __init__(self, there: Program, back: Program, times: int, watched: np.ndarray):
        self.programs = there, back  # whose memory it works on
        self.place = [*there.place, *back.place, watched.ctypes.data, watched.size, times]
        self.run = team.often(there.team or back.team, [*there.place, *back.place], watched, times)

    def __call__(self) -> int:
        return self.run()


def repeated(steps: Sequence[Step], times: int, watched: np.ndarray) -> Repeated | None:
    """One call of two steps in turn, `times` times over, and how often that was.

    It ends between the two as soon as an element of `watched`, of float64, is not finite. None where the steps are
    long, or not a program each.
    """
    programs = [step for step in steps if isinstance(step, Program)]
    if len(programs) != len(steps) or sum(program.work for program in programs) > SHORT:
        return None
    there, back = programs
    return Repeated(there, back, times, watched)


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
    table = np.array([[*run.place, 0] for run in runs], np.int64)
    program = _each("gpb_repeats", table, runs, SHORT * count, workers)

    def run() -> int:
        begin()
        program()
        return int(table[:, -1].min())

    return run


def together(works: Sequence[Step]) -> Step:
    """One call that does `works` at the same time."""
    programs = [work for work in works if isinstance(work, Program)]
    if len(programs) != len(works):
        return parallel.together(works)
    table = np.array([program.place for program in programs], np.int64)
    return _each("gpb_programs", table, programs, sum(program.work for program in programs), len(works))


def _each(function: str, table: np.ndarray, memory: Any, work: int, workers: int) -> Program:
    """A program of one part, whose places are the rows of a table."""
    return Program([Part(team.address(function), table, work, len(table))], (table, memory), workers)
