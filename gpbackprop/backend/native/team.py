"""Several cores for one program: each part that is long enough is cut into pieces, and whoever is free takes the next.

The thread that runs a program, the leader, waits for nobody to come: what no helper has begun it does itself, so that a
helper that is late or asleep costs nothing but its help. A piece is claimed by lowering one number, the pieces that are
open, after which the leader cannot go on without it: what the part says of itself holds until the piece is done, and is
read only now, so that it does not matter how old the number was that a helper had seen.

Helpers look on while there is a leader and for some milliseconds after, then sleep until the next program wakes them.
"""

import ctypes
import os
import sys
import threading
from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

from gpbackprop.backend import memory
from gpbackprop.backend.native import engine
from gpbackprop.backend.native.packed import SCRATCH

PAUSES = 64  # looks at what is open before other programs have their turn: a power of two
TURNS = 2000  # of them before a helper sleeps: some milliseconds

# A team is four numbers, each in a line of the cache of its own: the pieces that are open, those that are not done,
# whether there is a leader, and where the part is that they do: function, arguments, places, places of a piece.
NUMBERS, LINE = 4, 8
TEXT = """
{declared}

define internal i1 @gpb_piece(ptr %team, ptr %scratch) {{  ; do a piece; false if there is none
  %left = getelementptr i64, ptr %team, i64 8
  %place = getelementptr i64, ptr %team, i64 24
  br label %look
look:
  %open = load atomic i64, ptr %team acquire, align 8
  %none = icmp eq i64 %open, 0
  br i1 %none, label %nothing, label %claim
claim:
  %lower = sub i64 %open, 1
  %tried = cmpxchg ptr %team, i64 %open, i64 %lower acq_rel acquire
  %claimed = extractvalue {{ i64, i1 }} %tried, 1
  br i1 %claimed, label %do, label %look
do:
  %part = load ptr, ptr %place
  %arguments.at = getelementptr i64, ptr %part, i64 1
  %places.at = getelementptr i64, ptr %part, i64 2
  %step.at = getelementptr i64, ptr %part, i64 3
  %function = load ptr, ptr %part
  %arguments = load ptr, ptr %arguments.at
  %places = load i64, ptr %places.at
  %step = load i64, ptr %step.at
  %pieces = call i64 @gpb_pieces(ptr %part)
  %n = sub i64 %pieces, %open
  %begin = mul i64 %n, %step
  %whole = add i64 %begin, %step
  %last = icmp slt i64 %places, %whole
  %end = select i1 %last, i64 %places, i64 %whole
  call void %function(ptr %arguments, i64 %begin, i64 %end, ptr %scratch)
  %before = atomicrmw sub ptr %left, i64 1 release
  ret i1 true
nothing:
  ret i1 false
}}

define internal i64 @gpb_pieces(ptr %part) {{
  %places.at = getelementptr i64, ptr %part, i64 2
  %step.at = getelementptr i64, ptr %part, i64 3
  %places = load i64, ptr %places.at
  %step = load i64, ptr %step.at
  %less = sub i64 %places, 1
  %whole = udiv i64 %less, %step
  %pieces = add i64 %whole, 1
  ret i64 %pieces
}}

define internal void @gpb_rest(i64 %looks) {{  ; between two looks at a number that another thread is to change
  {pause}
  %within = and i64 %looks, {pauses}
  %over = icmp eq i64 %within, {pauses}
  br i1 %over, label %turn, label %again
turn:
  {turn}
  br label %again
again:
  ret void
}}

define void @gpb_help(ptr %team, ptr %scratch) {{  ; until there has been no leader for a while
entry:
  %leader = getelementptr i64, ptr %team, i64 16
  br label %look
look:
  %looks = phi i64 [ 0, %entry ], [ 0, %look ], [ %more, %rest ]
  %idle = phi i64 [ 0, %entry ], [ 0, %look ], [ %longer, %rest ]
  %done = call i1 @gpb_piece(ptr %team, ptr %scratch)
  br i1 %done, label %look, label %rest
rest:
  call void @gpb_rest(i64 %looks)
  %more = add i64 %looks, 1
  %led = load atomic i64, ptr %leader monotonic, align 8
  %free = icmp eq i64 %led, 0
  %one.more = add i64 %idle, 1
  %longer = select i1 %free, i64 %one.more, i64 0
  %enough = icmp eq i64 %longer, {patience}
  br i1 %enough, label %sleep, label %look
sleep:
  ret void
}}

define void @gpb_lead(ptr %team, ptr %parts, i64 %count, ptr %scratch) {{  ; do all parts, in order
entry:
  %left = getelementptr i64, ptr %team, i64 8
  %leader = getelementptr i64, ptr %team, i64 16
  %place = getelementptr i64, ptr %team, i64 24
  %none = icmp eq ptr %team, null
  br i1 %none, label %next, label %ask
ask:
  %tried = cmpxchg ptr %leader, i64 0, i64 1 acq_rel acquire
  %free = extractvalue {{ i64, i1 }} %tried, 1  ; or else it works alone
  br label %next
next:
  %i = phi i64 [ 0, %entry ], [ 0, %ask ], [ %following, %done ]
  %leads = phi i1 [ false, %entry ], [ %free, %ask ], [ %leads, %done ]
  %at = mul i64 %i, 4
  %part = getelementptr i64, ptr %parts, i64 %at
  %pieces = call i64 @gpb_pieces(ptr %part)
  %many = icmp ugt i64 %pieces, 1
  %shared = and i1 %many, %leads
  br i1 %shared, label %share, label %whole
whole:
  %arguments.at = getelementptr i64, ptr %part, i64 1
  %places.at = getelementptr i64, ptr %part, i64 2
  %function = load ptr, ptr %part
  %arguments = load ptr, ptr %arguments.at
  %places = load i64, ptr %places.at
  call void %function(ptr %arguments, i64 0, i64 %places, ptr %scratch)
  br label %done
share:
  store ptr %part, ptr %place
  store atomic i64 %pieces, ptr %left monotonic, align 8
  store atomic i64 %pieces, ptr %team release, align 8
  br label %own
own:
  %did = call i1 @gpb_piece(ptr %team, ptr %scratch)
  br i1 %did, label %own, label %wait
wait:
  %looks = phi i64 [ 0, %own ], [ %more, %rest ]
  %missing = load atomic i64, ptr %left acquire, align 8
  %all = icmp eq i64 %missing, 0
  br i1 %all, label %done, label %rest
rest:
  call void @gpb_rest(i64 %looks)
  %more = add i64 %looks, 1
  br label %wait
done:
  %following = add i64 %i, 1
  %go.on = icmp slt i64 %following, %count
  br i1 %go.on, label %next, label %end
end:
  br i1 %leads, label %leave, label %out
leave:
  store atomic i64 0, ptr %leader release, align 8
  br label %out
out:
  ret void
}}

define i64 @gpb_repeat(
  ptr %team, ptr %there, i64 %m, ptr %back, i64 %n, ptr %numbers, i64 %size, i64 %times, ptr %scratch
) {{  ; do two programs in turn until one of the numbers is not finite behind the first; gives how often
entry:
  br label %step
step:
  %done = phi i64 [ 0, %entry ], [ %more, %go.on ]
  call void @gpb_lead(ptr %team, ptr %there, i64 %m, ptr %scratch)
  br label %look
look:
  %i = phi i64 [ 0, %step ], [ %next, %finite ]
  %at = getelementptr double, ptr %numbers, i64 %i
  %number = load double, ptr %at
  %zero = fsub double %number, %number  ; infinity less infinity is no number
  %good = fcmp oeq double %zero, 0.0
  br i1 %good, label %finite, label %stop
finite:
  %next = add i64 %i, 1
  %last = icmp eq i64 %next, %size
  br i1 %last, label %go.on, label %look
go.on:
  call void @gpb_lead(ptr %team, ptr %back, i64 %n, ptr %scratch)
  %more = add i64 %done, 1
  %all = icmp eq i64 %more, %times
  br i1 %all, label %end, label %step
stop:
  ret i64 %done
end:
  ret i64 %times
}}

define void @gpb_programs(ptr %rows, i64 %begin, i64 %end, ptr %scratch) {{  ; a part of programs: their parts, how many
entry:
  br label %next
next:
  %i = phi i64 [ %begin, %entry ], [ %more, %next ]
  %first = mul i64 %i, 2
  %row = getelementptr i64, ptr %rows, i64 %first
  %n.at = getelementptr i64, ptr %row, i64 1
  %parts = load ptr, ptr %row
  %n = load i64, ptr %n.at
  call void @gpb_lead(ptr null, ptr %parts, i64 %n, ptr %scratch)
  %more = add i64 %i, 1
  %all = icmp eq i64 %more, %end
  br i1 %all, label %out, label %next
out:
  ret void
}}

define void @gpb_repeats(ptr %rows, i64 %begin, i64 %end, ptr %scratch) {{  ; a part of pairs to repeat
entry:
  br label %next
next:
  %i = phi i64 [ %begin, %entry ], [ %more, %next ]
  %first = mul i64 %i, 8
  %row = getelementptr i64, ptr %rows, i64 %first
  %m.at = getelementptr i64, ptr %row, i64 1
  %back.at = getelementptr i64, ptr %row, i64 2
  %n.at = getelementptr i64, ptr %row, i64 3
  %numbers.at = getelementptr i64, ptr %row, i64 4
  %size.at = getelementptr i64, ptr %row, i64 5
  %times.at = getelementptr i64, ptr %row, i64 6
  %done.at = getelementptr i64, ptr %row, i64 7
  %there = load ptr, ptr %row
  %m = load i64, ptr %m.at
  %back = load ptr, ptr %back.at
  %n = load i64, ptr %n.at
  %numbers = load ptr, ptr %numbers.at
  %size = load i64, ptr %size.at
  %times = load i64, ptr %times.at
  %done = call i64 @gpb_repeat(
    ptr null, ptr %there, i64 %m, ptr %back, i64 %n, ptr %numbers, i64 %size, i64 %times, ptr %scratch
  )
  store i64 %done, ptr %done.at
  %more = add i64 %i, 1
  %all = icmp eq i64 %more, %end
  br i1 %all, label %out, label %next
out:
  ret void
}}
"""


class Functions(NamedTuple):
    """What a leader does, what a helper does, and what a leader does several times over."""

    lead: Callable[..., None]
    help: Callable[..., None]
    repeat: Callable[..., int]


class Helper:
    """A thread that does pieces. It is a daemon, and born again in a process's child."""

    def __init__(self, team: np.ndarray):
        self.team = team
        self.start()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self.start)

    def start(self) -> None:
        self.asleep, self.wake = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self._serve, daemon=True, name="gpbackprop-pieces")
        self.thread.start()

    def _serve(self) -> None:
        asleep, wake = self.asleep, self.wake
        help, team, place = functions().help, self.team.ctypes.data, scratch()
        kept = self.team, _own.memory  # by this frame, for good: the thread looks on while Python ends
        while kept:
            help(team, place)
            asleep.set()
            wake.wait()
            asleep.clear()
            wake.clear()


class Team:
    """A leader, which is whoever runs a program, and `workers` - 1 helpers."""

    def __init__(self, workers: int):
        self.memory = memory.zeros((NUMBERS * LINE,), np.int64)
        self.place = self.memory.ctypes.data
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=lambda: self.memory.fill(0))  # those at work are not in the child
        self.helpers = [Helper(self.memory) for _ in range(workers - 1)]

    def call(self) -> int:
        """Where the team is, once nobody sleeps."""
        for helper in self.helpers:
            if helper.asleep.is_set():
                helper.wake.set()
        return self.place


@cache
def of(workers: int) -> Team:
    return Team(workers)


def once(team: Team | None, parts: np.ndarray) -> Callable[[], None]:
    """One call that does the parts (function, arguments, places, places of a piece), in order; without a team alone."""
    lead, place, count = functions().lead, parts.ctypes.data, len(parts)
    return lambda: lead(team and team.call(), place, count, scratch())


def often(team: Team | None, programs: Sequence[int], watched: np.ndarray, times: int) -> Callable[[], int]:
    """One call that does two programs (parts, how many) in turn, `times` times over, and gives how often that was.

    It ends between the two as soon as an element of `watched`, of float64, is not finite.
    """
    repeat, place, size = functions().repeat, watched.ctypes.data, watched.size
    return lambda: repeat(team and team.call(), *programs, place, size, times, scratch())


_own = threading.local()


def scratch() -> int:
    """The address of memory that is this thread's own."""
    try:
        return _own.place
    except AttributeError:
        _own.memory = memory.zeros((SCRATCH,), np.uint8)
        _own.place = _own.memory.ctypes.data
        return _own.place


@cache
def functions() -> Functions:
    """Those of the text that Python calls."""
    place, size = ctypes.c_void_p, ctypes.c_int64
    kinds = {
        "gpb_lead": ctypes.CFUNCTYPE(None, place, place, size, place),
        "gpb_help": ctypes.CFUNCTYPE(None, place, place),
        "gpb_repeat": ctypes.CFUNCTYPE(size, place, place, size, place, size, place, size, size, place),
    }
    return Functions(*(kind(address(name)) for name, kind in kinds.items()))


@cache
def address(name: str) -> int:
    """Where one of the functions of the text is."""
    names = ("gpb_lead", "gpb_help", "gpb_repeat", "gpb_programs", "gpb_repeats")
    engine.build({each: TEXT.format(**_words()) if each == names[0] else "" for each in names})  # one text for all
    return engine.address(name)


def _words() -> dict[str, object]:
    """What the text says otherwise on other machines."""
    name, library = ("SwitchToThread", "kernel32") if sys.platform == "win32" else ("sched_yield", None)
    turn = getattr(ctypes.CDLL(library), name, None)
    pause = "@llvm.x86.sse2.pause()" if engine.processor().startswith("x86") else ""
    return {
        "declared": f"declare void {pause}" if pause else "", "pause": f"call void {pause}" if pause else "",
        "turn": f"call i32 inttoptr (i64 {ctypes.cast(turn, ctypes.c_void_p).value} to ptr)()" if turn else "",
        "pauses": PAUSES - 1, "patience": PAUSES * TURNS,
    }  # fmt: skip
