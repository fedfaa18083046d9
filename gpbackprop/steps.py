"""Floor 3: the steps of training as a few calls, each recorded once.

A step is: gather the rows, forward, look at the loss, backward, update, count. Which calls these are depends on the
size of the batch, on whether sequences begin with it, and on whether the gradient is only gathered; each kind is
recorded when it comes first.
"""

from collections.abc import Callable

from gpbackprop.optim.base import Optimizer, Update
from gpbackprop.passes import Pass
from gpbackprop.plan import Closure, Plan

Look = Callable[[Plan, int], None]


class Steps:
    """The steps of the pass `run` that end in `update`."""

    def __init__(self, run: Pass, optimizer: Optimizer, update: Update):
        self.pass_, self.optimizer, self.update = run, optimizer, update
        self.backend = run.network.backend
        self.kinds: dict[tuple[int, bool, bool], tuple[Closure, Closure]] = {}

    def run(self, step: int, step_in_epoch: int, look: Look) -> int:
        """Do step number `step`; `look(plan, last step)` is asked for the loss before the update. Returns 1."""
        size = self.pass_.size(step_in_epoch)
        begins = self.pass_.carried is not None and step_in_epoch % self.pass_.split.windows == 0
        kind = size, begins, (step + 1) % self.update.every == 0
        if kind not in self.kinds:
            self.kinds[kind] = self._recorded(*kind)
        there, back = self.kinds[kind]
        there()
        if step % self.backend.probe_every == 0:
            look(self.pass_.batch(size).plan, step + 1)
        back()
        return 1

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
