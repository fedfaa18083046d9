"""Floor 5: a trainer at a checkpoint: the newest one, or, after a number that is not finite, the last good one.

Going back has to end with the same bits whether or not the run was stopped on the way. A stop saves a step that an
undisturbed run would not have saved, so it is no step to go back to; those that were `due` are.
"""

import logging
from pathlib import Path
from typing import Any

import numpy as np

from gpbackprop import checkpoint
from gpbackprop.checkpoint import Checkpoint, DamagedError
from gpbackprop.due import Due
from gpbackprop.errors import CheckpointError
from gpbackprop.trainer import Trainer

log = logging.getLogger("gpbackprop")


def restore(trainer: Trainer, found: Checkpoint) -> None:
    """Put the trainer where the checkpoint was written. Raises CheckpointError where they do not fit each other."""
    trainer.restore(arrays_of(trainer, found))


def arrays_of(trainer: Trainer, found: Checkpoint) -> dict[str, np.ndarray]:
    """The arrays of a checkpoint for the trainer. Raises CheckpointError where they do not fit each other."""
    expected: dict[str, Any] = {
        path: ((None,), np.uint8) if isinstance(item, bytes) else (item.shape, item.dtype)
        for path, item in trainer.content(check=False).items()
    }
    arrays = found.arrays("", expected)
    if tuple(arrays["progress/seeds"].tolist()) != trainer.seeds:
        raise CheckpointError(f"{found.path}: was trained with seeds {arrays['progress/seeds'].tolist()}")
    return arrays


def roll_back(trainer: Trainer, directory: Path) -> bool:
    """Take the trainer back to the last good checkpoint in `directory`, with half the learning rate.

    Where training failed again from the one that it went back to last, it is the one before that. Later ones are
    removed. Returns False, with nothing changed, where there is none.
    """
    good, due = [], Due(trainer)
    for step, path in sorted(checkpoint.files(directory).items(), reverse=True):
        if not due.at(step):
            continue
        try:
            found = checkpoint.read(path)
        except DamagedError as error:
            log.warning("%s. It stays as it is; looking for an older one to go back to", error)
            continue
        good.append((step, found))
        if not (trainer.rollbacks and step == trainer.rolled_to):
            break
    if not good:
        return False
    step, found = good[-1]
    arrays = arrays_of(trainer, found)
    checkpoint.go_back(directory, step)
    trainer.roll_back(arrays)
    return True
