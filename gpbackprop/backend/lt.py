"""Matrix products by cuBLASLt, called through ctypes: what CuPy does not let into a CUDA graph.

A product is bound once, to its operands, its algorithm and its stream; a call of it then queues one kernel and does
nothing else, so that it can be captured. The algorithm is the first that the library's heuristic offers, which is the
same for the same operands on the same device: so are the bits, also in a run that goes on tomorrow.
"""

import ctypes as c
import weakref
from typing import Any

import numpy as np

from gpbackprop.backend.blas import layout
from gpbackprop.backend.numpy import Array

WORKSPACE = 32 * 2**20  # bytes for what an algorithm needs beside its operands, as much as cuBLAS has on a large device

# What products of float32 may round their operands to; sums are float32 throughout. From cublas_api.h.
COMPUTE = {"float32": 68, "tf32": 77, "bfloat16": 75}
FLOAT32, FLOAT64 = 0, 1  # cudaDataType
COMPUTE_FLOAT64 = 70
# From cublasLt.h: attributes of a product, of a matrix, and of the search for an algorithm.
TRANSPOSE_A, TRANSPOSE_B, EPILOGUE, BIAS, BIAS_STEP = 3, 4, 7, 8, 10
MEMBERS, STEP = 5, 6
MOST_WORKSPACE, ALIGNMENT = 1, (5, 6, 7, 8)
# Epilogues: nothing, a bias added to the sums before they are written, the sum of the rows of the second factor.
NOTHING, ADD_BIAS, ADD_ROWS = 1, 4, 256


class LtError(RuntimeError):
    """cuBLASLt refused something; the message has its status."""


class Algorithm(c.Structure):
    """cublasLtMatmulHeuristicResult_t, which begins with the algorithm itself."""

    _fields_ = (
        ("data", c.c_uint64 * 8), ("workspace", c.c_size_t), ("status", c.c_int), ("waves", c.c_float),
        ("reserved", c.c_int * 4),
    )  # fmt: skip


def load() -> Any:
    """The library that CuPy came with. Raises what the loader raises where there is none."""
    from cuda.pathfinder import load_nvidia_dynamic_lib

    library = c.CDLL(load_nvidia_dynamic_lib("cublasLt").abs_path)
    handle, number, size = c.c_void_p, c.c_int, c.c_size_t
    for name, arguments in {
        "cublasLtCreate": [handle],
        "cublasLtMatmulDescCreate": [handle, number, number],
        "cublasLtMatmulDescSetAttribute": [handle, number, handle, size],
        "cublasLtMatmulDescDestroy": [handle],
        "cublasLtMatrixLayoutCreate": [handle, number, c.c_uint64, c.c_uint64, c.c_int64],
        "cublasLtMatrixLayoutSetAttribute": [handle, number, handle, size],
        "cublasLtMatrixLayoutDestroy": [handle],
        "cublasLtMatmulPreferenceCreate": [handle],
        "cublasLtMatmulPreferenceSetAttribute": [handle, number, handle, size],
        "cublasLtMatmulPreferenceDestroy": [handle],
        "cublasLtMatmulAlgoGetHeuristic": [handle] * 7 + [number, handle, handle],
        "cublasLtMatmul": [handle] * 14 + [size, handle],
    }.items():
        getattr(library, name).argtypes, getattr(library, name).restype = arguments, number
    library.cublasLtGetVersion.restype = size
    library.cublasLtGetStatusName.argtypes = [number]
    library.cublasLtGetStatusName.restype = c.c_char_p
    return library


class Lt:
    """cuBLASLt on one stream, with a workspace of its own; `stream` and `workspace` are addresses.

    Raises LtError, or what the loader raises, where there is no library that works.
    """

    def __init__(self, stream: int, workspace: int):
        self.library, self.stream, self.workspace = load(), stream, workspace
        self.epilogues = [NOTHING, ADD_BIAS, ADD_ROWS]  # those that may be used
        number = self.library.cublasLtGetVersion()
        self.version = f"{number // 10000}.{number // 100 % 100}.{number % 100}"
        self.handle = c.c_void_p()
        self.check(self.library.cublasLtCreate(c.byref(self.handle)))

    def check(self, status: int) -> None:
        if status:
            raise LtError(f"cuBLASLt: {self.library.cublasLtGetStatusName(status).decode()}")

    def product(
        self, precision: str, a: Array, b: Array, out: Array, epilogue: int = NOTHING, row: Array = None
    ) -> "Product | None":
        """out[k,m,n] = sum_j a[k,m,j] b[k,j,n] as a call; None where the library has no algorithm.

        ADD_BIAS  out[k,m,n] = sum_j a[k,m,j] b[k,j,n] + row[k,0,n]
        ADD_ROWS  row[k,0,n] = sum_j b[k,j,n] besides

        `a`, `b`, `out` may be transposed views with rows and members at any distance.
        """
        k = out.shape[0]
        left, right, result = layout(a, k), layout(b, k), layout(out, k)
        alike = a.dtype == b.dtype == out.dtype and out.dtype in (np.float32, np.float64)
        if not (left and right and result and alike and a.size and b.size and epilogue in self.epilogues):
            return None
        if result[0]:  # out' = b' a', where ' exchanges rows and columns
            turned = (x.swapaxes(-1, -2) for x in (b, a, out))
            return self.product(precision, *turned) if epilogue == NOTHING else None
        product = Product(self, (a, left), (b, right), (out, result), precision, epilogue, row)
        return product if product.found else None


def wrong(lt: Lt, xp: Any) -> dict[int, str]:
    """The epilogues whose results are not those of the host, with what happened, seen from a small product."""
    a, row = 1 + np.arange(12, dtype=np.float32).reshape(1, 3, 4) * np.float32(2**-20), np.ones((1, 1, 4), np.float32)
    found = {}
    for epilogue in lt.epilogues:
        left, right, out, given = (xp.array(x) for x in (a, np.eye(4, dtype=np.float32)[None], a * 0, row * 2))
        try:
            product = lt.product("float32", left, right, out, epilogue, given)
            if product is None:
                continue
            product()
            sums = a + 2 if epilogue == ADD_BIAS else a
            rows = row if epilogue == ADD_ROWS else row * 2
            if not (np.array_equal(xp.asnumpy(out), sums) and np.array_equal(xp.asnumpy(given), rows)):
                found[epilogue] = "gives wrong results; look for NVIDIA_TF32_OVERRIDE in the environment"
        except LtError as error:
            found[epilogue] = str(error)
    return found


class Product:
    """One product, bound. Whatever it is called with, its operands are those that it was made of.

    cuBLASLt counts columns first: what it takes for the transpose of a row-major matrix is that matrix. So it is asked
    for out' = b' a'; its first operand is b, its rows are our columns, and its bias with an entry for each row is ours
    with one for each column.
    """

    def __init__(self, lt: Lt, left: tuple, right: tuple, result: tuple, precision: str, epilogue: int, row: Array):
        self.lt, library = lt, lt.library
        (a, (a_turned, *a_places)), (b, (b_turned, *b_places)), (out, (_, *places)) = left, right, result
        (k, m, n), j = out.shape, a.shape[2]
        self.operands = a, b, out, row  # a graph keeps none of them alive
        double = out.dtype == np.float64
        scale, number = (FLOAT64, c.c_double) if double else (FLOAT32, c.c_float)
        self.one, self.zero = number(1), number(0)
        self.description = self._made("MatmulDesc", COMPUTE_FLOAT64 if double else COMPUTE[precision], scale)
        self._set("MatmulDesc", self.description, TRANSPOSE_A, c.c_int32(b_turned))
        self._set("MatmulDesc", self.description, TRANSPOSE_B, c.c_int32(a_turned))
        if epilogue != NOTHING:
            self._set("MatmulDesc", self.description, EPILOGUE, c.c_uint32(epilogue))
            self._set("MatmulDesc", self.description, BIAS, c.c_void_p(row.data.ptr))
            step = row.strides[0] // row.itemsize if len(row) > 1 else 0
            self._set("MatmulDesc", self.description, BIAS_STEP, c.c_int64(step))
        self.b = self._matrix(scale, (j, n) if b_turned else (n, j), b_places, k)
        self.a = self._matrix(scale, (m, j) if a_turned else (j, m), a_places, k)
        self.out = self._matrix(scale, (n, m), places, k)
        self.algorithm, count = Algorithm(), c.c_int(0)
        preference = self._made("MatmulPreference")
        self._set("MatmulPreference", preference, MOST_WORKSPACE, c.c_uint64(WORKSPACE))
        for attribute, x in zip(ALIGNMENT, (b, a, out, out), strict=True):
            self._set("MatmulPreference", preference, attribute, c.c_uint32(alignment(x)))
        status = library.cublasLtMatmulAlgoGetHeuristic(
            lt.handle, self.description, self.b, self.a, self.out, self.out, preference,
            1, c.byref(self.algorithm), c.byref(count),
        )  # fmt: skip
        self.found = status == 0 and count.value == 1 and self.algorithm.status == 0

    def _made(self, kind: str, *arguments: Any) -> c.c_void_p:
        """A new object of the library, which goes when this product goes."""
        made, library = c.c_void_p(), self.lt.library
        self.lt.check(getattr(library, f"cublasLt{kind}Create")(c.byref(made), *arguments))
        weakref.finalize(self, getattr(library, f"cublasLt{kind}Destroy"), made)
        return made

    def _matrix(self, dtype: int, shape: tuple[int, int], places: list[int], members: int) -> c.c_void_p:
        """Matrices of a shape, columns first; `places` are the elements between columns, and between members."""
        lead, step = places
        made = self._made("MatrixLayout", dtype, *shape, lead)
        self._set("MatrixLayout", made, MEMBERS, c.c_int32(members))
        self._set("MatrixLayout", made, STEP, c.c_int64(step))
        return made

    def _set(self, kind: str, which: c.c_void_p, attribute: int, value: Any) -> None:
        put = getattr(self.lt.library, f"cublasLt{kind}SetAttribute")
        self.lt.check(put(which, attribute, c.byref(value), c.sizeof(value)))

    def __call__(self, *_: Any) -> None:
        a, b, out, _ = self.operands
        self.lt.check(
            self.lt.library.cublasLtMatmul(
                self.lt.handle, self.description, c.byref(self.one), b.data.ptr, self.b, a.data.ptr, self.a,
                c.byref(self.zero), out.data.ptr, self.out, out.data.ptr, self.out, c.byref(self.algorithm),
                self.lt.workspace, WORKSPACE, self.lt.stream,
            )
        )  # fmt: skip


def alignment(x: Array) -> int:
    """The largest power of two, up to 256, that divides the addresses of all matrices x[k], in bytes."""
    addresses = x.data.ptr | (x.strides[0] if len(x) > 1 else 0) | 256
    return addresses & -addresses
