"""The compiler from a tape to CUDA kernels: each kernel, run on the host, against the calls that it stands for."""

import numpy as np
import pytest
import tapes
from emulation import COMPILER, Library, roots

from gpbackprop.backend import replay
from gpbackprop.backend.fuse import fuse
from gpbackprop.backend.source import Kernel

needs_compiler = pytest.mark.skipif(COMPILER is None, reason="there is no g++, which runs kernels on the host")

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


def assert_agree(kernel, call, found, expected):
    """The same bits; where sums or transcendental functions are involved, up to the rounding of the kernel's floats."""
    about = f"{kernel.name}: {call.name}"
    if {call.name for call in kernel.calls} <= EXACT or expected.dtype.kind != "f":
        assert np.array_equal(found, expected, equal_nan=expected.dtype.kind == "f"), about
        return
    tolerance = 1e-6 if "float" in kernel.types else 1e-14
    scale = max(1.0, float(np.abs(expected[np.isfinite(expected)]).max(initial=0)))
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * scale, err_msg=about)


def prove(calls, items, library):
    """Each kernel gives what its calls give, from the same memory; all items together give what all calls give."""
    places = memory(calls)
    start = [place.copy() for place in places]
    for call in calls:
        make(call)
    last = [call.out.copy() for call in calls if call.out is not None]
    restore(places, start)
    for item in items:
        if not isinstance(item, Kernel):
            make(item)
            continue
        before = [place.copy() for place in places]
        for call in item.calls:
            make(call)
        expected = [call.out.copy() for call in item.calls]
        restore(places, before)
        library.run(item)
        for call, value in zip(item.calls, expected, strict=True):
            assert_agree(item, call, call.out, value)
    for call, value in zip((call for call in calls if call.out is not None), last, strict=True):
        np.testing.assert_allclose(call.out, value, rtol=1e-3, atol=1e-5, err_msg=call.name)


BATTERY = tapes.battery()


@pytest.fixture(scope="module")
def fused():
    """The tape of every case with its items."""
    found = {}
    for name, tape in BATTERY.items():
        calls = tape()
        found[name] = calls, fuse(calls, np.empty)
    return found


@pytest.fixture(scope="module")
def library(fused):
    return Library(item for _, items in fused.values() for item in items if isinstance(item, Kernel))


@needs_compiler
@pytest.mark.parametrize("name", BATTERY)
def test_kernels_give_what_their_calls_give(name, fused, library):
    prove(*fused[name], library)
