"""Floor 3: the steps of training as a few calls, each recorded once.

A step is: gather the rows, forward, look at the loss, backward, update, count. Which calls these are depends on the
size of the batch, on whether sequences begin with it, and on whether the gradient is only gathered; each kind is
recorded when it comes first.
"""

import sys
from collections.abc import Callable
from typing import Any

from gpbackprop.optim.base import Optimizer, Update
from gpbackprop.passes import Pass
from gpbackprop.plan import Closure, Plan

Look = Callable[[Plan | None, int], None]


class Steps:
    """The steps of the pass `run` that end in `update`.

    Where a device is faster with many steps at a time, those that are alike go to it together. Where such a group
    begins and ends is a function of the step alone, and `saved_every` steps end one: so a run stands at the same steps,
    and saves the same ones, whether or not it was stopped on the way.
    """

    def __init__(self, run: Pass, optimizer: Optimizer, update: Update, saved_every: int | None = None):
        self.pass_, self.optimizer, self.update = run, optimizer, update
        self.backend = run.network.backend
        self.saved_every = saved_every or sys.maxsize
        self.kinds: dict[tuple[int, bool, bool], tuple[Closure, Closure]] = {}
        self.together: dict[int, Callable[[], int] | None] = {}

    def run(self, step: int, step_in_epoch: int, look: Look, most: int = 1) -> int:
        """Do step number `step`, or as many as can be done together, up to `most`; returns how many.

        `look(plan, last step)` is asked for the loss at every step whose number is a multiple of `probe_every`, before
        its update; in a group that watches the loss itself, where it is not finite.
        """
        size = self.pass_.size(step_in_epoch)
        if self.pass_.portions:
            self.pass_.turn(step_in_epoch)
        if self.backend.unroll > 1 and self._alike(step, step_in_epoch, most) and (run := self._together(size)):
            done = run()
            if done < self.backend.unroll:  # of several members, others have gone on: their plan tells nothing
                look(self.pass_.batch(size).plan if self.pass_.network.K == 1 else None, step + done + 1)
            return done
        begins = self.pass_.carried is not None and step_in_epoch % self.pass_.split.windows == 0
        there, back = self._kind(size, begins, (step + 1) % self.update.every == 0)
        there()
        if step % self.backend.probe_every == 0:
            look(self.pass_.batch(size).plan, step + 1)
        back()
        return 1

    def _alike(self, step: int, step_in_epoch: int, most: int) -> bool:
        """Whether the next `unroll` steps are the same calls, nobody looks or saves between them, and a group begins.

        Groups are counted from the newest of these marks: the begin of an epoch, or of a portion of it, a look, a save.
        """
        backend, n = self.backend, self.backend.unroll
        plain = self.pass_.carried is None and self.update.every == 1 and self.update.fixed
        begun, stretch = step_in_epoch % self.pass_.stretch, self.pass_.stretch
        behind = min(begun, step % self.saved_every)
        ahead = min(self.pass_.full - step_in_epoch, stretch - begun, self.saved_every - step % self.saved_every)
        if not backend.watches:
            behind, ahead = min(behind, (step - 1) % backend.probe_every), min(ahead, -step % backend.probe_every)
        return plain and behind % n == 0 and n <= min(most, ahead)

    def _together(self, size: int) -> Callable[[], int] | None:
        """`unroll` steps as one call, which gives how many were done; None where they gain nothing by it."""
        if size not in self.together:
            parts, loss = self._kind(size, False, True), self.pass_.tallies["loss"]
            self.together[size] = self.backend.repeat(parts, self.backend.unroll, loss)
        return self.together[size]

    def _kind(self, *kind: Any) -> tuple[Closure, Closure]:
        if kind not in self.kinds:
            self.kinds[kind] = self._recorded(*kind)
        return self.kinds[kind]

    def _recorded(self, size: int, begins: bool, updates: bool) -> tuple[Closure, Closure]:
        run, backend, batch = self.pass_, self.backend, self.pass_.batch(size)
        xp, clock = backend.xp, run.network.clock

        def count():
            xp.add(clock, 1, out=clock)

        there = [*([run.forget] if begins else []), batch.fetch, batch.plan.forward]
        back = [*([batch.plan.backward] if self.optimizer.gradient else []), count]
        back.insert(-1, self.update.step if updates else self.update.gather)
        if not self.update.fixed:

            def search():
                for call in back:
                    call()

            return backend.capture(there), search
        return backend.capture(there), backend.capture(back)
