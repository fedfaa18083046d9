"""The compiler from a tape to CUDA kernels: each kernel, run on the host, against the calls that it stands for."""

import sys

import fake_cupy
import numpy as np
import nvrtc
import pytest
import tapes
from emulation import COMPILER, Library, Module, by_numpy, make, prove
from hypothesis import given, settings
from hypothesis import strategies as st

import gpbackprop as gp
from gpbackprop.backend import kernels, select
from gpbackprop.backend.fuse import fuse
from gpbackprop.backend.source import Kernel
from gpbackprop.backend.tape import Call

needs_compiler = pytest.mark.skipif(COMPILER is None, reason="there is no g++, which runs kernels on the host")

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
    prove(*fused[name], library.run)


# The device.


@needs_compiler
def test_a_training_run_by_kernels_on_a_device_is_that_of_numpy(monkeypatch):
    fake_cupy.install(monkeypatch)
    monkeypatch.setattr(sys.modules["cupy"], "RawModule", Module, raising=False)
    kernels._compiled.clear()
    runs = {}
    for device in ("cpu", "cuda"):
        model = gp.Dense(6, activation="relu"), gp.Dropout(0.2), gp.Dense(3)
        run = runs[device] = tapes.trainer(*model, device=select(device), seed=(0, 1), optimizer=gp.Adam(0.01))
        calls = tapes.whole_step(run)
        steps = kernels.launchers(calls, run.backend.module)
        assert len(steps) < len(calls) / 3 or device == "cpu"
        for _ in range(3):
            for step in steps:
                step()
    here, there = (runs[device].network.w for device in ("cpu", "cuda"))
    np.testing.assert_allclose(runs["cuda"].backend.host(there), here, rtol=1e-5, atol=1e-7)


def test_without_a_compiler_of_cupy_the_calls_stay_as_they_are():
    calls = BATTERY["layer dense f4"]()
    assert len(kernels.launchers(calls, np)) == len(calls)


# What is never fused.


def test_a_call_that_reads_other_elements_than_a_kernel_writes_waits_for_the_next_one():
    a, b, c = (np.arange(6.0) for _ in range(3))
    calls = [
        Call("add", np.add, (a, 1), b),
        Call("multiply", np.multiply, (b[::-1], 2), c),  # thread i would read what thread 5 - i writes
    ]
    assert len(fuse(calls, np.empty)) == 2
    calls[1] = Call("multiply", np.multiply, (b, 2), c)
    assert len(fuse(calls, np.empty)) == 1


def test_a_call_on_overlapping_views_of_one_array_stays_as_it_is():
    a = np.arange(6.0)
    call = Call("add", np.add, (a[1:], 1), a[:-1])
    assert fuse([call], np.empty) == [call]


def test_views_that_interleave_without_meeting_are_fused():
    a = np.arange(12.0).reshape(2, 3, 2)
    calls = [Call("add", np.add, (a[:, i], 1), a[:, i]) for i in range(3)]
    assert len(fuse(calls, np.empty)) == 1


def test_what_nobody_knows_keeps_its_place_among_kernels():
    a, b = np.zeros(4), np.zeros(4)
    python = Call("python", lambda: None, (), None, verb=True)
    calls = [Call("add", np.add, (a, 1), a), python, Call("add", np.add, (b, 1), b)]
    items = fuse(calls, np.empty)
    assert [isinstance(item, Kernel) for item in items] == [True, False, True]
    assert items[1] is python


def test_a_call_moves_before_a_product_that_it_has_nothing_to_do_with_and_not_before_others():
    a, b, x, y = np.zeros(4), np.zeros(4), np.zeros((1, 2, 2)), np.zeros((1, 2, 2))
    product = Call("gemm", np.matmul, (x, x), y, verb=True)
    first, free, bound = (Call("add", np.add, (place, 1), place) for place in (a, b, x.reshape(-1)))
    assert [isinstance(item, Kernel) for item in fuse([first, product, free], np.empty)] == [True, False]
    assert [isinstance(item, Kernel) for item in fuse([first, product, bound], np.empty)] == [False, True]
    both = Call("add", np.add, (y.reshape(-1), a), a)
    assert [isinstance(item, Kernel) for item in fuse([bound, product, both], np.empty)] == [True, False, True]


@pytest.mark.parametrize(
    "call",
    [
        Call("add", np.add, (np.ones(3), 1), np.zeros(3), {"where": np.array([True, False, True])}),
        Call("sum", np.sum, (np.ones((2, 3)),), np.zeros(2), {"axis": 1, "initial": 2.0}),
        Call("add", np.add, (np.ones(3, "f2"), 1), np.zeros(3, "f2")),
        Call("power", np.power, (np.ones(3, "i8"), 2), np.zeros(3, "i8")),
        Call("right_shift", np.right_shift, (np.ones(3, "u4"), 40), np.zeros(3, "u4")),
        Call("cumsum", np.cumsum, (np.ones(3),), np.zeros(3)),
        Call("add", np.add, (np.ones(0), 1), np.zeros(0)),
    ],
    ids=lambda call: f"{call.name} of {call.out.dtype}",
)
def test_a_call_of_a_kind_that_no_kernel_knows_stays_as_it_is(call):
    assert fuse([call], np.empty) == [call]


def test_equal_kernels_have_one_text_whatever_they_work_on():
    calls = [Call("exp", np.exp, (np.ones((2, 3)),), np.zeros((2, 3))) for _ in range(2)]
    assert len({fuse([call], np.empty)[0].source for call in calls}) == 1


@needs_compiler
@pytest.mark.parametrize(
    ("name", "x", "y", "dtype", "expected"),
    [
        ("add", np.array([200], "u1"), np.array([100], "u1"), "f4", 44),  # in 8 bits, not in those of C++'s int
        ("add", np.array([200], "u1"), 100, "f4", 44),
        ("add", np.array([True]), np.array([True]), "f4", 1),
        ("multiply", np.array([2**31], "u4"), 3, "f8", 2**31),
        ("subtract", np.array([2**24 + 2], "i8"), np.array([1], "f4"), "f8", 2**24 + 1),  # NumPy computes in float64
        ("multiply", np.array([1 / 3], "f4"), 0.1, "f8", np.float32(1 / 3) * np.float32(0.1)),
        ("divide", np.array([7], "i8"), 2, "f4", 3.5),
        ("maximum", np.array([np.nan], "f4"), 0, "f4", np.nan),
        ("sign", np.array([-np.inf]), None, "f8", -1),
        ("copyto", np.array([-2.7]), None, "i8", -2),
        ("clip", np.array([300.0]), (0, 255), "u1", 255),
        ("add", np.array([1.0]), float("inf"), "f8", np.inf),
    ],
)
def test_numbers_are_computed_in_the_dtypes_of_numpy(name, x, y, dtype, expected):
    more = () if y is None else y if isinstance(y, tuple) else (y,)
    out = np.zeros(1, dtype)
    call = Call(name, getattr(np, name), (x, *more), out, {"casting": "unsafe"} if name != "clip" else {})
    for item in fuse([call], np.empty):
        if isinstance(item, Kernel):
            Library([item]).run(item)
        else:
            make(item)
    assert np.array_equal(out, np.array([expected], dtype), equal_nan=True)


# Long rows.


@needs_compiler
@pytest.mark.parametrize("name", ["sum", "max", "mean"])
@pytest.mark.parametrize(("shape", "axis"), [((2, 6000), 1), ((1, 10_000), 1), ((5000, 3), 0), ((2, 8192, 2), 1)])
def test_a_reduction_of_long_rows_is_done_in_parts(name, shape, axis):
    x = np.random.default_rng(0).normal(size=shape)
    out = np.zeros(np.delete(shape, axis))
    square = np.zeros(shape)
    calls = [
        Call("multiply", np.multiply, (x, x), square),
        Call(name, getattr(np, name), (square,), out, {"axis": axis}),
        Call("add", np.add, (out, 1.0), out),
    ]
    items = fuse(calls, np.empty)
    assert [item.name.rpartition("_")[0] for item in items] == [f"gpb_multiply_{name}", f"gpb_{name}_add"]
    library = Library(items)
    for item in items:
        library.run(item)
    np.testing.assert_allclose(out, getattr(x * x, name)(axis=axis) + 1, rtol=1e-13)


@needs_compiler
@pytest.mark.parametrize(("shape", "axis"), [((3, 700), 1), ((2, 50, 40), 1), ((5, 4, 3, 70), (1, 3)), ((300,), 0)])
def test_rows_that_a_team_walks_over_in_steps_give_what_their_calls_give(shape, axis):
    """A softmax with its loss, where a value of the row is needed before the elements go on."""
    rng = np.random.default_rng(0)
    x, t = rng.normal(size=shape), rng.uniform(size=shape)
    z, p, weighed = (np.zeros(shape) for _ in range(3))
    row = [np.zeros_like(x.max(axis=axis, keepdims=True)) for _ in range(3)]
    axes = {"axis": axis, "keepdims": True}
    calls = [
        Call("max", np.max, (x,), row[0], axes),
        Call("subtract", np.subtract, (x, row[0]), z),
        Call("exp", np.exp, (z,), p),
        Call("sum", np.sum, (p,), row[0], axes),
        Call("divide", np.divide, (p, row[0]), p),
        Call("log", np.log, (row[0],), row[1]),
        Call("multiply", np.multiply, (z, t), weighed),
        Call("sum", np.sum, (weighed,), row[2], axes),
        Call("subtract", np.subtract, (row[1], row[2]), row[2]),
        Call("multiply", np.multiply, (p, row[2]), z),
    ]
    items = fuse(calls, np.empty)
    assert len(items) == 1
    assert "for (int i = live" in items[0].source
    prove(calls, items, Library(items).run)


@needs_compiler
def test_of_equal_maxima_argmax_takes_the_first_and_not_a_number_before_all():
    x = np.zeros((4, 350), "f4")
    x[0, [7, 300]], x[1, [3, 9]], x[2] = 2, (5, np.nan), -np.inf
    out = np.zeros(4, np.int64)
    (kernel,) = fuse([Call("argmax", np.argmax, (x,), out, {"axis": -1})], np.empty)
    Library([kernel]).run(kernel)
    assert out.tolist() == np.argmax(x, axis=-1).tolist() == [7, 9, 0, 0]


# NVIDIA's compiler.


@pytest.mark.parametrize("architecture", nvrtc.ARCHITECTURES)
def test_kernels_compile_for_every_architecture_without_spilling_registers(architecture, fused):
    try:
        nvrtc.load()
    except OSError as error:
        pytest.skip(str(error))
    names = ["rows of a population", "layer lstm f4", "layer softmax f8", "optimizer adamw", "loss huber classes"]
    items = [item for name in names for item in fused[name][1] if isinstance(item, Kernel)]
    code, log = nvrtc.compile("\n".join(dict.fromkeys(item.source for item in items)), architecture)
    use = nvrtc.use(log)
    assert len(code) > 1000
    assert set(use) == {item.name for item in items}
    assert {name: spilled for name, (_, spilled) in use.items() if spilled} == {}


# Any tape.


@needs_compiler
@settings(max_examples=12)
@given(st.lists(tapes.of_calls(), min_size=1, max_size=8))
def test_any_tape_of_calls_gives_the_numbers_of_numpy(several):
    fused = [fuse(calls, np.empty) for calls in several]
    library = Library(item for items in fused for item in items if isinstance(item, Kernel))
    for calls, items in zip(several, fused, strict=True):
        places, expected = by_numpy(calls)
        for item in items:
            library.run(item) if isinstance(item, Kernel) else make(item)
        for place, value in zip(places, expected, strict=True):
            assert np.array_equal(place, value, equal_nan=place.dtype.kind == "f")
