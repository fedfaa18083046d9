"""Floor 0: one process at a time in a directory, on one machine or on several that share a file system.

The lock is that of the operating system (flock), which ends with the process, however it ends. Some file systems of
networks have none, or one that only its own machine knows. So the file says who holds it as well, and its time of
change is a heartbeat: who stands there and has shown no sign of life for `STALE` seconds, or is known to be gone, has
left the directory to the next one.
"""

import contextlib
import json
import logging
import os
import socket
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gpbackprop.errors import UsageError

BEAT, STALE, SETTLE = 5.0, 60.0, 0.5
"""Seconds between two heartbeats, without one until a holder counts as gone, and between a claim and its proof."""

NAME = ".lock"

log = logging.getLogger("gpbackprop")


class Lock:
    """Holds the directory until it is closed, forgotten, or the process ends, however it ends.

    `stale` says whose lock was taken over, where one was left behind. Raises UsageError where another process holds the
    directory, and says which. `check()` raises it where another one has taken it over since, which may happen to a
    process that stood still for longer than `STALE`.
    """

    def __init__(self, directory: Path):
        self.directory, self.path, self.stale = directory, directory / NAME, ""
        self._heart: _Heart | None = None
        try:
            self._take()
        except OSError as error:
            raise UsageError(
                f"{self.path}: who works in the run cannot be written down: {error.strerror or error}. Make room in "
                f"{directory}, or let this user write there"
            ) from error

    def _take(self) -> None:
        directory, file = self.directory, os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            flocked, holder = _flock(file), _read(file)
            if flocked is False or (holder and not self._outlived(holder, bool(flocked))):
                who = f": {_described(holder, self.path)}" if holder else ""
                raise UsageError(
                    f"{directory}: another process works in it{who}; wait for it, stop it, or go elsewhere"
                )
            if holder:
                self.stale = _described(holder, self.path)
            mine = json.dumps(_myself(), indent=2).encode() + b"\n"
            _write(file, mine)
            if not flocked:  # two may have found the same stale holder: the last to write has it
                time.sleep(SETTLE)
                if _bytes(file) != mine:
                    raise UsageError(f"{directory}: another process works in it, which came at the same time")
        except BaseException:
            os.close(file)
            raise
        self._heart = _Heart(file, mine)

    def check(self) -> None:
        """Raise UsageError where the directory is another process's by now."""
        if self._heart is not None and self._heart.lost:
            raise UsageError(
                f"{self.directory}: another process has taken it over while this one stood still; this one stops, and "
                "has changed nothing since"
            )

    def _outlived(self, holder: dict[str, Any], flocked: bool) -> bool:
        """Whether the process that the file names is gone; where only its heartbeat can tell, that is waited for."""
        gone, seen, begun = _is_gone(holder, flocked), self.path.stat().st_mtime_ns, time.monotonic()
        if gone is None:
            most = min(max(STALE - _silence(self.path), 2 * BEAT), STALE)
            log.info(
                "%s: waiting up to %.0f s for a sign of life of %s; without one the run is taken over",
                self.directory, most, _described(holder, self.path),
            )  # fmt: skip
        while gone is None:
            waited = time.monotonic() - begun  # clocks are set now and then; who lives shows it within two beats
            if waited > STALE or (waited > 2 * BEAT and _silence(self.path) > STALE):
                gone = True
            elif self.path.stat().st_mtime_ns != seen:
                gone = False
            else:
                time.sleep(BEAT / 5)
        return gone

    def close(self) -> None:
        """Leave the directory to others."""
        if self._heart is not None:
            self._heart.stop()
        self._heart = None

    __del__ = close


class _Heart:
    """Beats in a thread that knows nothing of the lock, so that a lock which is forgotten ends."""

    def __init__(self, file: int, mine: bytes):
        self.file, self.mine, self.lost = file, mine, False
        self._end, self._turn, self._process = threading.Event(), threading.Lock(), os.getpid()
        threading.Thread(target=self._beat, name="heartbeat of a run", daemon=True).start()

    def _beat(self) -> None:
        while not self._end.wait(BEAT):
            with self._turn, contextlib.suppress(OSError):  # a disk that is gone for a while is not another process
                if self._end.is_set():
                    return
                if _bytes(self.file) != self.mine:
                    self.lost = True
                    return
                _write(self.file, self.mine)

    def stop(self) -> None:
        if os.getpid() != self._process:  # forked: the lock, and perhaps the turn, is the parent's
            os.close(self.file)
            return
        with self._turn:
            self._end.set()
            with contextlib.suppress(OSError):
                if _bytes(self.file) == self.mine:
                    os.ftruncate(self.file, 0)
            os.close(self.file)


def _flock(file: int) -> bool | None:
    """Whether this process now has the system's lock; None on a system, or a file system, without one."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        return None
    return True


def _myself() -> dict[str, Any]:
    facts = {"pid": os.getpid(), "host": socket.gethostname(), "since": datetime.now(UTC).isoformat(timespec="seconds")}
    return facts | {"boot": _place(), "started": _started(os.getpid())}


def _place() -> str:
    """Where process numbers mean the same: this start of this machine's kernel, and this container; "" if unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(pid: int) -> int | None:
    """When the process began, in ticks since the start of the machine; None where there is no such process."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None


def _is_gone(holder: dict[str, Any], flocked: bool) -> bool | None:
    """Whether the process that the file names holds the directory no more; None where its heartbeat must tell.

    The system's lock, now ours, was not its own any more if it ran on this kernel. Without such locks its number tells,
    with the time when it began, for numbers are used again.
    """
    here, there = _place(), str(holder.get("boot"))
    if flocked and here and there.partition(" ")[0] == here.partition(" ")[0]:
        return True
    if here and there == here:
        return holder.get("started") != _started(holder["pid"])
    return None


def _silence(path: Path) -> float:
    """Seconds since the last heartbeat, by the clock of the file system: those of two machines may differ."""
    probe = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    changed = path.stat().st_mtime
    try:
        probe.touch()
        return probe.stat().st_mtime - changed
    finally:
        probe.unlink(missing_ok=True)


def _described(holder: dict[str, Any], path: Path) -> str:
    """process 41 on node7 (since 2026-11-22T10:00:00+00:00, last sign of life 3 s ago)"""
    life = f"last sign of life {max(_silence(path), 0):.0f} s ago"
    return f"process {holder['pid']} on {holder['host']} (since {holder.get('since')}, {life})"


def _bytes(file: int) -> bytes:
    os.lseek(file, 0, os.SEEK_SET)
    return os.read(file, 4096)


def _read(file: int) -> dict[str, Any] | None:
    """Who the file says holds it; None after a lock that was closed, and where it cannot be understood."""
    try:
        holder = json.loads(_bytes(file))
        return holder if isinstance(holder["pid"], int) and isinstance(holder["host"], str) else None
    except (ValueError, TypeError, KeyError):
        return None


def _write(file: int, text: bytes) -> None:
    os.lseek(file, 0, os.SEEK_SET)
    os.write(file, text)
    os.ftruncate(file, len(text))
