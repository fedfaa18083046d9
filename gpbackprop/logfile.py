"""Floor 5: the log.txt of a run."""

import logging
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

from gpbackprop.errors import GPError

log = logging.getLogger("gpbackprop")


class LogFile(logging.FileHandler):
    """A file that is no longer written once the disk refuses it: that is said once, and training goes on."""

    refused = False

    def emit(self, record: logging.LogRecord) -> None:
        try:
            if not self.refused:
                super().emit(record)
        except OSError as error:  # `open`; what `write` raises comes to handleError
            self._refuse(error)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        error = sys.exc_info()[1]
        if isinstance(error, OSError):
            self._refuse(error)
        else:
            super().handleError(record)

    def _refuse(self, error: OSError) -> None:
        if not self.refused:
            self.refused = True
            log.warning("%s: could not be written: %s. It stays as it is", self.baseFilename, error.strerror or error)

    def close(self) -> None:
        with suppress(OSError):  # once more what is in the buffer
            super().close()


@contextmanager
def log_file(path: Path):
    """What is logged inside goes to `path` too."""
    handler = LogFile(path, encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    try:
        yield
    except Exception as error:  # the log has the whole story, the screen a sentence
        known = isinstance(error, GPError)
        record = log.makeRecord(log.name, logging.ERROR, "", 0, str(error), (), None if known else sys.exc_info())
        handler.handle(record)
        error.logged_in = path  # type: ignore[attr-defined]
        raise
    finally:
        log.removeHandler(handler)
        handler.close()
