"""Kernels run on the host: their unchanged source, compiled by g++ against emulation.h."""

import ctypes
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from gpbackprop.backend import replay
from gpbackprop.backend.source import Kernel
from gpbackprop.backend.tape import Call

COMPILER = shutil.which("g++")
HEADER = Path(__file__).with_name("emulation.h")


def build(sources: Iterable[str]) -> ctypes.CDLL:
    """A library with a function run_NAME(addresses, grid, block) for each kernel NAME of the sources."""
    whole = "\n".join(sources)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernels.cpp")
        path.write_text(f'#include "{HEADER}"\n{whole}\n{wrappers(whole)}', encoding="utf-8")
        built = path.with_suffix(".so")
        command = [COMPILER, "-std=c++17", "-O0", "-ffp-contract=off", "-w"]
        command += ["-shared", "-fPIC", str(path), "-o", str(built)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[:4000]
        return ctypes.CDLL(str(built))


def wrappers(sources: str) -> str:
    """For each kernel a function that runs it with its arguments as a list of addresses."""
    found = []
    for name, arguments, text in re.findall(r"^(gpb_\w+)\(([^)]*)\) \{\n(.*?)^\}", sources, re.MULTILINE | re.DOTALL):
        kinds = [re.sub(r" __restrict__ p\d+", "", argument) for argument in arguments.split(", ")]
        values = ", ".join(f"({kind})p[{i}]" for i, kind in enumerate(kinds))
        barriers = "true" if "__sync" in text else "false"
        found.append(f"static void call_{name}(void* places) {{ void** p = (void**)places; {name}({values}); }}")
        call = f"emulate(grid, block, {barriers}, call_{name}, places);"
        found.append(f'extern "C" void run_{name}(void** places, unsigned grid, unsigned block) {{ {call} }}')
    return "\n".join(found)


class Library:
    """Kernels in one shared library; `run(kernel)` runs one on the arrays that it names."""

    def __init__(self, kernels: Iterable[Kernel]):
        self.library = build(dict.fromkeys(kernel.source for kernel in kernels))

    def run(self, kernel: Kernel) -> None:
        places = (ctypes.c_void_p * len(kernel.addresses))(*kernel.addresses)
        getattr(self.library, f"run_{kernel.name}")(places, kernel.grid, kernel.block)


def roots(arrays: Iterable[np.ndarray]) -> list[np.ndarray]:
    """The memory that arrays are views of."""
    found = {}
    for array in arrays:
        while isinstance(array.base, np.ndarray):
            array = array.base
        found[id(array)] = array
    return list(found.values())


class Module:
    """What cupy.RawModule is, on the host: `monkeypatch.setattr(cupy, "RawModule", Module, raising=False)`."""

    def __init__(self, code: str, options: tuple[str, ...] = ()):
        assert "--fmad=false" in options
        self.library = build([code])

    def get_function(self, name: str):
        run = getattr(self.library, f"run_{name}")

        def launch(grid: tuple[int], block: tuple[int], addresses: tuple[int, ...]) -> None:
            run((ctypes.c_void_p * len(addresses))(*addresses), *grid, *block)

        return launch


def by_numpy(calls):
    """The memory that calls touch, as it is, and what NumPy makes of it."""
    places = memory(calls)
    start = [place.copy() for place in places]
    for call in calls:
        make(call)
    expected = [place.copy() for place in places]
    restore(places, start)
    return places, expected


EXACT = {
    "add", "subtract", "multiply", "divide", "negative", "maximum", "minimum", "abs", "sign", "sqrt", "floor", "rint",
    "equal", "less", "less_equal", "greater", "greater_equal", "bitwise_xor", "right_shift", "copyto", "clip",
    "gather", "max", "min", "argmax",
}  # fmt: skip


def make(call):
    with np.errstate(all="ignore"):
        for step in replay.as_it_is(call):
            step()


def memory(calls):
    return roots(x for call in calls for x in (*call.inputs, call.out) if isinstance(x, np.ndarray))


def restore(places, values):
    for place, value in zip(places, values, strict=True):
        if place.flags.writeable:
            place[...] = value


def assert_agree(calls, call, found, expected):
    """The same bits; where sums or transcendental functions are involved, up to the rounding of the smallest floats."""
    about = f"{call.name} of {', '.join(call.name for call in calls)}"
    if {call.name for call in calls} <= EXACT or expected.dtype.kind != "f":
        assert np.array_equal(found, expected, equal_nan=expected.dtype.kind == "f"), about
        return
    arrays = [x for call in calls for x in (*call.inputs, call.out) if isinstance(x, np.ndarray)]
    tolerance = 1e-6 if any(x.dtype == np.float32 for x in arrays) else 1e-14
    scale = max(1.0, float(np.abs(expected[np.isfinite(expected)]).max(initial=0)))
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * scale, err_msg=about)


def prove(calls, items, run):
    """Each item that `run(item)` runs, and is not a call, gives what its calls give from the same memory; all items
    together give what all calls give."""
    places = memory(calls)
    start = [place.copy() for place in places]
    for call in calls:
        make(call)
    last = [call.out.copy() for call in calls if call.out is not None]
    restore(places, start)
    for item in items:
        if isinstance(item, Call):
            make(item)
            continue
        before = [place.copy() for place in places]
        for call in item.calls:
            make(call)
        expected = [call.out.copy() for call in item.calls]
        restore(places, before)
        run(item)
        for call, value in zip(item.calls, expected, strict=True):
            assert_agree(item.calls, call, call.out, value)
    for call, value in zip((call for call in calls if call.out is not None), last, strict=True):
        np.testing.assert_allclose(call.out, value, rtol=1e-3, atol=1e-5, err_msg=call.name)
