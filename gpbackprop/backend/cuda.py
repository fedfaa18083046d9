"""Arrays on a CUDA device through CuPy, and the precise reason when there is none.

CuPy is imported by the functions below, never by importing this module, and its errors are recognised by their names.
A process works on one device: the backend that was made last has made its device the current one.
"""

import os
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gpbackprop.backend import replay
from gpbackprop.backend.numpy import Array, Backend
from gpbackprop.backend.tape import Call, verb
from gpbackprop.errors import DeviceError

INSTALL = (
    'install it with its CUDA libraries: pip install "gpbackprop[cuda13]" for a driver of CUDA 13 or later, '
    'pip install "gpbackprop[cuda12]" for one of CUDA 12 (nvidia-smi shows which)'
)


class CudaBackend(Backend):
    """The CUDA device number `index`. Calls are queued on CuPy's current stream; `host` and `sync` wait for them.

    Raises DeviceError with the reason when the device does not exist or fails a small product.
    """

    block = 2**24  # few launches count for more than the cache
    probe_every = 100  # a look at the loss waits for all queued steps

    def __init__(self, index: int = 0):
        found = count()
        self.name = f"cuda:{index}"
        if not 0 <= index < found:
            names = "cuda:0" if found == 1 else f"cuda:0 to cuda:{found - 1}"
            raise DeviceError(f"{self.name}: there is no such device; found {found}: use {names}{_visible()}")
        super().__init__(load())
        try:
            self.device = self.module.cuda.Device(index)
            self.device.use()
            self._products = self._load_products()
            self.description = _describe(self.module.cuda.runtime, index, self.module.__version__)
            self._try_out()
        except Exception as error:
            if (text := reason(error)) is None:
                raise
            raise DeviceError(f"{self.name}: {text}") from error

    def array(self, host: np.ndarray) -> Array:
        return self.module.array(host)

    def host(self, a: Array) -> np.ndarray:
        return self.module.asnumpy(a)

    def stage(self, host: np.ndarray, out: Array) -> None:
        whole = np.array(np.broadcast_to(host, out.shape), out.dtype, order="C", copy=None)
        if out.flags.c_contiguous:
            out.set(whole)
        else:  # `set` writes one block of memory
            out[...] = self.module.array(whole)

    @verb
    def gemm(self, a: Array, b: Array, out: Array) -> None:
        """out[k,m,n] = sum_j a[k,m,j] b[k,j,n]; `a` and `b` may be transposed views.

        One call of cuBLAS for all k. `cupy.matmul` would first copy every transposed operand and every `out` whose
        members are not adjacent (the views of a population's parameters), and may round float32 to TF32 if CUPY_TF32
        is set; `sgemm` is float32 throughout. The same operands give the same bits on the same device.
        """
        k, m, n = out.shape
        left, right, result = _layout(a, k), _layout(b, k), _layout(out, k)
        alike = a.dtype == b.dtype == out.dtype and out.dtype in self._products and a.size and b.size
        if not (left and right and result and alike) or result[0]:
            self.module.matmul(a, b, out=out)
            return
        call, one, zero = self._products[out.dtype]
        # cuBLAS counts columns first: what it takes for the transpose of a row-major matrix is that matrix. It is
        # asked for out' = b' a', where ' exchanges rows and columns.
        call(
            self.module.cuda.get_cublas_handle(), right[0], left[0], n, m, a.shape[2],
            one.ctypes.data, b.data.ptr, *right[1:], a.data.ptr, *left[1:],
            zero.ctypes.data, out.data.ptr, *result[1:], k,
        )  # fmt: skip

    @verb
    def gather(self, table: Array, index: Array, out: Array) -> None:
        self.module.take(table, index, axis=0, out=out)

    @verb
    def scatter_add(self, rows: Array, index: Array, table: Array) -> None:
        """table[index[i...],:] += rows[i...,:]; repeated indices add up, in no fixed order.

        Exact, and therefore repeatable, for whole numbers below 2**53 in float64 (counts); sums of fractions are not.
        """
        self.module.add.at(table, index, rows)

    def replay(self, calls: Sequence[Call]) -> Callable[[], None]:
        return replay.compile(calls, replay.as_it_is)

    def sync(self) -> None:
        self.device.synchronize()

    def _load_products(self) -> dict[Any, tuple[Callable[..., None], np.ndarray, np.ndarray]]:
        """The strided batched product of each dtype, with the 1 and 0 that it reads through pointers."""
        blas = self.module.cuda.cublas
        calls: dict[Any, Any] = {
            np.dtype(np.float32): blas.sgemmStridedBatched,
            np.dtype(np.float64): blas.dgemmStridedBatched,
        }
        return {dtype: (call, np.ones((), dtype), np.zeros((), dtype)) for dtype, call in calls.items()}

    def _try_out(self) -> None:
        """A compiled kernel and a product in float32, checked against the host: the device works, without rounding."""
        a = np.float32(1) + np.arange(6, dtype=np.float32).reshape(1, 2, 3) * np.float32(2**-20)
        b = np.array([[[1, 0, 0], [0, 1, 0]]], np.float32)
        out = self.module.zeros((1, 2, 2), np.float32)
        self.gemm(self.array(a), self.array(b).swapaxes(-1, -2), out)
        self.module.add(out, 1, out=out)
        got, expected = self.host(out), a[:, :, :2] + 1
        if not np.array_equal(got, expected):
            raise DeviceError(
                f"{self.name}: a float32 product of 2x3 by 3x2 gave {got.ravel().tolist()}, expected "
                f"{expected.ravel().tolist()}; the device, its driver or the CUDA libraries do not compute correctly: "
                "look for NVIDIA_TF32_OVERRIDE or CUBLAS_ variables in the environment, then for faults with nvidia-smi"
            )


def _layout(x: Array, members: int) -> tuple[int, int, int] | None:
    """How cuBLAS reads the matrices x[k]: (1 if transposed, leading dimension, elements from k to k+1), or None."""
    if x.ndim != 3:
        return None
    (k, rows, cols), (step, down, right), size = x.shape, x.strides, x.itemsize
    if k != members and k != 1:
        return None
    step = step // size if k > 1 else 0 if members > 1 else rows * cols
    if right == size and down >= cols * size:
        return 0, down // size, step
    if down == size and right >= rows * size:
        return 1, right // size, step
    if rows == 1 and (right == size or cols == 1):  # strides along an axis of one element mean nothing
        return 0, cols, step
    if cols == 1 and down == size:
        return 1, rows, step
    return None


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
        text = _missing(error) or _first_line(error)
        raise DeviceError(
            f"cuda: cupy is installed but cannot be imported: {text}; remove it, then {INSTALL}"
        ) from error
    return cupy


def count() -> int:
    """The number of CUDA devices, at least 1. Raises DeviceError with the reason when there is none."""
    runtime = load().cuda.runtime
    try:
        found = runtime.getDeviceCount()
    except Exception as error:
        if (text := reason(error)) is None:
            raise
        if "cudaErrorInsufficientDriver" in str(error):
            text = _driver(runtime.driverGetVersion(), runtime.runtimeGetVersion())
        raise DeviceError(f"cuda: {text}") from error
    if not found:
        raise DeviceError(f"cuda: {_REASONS['cudaErrorNoDevice']}{_visible()}")
    return found


def describe() -> list[str]:
    """One line of text per device. Raises DeviceError with the reason when CUDA or a device cannot be used."""
    found, current = count(), load().cuda.Device()
    texts = [CudaBackend(index).description for index in range(found)]
    current.use()
    return texts


def reason(error: BaseException) -> str | None:
    """What an error of CUDA or CuPy means, and what to do; None if `error` is of another kind."""
    text, kinds = str(error), {cls.__name__ for cls in type(error).__mro__}
    for sign, meaning in _REASONS.items():
        if sign in text or sign in kinds:
            return meaning + (_visible() if sign == "cudaErrorNoDevice" else "")
    if missing := _missing(error):
        return f"{missing}; CuPy was installed without its CUDA libraries: {INSTALL}"
    if any(cls.__module__.split(".")[0] in ("cupy", "cupy_backends", "cupyx") for cls in type(error).__mro__):
        return f"{type(error).__name__}: {_first_line(error)}; see whether nvidia-smi shows the device in good order"
    return None


_MEMORY = "the device is out of memory; end other programs on it (nvidia-smi lists them) or use a smaller batch"

_GENERATION = (
    "this CuPy has no code for a device of this generation; install the extra of the other CUDA version "
    "(cuda12 supports older devices, cuda13 newer ones)"
)

# What CUDA says (or the class of the error), and what that means to a user.
_REASONS = {
    "cudaErrorNoDevice": "the NVIDIA driver works but shows no device; see whether nvidia-smi lists one",
    "OutOfMemoryError": _MEMORY,
    "cudaErrorMemoryAllocation": _MEMORY,
    "CUBLAS_STATUS_ALLOC_FAILED": _MEMORY,
    "cudaErrorDevicesUnavailable": "the device is busy or reserved by another program; nvidia-smi shows by which",
    "cudaErrorNoKernelImageForDevice": _GENERATION,
    "--gpu-architecture": _GENERATION,
    "cudaErrorSystemDriverMismatch": "the NVIDIA driver and its kernel module differ in version; restart the machine",
    "cudaErrorUnknown": "CUDA did not start and does not say why; if nvidia-smi fails too, restart the machine",
}  # fmt: skip


def _missing(error: BaseException) -> str | None:
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


def _driver(driver: int, runtime: int) -> str:
    """Why a driver for CUDA `driver` cannot run a CuPy for CUDA `runtime` (1000 major + 10 minor; 0: no driver)."""
    wanted = f"this CuPy is built for CUDA {_version(runtime)}"
    if not driver:
        return f"no NVIDIA driver was found; {wanted}: install a driver for CUDA {runtime // 1000} or later"
    advice = f"update the driver to one for CUDA {runtime // 1000} or later"
    if driver // 1000 == 12 < runtime // 1000:
        advice += ', or change CuPy: pip uninstall cupy-cuda13x, then pip install "gpbackprop[cuda12]"'
    return f"the NVIDIA driver is for CUDA {_version(driver)} and too old, {wanted}; {advice}"


def _describe(runtime: Any, index: int, cupy_version: str) -> str:
    facts = runtime.getDeviceProperties(index)
    return (
        f"{facts['name'].decode()}, {facts['totalGlobalMem'] / 2**30:.1f} GiB, "
        f"compute capability {facts['major']}.{facts['minor']}, "
        f"driver for CUDA {_version(runtime.driverGetVersion())}, "
        f"CuPy {cupy_version} for CUDA {_version(runtime.runtimeGetVersion())}"
    )


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def _visible() -> str:
    """A hint when the environment hides devices."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    return "" if hidden is None else f" (CUDA_VISIBLE_DEVICES is {hidden!r})"


def _first_line(error: BaseException) -> str:
    """The first line of a message that is more than a rule."""
    return next((line.strip() for line in str(error).splitlines() if re.search(r"\w", line)), type(error).__name__)
