"""Floor 0: arrays and verbs on one device, and randomness as pure functions."""

import re

from gpbackprop.backend.numpy import Array, Backend, Compiled
from gpbackprop.errors import ConfigError, DeviceError, UsageError

__all__ = ["Array", "Backend", "compiler", "devices", "select"]


def select(device: str = "auto") -> Backend:
    """The backend of `device`: `auto`, `cpu`, `cuda` or `cuda:N`.

    `auto` takes the first CUDA device that works, else the CPU. Raises DeviceError, with the reason, when a CUDA device
    was asked for and cannot be used; UsageError for any other name.
    """
    if device == "cpu":
        return Backend()
    if device == "auto":
        try:
            return select("cuda")
        except DeviceError:
            return Backend()
    match = re.fullmatch(r"cuda(?::(\d+))?", device)
    if not match:
        raise UsageError(f"--device {device!r} is not a device; expected auto, cpu, cuda or cuda:N")
    from gpbackprop.backend import cuda

    return cuda.CudaBackend(int(match[1] or 0))


def devices() -> list[tuple[str, bool, str]]:
    """Each device as (name, usable, description or the reason why it cannot be used)."""
    rows = [(Backend.name, True, Backend.description)]
    try:
        from gpbackprop.backend import cuda

        rows += cuda.describe()
    except DeviceError as error:
        rows.append(("cuda", False, str(error)))
    return rows


def compiler() -> tuple[str, bool, str]:
    """`train.compile` on the CPU as (name, usable, description or the reason why it cannot be used).

    It is asked for as a run asks for it. LLVM itself, a tenth of a second, is loaded when a step is compiled.
    """
    try:
        return "train.compile", True, f"steps on the CPU as machine code, by llvmlite {Compiled().compiler}"
    except ConfigError as error:
        return "train.compile", False, str(error)
