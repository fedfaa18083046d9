"""Arrays on a CUDA device through CuPy, and the precise reason when there is none.

CuPy is imported by the functions below, never by importing this module, and its errors are recognised by their names.
A process works on one device: the backend that was made last has made its device the current one.
"""

from collections.abc import Callable, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import numpy as np

from gpbackprop.backend import epilogues, faults, replay
from gpbackprop.backend.blas import layout
from gpbackprop.backend.faults import load, reason, version, visible
from gpbackprop.backend.graphs import Captured, Repeated, lane
from gpbackprop.backend.kernels import launchers
from gpbackprop.backend.numpy import Array, Backend, log
from gpbackprop.backend.tape import Call, verb
from gpbackprop.errors import DeviceError


class CudaBackend(Backend):
    """The CUDA device number `index`. Calls are queued on one stream of the device; `host` and `sync` wait for them.

    `precision` is what products of float32 in captured steps may round their operands to: "float32" (not at all),
    "tf32" (10 bits behind the point) or "bfloat16" (7 bits). Sums and everything else stay float32.
    Raises DeviceError with the reason when the device does not exist or fails a small product.
    """

    block = 2**24  # few launches count for more than the cache
    unroll = 16
    probe_every = 1 + 8 * unroll  # a look at the loss waits for all queued steps; between two there are whole launches

    def __init__(self, index: int = 0, precision: str = "float32"):
        found = count()
        self.index, self.precision = index, precision
        self.name = f"cuda:{index}"
        if not 0 <= index < found:
            names = "cuda:0" if found == 1 else f"cuda:0 to cuda:{found - 1}"
            raise DeviceError(f"{self.name}: there is no such device; found {found}: use {names}{visible()}")
        super().__init__(load())
        try:
            self.device = self.module.cuda.Device(index)
            self.device.use()
            self.lane = lane(self.module, index)
            self.stream = self.lane.stream.use()
            self._products = self._load_products()
            self.description = _describe(self.module.cuda.runtime, index, self.module.__version__)
            self._try_out()
        except Exception as error:
            if (text := reason(error)) is None:
                raise
            raise DeviceError(f"{self.name}: {text}") from error

    def rounding(self, precision: str) -> "CudaBackend":
        return self if precision == self.precision else CudaBackend(self.index, precision)

    def compiling(self, wanted: bool) -> "CudaBackend":
        return self  # its steps always are

    @contextmanager
    def active(self):
        """Inside, in this thread too, the device and its stream are the current ones, and CUDA's errors are ours.

        Raises DeviceError, or MemoryError where the device has no more memory, each with the reason.
        """
        try:
            with self.device, self.stream:
                yield
        except Exception as error:
            if (ours := faults.told(error, self.name)) is None:
                raise
            raise ours from error

    def libraries(self) -> dict[str, str]:
        return {"cuBLASLt": self.lane.lt.version if self.lane.lt else "none"}

    def zeros(self, shape: Sequence[int], dtype: Any) -> Array:
        return self.module.zeros(shape, dtype)

    def array(self, host: np.ndarray) -> Array:
        return self.module.array(host)

    def constant(self, host: np.ndarray) -> Array:
        made = self.array(host)
        if np.all(host == 1):
            self.lane.ones[id(made)] = made
        return made

    def host(self, a: Array) -> np.ndarray:
        return self.module.asnumpy(a, stream=self.stream)

    def stage(self, host: np.ndarray, out: Array) -> None:
        whole = np.array(np.broadcast_to(host, out.shape), out.dtype, order="C", copy=None)
        if out.flags.c_contiguous:
            out.set(whole, stream=self.stream)
        else:  # `set` writes one block of memory
            out[...] = self.module.array(whole)

    def landing(self, out: Array) -> np.ndarray:
        """Pinned memory: from any other a copy makes the host wait."""
        memory = self.module.cuda.alloc_pinned_memory(out.nbytes)
        return np.frombuffer(memory, out.dtype, out.size).reshape(out.shape)

    def land(self, landing: np.ndarray, out: Array) -> Callable[[], None]:
        out.set(landing, stream=self.stream)
        event = self.module.cuda.Event(disable_timing=True)
        event.record(self.stream)
        return event.synchronize

    @verb
    def gemm(self, a: Array, b: Array, out: Array) -> None:
        """out[k,m,n] = sum_j a[k,m,j] b[k,j,n]; `a` and `b` may be transposed views.

        One call of cuBLAS for all k. `cupy.matmul` would first copy every transposed operand and every `out` whose
        members are not adjacent (the views of a population's parameters), and may round float32 to TF32 if CUPY_TF32
        is set; `sgemm` is float32 throughout. The same operands give the same bits on the same device.
        """
        k, m, n = out.shape
        left, right, result = layout(a, k), layout(b, k), layout(out, k)
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

    def capture(self, steps: Sequence[Callable[[], None]]) -> Captured:
        """One call that runs `steps` in order: as a list of launches the first time, as a CUDA graph after that."""
        return Captured(self.lane, self.tape, steps, self._launches)

    def repeat(self, parts: Sequence[Callable[[], None]], times: int, watched: Array) -> Callable[[], int]:
        return Repeated(self.lane, parts, times)  # type: ignore[arg-type]

    def available(self) -> int | None:
        """What is free on the device, and what CuPy keeps for later."""
        free, _ = self.module.cuda.runtime.memGetInfo()
        return free + self.module.get_default_memory_pool().free_bytes()

    def sync(self) -> None:
        self.stream.synchronize()

    def _launches(self, steps: Sequence[Callable[[], None]]) -> tuple[list[Callable[[], Any]], str]:
        """What the device is asked for in `steps`, and why it cannot be captured, or ""."""
        calls = self.tape.record(steps, listens=True)
        if calls is None:
            return list(steps), f"xp.{self.tape.lost} is called without out="
        foreign = next((call.function for call in calls if call.name == "python"), None)
        why = f"{getattr(foreign, '__qualname__', foreign)} is Python code that may do something else every time"
        if self.lane.lt:
            calls = epilogues.bound(calls, partial(self.lane.lt.product, self.precision), self.lane.are_ones)
        return self._kernels(calls), why if foreign else ""

    def _kernels(self, calls: Sequence[Call]) -> list[Callable[[], Any]]:
        try:
            return launchers(calls, self.module)
        except Exception as error:
            if type(error).__name__ != "CompileException":
                raise
            log.warning("kernels cannot be compiled, each call is one of its own: %s", faults.first_line(error))
            return [launch for call in calls for launch in replay.as_it_is(call)]

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


def count() -> int:
    """The number of CUDA devices, at least 1. Raises DeviceError with the reason when there is none."""
    runtime = load().cuda.runtime
    try:
        found = runtime.getDeviceCount()
    except Exception as error:
        if (text := reason(error)) is None:
            raise
        if "cudaErrorInsufficientDriver" in str(error):
            text = faults.outdated(runtime.driverGetVersion(), runtime.runtimeGetVersion())
        raise DeviceError(f"cuda: {text}") from error
    if not found:
        raise DeviceError(f"cuda: {faults.NO_DEVICE}{visible()}")
    return found


def describe() -> list[tuple[str, bool, str]]:
    """Each device as (name, usable, description or reason). Raises DeviceError, with a reason, where there is none."""
    found, current = count(), load().cuda.Device()
    rows = []
    for index in range(found):
        try:
            rows.append((f"cuda:{index}", True, CudaBackend(index).description))
        except DeviceError as error:
            rows.append((f"cuda:{index}", False, str(error)))
    with suppress(Exception):  # one that cannot be used has said so above
        current.use()
    return rows


def _describe(runtime: Any, index: int, cupy_version: str) -> str:
    facts = runtime.getDeviceProperties(index)
    return (
        f"{facts['name'].decode()}, {facts['totalGlobalMem'] / 2**30:.1f} GiB, "
        f"compute capability {facts['major']}.{facts['minor']}, "
        f"driver for CUDA {version(runtime.driverGetVersion())}, "
        f"CuPy {cupy_version} for CUDA {version(runtime.runtimeGetVersion())}"
    )
