"""Floor 0: one process at a time in a directory."""

import os
from pathlib import Path

from gpbackprop.errors import UsageError


class Lock:
    """Holds the directory until it is closed, forgotten, or the process ends, however it ends.

    Raises UsageError where another process holds it. On a system or file system without such locks it holds nothing.
    """

    def __init__(self, directory: Path):
        self._file: int | None = None
        try:
            import fcntl
        except ImportError:  # Windows
            return
        self._file = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise UsageError(
                f"{directory}: another process works in it; wait for it, stop it, or go elsewhere"
            ) from None
        except OSError:
            self.close()

    def close(self) -> None:
        """Leave the directory to others."""
        if self._file is not None:
            os.close(self._file)
        self._file = None

    __del__ = close
