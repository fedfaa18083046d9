"""Kernels run on the host: their unchanged source, compiled by g++ against emulation.h."""

import ctypes
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from gpbackprop.backend.source import Kernel

COMPILER = shutil.which("g++")
HEADER = Path(__file__).with_name("emulation.h")


class Library:
    """Kernels in one shared library; `run(kernel)` runs one on the arrays that it names."""

    def __init__(self, kernels: Iterable[Kernel]):
        unlike = {kernel.source: kernel for kernel in kernels}
        text = "\n".join([f'#include "{HEADER}"', *(kernel.source + wrapper(kernel) for kernel in unlike.values())])
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "kernels.cpp")
            path.write_text(text, encoding="utf-8")
            built = path.with_suffix(".so")
            command = [COMPILER, "-std=c++17", "-O0", "-ffp-contract=off", "-Wall", "-Werror", "-Wno-unused"]
            command += ["-shared", "-fPIC", str(path), "-o", str(built)]
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr[:4000]
            self.library = ctypes.CDLL(str(built))

    def run(self, kernel: Kernel) -> None:
        places = (ctypes.c_void_p * len(kernel.addresses))(*kernel.addresses)
        getattr(self.library, f"run_{kernel.name}")(places, kernel.grid, kernel.block)


def wrapper(kernel: Kernel) -> str:
    """A function that runs a kernel with its arguments as a list of addresses."""
    values = ", ".join(f"({kind}*)p[{i}]" for i, kind in enumerate(kernel.types))
    return f"""
static void call_{kernel.name}(void* places) {{
  void** p = (void**)places;
  {kernel.name}({values});
}}
extern "C" void run_{kernel.name}(void** places, unsigned grid, unsigned block) {{
  emulate(grid, block, {"true" if "__sync" in kernel.source else "false"}, call_{kernel.name}, places);
}}
"""


def roots(arrays: Iterable[np.ndarray]) -> list[np.ndarray]:
    """The memory that arrays are views of."""
    found = {}
    for array in arrays:
        while isinstance(array.base, np.ndarray):
            array = array.base
        found[id(array)] = array
    return list(found.values())
