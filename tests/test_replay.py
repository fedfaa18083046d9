"""What is replayed from a tape has the bits of the calls as they were made."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpbackprop.backend import Backend

sizes = st.integers(1, 4)


def after(calls, arrays, times=3):
    """The bytes of `arrays` after so many runs of `calls(xp, gemm, gather)`, made each time and replayed."""
    results = []
    for captured in (False, True):
        backend, own = Backend(), [array.copy() for array in arrays]
        run = lambda backend=backend, own=own: calls(backend, *own)  # noqa: E731
        run.__module__ = "gpbackprop.test"  # as a step of the package, which is written down
        step = backend.capture([run]) if captured else run
        with np.errstate(all="ignore"):
            for _ in range(times):
                step()
        results.append([array.tobytes() for array in own])
    return results


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["add", "multiply", "subtract", "divide", "maximum", "minimum", "greater", "power"]),
    st.sampled_from(["f4", "f8"]), sizes, sizes, sizes, st.sampled_from(["full", "row", "column", "member", "number"]),
    st.booleans(), st.integers(0, 99),
)  # fmt: skip
def test_elementwise_calls_with_every_kind_of_operand(name, dtype, k, m, n, kind, swapped, seed):
    rng = np.random.default_rng(seed)
    shape = {"full": (k, m, n), "row": (k, 1, n), "column": (k, m, 1), "member": (k, 1, 1)}.get(kind, (1,))
    x, other = rng.normal(size=(k, m, n)).astype(dtype), rng.normal(size=shape).astype(dtype)
    out = np.zeros_like(x)

    def calls(backend, x, other, out):
        pair = (x, 0.37 if kind == "number" else other)
        getattr(backend.xp, name)(*(pair[::-1] if swapped else pair), out=out)
        backend.xp.add(x, out, out=x)

    eager, replayed = after(calls, [x, other, out])
    assert eager == replayed


@pytest.mark.parametrize("zero", [0.0, -0.0])
@pytest.mark.parametrize("first", [True, False])
def test_bounds_by_a_zero_keep_its_sign_and_its_place(zero, first):
    x = np.array([[0.0, -0.0, 1.0, -1.0] * 5], "f4")

    def calls(backend, x, y):
        backend.xp.maximum(*((zero, x) if first else (x, zero)), out=y)

    eager, replayed = after(calls, [x, np.ones_like(x)])
    assert eager == replayed


@pytest.mark.parametrize("n", [1, 3, 2**14, 2**14 + 5, 50_000])
@pytest.mark.parametrize("name", ["maximum", "minimum"])
def test_bounds_by_a_number_also_keep_what_is_not_finite(n, name):
    x = np.random.default_rng(0).normal(size=(1, n)).astype("f4")
    x[0, :: max(1, n // 3)] = [np.nan, np.inf, -np.inf, -0.0][: len(x[0, :: max(1, n // 3)])]
    eager, replayed = after(lambda backend, x, y: getattr(backend.xp, name)(x, 0, out=y), [x, np.zeros_like(x)])
    assert eager == replayed


@settings(max_examples=60, deadline=None)
@given(
    sizes, st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.sampled_from(["f4", "f8"]), st.integers(0, 7)
)
def test_products_of_a_member_alone_and_of_a_population(k, m, n, j, dtype, turned):
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=size).astype(dtype) for size in ((k, m, j), (k, j, n)))
    a = np.ascontiguousarray(a.swapaxes(1, 2)).swapaxes(1, 2) if turned & 1 else a
    b = np.ascontiguousarray(b.swapaxes(1, 2)).swapaxes(1, 2) if turned & 2 else b
    a = np.repeat(a, 2, axis=2)[:, :, ::2] if turned & 4 else a
    outs = []
    for members in (slice(None), slice(0, 1)):
        out = np.zeros((k, m, n), dtype)[members]
        backend = Backend()
        step = backend.capture([_product(backend, a[members], b[members], out)])
        for _ in range(2):
            step()
        outs.append(out)
    assert outs[0][0].tobytes() == outs[1][0].tobytes()
    assert np.allclose(outs[0], a @ b, rtol=1e-4 if dtype == "f4" else 1e-12, atol=1e-5)


def _product(backend, a, b, out):
    run = lambda: backend.gemm(a, b, out)  # noqa: E731
    run.__module__ = "gpbackprop.test"
    return run


@pytest.mark.parametrize("name", ["sum", "max", "min", "mean"])
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize(("axis", "keepdims"), [(-1, True), (-1, False), (1, True), ((1, 2), True)])
def test_reductions(name, k, axis, keepdims):
    x = np.random.default_rng(0).normal(size=(k, 5, 7)).astype("f4")
    out = getattr(np, name)(x, axis=axis, keepdims=keepdims) * 0

    def calls(backend, x, out):
        getattr(backend.xp, name)(x, axis=axis, keepdims=keepdims, out=out)
        backend.xp.multiply(x, 1.5, out=x)

    eager, replayed = after(calls, [x, out])
    assert eager == replayed


@pytest.mark.parametrize("k", [1, 3])
def test_gathers_and_copies(k):
    rng = np.random.default_rng(0)
    table, index = rng.integers(0, 255, (9, 4)).astype("u1"), rng.integers(0, 9, (k, 5))
    raw, out, step = np.zeros((k, 5, 4), "u1"), np.zeros((k, 5, 4), "f4"), np.ones((k, 5), "i8")

    def calls(backend, table, index, raw, out, step):
        backend.gather(table, index, raw)
        backend.xp.copyto(out, raw)
        backend.xp.copyto(out[:, 1:3], 0.5)
        backend.xp.copyto(raw, 3)
        backend.xp.copyto(index, step)

    eager, replayed = after(calls, [table, index, raw, out, step])
    assert eager == replayed


def test_steps_written_outside_the_package_run_as_they_are_in_their_place():
    a, b = np.zeros((1, 3)), np.zeros((1, 3))
    backend = Backend()

    def own():
        backend.xp.add(a, 1, out=a)

    def foreign():
        b[...] = a  # no tape sees this

    own.__module__ = "gpbackprop.test"
    step = backend.capture([backend.tape.guard(own), backend.tape.guard(foreign), backend.tape.guard(own)])
    for n in range(1, 4):
        step()
        assert a[0, 0] == 2 * n
        assert b[0, 0] == 2 * n - 1
