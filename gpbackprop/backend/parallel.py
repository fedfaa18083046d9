"""The members of a population on several cores: they have nothing to do with each other, so each thread takes some.

NumPy lets other threads run while it computes. A call over K members is cut into one for each thread; as long as what
the threads read and write lies apart they need not wait for each other, in the best case for a whole step. The bits are
those of one thread: a member's numbers come from the same calls on the same rows.
"""

import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from gpbackprop.backend.replay import Step, in_order
from gpbackprop.backend.tape import Call

LEAST = 2**17  # elements that a run of calls writes; less is not worth the handing over, of about ten microseconds
LARGEST = 2**18  # multiplications of one product; larger ones BLAS shares among the cores itself


def threads() -> int:
    """The cores to use: those that this process may run on, or fewer where BLAS was given fewer threads."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limits = (os.environ.get(name, "") for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"))
    return min([cores, *(int(limit) for limit in limits if limit.isdigit() and int(limit))])


def shared(calls: Sequence[Call], compile: Callable[[Sequence[Call]], Step], workers: int) -> Step | None:
    """One call that makes all `calls`, those of many members on `workers` threads; None where that does not pay."""
    products = [(*call.inputs[0].shape, call.inputs[1].shape[2]) for call in calls if call.name == "gemm"]
    members = max((size[0] for size in products), default=1)
    if workers < 2 or members < workers or any(math.prod(size[1:]) > LARGEST for size in products):
        return None
    bounds = np.linspace(0, members, workers + 1).astype(int).tolist()
    places = [slice(start, stop) for start, stop in pairwise(bounds)]
    runs = [(run, cut and sum(call.out.size for call in run) >= LEAST) for run, cut in _runs(calls, members, places)]
    if not any(cut for _, cut in runs):
        return None
    return in_order(
        [
            _together([compile([part(call, members, place) for call in run]) for place in places])
            if cut
            else compile(run)
            for run, cut in runs
        ]
    )


def _runs(calls: Sequence[Call], members: int, places: Sequence[slice]) -> Iterator[tuple[list[Call], bool]]:
    """Runs of calls that can be cut, with True, and of those between."""
    run: list[Call] = []
    spans = _Spans(len(places))
    cut = True
    for call in calls:
        can = _has_members(call, members)
        parts = [part(call, members, place) for place in places] if can else []
        if run and (can != cut or (can and not spans.apart(parts))):
            yield run, cut
            run, spans = [], _Spans(len(places))
        cut = can
        if can:
            spans.add(parts)
        run.append(call)
    if run:
        yield run, cut


def _has_members(call: Call, members: int) -> bool:
    """Whether the first axis of what a call writes is that of the members, and each member's part a call of its own."""
    out, options = call.out, call.options
    if out is None or not isinstance(out, np.ndarray) or not out.ndim or len(out) != members:
        return False
    if call.name in ("sum", "max", "min", "mean", "argmax"):
        axis, ndim = options.get("axis"), call.inputs[0].ndim
        return axis is not None and all(a % ndim for a in np.atleast_1d(axis)) and len(call.inputs[0]) == members
    return isinstance(call.function, np.ufunc) or call.name in ("gemm", "gather", "copyto")


def part(call: Call, members: int, place: slice) -> Call:
    """The call for the members in `place`."""
    table = call.inputs[:1] if call.name == "gather" else ()
    inputs = tuple(
        x[place] if i >= len(table) and isinstance(x, np.ndarray) and _leads(x, call, members) else x
        for i, x in enumerate(call.inputs)
    )
    return replace(call, inputs=inputs, out=call.out[place])


def _leads(x: np.ndarray, call: Call, members: int) -> bool:
    whole = x.ndim >= call.out.ndim or not isinstance(call.function, np.ufunc)  # shorter ones broadcast
    return bool(x.ndim) and len(x) == members and whole


class _Spans:
    """The memory that each thread writes and touches in a run."""

    def __init__(self, workers: int):
        self.written: list[list[tuple[int, int]]] = [[] for _ in range(workers)]
        self.touched: list[list[tuple[int, int]]] = [[] for _ in range(workers)]

    def add(self, parts: Sequence[Call]) -> None:
        for n, call in enumerate(parts):
            self.written[n].append(_span(call.out))
            self.touched[n] += [_span(x) for x in (*call.inputs, call.out) if isinstance(x, np.ndarray)]

    def apart(self, parts: Sequence[Call]) -> bool:
        """Whether no thread writes, with these calls added, what another one touches."""
        own = _Spans(len(parts))
        own.add(parts)
        for n in range(len(parts)):
            for m in range(len(parts)):
                if n != m and (
                    _meet(own.written[n], self.touched[m] + own.touched[m]) or _meet(self.written[n], own.touched[m])
                ):
                    return False
        return True


def _span(x: np.ndarray) -> tuple[int, int]:
    return np.lib.array_utils.byte_bounds(x)


def _meet(ones: Sequence[tuple[int, int]], others: Sequence[tuple[int, int]]) -> bool:
    return any(a < d and c < b for a, b in ones for c, d in others)


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


def _together(works: Sequence[Step]) -> Step:
    """One call that does `works` at the same time, the first of them in this thread."""
    while len(_workers) < len(works) - 1:
        _workers.append(_Worker())
    first, others = works[0], list(zip(_workers, works[1:], strict=False))

    def run() -> None:
        for worker, work in others:
            worker.work = work
            worker.begin.release()
        try:
            first()
        finally:
            for worker, _ in others:
                worker.done.acquire()
        for worker, _ in others:
            error, worker.error = worker.error, None
            if error:
                raise error

    return run
