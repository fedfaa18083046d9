"""Why CUDA cannot be used, or failed in the middle of a run, in words that say what to do."""

import os
import re
from typing import Any

from gpbackprop.errors import DeviceError, GPError

INSTALL = (
    'install it with its CUDA libraries: pip install "gpbackprop[cuda13]" for a driver of CUDA 13 or later, '
    'pip install "gpbackprop[cuda12]" for one of CUDA 12 (nvidia-smi shows which)'
)


def load() -> Any:
    """The module cupy. Raises DeviceError when it is missing or broken."""
    try:
        import cupy
    except ModuleNotFoundError as error:
        if error.name == "cupy":
            raise DeviceError(f"cuda: the Python package cupy is not installed; {INSTALL}") from error
        raise DeviceError(
            f"cuda: cupy is installed but needs the module {error.name}, which is missing; {INSTALL}"
        ) from error
    except Exception as error:
        text = missing_part(error) or first_line(error)
        raise DeviceError(
            f"cuda: cupy is installed but cannot be imported: {text}; remove it, then {INSTALL}"
        ) from error
    return cupy


def reason(error: BaseException) -> str | None:
    """What an error of CUDA or CuPy means, and what to do; None if `error` is of another kind."""
    text, kinds = str(error), {cls.__name__ for cls in type(error).__mro__}
    for sign, meaning in _REASONS.items():
        if sign in text or sign in kinds:
            return meaning + (visible() if sign == "cudaErrorNoDevice" else "")
    if missing := missing_part(error):
        return f"{missing}; CuPy was installed without its CUDA libraries: {INSTALL}"
    theirs = any(cls.__module__.split(".")[0] in ("cupy", "cupy_backends", "cupyx") for cls in type(error).__mro__)
    if theirs or "CUBLAS_STATUS" in text:
        return f"{type(error).__name__}: {first_line(error)}; see whether nvidia-smi shows the device in good order"
    return None


def told(error: BaseException, device: str) -> Exception | None:
    """An error of CUDA in the middle of work as one of ours: a MemoryError, or a DeviceError; None for other kinds."""
    text = None if isinstance(error, GPError | OSError) else reason(error)
    if text is None:
        return None
    return MemoryError(f"{device}: {text}") if text == _MEMORY else DeviceError(f"{device}: {text}")


NO_DEVICE = "the NVIDIA driver works but shows no device; see whether nvidia-smi lists one"

_MEMORY = (
    "the device is out of memory; end other programs on it (nvidia-smi lists them) or use a smaller batch; where "
    "the rows of a data set are too many for it, set data.stream = true, or train with --device cpu"
)

_GENERATION = (
    "this CuPy has no code for a device of this generation; install the extra of the other CUDA version "
    "(cuda12 supports older devices, cuda13 newer ones)"
)

# What CUDA says (or the class of the error), and what that means to a user.
_REASONS = {
    "cudaErrorNoDevice": NO_DEVICE,
    "OutOfMemoryError": _MEMORY,
    "cudaErrorMemoryAllocation": _MEMORY,
    "CUBLAS_STATUS_ALLOC_FAILED": _MEMORY,
    "cudaErrorDevicesUnavailable": "the device is busy or reserved by another program; nvidia-smi shows by which",
    "cudaErrorNoKernelImageForDevice": _GENERATION,
    "--gpu-architecture": _GENERATION,
    "cudaErrorECCUncorrectable": "the memory of the device has failed; nvidia-smi -q -d ECC shows how badly",
    "cudaErrorSystemDriverMismatch": "the NVIDIA driver and its kernel module differ in version; restart the machine",
    "cudaErrorUnknown": "CUDA did not start and does not say why; if nvidia-smi fails too, restart the machine",
}  # fmt: skip


def missing_part(error: BaseException) -> str | None:
    """Which library or header the loader or the compiler did not find, if that is what `error` says."""
    text = str(error)
    library = re.search(r"\blib[\w+-]+\.so[.\d]*|\b[\w-]+\.dll\b|\blib[\w.+-]+\.dylib\b", text)
    if library and (isinstance(error, ImportError | OSError) or type(error).__name__ == "DynamicLibNotFoundError"):
        return f"the library {library[0]} was not found"
    header = re.search(
        r"cannot open source file \"([\w./]+)\"|(cuda_\w+\.h)\b|(CUDA headers|CUDA root directory)", text
    )
    if header:
        return f"{next(filter(None, header.groups()))} of the CUDA toolkit was not found"
    return None


def outdated(driver: int, runtime: int) -> str:
    """Why a driver for CUDA `driver` cannot run a CuPy for CUDA `runtime` (1000 major + 10 minor; 0: no driver)."""
    wanted = f"this CuPy is built for CUDA {version(runtime)}"
    if not driver:
        return f"no NVIDIA driver was found; {wanted}: install a driver for CUDA {runtime // 1000} or later"
    advice = f"update the driver to one for CUDA {runtime // 1000} or later"
    if driver // 1000 == 12 < runtime // 1000:
        advice += ', or change CuPy: pip uninstall cupy-cuda13x, then pip install "gpbackprop[cuda12]"'
    return f"the NVIDIA driver is for CUDA {version(driver)} and too old, {wanted}; {advice}"


def version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def visible() -> str:
    """A hint when the environment hides devices."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    return "" if hidden is None else f" (CUDA_VISIBLE_DEVICES is {hidden!r})"


def first_line(error: BaseException) -> str:
    """The first line of a message that is more than a rule."""
    return next((line.strip() for line in str(error).splitlines() if re.search(r"\w", line)), type(error).__name__)
