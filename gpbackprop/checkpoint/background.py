"""Saving while training goes on: what blocks is the copy of the arrays, the rest happens in a thread.

HDF5 image, digest, writing, fsync and pruning take longer than a step, and the disk decides how long. So a save copies
the arrays into host memory of its own, which the next save uses again, and returns. At most one is in flight: the next
one waits for it, so that a slow disk slows training down instead of filling the memory.
"""

import threading
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gpbackprop.checkpoint import series
from gpbackprop.checkpoint.writer import Content


class Saver:
    """Saves the checkpoints of one directory, one at a time, in a thread that ends with each save.

    `saved` is the newest step that is known to be on the disk, durably; None before the first. An error of a save
    comes out of the next call of `check`, `wait` or `begin`, once.
    """

    def __init__(
        self,
        directory: Path,
        keep: int,
        warn: series.Warn = warnings.warn,
        saved: int | None = None,
        counted: Callable[[int], bool] | None = None,
    ):
        self.directory, self.keep, self.warn, self.saved, self.counted = directory, keep, warn, saved, counted
        self._copies: dict[str, np.ndarray] = {}
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def begin(self, step: int, content: Content, best: Mapping[str, Any] | None = None) -> None:
        """Copy `content` and begin to save it as `step`; with `best`, what best.json says of it, as the best one.

        Waits for the save before, and raises its error, with nothing begun.
        """
        self.wait()
        copy = {path: self._copied(path, value) for path, value in content.items()}
        thread = threading.Thread(target=self._save, args=(step, copy, best), name=f"save of step {step}")
        try:
            thread.start()
        except RuntimeError:  # the system has no thread left: training waits
            self._save(step, copy, best)
        else:
            self._thread = thread

    def check(self) -> None:
        """Raise the error of a save that has ended; returns at once."""
        if self._thread is None or not self._thread.is_alive():
            self.wait()

    def wait(self) -> None:
        """Return when no save is in flight; raises the error of the one that was."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _copied(self, path: str, value: np.ndarray | bytes) -> np.ndarray | bytes:
        if isinstance(value, bytes):
            return value
        value = np.asarray(value)
        copy = self._copies.get(path)
        if copy is None or copy.shape != value.shape or copy.dtype != value.dtype:
            copy = self._copies[path] = np.empty(value.shape, value.dtype)
        np.copyto(copy, value)
        return copy

    def _save(self, step: int, content: Content, best: Mapping[str, Any] | None) -> None:
        try:
            series.save(self.directory, step, content, self.keep, self.warn, best, self.counted)
            self.saved = step
        except BaseException as error:  # whatever it is, the training thread shall hear of it
            self._error = error
