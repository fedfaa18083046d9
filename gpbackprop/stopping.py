"""Floor 5: signals that stop a run.

The first one asks for a stop at the next step boundary, where the run is saved; a second one ends the program at once.
Python handles signals between two steps of its interpreter, which a long product or a slow disk puts off. So a thread
hears of them as they come: it counts the grace time, and it can end the program whatever that waits for.
"""

import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager, suppress

INTERRUPTED, PREEMPTED = 130, 75
CODES = {signal.SIGINT: INTERRUPTED, signal.SIGTERM: PREEMPTED}
if hasattr(signal, "SIGUSR1"):
    CODES[signal.SIGUSR1] = PREEMPTED

ECHO = 0.1
"""Seconds in which a signal that comes again is the same one: a scheduler tells the whole job, and its script passes it
on."""


class Stop:
    """What the signals have asked for: `code` is the exit code, None before the first one."""

    def __init__(self, request: Callable[[], None], grace: float | None):
        self.request, self.grace = request, grace
        self.code: int | None = None
        self._first = 0.0

    def hear(self, number: int) -> None:
        """Signal `number` has come. Ends the program if it is a second one."""
        if self.code is None:
            self.code, self._first = CODES[signal.Signals(number)], time.monotonic()
            self.request()
        elif time.monotonic() - self._first > ECHO:
            leave(128 + number, "told twice: stopped at once, without saving")

    def watch(self, ears: socket.socket) -> None:
        """Hear the signals whose numbers come through `ears`, until a 0; end the program when its grace is over."""
        while True:
            left = None
            if self.code is not None and self.grace is not None:
                left = max(0.0, self._first + self.grace - time.monotonic())
            if not select.select([ears], [], [], left)[0]:
                leave(self.code or PREEMPTED, f"not saved within the grace time of {self.grace:g} s: stopped at once")
            for number in ears.recv(64):
                if number == 0:
                    return
                if number in CODES:
                    self.hear(number)


def leave(code: int, why: str) -> None:
    """End the program now. What is on the disk stays whole: a checkpoint appears at once or not at all."""
    with suppress(OSError):  # from a full disk, or a terminal that is gone
        os.write(2, f"\n{why}; `gpbackprop resume` goes on from the newest checkpoint\n".encode())
    os._exit(code)


@contextmanager
def stopping_at_signals(request: Callable[[], None], grace: float | None = None):
    """Inside, SIGINT, SIGTERM and SIGUSR1 call `request`, from another thread; yields the `Stop` that knows of it.

    The program ends at once, with the same exit code, where it is still inside `grace` seconds after the first signal;
    and with 128 + the number of the signal, as if nobody had handled it, at a second one.
    """
    stop = Stop(request, grace)
    try:
        before = {number: signal.signal(number, lambda *_: None) for number in CODES}
    except ValueError:  # not the main thread: the caller's signals are the caller's
        yield stop
        return
    ears, mouth = socket.socketpair()
    mouth.setblocking(False)
    known = signal.set_wakeup_fd(mouth.fileno(), warn_on_full_buffer=False)
    watch = threading.Thread(target=stop.watch, args=(ears,), name="signals of a run", daemon=True)
    watch.start()
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(known)
        mouth.send(b"\0")
        watch.join()
        ears.close()
        mouth.close()
