"""Steps as machine code: each loop and each product against the calls that it stands for."""

import gc
import os
import subprocess
import sys
import threading
import time
import tracemalloc
from pathlib import Path

import commands
import numpy as np
import pytest
import tapes
from emulation import by_numpy, make, prove
from hypothesis import given, settings
from hypothesis import strategies as st

import gpbackprop as gp
from gpbackprop.backend import Backend, numpy, parallel
from gpbackprop.backend.fuse import groups
from gpbackprop.backend.tape import Call
from gpbackprop.errors import ConfigError
from gpbackprop.numerics import numerics

pytest.importorskip("llvmlite", reason='llvmlite is not installed: pip install "gpbackprop[compile]"')

from gpbackprop.backend import native
from gpbackprop.backend.native import borrowed, engine, loops, packed, products, team, tiles

BATTERY = tapes.battery()


def run(item):
    native.assembled([item])()


@pytest.mark.parametrize("name", BATTERY)
def test_loops_give_what_their_calls_give(name):
    calls = BATTERY[name]()
    prove(calls, groups(calls, np.empty), run)


@settings(max_examples=60)
@given(tapes.of_calls())
def test_any_tape_of_calls_gives_the_numbers_of_numpy(calls):
    places, expected = by_numpy(calls)
    with np.errstate(all="ignore"):
        native.compile(calls)()
    for place, value in zip(places, expected, strict=True):
        assert np.array_equal(place, value, equal_nan=place.dtype.kind == "f")


# Functions.

NUMBERS = np.concatenate([
    np.linspace(-110, 110, 20_001), np.linspace(-1, 1, 20_001), np.logspace(-45, 38, 20_001),
    -np.logspace(-45, 38, 20_001), [0.0, -0.0, np.inf, -np.inf, np.nan],
]).astype(np.float32)  # fmt: skip


@pytest.mark.parametrize("name", ["exp", "expm1", "log", "log1p", "tanh", "exp2", "log2", "sin", "cos", "sqrt", "rint"])
def test_functions_are_within_five_units_of_the_last_place(name):
    out, ufunc = np.zeros_like(NUMBERS), getattr(np, name)
    native.compile([Call(name, ufunc, (NUMBERS,), out)])()
    with np.errstate(all="ignore"):
        exact = ufunc(NUMBERS.astype(np.float64))
        nearest = exact.astype(np.float32)
        finite = np.isfinite(nearest)
        assert np.array_equal(out[~finite], nearest[~finite], equal_nan=True)
        off = np.abs(out.astype(np.float64) - exact)[finite] / np.spacing(np.abs(nearest[finite]))
    assert off.max() <= 5
    assert np.array_equal(np.signbit(out[finite & (nearest == 0)]), np.signbit(nearest[finite & (nearest == 0)]))


@pytest.mark.parametrize("name", ["exp", "log", "tanh", "expm1", "sin"])
def test_functions_of_float64_are_those_of_c(name):
    x = np.abs(np.linspace(-20, 20, 1001)) + 1e-9
    out = np.zeros_like(x)
    native.compile([Call(name, getattr(np, name), (x,), out)])()
    np.testing.assert_allclose(out, getattr(np, name)(x), rtol=1e-15)


def test_a_row_that_a_table_does_not_have_is_the_nearest_one_as_for_numpy():
    table, index = np.arange(12.0).reshape(4, 3), np.array([-1, 0, 3, 4, 2**62, -(2**63)])
    out = np.zeros((6, 3))
    native.compile([Call("gather", lambda *_: None, (table, index), out, verb=True)])()
    assert np.array_equal(out, table.take(index, 0, mode="clip"))


# Reductions.


@pytest.mark.parametrize("name", ["sum", "max", "min", "mean", "argmax"])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize(
    ("shape", "axis"),
    [((3, 1), 1), ((5, 10), 1), ((4, 37), 1), ((37, 4), 0), ((2, 70, 33), 1), ((9, 6000), 1), ((3, 4, 5), (0, 2)),
     ((41,), None)],
)  # fmt: skip
def test_reductions_over_any_axes_and_sizes(shape, axis, dtype, name):
    if name == "argmax" and not isinstance(axis, int):
        axis = len(shape) - 1
    x = np.random.default_rng(0).normal(size=shape).astype(dtype)
    expected = getattr(np, name)(x, axis=axis, keepdims=True)
    out = np.zeros_like(expected)
    native.compile([Call(name, getattr(np, name), (x,), out, {"axis": axis, "keepdims": True})])()
    tolerance = {"rtol": 1e-5 if dtype == "f4" else 1e-13, "atol": 1e-5 if dtype == "f4" else 1e-13}
    np.testing.assert_allclose(out, expected, **(tolerance if name in ("sum", "mean") else {"rtol": 0}))


def test_of_equal_maxima_argmax_takes_the_first_and_not_a_number_before_all():
    x = np.zeros((4, 350), "f4")
    x[0, [7, 300]], x[1, [3, 9]], x[2] = 2, (5, np.nan), -np.inf
    out = np.zeros(4, np.int64)
    native.compile([Call("argmax", np.argmax, (x,), out, {"axis": -1})])()
    assert out.tolist() == np.argmax(x, axis=-1).tolist() == [7, 9, 0, 0]


# Products.


@st.composite
def factors(draw, *sides):
    """a (K, m, j), b (K, j, n) and out (K, m, n), each a transposed view, a part of more columns, or in one piece."""
    k, dtype = draw(st.integers(1, 3)), draw(st.sampled_from(["f4", "f8"]))
    m, n, j = (draw(st.sampled_from(sizes)) for sizes in sides)
    rng = np.random.default_rng(draw(st.integers(0, 9)))

    def matrix(members, rows, columns, result=False):
        kind = draw(st.sampled_from(["plain", "part"] if result else ["plain", "part", "transposed"]))
        if kind == "transposed":
            return rng.normal(size=(members, columns, rows)).astype(dtype).swapaxes(1, 2)
        wide = rng.normal(size=(members, rows, columns + (3 if kind == "part" else 0))).astype(dtype)
        return wide[:, :, :columns]

    return (
        matrix(draw(st.sampled_from([1, k])), m, j),
        matrix(draw(st.sampled_from([1, k])), j, n),
        matrix(k, m, n, True),
    )


def multiply(part, operands, workers=1):
    """Do the part, and compare with NumPy."""
    a, b, out = operands
    out.fill(np.nan)
    native.Program([part], operands, workers)()
    expected = np.broadcast_to(a.astype(np.float64) @ b.astype(np.float64), out.shape)
    tolerance = {"f": 1e-5, "d": 1e-13}[out.dtype.char] * (1 + a.shape[2] ** 0.5)
    np.testing.assert_allclose(out, expected, rtol=tolerance, atol=tolerance)


SIDES = [1, 2, 3, 5, 7, 8, 10, 16, 17, 30, 33, 64]


@pytest.mark.parametrize("kind", [tiles, borrowed])
@settings(max_examples=80)
@given(factors(SIDES, SIDES, SIDES))
def test_products_of_any_layout_and_size(kind, operands):
    if (part := kind.part(*operands)) is not None:
        multiply(part, operands)


# Up to several blocks and panels, with and without copies; (rows, vectors, lanes) of tiles as on other processors.
@pytest.mark.parametrize("shape", [None, (12, 2, 8), (4, 3, 4), (8, 1, 2)])
@pytest.mark.parametrize("workers", [1, 3])
@settings(max_examples=60)
@given(factors([1, 6, 7, 20, 200], [1, 15, 16, 17, 33, 150], [1, 3, 9, 170, 330]))
def test_packed_products_of_any_layout_and_size(shape, workers, operands):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed, "APART", 1)
        patch.setattr(native, "PIECE", 1)
        if shape:
            patch.setattr(packed, "tile", lambda dtype: shape)
            patch.setattr(packed, "product", {name: packed.built(name, shape) for name in ("float32", "float64")}.get)
        multiply(packed.part(*operands, workers), operands, workers)


@pytest.mark.parametrize("layout", ["plain", "transposed"])
def test_a_product_has_the_same_bits_on_any_number_of_cores(layout):
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=(1, 300, 300)).astype(np.float32) for _ in range(2))
    if layout == "transposed":
        a, b = a.swapaxes(1, 2), b.swapaxes(1, 2)
    found = set()
    for workers in (1, 2, 3, 4, 7):
        out = np.zeros((1, 300, 300), np.float32)
        native.compile([Call("gemm", np.matmul, (a, b), out, verb=True)], workers=workers)()
        found.add(out.tobytes())
    assert len(found) == 1


def test_each_product_is_done_as_suits_it(monkeypatch):
    small, large = (np.ones((1, n, n), np.float32) for n in (10, 200))

    def kind(a, b):
        part = products.part(Call("gemm", np.matmul, (a, b), a.copy(), verb=True))
        return part and part.function

    monkeypatch.setattr(products, "fuses", lambda: True)
    assert kind(large, large) == kind(small, small.swapaxes(1, 2)) == packed.product("float32") != kind(small, small)
    monkeypatch.setattr(products, "fuses", lambda: False)
    assert kind(large, large) == kind(small, small) == borrowed._blas().get("float32")


@pytest.mark.parametrize("rows", [6, 12])
def test_blocks_are_whole_tiles_and_find_room_whatever_the_processor(rows):
    assert packed.ROWS % rows == 0
    for register in (32, 64):
        columns = 2 * register // 4
        assert packed.DEEP * (packed.ROWS + columns) + 4 * rows * columns <= packed.SCRATCH


def test_a_product_into_its_own_operand_is_numpys():
    a = np.random.default_rng(0).normal(size=(1, 5, 5))
    expected = a @ a
    native.compile([Call("gemm", np.matmul, (a, a), a, verb=True)])()
    np.testing.assert_allclose(a, expected)


def test_operands_that_lie_between_each_other_are_apart():
    states = np.random.default_rng(0).normal(size=(3, 2, 8, 8))  # of members, at two times
    W = np.random.default_rng(1).normal(size=(3, 8, 8))
    part = products.part(Call("gemm", np.matmul, (states[:, 0], W), states[:, 1], verb=True))
    assert part is not None  # or members would go by another way than a network alone, which has other bits
    multiply(part, (states[:, 0], W, states[:, 1]))


def test_what_no_product_of_ours_can_do_is_numpys(monkeypatch):
    monkeypatch.setattr(products, "fuses", lambda: False)
    monkeypatch.setattr(borrowed, "_blas", dict)
    a, out = np.random.default_rng(0).normal(size=(2, 200, 200)), np.zeros((2, 200, 200))
    native.compile([Call("gemm", np.matmul, (a, a), out, verb=True)])()
    np.testing.assert_allclose(out, a @ a)


def test_a_product_with_constant_ones_is_a_sum_and_one_with_others_is_not():
    ones, x, out = Backend().constant(np.ones((1, 1, 6))), np.arange(12.0).reshape(1, 6, 2), np.zeros((1, 1, 2))
    assert native._sum_of_rows(Call("gemm", np.matmul, (ones, x), out, verb=True)).name == "sum"
    assert native._sum_of_rows(Call("gemm", np.matmul, (np.ones((1, 1, 6)), x), out, verb=True)) is None
    native.compile([Call("gemm", np.matmul, (ones, x), out, verb=True)])()
    assert out.tolist() == [[[30, 36]]]


# Steps.


def test_what_has_no_compiled_form_keeps_its_place():
    a, order = np.zeros(4), []
    python = Call("python", lambda: order.append(a.tolist()), (), None, verb=True)
    calls = [Call("add", np.add, (a, 1), a), python, Call("add", np.add, (a, 1), a), python]
    native.compile(calls)()
    assert order == [[1] * 4, [2] * 4]


def test_a_step_keeps_the_memory_that_it_works_on():
    def step():
        x = [np.full(1000, value, np.float32) for value in (1, 2, 0)]
        return native.compile([Call("add", np.add, (x[0], x[1]), x[2])]), x[2]

    run, out = step()
    gc.collect()
    others = [np.full(1000, 7, np.float32) for _ in range(100)]
    run()
    assert (out == 3).all()
    assert all((other == 7).all() for other in others)


def test_equal_loops_have_one_text_whatever_they_work_on():
    before = len(engine._compiled)
    for _ in range(3):
        native.compile([Call("subtract", np.subtract, (np.ones((2, 3, 7)), 5), np.zeros((2, 3, 7)))])()
    assert len(engine._compiled) <= before + 1


def test_a_place_that_nobody_reads_afterwards_is_not_written():
    g, w, delta, copy = np.arange(40.0), np.ones(40), np.full(40, 7.0), np.zeros(40)
    calls = [Call("multiply", np.multiply, (g, 0.5), delta), Call("subtract", np.subtract, (w, delta), w)]
    native.compile(calls, spare=[delta])()
    assert np.array_equal(w, 1 - g / 2)
    assert (delta == 7).all()
    read = Call("copyto", np.copyto, (delta[::-1],), copy)
    stays = Call("python", lambda: None, (), None, verb=True)
    for more, spare in (([], []), ([read], [delta]), ([stays], [delta])):
        w.fill(1), delta.fill(7)
        native.compile([*calls, *more], spare=spare)()
        assert np.array_equal(delta, g / 2)
        assert np.array_equal(w, 1 - g / 2)


def test_what_a_row_needs_again_is_written():
    x, t, top = np.random.default_rng(0).normal(size=(30, 20)), np.zeros((30, 20)), np.zeros((30, 1))
    calls = [
        Call("multiply", np.multiply, (x, x), t),
        Call("max", np.max, (t,), top, {"axis": 1, "keepdims": True}),
        Call("divide", np.divide, (t, top), x),
    ]
    expected = x * x / (x * x).max(1, keepdims=True)
    native.compile(calls, spare=[t])()
    np.testing.assert_allclose(x, expected)


# Several cores.


@pytest.mark.parametrize("workers", [1, 2, 3, 8])
@pytest.mark.parametrize("size", [1, 63, 64, 65, 640, 5000])
def test_each_place_of_a_part_is_done_once_whoever_does_it(workers, size, monkeypatch):
    monkeypatch.setattr(native, "PIECE", 1)
    monkeypatch.setattr(loops, "LONG", 1)
    x, one = np.zeros(size), np.ones(size)
    step = native.assembled(
        [item for _ in range(50) for item in groups([Call("add", np.add, (x, one), x)], np.empty)], workers
    )
    assert (step.team is None) == (workers == 1 or size <= 64)
    for n in range(1, 40):
        step()
        assert (x == 50 * n).all()


def test_a_helper_sleeps_when_nothing_is_to_be_done_and_comes_back(monkeypatch):
    monkeypatch.setattr(native, "PIECE", 1)
    monkeypatch.setattr(loops, "LONG", 1)
    x = np.zeros(100_000)
    step = native.assembled(groups([Call("add", np.add, (x, 1), x)], np.empty), 2)
    (helper,) = team.of(2).helpers
    for n in range(1, 4):
        assert helper.asleep.wait(20)
        step()
        assert (x == n).all()
        for _ in range(2000):  # it is awake after some of these
            if not helper.asleep.is_set():
                break
            time.sleep(0.001)
            x.fill(n - 1)
            step()
        else:
            pytest.fail("the helper sleeps on")


def test_programs_of_several_threads_share_one_team(monkeypatch):
    monkeypatch.setattr(native, "PIECE", 1)
    monkeypatch.setattr(loops, "LONG", 1)
    arrays = [np.zeros(1000) for _ in range(4)]
    steps = [native.assembled(groups([Call("add", np.add, (x, 1), x)], np.empty), 3) for x in arrays]

    def work(step):
        for _ in range(500):
            step()

    threads = [threading.Thread(target=work, args=(step,)) for step in steps]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert all((x == 500).all() for x in arrays)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # fork with threads
def test_a_forked_process_has_helpers_of_its_own(monkeypatch):
    monkeypatch.setattr(native, "PIECE", 1)
    monkeypatch.setattr(loops, "LONG", 1)
    x = np.zeros(1000)
    step = native.assembled(groups([Call("add", np.add, (x, 1), x)], np.empty), 2)
    step()
    child = os.fork()
    if not child:
        for _ in range(100):
            step()
        os._exit(int(x[0] != 101 or not all(helper.thread.is_alive() for helper in team.of(2).helpers)))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("model", ["dense", "conv", "lstm"])
def test_a_run_has_the_same_bits_on_any_number_of_cores(model, monkeypatch):
    monkeypatch.setattr(native, "PIECE", 1)
    monkeypatch.setattr(loops, "LONG", 1)
    monkeypatch.setattr(packed, "APART", 1)
    found = set()
    for cores in (1, 2, 3):
        monkeypatch.setattr(parallel, "threads", lambda cores=cores: cores)
        found.add(trained(1, model=model).network.w.tobytes())
    assert len(found) == 1


# Training.


MODELS = {
    "dense": (gp.Flatten(), gp.Dense(16, activation="tanh"), gp.Dropout(0.1), gp.Dense(10)),
    "conv": (gp.Conv2d(3, 3, activation="relu"), gp.MaxPool2d(), gp.BatchNorm(), gp.Flatten(), gp.Dense(10)),
    "lstm": (gp.Reshape((8, 8)), gp.LSTM(5), gp.Dense(10)),
    "rnn": (gp.Reshape((8, 8)), gp.SimpleRNN(30), gp.Dense(10)),
}


def trainer(model="dense", **options) -> gp.Trainer:
    model = gp.Chain(*MODELS[model])
    digits = gp.data.load("digits", validation=0.2, shape=(8, 8, 1))
    options = {"batch_size": 100, "device": "cpu", "compile": True} | options
    return gp.Trainer(model, gp.SoftmaxCrossEntropy(), gp.Adam(0.01), digits, **options)


def trained(epochs=2, **options) -> gp.Trainer:
    made = trainer(**options)
    made.fit(epochs)
    return made


@pytest.mark.parametrize("model", MODELS)
def test_a_compiled_run_is_that_of_numpy_but_for_rounding(model):
    one, other = trained(model=model), trained(model=model, compile=False)
    assert isinstance(one.backend, numpy.Compiled)
    np.testing.assert_allclose(one.network.w, other.network.w, rtol=1e-3, atol=1e-4)
    assert one.network.w.tobytes() != other.network.w.tobytes()  # or nothing was compiled


def test_float64_runs_agree_to_many_digits():
    one, other = trained(dtype="float64"), trained(compile=False, dtype="float64")
    np.testing.assert_allclose(one.network.w, other.network.w, rtol=1e-9, atol=1e-11)


def test_a_compiled_run_that_goes_on_from_any_step_has_the_bits_of_one_that_was_not_stopped():
    whole = trained()

    class Stop(gp.Hook):
        def on_step(self, trainer):
            if trainer.step == at:
                trainer.stop()

    for at in range(1, whole.step, 3):
        half, rest = trainer(), trainer()
        half.fit(2, hooks=[Stop()])
        assert half.step == at
        rest.restore(half.content())
        rest.fit(2)
        assert rest.network.w.tobytes() == whole.network.w.tobytes()


def test_steps_that_are_done_together_have_the_bits_of_one_at_a_time_and_a_resume_is_exact(monkeypatch):
    seen = []

    class See(gp.Hook):
        def on_step(self, trainer):
            seen.append(trainer.step)
            if len(seen) == 3:
                trainer.stop()

    half, rest, whole = (trainer(batch_size=20) for _ in range(3))
    half.fit(2, hooks=[See()])
    rest.restore(half.content())
    rest.fit(2)
    whole.fit(2)
    assert seen == [16, 32, 48]
    monkeypatch.setattr(numpy.Compiled, "unroll", 1)
    each = trained(batch_size=20)
    assert rest.network.w.tobytes() == whole.network.w.tobytes() == each.network.w.tobytes()
    assert rest.history == whole.history == each.history


def test_long_steps_are_done_one_by_one(monkeypatch):
    monkeypatch.setattr(native, "SHORT", 10)
    seen = []

    class See(gp.Hook):
        def on_step(self, trainer):
            seen.append(trainer.step)

    trainer(batch_size=20).fit(1, hooks=[See()])
    assert seen == list(range(1, 73))


@pytest.mark.parametrize("at", [0, 5, 21, 36])
def test_a_loss_that_is_not_finite_is_found_in_its_step_also_among_steps_that_are_done_together(at, monkeypatch):
    said = []
    for unroll in (1, 16):
        monkeypatch.setattr(numpy.Compiled, "unroll", unroll)
        model, iris = gp.Chain(gp.Dense(5, activation="relu"), gp.Dense(3)), gp.data.load("iris")
        run = gp.Trainer(
            model, gp.SoftmaxCrossEntropy(), gp.SGD(0.1), iris, batch_size=4, device="cpu", compile=True, metrics=()
        )
        run.training.begin(0, 0, True)
        iris.splits["train"].inputs[run.training.rows(at)[0, 3]] = np.inf
        with pytest.raises(gp.errors.NumericalError, match=rf"at step {at + 1} ") as caught:
            run.fit(1)
        said.append(str(caught.value))
        assert run.step == at
    assert said[0] == said[1]
    assert "row" in said[0]


# An epoch has 15 steps of 100 rows, or 72 of 20 rows, of which 64 are done together.
@pytest.mark.parametrize(
    ("model", "batch", "threads"),
    [
        ("dense", 100, 1),
        ("dense", 20, 1),
        ("dense", 20, 2),
        ("conv", 100, 2),
        ("conv", 20, 2),
        ("lstm", 20, 2),
        ("rnn", 4, 1),
        ("dense", 20, 5),
    ],
)  # fmt: skip
def test_a_member_of_a_compiled_population_is_the_network_alone(model, batch, threads, monkeypatch):
    monkeypatch.setattr(parallel, "threads", lambda: threads)
    monkeypatch.setattr(parallel, "LEAST", 1)
    monkeypatch.setattr(numpy, "CACHE", 2**10)
    apart, tapes = parallel.apart, []
    monkeypatch.setattr(parallel, "apart", lambda *all: tapes.append(apart(*all)) or tapes[-1])
    three = trained(1, model=model, population=3, batch_size=batch)
    assert (batch < 100) == any(found is not None for found in tapes)
    for k in range(3):
        alone = trained(1, model=model, seed=k, batch_size=batch)
        assert three.network.w[k].tobytes() == alone.network.w[0].tobytes()


def test_a_loss_that_is_not_finite_of_one_member_is_found_in_its_step():
    model, iris = gp.Chain(gp.Dense(5, activation="relu"), gp.Dense(3)), gp.data.load("iris")
    run = gp.Trainer(
        model, gp.SoftmaxCrossEntropy(), gp.SGD((0.1, 0.1, 3e37)), iris, batch_size=4, device="cpu", compile=True,
        population=3,
    )  # fmt: skip
    with pytest.raises(gp.errors.NumericalError, match=r"at step 2 \(epoch 1\)") as caught:
        run.fit(1)
    assert "member" not in str(caught.value)  # the others were done with other rows by then


def test_members_that_have_to_do_with_each_other_are_not_kept_apart():
    x, y, total = np.zeros((4, 3)), np.zeros((4, 3)), np.zeros((1, 3))
    own = Call("add", np.add, (x, 1), y)
    assert parallel.apart([[own]], 4, 2) is not None
    assert parallel.apart([[own, Call("sum", np.sum, (y,), total, {"axis": 0, "keepdims": True})]], 4, 2) is None
    shifted = np.zeros((5, 3))
    assert parallel.apart([[Call("add", np.add, (shifted[1:], 1), shifted[:-1])]], 4, 2) is None


def test_members_that_are_kept_apart_count_for_themselves():
    place, x = np.zeros(1, np.int64), np.zeros((4, 1))
    calls = [Call("add", np.add, (x, place), x), Call("add", np.add, (place, 1), place)]
    lists, begin = parallel.apart([calls], 4, 4)
    for _ in range(2):
        begin()
        for (own,) in lists:
            for _ in range(3):
                for call in own:
                    make(call)
    assert place.tolist() == [6]
    assert x.ravel().tolist() == [0 + 1 + 2 + 3 + 4 + 5] * 4


def test_trainers_in_several_threads_have_the_bits_of_one():
    def train(n: int) -> None:
        found[n] = trained(1, population=n % 2 + 1, batch_size=20).network.w[0].tobytes()

    found: dict[int, bytes] = {}
    threads = [threading.Thread(target=train, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 4
    assert set(found.values()) == {trained(1, batch_size=20).network.w[0].tobytes()}


def test_a_compiled_step_asks_python_for_no_memory():
    made = trained(epochs=1)
    step = made._steps
    made.training.begin(0, 0, True)
    tracemalloc.start()
    try:
        step.run(1, 0, lambda plan, last: None)
        before = tracemalloc.get_traced_memory()[0]
        for n in range(5):
            step.run(n + 1, n + 1, lambda plan, last: None)
        after = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert after - before < 2000


@pytest.mark.parametrize("command", ["gradcheck", "trace"])
def test_who_looks_at_the_numbers_of_numpy_wants_no_compiler(command, monkeypatch):
    monkeypatch.setattr(numpy.Compiled, "__init__", lambda self: pytest.fail("a compiler is asked for"))
    config = Path(__file__).parent.parent / "configs" / "mazur.toml"
    commands.call(command, config, "--set", "train.compile=true")


def test_numerics_name_the_compiler():
    import llvmlite

    assert numerics(numpy.Compiled())["llvmlite"] == llvmlite.__version__
    assert "llvmlite" not in numerics(Backend())


def test_without_llvmlite_the_error_says_what_to_install():
    text = """
import sys
sys.modules["llvmlite"] = None
from gpbackprop.backend.numpy import Backend, Compiled
from gpbackprop.errors import ConfigError
try:
    Backend().compiling(True)
except ConfigError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    assert "train.compile: wants the package llvmlite" in done.stdout
    assert 'pip install "gpbackprop[compile]"' in done.stdout


def test_a_backend_compiles_or_not_as_it_is_asked():
    assert type(Backend().compiling(False)) is Backend
    assert type(numpy.Compiled().compiling(False)) is Backend
    with pytest.raises(ConfigError, match=r"train\.precision"):
        numpy.Compiled().rounding("tf32")
