"""Products by cuBLASLt: how it is asked for them, what it rounds to, and where it takes the bias along."""

import itertools

import fake_cupy
import fake_lt
import numpy as np
import pytest

import gpbackprop as gp
from gpbackprop.backend import epilogues, select
from gpbackprop.backend.blas import layout
from gpbackprop.backend.lt import ADD_BIAS, ADD_ROWS, NOTHING, alignment
from gpbackprop.backend.tape import Call


@pytest.fixture
def machine(monkeypatch):
    return fake_cupy.install(monkeypatch)


@pytest.fixture(params=["fake", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request, monkeypatch):
    if request.param == "fake":
        fake_cupy.install(monkeypatch)
    return select("cuda")


def numbers(*shape, dtype=np.float32, seed=0):
    """Whole numbers, so that every order of summation gives the same bits."""
    return np.random.default_rng(seed).integers(-8, 8, shape).astype(dtype)


def placed(device, host, how):
    """`host` on the device: as it is, transposed, in rows of a wider array, or amid a flat array of each k."""
    (k, m, n), dtype = host.shape, host.dtype
    if how == "transposed":
        return device.array(np.ascontiguousarray(host.swapaxes(1, 2))).swapaxes(-1, -2)
    if how == "wide":
        whole = device.array(np.zeros((k, m, n + 3), dtype))
        whole[:, :, 1 : n + 1] = device.array(host)
        return whole[:, :, 1 : n + 1]
    if how == "flat":
        flat = device.array(np.zeros((k, m * n + 5), dtype))
        flat[:, 3 : 3 + m * n] = device.array(host.reshape(k, m * n))
        return flat[:, 3 : 3 + m * n].reshape(k, m, n)
    return device.array(host)


LAYOUTS = ("plain", "transposed", "wide", "flat")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(1, 2, 3, 4), (3, 4, 5, 2), (2, 1, 3, 4), (2, 3, 1, 4), (2, 3, 4, 1), (3, 1, 1, 1)])
def test_a_bound_product_is_the_matrix_product_of_each_member_in_any_layout(device, shape, dtype):
    k, m, j, n = shape
    a, b = numbers(k, m, j, dtype=dtype), numbers(k, j, n, dtype=dtype, seed=1)
    for left, right, result in itertools.product(LAYOUTS, repeat=3):
        out = placed(device, np.full((k, m, n), np.nan, dtype), result)
        product = device.lane.lt.product("float32", placed(device, a, left), placed(device, b, right), out)
        product()
        assert np.array_equal(device.host(out), np.einsum("kmj,kjn->kmn", a, b)), (left, right, result)


def test_forward_and_both_gradients_of_a_dense_layer_are_the_three_mappings(device):
    """Y = X W, dX = dY W', dW = X' dY, where ' exchanges rows and columns: no copy of any operand."""
    X, W, dY = numbers(2, 5, 7), numbers(2, 7, 4, seed=1), numbers(2, 5, 4, seed=2)
    x, w, dy = map(device.array, (X, W, dY))
    for a, b, expected in [
        (x, w, X @ W),
        (dy, w.swapaxes(-1, -2), dY @ W.swapaxes(-1, -2)),
        (x.swapaxes(-1, -2), dy, X.swapaxes(-1, -2) @ dY),
    ]:
        out = device.xp.zeros(expected.shape, np.float32)
        device.lane.lt.product("float32", a, b, out)()
        assert np.array_equal(device.host(out), expected)


def test_a_matrix_or_a_bias_that_all_members_share_has_no_distance_between_members(device):
    a, b, bias = numbers(1, 2, 5), numbers(3, 5, 4, seed=1), numbers(1, 1, 4, seed=2)
    out = device.xp.zeros((3, 2, 4), np.float32)
    device.lane.lt.product("float32", device.array(a), device.array(b), out, ADD_BIAS, device.array(bias))()
    assert np.array_equal(device.host(out), a @ b + bias)


def test_each_member_has_a_bias_of_its_own(device):
    a, b, flat = numbers(3, 2, 5), numbers(3, 5, 4, seed=1), device.array(numbers(3, 20, seed=2))
    out, bias = device.xp.zeros((3, 2, 4), np.float32), flat[:, 16:20].reshape(3, 1, 4)
    device.lane.lt.product("float32", device.array(a), device.array(b), out, ADD_BIAS, bias)()
    assert np.array_equal(device.host(out), a @ b + device.host(bias))


def test_what_cublaslt_cannot_read_is_left_to_others(device):
    a, b, out = (device.xp.zeros((2, 4, 4), np.float32) for _ in range(3))
    bind = device.lane.lt.product
    assert bind("float32", a[:, ::2, ::2], b[:, :2], out[:, :2]) is None
    assert bind("float32", a, b, device.xp.zeros((2, 4, 4), np.float64)) is None
    assert bind("float32", a[:, :, :0], b[:, :0], out) is None
    whole = device.xp.zeros((2, 4, 4), np.int64)
    assert bind("float32", whole, whole, whole) is None


def test_float32_rounds_nothing_and_the_others_round_what_they_multiply(device):
    """1 + 2^-20 needs 20 bits behind the point; tf32 keeps 10 of them, bfloat16 7."""
    a = np.float32(1) + np.arange(64, dtype=np.float32).reshape(1, 8, 8) * np.float32(2**-20)
    coarse = np.float32(1) + np.arange(64, dtype=np.float32).reshape(1, 8, 8) * np.float32(2**-9)
    one = device.array(np.eye(8, dtype=np.float32)[None])
    for precision, host, exact in [
        ("float32", a, True), ("tf32", a, False), ("tf32", coarse, True), ("bfloat16", coarse, False),
    ]:  # fmt: skip
        out = device.xp.zeros((1, 8, 8), np.float32)
        device.lane.lt.product(precision, device.array(host), one, out)()
        got = device.host(out)
        assert np.array_equal(got, host) or not exact, (precision, np.abs(got - host).max())
        assert np.allclose(got, host, rtol=2**-7)
        if device.module.ndarray is fake_cupy.ndarray:  # a real device may keep more than it must
            assert np.array_equal(got, host) == exact


def test_float64_is_multiplied_as_float64_whatever_float32_may_round_to(device):
    a = 1 + np.arange(4.0).reshape(1, 2, 2) * 2**-50
    out = device.xp.zeros((1, 2, 2), np.float64)
    device.lane.lt.product("bfloat16", device.array(a), device.array(np.eye(2)[None]), out)()
    assert np.array_equal(device.host(out), a)


def test_alignment_is_that_of_every_member(device):
    flat = device.xp.zeros((3, 36), np.float32)
    whole = flat.data.ptr & -flat.data.ptr
    assert alignment(flat[:1]) == min(whole, 256)
    assert alignment(flat) == 16  # the second member lies 144 bytes on
    assert alignment(flat[:, 1:]) == 4


def test_layouts_are_leading_dimensions_and_distances_in_elements():
    x = np.zeros((3, 4, 6), np.float32)
    assert layout(x, 3) == (0, 6, 24)
    assert layout(x.swapaxes(1, 2), 3) == (1, 6, 24)
    assert layout(x[:1], 3) == (0, 6, 0)
    assert layout(x[:, :, ::2], 3) is None
    assert layout(x[0], 1) is None


# What a product does besides.


def calls_of(device, step):
    return device.tape.record([step], listens=True)


def bound(device, step):
    def bind(*operands):
        return device.lane.lt.product("float32", *operands)

    return epilogues.bound(calls_of(device, step), bind, device.lane.are_ones)


def sums(device, members=2):
    """x w, and arrays to add: z, a bias."""
    arrays = numbers(members, 5, 7), numbers(members, 7, 4, seed=1), numbers(members, 1, 4, seed=2)
    x, w, b = map(device.array, arrays)
    return x, w, b, device.xp.zeros((members, 5, 4), np.float32), arrays


def test_a_bias_that_is_added_to_a_product_becomes_part_of_it(device):
    xp, gemm = device.xp, device.gemm
    x, w, b, z, (X, W, B) = sums(device)

    def step():
        gemm(x, w, z)
        xp.add(z, b, out=z)
        xp.maximum(z, 0, out=z)

    calls = bound(device, step)
    assert [call.name for call in calls] == ["gemm", "maximum"]
    calls[0].function()
    assert np.array_equal(device.host(z), X @ W + B)
    assert device.tape.calls is None


@pytest.mark.parametrize(
    "add",
    [
        lambda xp, z, b, other: xp.add(z, other, out=z),  # not a row
        lambda xp, z, b, other: xp.add(z, b, out=other),  # another array
        lambda xp, z, b, other: xp.add(z, 1, out=z),
        lambda xp, z, b, other: xp.add(other, b, out=z),
        lambda xp, z, b, other: xp.subtract(z, b, out=z),
        lambda xp, z, b, other: xp.add(z, b[:, :, ::-1], out=z),
    ],
)
def test_what_is_not_a_bias_stays_a_call_of_its_own(device, add):
    x, w, b, z, _ = sums(device)
    other = device.xp.zeros(z.shape, np.float32)

    def step():
        device.gemm(x, w, z)
        add(device.xp, z, b, other)

    assert len(bound(device, step)) == 2


def gradients(device, ones):
    """dW = x' dz and db = 1' dz of two members."""
    X, dZ = numbers(2, 5, 7), numbers(2, 5, 4, seed=1)
    x, dz, flat = device.array(X), device.array(dZ), device.array(np.full((2, 40), np.nan, np.float32))
    dw, db = flat[:, :28].reshape(2, 7, 4), flat[:, 32:36].reshape(2, 1, 4)

    def step():
        device.gemm(x.swapaxes(-1, -2), dz, dw)
        device.gemm(ones, dz, db)
        device.xp.multiply(db, 2, out=db)

    return step, dw, db, X.swapaxes(-1, -2) @ dZ, dZ.sum(axis=1, keepdims=True)


def test_the_gradient_of_a_bias_becomes_part_of_that_of_the_weights(device):
    ones = device.constant(np.ones((1, 1, 5), np.float32))
    step, dw, db, expected, sums = gradients(device, ones)
    calls = bound(device, step)
    assert [call.name for call in calls] == ["gemm", "gemm", "multiply"]
    assert calls[1].function is epilogues.nothing
    assert calls[1].out is db, "who reads the tape would not know that it is written"
    calls[0].function()
    assert np.array_equal(device.host(dw), expected)
    assert np.array_equal(device.host(db), sums)


@pytest.mark.parametrize("make", [lambda d, a: d.array(a), lambda d, a: d.constant(a + 1), lambda d, a: d.array(a) + 0])
def test_ones_that_somebody_may_change_and_constants_that_are_not_ones_are_multiplied(device, make):
    step, *_ = gradients(device, make(device, np.ones((1, 1, 5), np.float32)))
    calls = bound(device, step)
    assert epilogues.nothing not in [call.function for call in calls]


def test_an_array_in_the_place_of_a_constant_that_is_gone_is_none(device):
    ones = device.constant(np.ones(3, np.float32))
    assert device.lane.are_ones(ones)
    place, kept = id(ones), device.lane.ones
    del ones
    assert place not in kept


def test_where_the_heuristic_offers_no_bias_the_product_is_bound_without(machine):
    device = select("cuda")
    x, w, b, z, (X, W, _) = sums(device)
    assert device.lane.lt
    machine.lt.offers = lambda epilogue, dtype: epilogue == NOTHING

    def step():
        device.gemm(x, w, z)
        device.xp.add(z, b, out=z)

    calls = bound(device, step)
    assert [call.name for call in calls] == ["gemm", "add"]
    calls[0].function()
    assert np.array_equal(device.host(z), X @ W)


@pytest.mark.parametrize("broken", [ADD_BIAS, ADD_ROWS])
def test_an_epilogue_that_gives_wrong_results_is_not_used_and_the_log_says_so(machine, monkeypatch, caplog, broken):
    right = fake_lt.Library._multiply

    def multiply(left, b, out, epilogue, row, bits):
        right(left, b, out, epilogue, row, bits)
        if epilogue == broken:
            row[...] = 0
            out[...] += 1

    monkeypatch.setattr(fake_lt.Library, "_multiply", staticmethod(multiply))
    with caplog.at_level("INFO", "gpbackprop"):
        lt = select("cuda").lane.lt
    assert lt.epilogues == [each for each in (NOTHING, ADD_BIAS, ADD_ROWS) if each != broken]
    assert f"epilogue {broken} of cuBLASLt is not used: a small product gives wrong results" in caplog.text


def test_cublaslt_that_rounds_unasked_is_not_used(machine, monkeypatch, caplog):
    monkeypatch.setitem(fake_lt.MANTISSA, 68, 10)
    with caplog.at_level("INFO", "gpbackprop"):
        assert select("cuda").lane.lt is None
    assert "cuBLASLt cannot be used: a small product gives wrong results; look for NVIDIA_TF32_OVERRIDE" in caplog.text


def test_a_product_without_any_algorithm_stays_the_call_that_it_was():
    call = Call("gemm", print, (1, 2), 3, verb=True)
    assert epilogues.bound([call], lambda *operands: None, lambda x: False) == [call]


def test_a_training_run_multiplies_in_the_precision_of_its_config(machine):
    def trainer(**settings):
        model = gp.Chain(gp.Dense(8, activation="relu"), gp.Dense(3))
        data = gp.data.load("iris", validation=0.2, test=0.2)
        return gp.Trainer(
            model, gp.SoftmaxCrossEntropy(), gp.SGD(0.1), data, batch_size=16, epochs=2, device="cuda", **settings
        )

    losses = {}
    for precision, compute in [("float32", 68), ("tf32", 77), ("bfloat16", 75)]:
        run = trainer(precision=precision)
        seen = run.backend.lane.lt.library.seen
        seen.clear()
        run.fit()
        assert {made for made, _, _ in seen} == {compute}
        assert {epilogue for _, epilogue, _ in seen} == {NOTHING, ADD_BIAS, ADD_ROWS}
        losses[precision] = run.history[-1]["train_loss"]
    assert len(set(losses.values())) == 3
    assert max(losses.values()) - min(losses.values()) < 0.01
