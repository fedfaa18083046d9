"""A step as a CUDA graph: its calls are listened to, made once as a list of launches, then captured, then launched.

The list is what the graph is made of: the same kernels on the same arrays. It warms them up, and it stays as the oracle
and the fallback. A run that goes on from any step begins with it, and has the bits of one that only launched graphs.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from functools import cache, cached_property
from typing import Any
from weakref import WeakValueDictionary

import numpy as np

from gpbackprop.backend.lt import NOTHING, WORKSPACE, Lt, wrong
from gpbackprop.backend.tape import Tape

Closure = Callable[[], Any]
log = logging.getLogger("gpbackprop")


class Lane:
    """The one stream of a device on which everything happens in order, and the scratch memory of its graphs.

    Kernels that CuPy gives scratch memory take it from `pool`, which lives as long as the stream does: memory that a
    graph uses is never handed to anybody but other steps on this stream. Each list runs once before it is captured, so
    that the pool has what it needs; to ask the device for memory during a capture is an error.
    """

    def __init__(self, module: Any):
        self.module = module
        self.stream = module.cuda.Stream(non_blocking=True)
        self.pool = module.cuda.MemoryPool()
        self.said: set[str] = set()
        self.ones: WeakValueDictionary[int, Any] = WeakValueDictionary()  # the constants that are all 1, by their id

    def are_ones(self, x: Any) -> bool:
        """Whether x is a constant of ones."""
        return self.ones.get(id(x)) is x

    @cached_property
    def lt(self) -> Lt | None:
        """cuBLASLt on this stream; None, and the log says why, where it cannot be used."""
        self._workspace = self.module.empty(WORKSPACE, np.uint8)
        try:
            lt = Lt(self.stream.ptr, self._workspace.data.ptr)
            with self.stream:
                failed = wrong(lt, self.module)
        except Exception as error:
            self.say(f"cuBLASLt cannot be used, {type(error).__name__}: {error}")
            return None
        if NOTHING in failed:
            self.say(f"cuBLASLt cannot be used: a small product {failed[NOTHING]}")
            return None
        for epilogue, text in failed.items():
            log.info("epilogue %d of cuBLASLt is not used: a small product %s", epilogue, text)
            lt.epilogues.remove(epilogue)
        return lt

    @contextmanager
    def entered(self):
        """Inside, launches go to the stream and scratch memory comes from the pool."""
        with self.stream, self.module.cuda.using_allocator(self.pool.malloc):
            yield

    def run(self, launches: Sequence[Closure]) -> None:
        with self.entered():
            for launch in launches:
                launch()

    def captured(self, launches: Sequence[Closure]) -> Any:
        """The graph of `launches`, or None; then the log says why, once for each reason."""
        graph, stream, failure = None, self.stream, None
        mode = self.module.cuda.runtime.streamCaptureModeThreadLocal  # what would wait or allocate is an error
        with self.entered():
            stream.begin_capture(mode=mode)
            try:
                for launch in launches:
                    launch()
            except Exception as error:
                failure = error
            try:
                graph = stream.end_capture()  # a capture that failed must end, too
                if failure is None:
                    graph.upload(stream)
            except Exception as error:
                failure = failure or error
        if failure is None:
            return graph
        self.say(f"{type(failure).__name__}: {failure}")
        return None

    def say(self, reason: str) -> None:
        if reason not in self.said:
            self.said.add(reason)
            log.info("this step runs without a CUDA graph: %s", reason)


@cache
def lane(module: Any, index: int) -> Lane:
    """The lane of device number `index`, which is the current one: the same for all its backends."""
    return Lane(module)


class Captured:
    """One call that runs `steps` in order: listened to and run as launches at first, captured at the second call.

    `launches` is what a call launches, once it is known. `lower(steps)` gives it, and why it cannot be captured (""
    where it can).
    """

    def __init__(self, lane: Lane, tape: Tape, steps: Sequence[Closure], lower: Callable[..., tuple[list, str]]):
        self.lane, self.tape, self.steps, self.lower = lane, tape, tuple(steps), lower
        self.launches: list[Closure] | None = None
        self.graph: Any = None
        self.capturable = False

    def __call__(self) -> None:
        if self.tape.calls is not None:  # part of a step that is listened to
            for step in self.steps:
                step()
        elif self.graph is not None:
            self.graph.launch(self.lane.stream)
        else:
            self._first_calls()

    def _first_calls(self) -> None:
        if self.launches is None:
            self.launches, why = self.lower(self.steps)
            self.capturable = not why
            if why:
                self.lane.say(why)
        elif self.capturable:
            self.graph = self.lane.captured(self.launches)
            self.capturable = self.graph is not None
            if self.graph is not None:
                self.graph.launch(self.lane.stream)
                return
        self.lane.run(self.launches)


class Repeated:
    """One call that makes the calls `parts` in turn, `times` times over: one graph, once each has been made alone."""

    def __init__(self, lane: Lane, parts: Sequence[Captured], times: int):
        self.lane, self.parts, self.times = lane, tuple(parts), times
        self.graph: Any = None
        self.tried = False

    def __call__(self) -> int:
        if self.graph is None and not self.tried and all(part.capturable for part in self.parts):
            self.tried = True
            launches = [launch for part in self.parts for launch in part.launches or ()]
            self.graph = self.lane.captured(launches * self.times)
        if self.graph is not None:
            self.graph.launch(self.lane.stream)
            return self.times
        for _ in range(self.times):
            for part in self.parts:
                part()
        return self.times
