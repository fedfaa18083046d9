"""Floor 0: how much memory there is left for a program on this machine.

Linux promises more memory than it has and ends whoever then uses it, so that a request that is too large fails without
an error. What is known in advance is compared with this before it is asked for.
"""

import contextlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
LINE = 64  # bytes of a line of the cache


def zeros(shape: Sequence[int], dtype: Any) -> np.ndarray:
    """An array of zeros that begins with a line of the cache."""
    count = math.prod(shape) * np.dtype(dtype).itemsize
    raw = np.zeros(count + LINE, np.uint8)
    start = -raw.ctypes.data % LINE
    return raw[start : start + count].view(dtype).reshape(shape)


def available() -> int | None:
    """Bytes that this process can still use: the least of what the machine has, what its group (cgroup v2) and its own
    limit (ulimit -v) allow. None where the system does not say."""
    found = [limit for limit in (_of_machine(), _of_group(), _of_process()) if limit is not None]
    return max(0, min(found)) if found else None


def _of_machine() -> int | None:
    """What the kernel can give without taking it from a program, and the swap."""
    facts = _table(PROC / "meminfo")
    return (facts["MemAvailable:"] + facts.get("SwapFree:", 0)) * 1024 if "MemAvailable:" in facts else None


def _of_group() -> int | None:
    """What the groups of this process leave it; files that are cached can be dropped."""
    rooms = []
    for group in groups():
        with contextlib.suppress(OSError, ValueError):  # "max", or no such file
            limit = int((group / "memory.max").read_text())
            used = int((group / "memory.current").read_text()) - _table(group / "memory.stat").get("file", 0)
            rooms.append(limit - used)
    return min(rooms, default=None)


def groups() -> list[Path]:
    """The groups (cgroup v2) of this process, one inside the other, the innermost first."""
    try:
        path = (PROC / "self" / "cgroup").read_text().rpartition("0::")[2].partition("\n")[0].lstrip("/")
    except OSError:
        return []
    return [group for group in (CGROUPS / path, *(CGROUPS / path).parents) if group.is_relative_to(CGROUPS)]


def _of_process() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    size = _table(PROC / "self" / "status").get("VmSize:")
    return None if limit == resource.RLIM_INFINITY or size is None else limit - 1024 * size


def _table(path: Path) -> dict[str, int]:
    """The lines `name number ...` of a file; nothing where it cannot be read."""
    try:
        lines = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdigit()}
