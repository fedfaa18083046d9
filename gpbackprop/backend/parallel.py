"""The members of a population on several cores: they have nothing to do with each other, so each thread takes some.

NumPy lets other threads run while it computes. A call over K members becomes one for each thread; as long as what the
threads read and write lies apart they need not wait for each other, in the best case for a whole step. The bits are
those of one thread: a member's numbers come from the same calls on the same rows.
"""

import contextlib
import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from gpbackprop.backend import memory
from gpbackprop.backend.replay import Step, in_order
from gpbackprop.backend.tape import Call

LEAST = 2**17  # elements that a run of calls writes; less is not worth the handing over, of about ten microseconds
LITTLE = 64  # bytes of an array that all members share and each thread can have for itself
LARGEST = 2**18  # multiplications of one product; larger ones BLAS shares among the cores itself


def threads() -> int:
    """The cores to use: those that this process may run on, or fewer where its group (a container, say) has a quota of
    their time, or BLAS was given fewer threads."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limits = (os.environ.get(name, "") for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"))
    return min([cores, *_quotas(), *(int(limit) for limit in limits if limit.isdigit() and int(limit))])


def _quotas() -> Iterator[int]:
    """The cores, at least one, whose time each group of this process may use up."""
    for group in memory.groups():
        with contextlib.suppress(OSError, ValueError):  # "max", or no such file
            quota, period = map(int, (group / "cpu.max").read_text().split())
            yield max(1, -(-quota // period))


def shared(
    calls: Sequence[Call],
    compile: Callable[..., Step],
    together: Callable[[Sequence[Step]], Step],
    workers: int,
    cache: int = 2**63,
) -> Step | None:
    """One call that makes all `calls`, large runs of them on `workers` threads; None where that does not pay.

    `compile(*tapes)` is one call of tapes one after the other, `together(steps)` of some at once. A thread works on
    some of its members after the others where what the calls touch would not fit into `cache` bytes for all of them.
    """
    products = [(*call.inputs[0].shape, call.inputs[1].shape[2]) for call in calls if call.name == "gemm"]
    members = max((size[0] for size in products), default=1)
    one_by_one = workers < 2 and cache == 2**63
    if one_by_one or members < max(workers, 2) or any(math.prod(size[1:]) > LARGEST for size in products):
        return None
    runs = [(run, cut and sum(call.out.size for call in run) >= LEAST) for run, cut in _runs(calls, members, workers)]
    if not any(cut for _, cut in runs):
        return None
    return in_order(
        [together(_works(run, members, workers, compile, cache)) if cut else compile(run) for run, cut in runs]
    )


def _works(run: Sequence[Call], members: int, workers: int, compile: Callable[..., Step], cache: int) -> list[Step]:
    """The run as one call for each thread."""
    each = min(-(-touched([run]) // cache), members) // workers or 1  # parts that a thread takes one after the other
    tapes = list(zip(*(_parts(call, members, workers * each) for call in run), strict=True))
    return [compile(*tapes[n : n + each]) for n in range(0, len(tapes), each)]


def _runs(calls: Sequence[Call], members: int, workers: int) -> Iterator[tuple[list[Call], bool]]:
    """Runs of calls that threads can share, with True, and of those between.

    Two parts tell whether members have to do with each other: they would where these meet.
    """
    workers = max(workers, 2)
    run: list[Call] = []
    spans, cut = _Spans(workers), True
    for call in calls:
        can = _divides(call, members)
        parts = _parts(call, members, workers) if can else []
        if run and (can != cut or (can and not spans.apart(parts))):
            yield run, cut
            run, spans = [], _Spans(workers)
        cut = can
        spans.add(parts)
        run.append(call)
    if run:
        yield run, cut


def apart(
    tapes: Sequence[Sequence[Call]], members: int, count: int
) -> tuple[list[list[list[Call]]], Callable[[], None]] | None:
    """The tapes as `count` lists of tapes, each for some of the members, which need not wait for each other; and a call
    that has them begin alike. None where members have to do with each other.

    What all members share and a tape counts, such as the place in an epoch, each list has for itself: the first one
    works on the arrays of the tapes, the others on copies, which that call brings up to date.
    """
    common = [call for calls in tapes for call in calls if not _divides(call, members)]
    if any(not isinstance(call.function, np.ufunc) or call.out.nbytes > LITTLE for call in common):
        return None
    shared = {_span(call.out): call.out for call in common}
    copies = [shared, *({span: np.empty_like(x) for span, x in shared.items()} for _ in range(1, count))]
    parts = [
        [_parts(call, members, count) if _divides(call, members) else [call] * count for call in calls]
        for calls in tapes
    ]
    lists = [[[_with(part[n], copies[n]) for part in calls] for calls in parts] for n in range(count)]
    spans = [_Spans(1), _Spans(1)]
    for n, own in enumerate(lists):
        for calls in own:
            for call in calls:
                spans[n % 2].add([call])
    if any(_meet(a.written[0], b.touched[0]) for a, b in (spans, spans[::-1])):
        return None

    def begin() -> None:
        for each in copies[1:]:
            for span, x in shared.items():
                np.copyto(each[span], x)

    return lists, begin


def _with(call: Call, copies: Mapping[tuple[int, int], np.ndarray]) -> Call:
    """The call with copies in the place of arrays."""

    def own(x: Any) -> Any:
        found = copies.get(_span(x)) if isinstance(x, np.ndarray) else None
        if found is None or found.dtype != x.dtype or not x.flags.c_contiguous:
            return x
        return found.reshape(x.shape)

    return replace(call, inputs=tuple(map(own, call.inputs)), out=own(call.out))


def touched(tapes: Iterable[Sequence[Call]]) -> int:
    """The bytes that the calls read and write, but for tables of which they take some rows."""
    calls = [call for calls in tapes for call in calls]
    tables = {_span(call.inputs[0]) for call in calls if call.name == "gather"}
    spans = {_span(x) for call in calls for x in (*call.inputs, call.out) if isinstance(x, np.ndarray)}
    return sum(end - start for start, end in spans - tables)


def places(members: int, count: int) -> list[slice]:
    """`count` parts of the members, as equal as can be."""
    return [slice(*ends) for ends in pairwise(np.linspace(0, members, count + 1).astype(int).tolist())]


def _divides(call: Call, members: int) -> bool:
    """Whether a call writes something for each member that is a call of its own."""
    out = call.out
    if not isinstance(out, np.ndarray) or not out.ndim or len(out) != members:
        return False
    if call.name in ("sum", "max", "min", "mean", "argmax"):
        (x,), axes = call.inputs, call.options.get("axis")
        return axes is not None and all(a % x.ndim for a in np.atleast_1d(axes)) and len(x) == members
    return isinstance(call.function, np.ufunc) or call.name in ("gemm", "gather", "copyto", "clip")


def _parts(call: Call, members: int, count: int) -> list[Call]:
    """The call as `count` calls, each for some of the members."""
    out, table = call.out, call.inputs[:1] if call.name == "gather" else ()  # a table is the same for all
    from_last = isinstance(call.function, np.ufunc) or call.name == "copyto"  # what is shorter is the same for all

    def take(x: Any, place: slice) -> Any:
        own = isinstance(x, np.ndarray) and x.ndim and len(x) == members and not (from_last and x.ndim < out.ndim)
        return x[place] if own else x

    return [
        replace(call, inputs=(*table, *(take(x, place) for x in call.inputs[len(table) :])), out=out[place])
        for place in places(members, count)
    ]


class _Spans:
    """The memory that each thread writes and touches in a run."""

    def __init__(self, workers: int):
        self.written: list[set[tuple[int, int]]] = [set() for _ in range(workers)]
        self.touched: list[set[tuple[int, int]]] = [set() for _ in range(workers)]

    def add(self, parts: Sequence[Call]) -> None:
        for n, call in enumerate(parts):
            self.written[n].add(_span(call.out))
            self.touched[n] |= {_span(x) for x in (*call.inputs, call.out) if isinstance(x, np.ndarray)}

    def apart(self, parts: Sequence[Call]) -> bool:
        """Whether no thread writes, with these calls added, what another one touches."""
        own = _Spans(len(parts))
        own.add(parts)
        return not any(
            _meet(own.written[n], self.touched[m] | own.touched[m]) or _meet(self.written[n], own.touched[m])
            for n in range(len(parts))
            for m in range(len(parts))
            if n != m
        )


def _span(x: np.ndarray) -> tuple[int, int]:
    return np.lib.array_utils.byte_bounds(x)


def _meet(ones: set[tuple[int, int]], others: set[tuple[int, int]]) -> bool:
    """Whether a span of the ones and one of the others have a byte in common."""
    reached = [0, 0]
    for start, end, which in sorted([(*span, 0) for span in ones] + [(*span, 1) for span in others]):
        if start < reached[1 - which] and start < end:
            return True
        reached[which] = max(reached[which], end)
    return False


class _Worker:
    """A thread that waits for work. It is a daemon, asleep between two steps, and born again in a process's child."""

    def __init__(self) -> None:
        self.work: Step = lambda: None
        self.error: BaseException | None = None
        self.start()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self.start)

    def start(self) -> None:
        self.begin, self.done = threading.Lock(), threading.Lock()
        self.begin.acquire()
        self.done.acquire()
        threading.Thread(target=self._serve, daemon=True, name="gpbackprop-members").start()

    def _serve(self) -> None:
        with np.errstate(all="ignore"):
            while True:
                self.begin.acquire()
                try:
                    self.work()
                except BaseException as error:
                    self.error = error
                self.done.release()


_workers: list[_Worker] = []
_alone = threading.Lock()  # they serve one call at a time, whichever thread makes it


def together(works: Sequence[Step]) -> Step:
    """One call that does `works` at the same time, the first of them in this thread."""
    while len(_workers) < len(works) - 1:
        _workers.append(_Worker())
    first, others = works[0], list(zip(_workers, works[1:], strict=False))

    def run() -> None:
        with _alone:
            for worker, work in others:
                worker.work = work
                worker.begin.release()
            try:
                first()
            finally:
                for worker, _ in others:
                    worker.done.acquire()
            errors = [worker.error for worker, _ in others if worker.error]
            for worker, _ in others:
                worker.error = None
        if errors:
            raise errors[0]

    return run
