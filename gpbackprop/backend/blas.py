"""How BLAS sees matrices, and the OpenBLAS that NumPy has brought along."""

import ctypes
import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np


def layout(x: Any, members: int) -> tuple[int, int, int] | None:
    """How BLAS reads the matrices x[k]: (1 if transposed, leading dimension, elements from k to k+1), or None."""
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


class OpenBLAS:
    """A library with the names that its builders gave its functions: scipy_openblas_get_corename64_, say."""

    def __init__(self, library: ctypes.CDLL, lead: str, end: str):
        self.library, self.lead, self.end = library, lead, end
        self.bits = 64 if end else 32  # of a size

    @property
    def kernels(self) -> str:
        """The processor that its kernels were written for."""
        name = self.function("openblas_get_corename")
        name.restype = ctypes.c_char_p
        return name().decode()

    @property
    def threads(self) -> int:
        """Those that a product may use."""
        return int(self.function("openblas_get_num_threads")())

    def function(self, name: str) -> Any:
        """The function of that name. Raises AttributeError where there is none."""
        return getattr(self.library, f"{self.lead}{name}{self.end}")

    def address(self, name: str) -> int:
        """Where that function is; 0 where there is none."""
        try:
            return ctypes.cast(self.function(name), ctypes.c_void_p).value or 0
        except AttributeError:
            return 0


@cache
def openblas() -> OpenBLAS | None:
    """The one that NumPy has loaded; None where it multiplies by another BLAS."""
    for path in loaded():
        try:
            library = ctypes.CDLL(path)
        except OSError:
            continue
        for lead in ("scipy_", ""):
            for end in ("64_", "_64", ""):
                if hasattr(library, f"{lead}openblas_get_corename{end}"):
                    return OpenBLAS(library, lead, end)
    return None


def loaded() -> list[str]:
    """The files of OpenBLAS in this process; where the system does not tell, those that came with NumPy."""
    try:
        maps = Path("/proc/self/maps").read_text()
        return sorted(set(re.findall(r"/\S*openblas\S*", maps)))
    except OSError:
        package = Path(np.__file__).parent
        folders = (package / ".dylibs", package.parent / "numpy.libs")
        return [str(path) for folder in folders for path in sorted(folder.glob("*openblas*"))]
