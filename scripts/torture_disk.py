"""A disk that counts the calls of the checkpoint writer, and does something else than was asked at one of them."""

import errno
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpbackprop.checkpoint import disk

CALLS = [name for name in vars(disk.Calls) if not name.startswith("_")]
ERRNOS = {name: getattr(errno, name) for name in ("ENOSPC", "EIO", "EDQUOT", "EROFS", "EACCES", "EINTR")}

Fault = Callable[..., Any]


class Disk(disk.Calls):
    """`log` holds every call as (name, what it was about, its arguments); call number `at`, from 1, is `fault`'s.

    A fault is called with the name of the call, the call, and its arguments. With `stays` it has all later calls too.
    """

    def __init__(self, at: int = 0, fault: Fault | None = None, stays: bool = False):
        self.log: list[tuple[str, str, tuple]] = []
        self.at, self.fault, self.stays = at, fault, stays
        self._paths: dict[int, Path] = {}
        for name in CALLS:
            setattr(self, name, self._counted(name, getattr(disk.Calls, name)))

    @property
    def struck(self) -> str | None:
        """The name of the call that the fault had; None before."""
        return self.named(self.at) if 0 < self.at <= len(self.log) else None

    def named(self, number: int) -> str:
        """The name of a call, as "fsync of temporary step"."""
        return "{} of {}".format(*self.log[number - 1][:2])

    def _counted(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **keywords: Any) -> Any:
            path = self._paths.get(arguments[0], arguments[0])
            self.log.append((name, what(path), (path, *arguments[1:])))
            number = len(self.log)
            if self.fault and (number == self.at or (self.stays and number > self.at)):
                return self.fault(name, call, *arguments, **keywords)
            result = call(*arguments, **keywords)
            if name == "open":
                self._paths[result] = Path(arguments[0])
            return result

        return counted


def what(path: Any) -> str:
    """What a path is to a run: a step, a record, a temporary one of these, or a directory."""
    name = Path(path).name if isinstance(path, str | os.PathLike) else "?"
    if name.endswith(".tmp"):
        return f"temporary {what(name[1:].rsplit('.', 2)[0])}"
    return "step" if re.fullmatch(r"step-\d+\.h5", name) else name if name.endswith(".json") else "directory"


def fails(code: int) -> Fault:
    """The call fails with `code`; one that closes, closes all the same."""

    def fault(name: str, call: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
        if name == "close":
            call(*arguments)
        raise OSError(code, os.strerror(code))

    return fault


def tears(code: int) -> Fault:
    """A write takes half of its bytes, and then fails with `code`; other calls fail."""

    def fault(name: str, call: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
        if name == "write":
            call(arguments[0], arguments[1][: len(arguments[1]) // 2])
        return fails(code)(name, call, *arguments, **keywords)

    return fault


def is_short(name: str, call: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
    """A write takes half of its bytes, and says so; other calls do what was asked."""
    if name == "write":
        return call(arguments[0], arguments[1][: (len(arguments[1]) + 1) // 2])
    return call(*arguments, **keywords)


def kills(when: str) -> Fault:
    """SIGKILL "before" the call, "after" it, or "in" the middle of a write."""

    def fault(name: str, call: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
        if when == "after":
            call(*arguments, **keywords)
        elif when == "in" and name == "write":
            call(arguments[0], arguments[1][: len(arguments[1]) // 2])
        os.kill(os.getpid(), signal.SIGKILL)

    return fault
