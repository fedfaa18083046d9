"""Floor 4: which steps a run saves that nobody stops.

A stop saves one more. To go back to that one, or to lose another for it, would end with other bits than those of a run
that was never stopped; so it does not count among those that are kept, and no rollback goes to it.
"""

import copy

from gpbackprop.trainer import Trainer


class Due:
    """The start, the steps that `checkpoint_every` asks for, and those that ended the best epoch until then.

    Minutes are no steps: with those every step counts.
    """

    def __init__(self, trainer: Trainer):
        self.every, self.unit = trainer.train.saving
        self.per_epoch = trainer.steps_per_epoch
        self.best = set[int]()
        monitor = copy.copy(trainer.monitor)
        monitor.forget()
        for row in trainer.history:
            monitor.see(row)
            if monitor.saves and monitor.best_epoch == row["epoch"]:
                self.best.add(row["step"])

    def at(self, step: int) -> bool:
        return not step or self.unit == "minute" or step in self.best or self.asked(step)

    def asked(self, step: int) -> bool:
        """Whether `checkpoint_every`, in epochs or steps, asks for this one."""
        if self.unit == "step":
            return step % self.every == 0
        epoch, inside = divmod(step, self.per_epoch)
        return not inside and epoch % self.every == 0
