"""A stand-in for CuPy on a machine without a GPU: NumPy inside, and CuPy's refusals outside.

`install(monkeypatch)` makes it the module `cupy`, so that `select("cuda")` gives a CudaBackend over it and whole
training runs go through the CUDA path with the bits of NumPy. It refuses what the real CuPy refuses: turning a device
array into a host array unasked, host arrays among device arrays, functions, methods and arguments that CuPy lacks
(`cupy_names.json`, recorded from the real package by `python tests/fake_cupy.py`). Inside `forbid_sync()` it also
refuses what CuPy does but only by waiting for the device: reading a value, a boolean index, a copy from the host.

While a stream captures, launches are written down with the arrays and numbers that they were given, and not made; the
graph makes them again and again without any code of the host. What the real one refuses there is refused: to allocate,
to wait, to copy from the host, to call cuBLAS, to launch on another stream.

`Machine` says what hardware to play, broken or not.
"""

import ctypes
import inspect
import json
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import fake_lt
import numpy as np

from gpbackprop.backend import lt

NAMES = Path(__file__).with_name("cupy_names.json")


class Synchronised(AssertionError):  # noqa: N818 (a verdict of a test)
    """Something inside `forbid_sync()` waited for the device."""


_forbidden = 0


@contextmanager
def forbid_sync():
    """Inside, whatever makes the host wait for the device raises Synchronised: a step must not."""
    global _forbidden
    _forbidden += 1
    try:
        yield
    finally:
        _forbidden -= 1


_recording: list | None = None  # the launches of the stream that captures


def launch(kernel, inside: str = "a kernel") -> None:
    """Queue a kernel on the current stream: it runs now, or is written down where the stream captures."""
    if _recording is None:
        kernel()
    elif not Stream.current.capturing:
        raise AssertionError(f"{inside} was launched on another stream than the one that captures")
    else:
        _recording.append(kernel)


def refuse_in_capture(what: str) -> None:
    if _recording is not None:
        raise CUDARuntimeError(
            "cudaErrorStreamCaptureUnsupported", f"operation not permitted when stream is capturing ({what})"
        )


def waits(what: str) -> None:
    refuse_in_capture(what)
    if _forbidden:
        raise Synchronised(f"{what} waits for the device inside a step")


@cache
def known_names() -> dict[str, Any]:
    return json.loads(NAMES.read_text())


def unwrap(x: Any, inside: str) -> Any:
    """NumPy's view of an argument: device arrays become NumPy arrays, host arrays are refused."""
    if isinstance(x, ndarray):
        return x._a
    if isinstance(x, np.ndarray):
        raise TypeError(f"Unsupported type {type(x)}: {inside} got a host array")
    if isinstance(x, tuple | list):
        return type(x)(unwrap(item, inside) for item in x)
    if isinstance(x, dict):
        return {key: unwrap(item, inside) for key, item in x.items()}
    return x


def wrap(x: Any) -> Any:
    if isinstance(x, np.ndarray | np.generic):
        return ndarray(_of=np.asanyarray(x))
    return type(x)(map(wrap, x)) if type(x) in (tuple, list) else x


def check(name: str, known: str, args: tuple, kwargs: dict) -> None:
    """Raise TypeError unless CuPy's `name`, whose parameters are the words of `known`, takes these arguments."""
    names = known.split()
    if any(word.startswith("*") for word in names):
        return
    if len(args) > len(names):
        raise TypeError(f"cupy.{name} takes {len(names)} arguments ({known}), got {len(args)}")
    for key in kwargs:
        if key not in names:
            raise TypeError(f"cupy.{name} has no argument {key!r}; it has: {known}")


class ndarray:  # noqa: N801 (CuPy's name)
    """A device array. Views share memory as NumPy's do."""

    __array_ufunc__ = None  # a NumPy ufunc or a host array beside it is a mistake
    __hash__ = None

    def __init__(self, shape=(), dtype=float, *, _of=None):
        self._a = np.empty(shape, dtype) if _of is None else _of

    def __array__(self, dtype=None, copy=None):
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`")

    def __array_function__(self, function, types, args, kwargs):
        raise TypeError(f"numpy.{function.__name__} of a device array; use the array namespace of the backend")

    dtype = property(lambda self: self._a.dtype)
    ndim = property(lambda self: self._a.ndim)
    size = property(lambda self: self._a.size)
    itemsize = property(lambda self: self._a.itemsize)
    nbytes = property(lambda self: self._a.nbytes)
    strides = property(lambda self: self._a.strides)
    T = property(lambda self: wrap(self._a.T))
    data = property(lambda self: SimpleNamespace(ptr=self._a.__array_interface__["data"][0]))
    flags = property(
        lambda self: SimpleNamespace(c_contiguous=self._a.flags.c_contiguous, f_contiguous=self._a.flags.f_contiguous)
    )
    shape = property(lambda self: self._a.shape)

    def __len__(self):
        return len(self._a)

    def __iter__(self):
        waits("iteration")
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index):
        self._look(index)
        return wrap(self._a[unwrap(index, "an index")])

    def __setitem__(self, index, value):
        self._look(index)
        if not isinstance(value, ndarray) and not np.isscalar(value):
            raise ValueError(f"non-scalar {type(value)} cannot be written into a device array")
        at, plain = unwrap(index, "an index"), unwrap(value, "an assignment")
        launch(lambda: self._a.__setitem__(at, plain), "an assignment")

    @staticmethod
    def _look(index):
        for part in index if isinstance(index, tuple) else (index,):
            if isinstance(part, ndarray) and part.dtype == bool:
                waits("a boolean index")
            if isinstance(part, list):
                waits("an index from the host")

    def get(self, stream=None, order="C", out=None, blocking=True):
        waits("get()")
        return self._a.copy(order)

    def set(self, arr, stream=None):
        waits("set()")
        if not isinstance(arr, np.ndarray):
            raise TypeError("Only numpy.ndarray can be set to cupy.ndarray")
        if arr.dtype != self.dtype:
            raise TypeError(f"{self.dtype} array cannot be set to {arr.dtype} array")
        if arr.shape != self.shape:
            raise ValueError(f"Shape mismatch. Old shape: {self.shape}, new shape: {arr.shape}")
        if not (self.flags.c_contiguous or self.flags.f_contiguous):
            raise RuntimeError("Cannot set to non-contiguous array")
        self._a[...] = arr
        if stream is not None:
            for memory in Pinned.of(arr):
                memory.copies += 1

    def view(self, dtype=None):
        return wrap(self._a.view() if dtype is None else self._a.view(dtype))

    def __repr__(self):
        return f"cupy{self._a!r}"


class ufunc:  # noqa: N801
    """CuPy's ufunc: no `where`, no `order`; scalars may stand among the arrays, host arrays may not."""

    def __init__(self, name: str, machine: "Machine"):
        self.name, self._f, self._machine = name, getattr(np, name), machine

    def __call__(self, *args, out=None, **kwargs):
        if self._machine.kernel_error:
            raise self._machine.kernel_error
        if wrong := set(kwargs) - {"dtype", "casting"}:
            raise TypeError(f"Wrong arguments {wrong} of cupy.{self.name}")
        inputs = args[: self._f.nin]
        if len(args) > self._f.nin and out is None:
            out = args[self._f.nin]
        for x in inputs:
            if not isinstance(x, ndarray) and not np.isscalar(x):
                raise TypeError(f"Unsupported type {type(x)}: cupy.{self.name} takes device arrays and scalars")
        if self.name == "matmul":
            refuse_cublas()
        plain = unwrap(inputs, self.name)
        if out is None:
            refuse_in_capture(f"cupy.{self.name} allocates its result")
            return wrap(self._f(*plain, **kwargs))
        into = unwrap(out, self.name)
        launch(lambda: self._f(*plain, out=into, **kwargs), self.name)
        return out

    def at(self, a, indices, b=None):
        if self.name not in ("add", "maximum", "minimum"):
            raise NotImplementedError(f"`cupy_{self.name}.at` is not supported yet")
        if a.dtype.char not in "iIfdLQ" + ("e" if self.name == "add" else ""):
            raise TypeError("scatter_add only supports int32, float16, float32, float64, uint32, uint64, as data type")
        plain = unwrap((a, indices, b), "at")
        launch(lambda: self._f.at(*plain), "at")

    def reduce(self, array, axis=0, dtype=None, out=None, keepdims=False):
        if self.name not in ("add", "multiply"):
            raise NotImplementedError(f"`cupy_{self.name}.reduce` is not supported yet")
        return (_method("sum") if self.name == "add" else _method("prod"))(array, axis, dtype, out, keepdims)


_SYNCHRONISE = ("nonzero", "tolist", "item", "flatnonzero", "argwhere", "unique", "compress", "asnumpy")


def _accumulate_as_cupy(kwargs: dict, a: np.ndarray) -> None:
    """CuPy adds up in the dtype of the input; NumPy takes that of `out`, which is wider where the result is."""
    if kwargs.get("out") is not None and kwargs.get("dtype") is None and a.dtype.kind == "f":
        kwargs["dtype"] = a.dtype


def _method(name: str):
    known = known_names()["ndarray"][name]
    names = known.split()

    def method(self, *args, **kwargs):
        check(f"ndarray.{name}", known, args, kwargs)
        if name in _SYNCHRONISE:
            waits(f"{name}()")
        if name in ("sum", "mean", "prod"):
            kwargs = dict(zip(names, args, strict=False)) | kwargs
            args = ()
            _accumulate_as_cupy(kwargs, self._a)
        plain, named, out = unwrap(args, name), unwrap(kwargs, name), kwargs.get("out")
        if out is not None or name in ("fill", "sort", "put"):
            launch(lambda: getattr(self._a, name)(*plain, **named), name)
            return out
        result = getattr(self._a, name)(*plain, **named)
        refuse_copy(name, result, self._a)
        return result if name in ("item", "tolist") else wrap(result)

    return method


def _function(name: str, known: str):
    """CuPy's function `name` by NumPy's of that name, arguments bound by CuPy's names."""
    numpy_function, names = getattr(np, name), known.split()
    try:
        parameters = inspect.signature(numpy_function).parameters
        by_name = all(p.kind is not p.POSITIONAL_ONLY for p in list(parameters.values())[1:])
        theirs = set(parameters) if by_name else None
    except ValueError:
        theirs = None

    def function(*args, **kwargs):
        check(name, known, args, kwargs)
        if name in _SYNCHRONISE:
            waits(f"cupy.{name}")
        given = dict(kwargs)
        if theirs and "*" not in known:
            given |= zip(names[1:], args[1:], strict=False)
            given = {key: value for key, value in given.items() if value is not None or key in theirs}
            args = args[:1]
        plain, named = unwrap(args, name), unwrap(given, name)
        if name in ("sum", "mean", "prod") and plain:
            _accumulate_as_cupy(named, plain[0])
        out = given.get("out")
        if name in ("matmul", "dot", "einsum", "inner", "outer", "tensordot", "vdot"):
            refuse_cublas()
        if out is not None or name in ("copyto", "put", "fill_diagonal"):
            launch(lambda: numpy_function(*plain, **named), name)
            return out
        result = numpy_function(*plain, **named)
        refuse_copy(name, result, *plain)
        return wrap(result)

    return function


def refuse_copy(name: str, result: Any, *inputs: Any) -> None:
    """While a stream captures, what is no view of an input has been allocated."""
    if _recording is not None and isinstance(result, np.ndarray | np.generic):
        shared = (isinstance(x, np.ndarray) and np.may_share_memory(result, x) for x in inputs)
        if not any(shared):
            refuse_in_capture(f"cupy.{name} allocates its result")


def refuse_cublas() -> None:
    if _recording is not None:
        raise NotImplementedError("calling cuBLAS API during stream capture is currently unsupported")


class CUDARuntimeError(RuntimeError):
    def __init__(self, name: str, text: str = ""):
        super().__init__(f"{name}: {text or name}")


class DynamicLibNotFoundError(RuntimeError):
    """What cuda.pathfinder raises."""


class OutOfMemoryError(MemoryError):
    pass


class Stream:
    """A CUDA stream, on which work is done at once, or written down while it captures."""

    null: "Stream"
    current: "Stream"
    ptr = 1 << 40

    def __init__(self, null=False, non_blocking=False):
        Stream.ptr += 1
        self.ptr, self.non_blocking = Stream.ptr, non_blocking
        self.capturing, self._outer = False, []

    def use(self):
        Stream.current = self
        return self

    def __enter__(self):
        self._outer.append(Stream.current)
        return self.use()

    def __exit__(self, *args):
        Stream.current = self._outer.pop()

    def synchronize(self):
        waits("synchronize()")

    def begin_capture(self, mode=None):
        global _recording
        assert self.non_blocking
        assert mode == THREAD_LOCAL, "an allocation during the capture would not be an error"
        assert _recording is None, "a stream captures already"
        self.capturing, _recording = True, []

    def end_capture(self):
        global _recording
        if not self.capturing:
            raise CUDARuntimeError("cudaErrorIllegalState")
        graph, self.capturing, _recording = Graph(_recording), False, None
        return graph


class Pinned:
    """Pinned memory. A copy from it to the device is over when an event has been waited for that was recorded later."""

    all: ClassVar[list["Pinned"]] = []

    def __init__(self, size):
        self.bytes, self.copies, self.over = np.empty(size, np.uint8), 0, 0
        self.all.append(self)

    @classmethod
    def of(cls, array: np.ndarray) -> list["Pinned"]:
        return [memory for memory in cls.all if np.may_share_memory(memory.bytes, array)]


class Event:
    def __init__(self, block=False, disable_timing=False, interprocess=False):
        self.before: list[tuple[Pinned, int]] = []

    def record(self, stream=None):
        self.before = [(memory, memory.copies) for memory in Pinned.all]

    def synchronize(self):
        waits("synchronize()")
        for memory, copies in self.before:
            memory.over = max(memory.over, copies)


Stream.current = Stream.null = Stream(null=True)
THREAD_LOCAL = 1


class Graph:
    """What a capture leaves: launches, with the arrays and numbers of then."""

    def __init__(self, launches: list):
        self.launches, self.uploaded = launches, False

    def upload(self, stream=None):
        refuse_in_capture("upload()")
        self.uploaded = True

    def launch(self, stream=None):
        refuse_in_capture("launch()")
        Graph.launched += 1
        for kernel in self.launches:
            kernel()

    launched = 0


class MemoryPool:
    """Only its address counts here: NumPy has memory of its own."""

    def malloc(self, size):
        raise AssertionError("nothing is allocated here")


@contextmanager
def using_allocator(allocator):
    yield


@dataclass
class Machine:
    """The hardware and the installation to play. An error that is set is raised where the real one would be."""

    devices: int = 1
    driver: int = 13000
    runtime: int = 13020
    free: int = 2**35
    count_error: Exception | None = None
    use_error: Exception | None = None  # of the devices in `broken`
    broken: tuple[int, ...] = tuple(range(16))
    library_error: Exception | None = None
    kernel_error: Exception | None = None
    memory_error: Exception | None = None
    lt_error: Exception | None = None
    tf32: bool = False
    current: int = 0
    lt: "fake_lt.Library | None" = None

    launch = staticmethod(launch)

    @staticmethod
    def stream() -> Stream:
        return Stream.current


class Lazy(ModuleType):
    """A module whose `cublas` is loaded when it is asked for, as cupy.cuda's is."""

    def __getattr__(self, name):
        if name == "cublas" and (make := vars(self).get("_load")):
            return make()
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")


def _product(dtype, machine: Machine):
    """cublas<t>gemmStridedBatched on raw addresses: C = alpha op(A) op(B) + beta C, columns first."""
    size = np.dtype(dtype).itemsize

    def matrices(at, shape, strides):
        length = sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) + 1
        flat = np.frombuffer((ctypes.c_byte * (length * size)).from_address(at), dtype)
        return np.lib.stride_tricks.as_strided(flat, shape, [s * size for s in strides])

    def gemm(*arguments):
        refuse_cublas()
        _gemm(*arguments)

    def _gemm(
        handle, transa, transb, m, n, k, alpha, a, lda, stride_a, b, ldb, stride_b, beta, c, ldc, stride_c, count
    ):
        if lda < (k if transa else m) or ldb < (n if transb else k) or ldc < m:
            raise RuntimeError("CUBLAS_STATUS_INVALID_VALUE")
        assert matrices(alpha, (1,), (1,))[0] == 1
        assert matrices(beta, (1,), (1,))[0] == 0
        left = matrices(b, (count, n, k), (stride_b, *((1, ldb) if transb else (ldb, 1))))  # op(B)'
        right = matrices(a, (count, k, m), (stride_a, *((1, lda) if transa else (lda, 1))))  # op(A)'
        if machine.tf32:
            left, right = ((x.view(np.uint32) & 0xFFFFE000).view(np.float32) for x in (left.copy(), right.copy()))
        np.matmul(left, right, out=matrices(c, (count, n, m), (stride_c, ldc, 1)))

    return gemm


def build(machine: Machine) -> ModuleType:
    """The module `cupy` on `machine`."""
    names = known_names()
    cupy, cuda = ModuleType("cupy"), Lazy("cupy.cuda")
    for name in names["ufuncs"]:
        if isinstance(getattr(np, name, None), np.ufunc):
            setattr(cupy, name, ufunc(name, machine))
    for name, known in names["functions"].items():
        if callable(getattr(np, name, None)):
            setattr(cupy, name, _function(name, known))
    for name in names["types"]:
        setattr(cupy, name, getattr(np, name))

    def from_host(obj, dtype=None, copy=True, order="K", **rest):
        check("array", names["functions"]["array"], (), rest)
        if not isinstance(obj, ndarray):
            waits("a copy from the host")
        return wrap(np.array(obj._a if isinstance(obj, ndarray) else obj, dtype, copy=True, order=order))

    def asarray(a, dtype=None, order=None, *, copy=None, blocking=False):
        if isinstance(a, ndarray) and dtype in (None, a.dtype) and not copy:
            return a
        return from_host(a, dtype, order=order or "K")

    def asnumpy(a, stream=None, order="C", out=None, *, blocking=True):
        return a.get(order=order) if isinstance(a, ndarray) else np.asarray(a)

    def zeros(shape, dtype=float, order="C"):
        refuse_in_capture("cupy.zeros allocates")
        if machine.memory_error:
            raise machine.memory_error
        return wrap(np.zeros(shape, dtype, order))

    class Device:
        def __init__(self, device=None):
            self.id = machine.current if device is None else device

        def use(self):
            if machine.use_error and self.id in machine.broken:
                raise machine.use_error
            machine.current = self.id

        def __enter__(self):
            self.outer = machine.current
            self.use()

        def __exit__(self, *args):
            machine.current = self.outer

        def synchronize(self):
            waits("synchronize()")

    def get_device_count():
        if machine.count_error:
            raise machine.count_error
        return machine.devices

    def get_device_properties(index):
        return {"name": b"Imaginary GPU", "totalGlobalMem": 80 * 2**30, "major": 9, "minor": 0}

    def load_cublas():
        if machine.library_error:
            raise machine.library_error
        return SimpleNamespace(
            sgemmStridedBatched=_product(np.float32, machine), dgemmStridedBatched=_product(np.float64, machine)
        )

    def take(a, indices, axis=None, out=None):
        if out is not None and out.dtype != a.dtype:
            raise TypeError("Output dtype mismatch")
        return _function("take", names["functions"]["take"])(a, indices, axis=axis, out=out)

    cuda.alloc_pinned_memory, cuda.Event = lambda size: Pinned(size).bytes, Event
    cuda.Stream, cuda.MemoryPool, cuda.using_allocator = Stream, MemoryPool, using_allocator
    cuda.Device, cuda._load, cuda.get_cublas_handle = Device, load_cublas, lambda: 1
    cuda.runtime = SimpleNamespace(
        getDeviceCount=get_device_count,
        getDeviceProperties=get_device_properties,
        driverGetVersion=lambda: machine.driver,
        runtimeGetVersion=lambda: machine.runtime,
        memGetInfo=lambda: (machine.free, 2**36),
        CUDARuntimeError=CUDARuntimeError,
        streamCaptureModeThreadLocal=THREAD_LOCAL,
    )
    cupy.__version__, cupy.ndarray, cupy.ufunc, cupy.cuda = names["cupy"], ndarray, ufunc, cuda
    cupy.array, cupy.asarray, cupy.asnumpy, cupy.zeros = from_host, asarray, asnumpy, zeros
    cupy.take = take
    cupy.get_default_memory_pool = lambda: SimpleNamespace(free_bytes=lambda: 0)

    def as_strided(x, shape=None, strides=None):
        return wrap(np.lib.stride_tricks.as_strided(x._a, shape, strides))

    cupy.lib = SimpleNamespace(stride_tricks=SimpleNamespace(as_strided=as_strided))
    for kind in (CUDARuntimeError, OutOfMemoryError):
        kind.__module__ = "cupy.cuda"
    return cupy


def install(monkeypatch, **machine) -> Machine:
    """Make the fake the module `cupy` for one test; returns the machine, whose faults can be changed later."""
    played = Machine(**machine)
    cupy = build(played)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setitem(sys.modules, "cupy.cuda", cupy.cuda)
    monkeypatch.setattr(lt, "load", lambda: fake_lt.Library(played))
    monkeypatch.setattr(Stream, "current", Stream.null)
    monkeypatch.setattr(Pinned, "all", [])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return played


def record() -> dict[str, Any]:
    """The public names of the real CuPy: functions and methods with their parameters, ufuncs, types."""
    import cupy

    def words(signature) -> str:
        stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
        return " ".join(stars.get(p.kind, "") + p.name for p in signature.parameters.values())

    functions, ufuncs, types = {}, [], []
    for name in sorted(dir(cupy)):
        thing = getattr(cupy, name)
        if name.startswith("_") or isinstance(thing, ModuleType) or not hasattr(np, name):
            continue
        if isinstance(thing, cupy.ufunc):
            ufuncs.append(name)
        elif thing is None or (isinstance(thing, int | float | type) and thing is not cupy.ndarray):
            types.append(name)
        elif callable(thing):
            try:
                functions[name] = words(inspect.signature(thing))
            except (TypeError, ValueError):
                functions[name] = "*args **kwargs"
    methods = {}
    for name in sorted(dir(cupy.ndarray)):
        head = (getattr(cupy.ndarray, name).__doc__ or "").split("\n")[0]
        if not name.startswith("_") and "(self" in head:  # Cython writes the signature there
            inner = head.split("(self", 1)[1].split(")")[0].strip(", ")
            methods[name] = " ".join(part.split("=")[0].split()[-1] for part in inner.split(",") if part.strip())
    return {"cupy": cupy.__version__, "functions": functions, "ufuncs": ufuncs, "types": types, "ndarray": methods}


def _finish() -> None:
    """Give the array class its operators and the methods that CuPy has."""
    binary = "add sub:subtract mul:multiply truediv:true_divide floordiv:floor_divide mod:remainder pow:power"
    binary += " and:bitwise_and or:bitwise_or xor:bitwise_xor lshift:left_shift rshift:right_shift matmul"
    healthy = Machine()
    for entry in binary.split():
        op, _, name = entry.partition(":")
        call = ufunc(name or op, healthy)
        setattr(ndarray, f"__{op}__", lambda self, other, call=call: call(self, other))
        setattr(ndarray, f"__r{op}__", lambda self, other, call=call: call(other, self))
        setattr(ndarray, f"__i{op}__", lambda self, other, call=call: call(self, other, out=self))
    compare = "lt:less le:less_equal gt:greater ge:greater_equal eq:equal ne:not_equal"
    for entry in compare.split():
        op, _, name = entry.partition(":")
        call = ufunc(name, healthy)
        setattr(ndarray, f"__{op}__", lambda self, other, call=call: call(self, other))
    for entry in ["neg:negative", "abs:absolute", "invert:invert", "pos:positive"]:
        op, _, name = entry.partition(":")
        call = ufunc(name, healthy)
        setattr(ndarray, f"__{op}__", lambda self, call=call: call(self))
    for op in (float, int, bool, complex):

        def convert(self, op=op):
            waits(f"{op.__name__}()")
            return op(self._a)

        setattr(ndarray, f"__{op.__name__}__", convert)
    for name in known_names()["ndarray"]:
        if hasattr(np.ndarray, name) and not hasattr(ndarray, name):
            setattr(ndarray, name, _method(name))


if __name__ == "__main__":
    NAMES.write_text(json.dumps(record(), indent=0, sort_keys=True) + "\n")
else:
    _finish()
