"""A stand-in for the library cuBLASLt: an object that reads the descriptors and multiplies with NumPy.

It holds its callers to what the real one holds them to: the width of each attribute, leading dimensions, the alignment
that was promised, bits of the workspace. What is bound is not computed until `cublasLtMatmul`, which queues one kernel.
"""

import ctypes

import numpy as np

INVALID, UNSUPPORTED = 7, 15  # cublasStatus_t
WIDTHS = {
    "MatmulDesc": {3: 4, 4: 4, 7: 4, 8: 8, 10: 8},
    "MatrixLayout": {5: 4, 6: 8},
    "MatmulPreference": {1: 8, 5: 4, 6: 4, 7: 4, 8: 4},
}
COMPUTE = {(68, 0): np.float32, (77, 0): np.float32, (75, 0): np.float32, (70, 1): np.float64}
MANTISSA = {68: 23, 77: 10, 75: 7, 70: 52}


class Library:
    """`offers(description)` says which epilogues there are algorithms for; `seen` lists what was multiplied."""

    def __init__(self, machine):
        self.machine, self.objects, self.seen = machine, {}, []
        self.offers = lambda epilogue, dtype: epilogue == 1 or dtype == np.float32
        machine.lt = self
        for kind in WIDTHS:
            setattr(self, f"cublasLt{kind}Create", self._creator(kind))
            setattr(self, f"cublasLt{kind}SetAttribute", self._setter(kind))
            setattr(self, f"cublasLt{kind}Destroy", self._destroy)

    def cublasLtCreate(self, handle):  # noqa: N802 (the library's names)
        if self.machine.lt_error:
            raise self.machine.lt_error
        handle._obj.value = 77
        return 0

    def cublasLtGetVersion(self):  # noqa: N802
        return 130104

    def cublasLtGetStatusName(self, status):  # noqa: N802
        return {INVALID: b"CUBLAS_STATUS_INVALID_VALUE"}.get(status, b"CUBLAS_STATUS_NOT_SUPPORTED")

    def _creator(self, kind):
        def create(made, *arguments):
            if kind == "MatmulDesc" and arguments not in COMPUTE:
                return INVALID
            made._obj.value = 1000 + len(self.objects)
            self.objects[made._obj.value] = {"kind": kind, "made": arguments}
            return 0

        return create

    def _setter(self, kind):
        def put(which, attribute, value, size):
            item = self.objects[which.value]
            if item["kind"] != kind or WIDTHS[kind].get(attribute) != size:
                return INVALID
            item[attribute] = value._obj.value
            return 0

        return put

    def _destroy(self, which):
        self.objects[which.value] = None
        return 0

    def cublasLtMatmulAlgoGetHeuristic(self, handle, desc, a, b, c, d, preference, wanted, results, count):  # noqa: N802
        assert handle.value == 77
        desc, preference = self.objects[desc.value], self.objects[preference.value]
        assert preference[1] == 32 * 2**20
        found = self.offers(desc.get(7, 1), COMPUTE[desc["made"]])
        count._obj.value = int(found)
        results._obj.data[0] = 4711
        results._obj.data[1:5] = [preference[at] for at in (5, 6, 7, 8)]
        return 0 if found else UNSUPPORTED

    def cublasLtMatmul(  # noqa: N802
        self, handle, desc, alpha, a, a_layout, b, b_layout, beta, c, c_layout, d, d_layout, algorithm, workspace, size,
        stream,
    ):  # fmt: skip
        desc, algorithm = self.objects[desc.value], algorithm._obj.data
        dtype, (turn_a, turn_b) = COMPUTE[desc["made"]], (desc[3], desc[4])
        assert (alpha._obj.value, beta._obj.value) == (1, 0)
        assert algorithm[0] == 4711
        assert workspace
        assert size == 32 * 2**20
        assert stream == self.machine.stream().ptr, "a product was bound to another stream than the current one"
        assert (c, c_layout.value) == (d, d_layout.value)
        for address, promised in zip((a, b, c, d), algorithm[1:5], strict=True):
            assert address % promised == 0
        left, right, out = (
            self._columns_first(address, layout, dtype)
            for address, layout in ((a, a_layout), (b, b_layout), (d, d_layout))
        )
        left, right = left.swapaxes(1, 2) if turn_a else left, right.swapaxes(1, 2) if turn_b else right
        if left.shape[1:] != (out.shape[1], right.shape[1]) or right.shape[2] != out.shape[2]:
            return INVALID
        row = self._row(desc, out, dtype)
        self.seen.append((desc["made"][0], desc.get(7, 1), out.shape))
        self.machine.launch(
            lambda: self._multiply(left, right, out, desc[7], row, MANTISSA[desc["made"][0]]), "cublasLtMatmul"
        )
        return 0

    @staticmethod
    def _multiply(left, right, out, epilogue, row, bits):
        if epilogue == 256:
            np.matmul(np.ones((1, 1, left.shape[2]), left.dtype), left.swapaxes(1, 2), out=row.swapaxes(1, 2))
        if bits not in (23, 52):
            left, right = (_rounded(x, bits) for x in (left, right))
        # The same product that NumPy is asked for elsewhere: rows first.
        np.matmul(right.swapaxes(1, 2), left.swapaxes(1, 2), out=out.swapaxes(1, 2))
        if epilogue == 4:
            np.add(out, row, out=out)

    def _columns_first(self, address, layout, dtype):
        """The matrices (members, rows, columns) of a layout."""
        item, size = self.objects[layout.value], np.dtype(dtype).itemsize
        kind, rows, columns, lead = item["made"]
        assert kind == (0 if dtype == np.float32 else 1)
        assert lead >= rows, "a leading dimension is too small"
        return _at(address, (item[5], rows, columns), (item[6] * size, size, lead * size), dtype)

    def _row(self, desc, out, dtype):
        if desc.setdefault(7, 1) == 1:
            return None
        assert desc[7] in (4, 256)
        size = np.dtype(dtype).itemsize
        return _at(desc[8], (out.shape[0], out.shape[1], 1), (desc[10] * size, size, size), dtype)


def _at(address, shape, strides, dtype):
    length = sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) + np.dtype(dtype).itemsize
    memory = (ctypes.c_byte * length).from_address(address)
    return np.ndarray(shape, dtype, memory, strides=strides)


def _rounded(x, bits):
    """float32 with so many bits behind the point."""
    return ((x.copy().view(np.uint32) + (1 << (22 - bits))) & np.uint32(-(1 << (23 - bits)) & 0xFFFFFFFF)).view(
        np.float32
    )
