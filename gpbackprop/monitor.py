"""Floor 3: which epoch is best, and when waiting longer is of no use."""

import math
from collections.abc import Sequence

import numpy as np

from gpbackprop.errors import ConfigError
from gpbackprop.passes import Row
from gpbackprop.settings import EarlyStopping
from gpbackprop.spec import suggest


class Monitor:
    """Watches one column of the history; in a population the mean over its members.

    `best` and `best_epoch` are the best value so far and its epoch, 0 before the first; `stopping`, if given, counts
    its patience from the last epoch that improved by more than `min_delta`. Raises ConfigError for a column that is
    not among `columns`.
    """

    def __init__(self, stopping: EarlyStopping | None, columns: Sequence[str]):
        default = "validation_loss" if "validation_loss" in columns else "train_loss"
        self.stopping, self.column = stopping, (stopping and stopping.monitor) or default
        if self.column not in columns:
            raise ConfigError(
                f"train.early_stopping.monitor: {self.column!r} is not recorded{suggest(self.column, columns)}; "
                f"there are {', '.join(columns)}"
            )
        self.sign = -1 if self.column.endswith(("loss", "error")) else 1  # losses and errors shall fall
        self.forget()

    @property
    def saves(self) -> bool:
        """Whether the best epoch is worth a checkpoint: the training loss does not say which is best."""
        return not self.column.startswith("train_")

    def forget(self) -> None:
        """As before the first epoch."""
        self.best, self.best_epoch, self.mark, self.mark_epoch, self.epoch = math.nan, 0, math.nan, 0, 0

    def see(self, row: Row) -> None:
        """Take in the row of an epoch."""
        value, self.epoch = float(np.mean(np.asarray(row[self.column], float))), row["epoch"]
        if math.isnan(self.best) or self.sign * (value - self.best) > 0:
            self.best, self.best_epoch = value, self.epoch
        least = self.stopping.min_delta if self.stopping else 0.0
        if math.isnan(self.mark) or self.sign * (value - self.mark) > least:
            self.mark, self.mark_epoch = value, self.epoch

    @property
    def exhausted(self) -> bool:
        """Whether early stopping says that waiting longer is of no use."""
        return bool(self.stopping and self.epoch - self.mark_epoch >= self.stopping.patience)

    def past(self, history: Sequence[Row], members: int) -> list[tuple[float, ...]]:
        """What the column was after each epoch, for each member, so signed that less is better."""
        values = [np.broadcast_to(np.asarray(row[self.column], float), members) for row in history]
        return [tuple(member) for member in (-self.sign * np.reshape(values, (-1, members))).T.tolist()]

    def state(self) -> np.ndarray:
        """What a checkpoint keeps of it."""
        return np.array([self.best, self.best_epoch, self.mark, self.mark_epoch, self.epoch], np.float64)

    def restore(self, state: np.ndarray) -> None:
        """Take over what `state()` gave."""
        self.best, best_epoch, self.mark, mark_epoch, epoch = state.tolist()
        self.best_epoch, self.mark_epoch, self.epoch = int(best_epoch), int(mark_epoch), int(epoch)
