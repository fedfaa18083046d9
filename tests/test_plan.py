"""Network and Plan: layout, paths, sharing, alignment, and the errors of shapes that do not fit."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpbackprop.backend import Backend
from gpbackprop.errors import ShapeError
from gpbackprop.initializers import Constant, Zeros
from gpbackprop.layers.base import Layer
from gpbackprop.layers.combine import Chain, Parallel, Residual
from gpbackprop.layers.dense import Dense
from gpbackprop.layers.dropout import Dropout
from gpbackprop.layers.shape import Reshape
from gpbackprop.optim.sgd import SGD
from gpbackprop.plan import Arena, Flat, Network, Plan

NESTED = Chain(Dense(4, "tanh"), Residual(Dense(4), Parallel(Dense(1), Chain(Dropout(), Dense(3)))), Dense(2))


class Count(Layer):
    """y = x + the number of steps taken in training before this one: a layer with state."""

    __abstract__ = True

    def trace(self, plan, x):
        seen = plan.state("seen", (), Constant(5.0))
        y = plan.slot(x.shape)

        def forward():
            plan.xp.add(x.value, seen[:, None, None], out=y.value)
            if plan.training:
                plan.xp.add(seen, 1, out=seen)

        plan.step(forward, None)
        return y


def test_paths_come_from_nesting():
    net = Network(NESTED, (3,))
    assert list(net.params) == [
        "0-dense/W",
        "0-dense/b",
        "1-residual/0-dense/W",
        "1-residual/0-dense/b",
        "1-residual/1-parallel/0-dense/W",
        "1-residual/1-parallel/0-dense/b",
        "1-residual/1-parallel/1-chain/1-dense/W",
        "1-residual/1-parallel/1-chain/1-dense/b",
        "2-dense/W",
        "2-dense/b",
    ]
    assert net.output_shape == (2,)
    assert net.parameter_count == 16 + 20 + 5 + 15 + 10


def test_outputs_name_every_layer_in_forward_order():
    names = [path for path, _ in Plan(Network(NESTED, (3,)), 2).outputs]
    assert names[0] == "0-dense"
    assert names[-1] == "2-dense"
    assert names.index("1-residual/0-dense") < names.index("1-residual/1-parallel") < names.index("1-residual")


def test_a_model_may_be_a_single_layer():
    net = Network(Dense(2), (3,))
    assert list(net.params) == ["W", "b"]


@pytest.mark.parametrize(
    ("model", "row", "message"),
    [
        (Chain(Dense(4), Residual(Dense(4), Dense(3))), (2,), r"^1-residual: wants .* \(1, 4\), got \(1, 3\)$"),
        (Chain(Dense(4), Parallel(Dense(4), Residual(Dense(1)))), (2,), r"^1-parallel/1-residual: wants "),
        (Chain(Reshape((3,))), (2,), r"^0-reshape: wants 3 features, got \(1, 2\)$"),
        (Reshape((3,)), (2,), r"^model: wants 3 features"),
    ],
)
def test_a_shape_error_names_the_layer_what_it_wants_and_what_it_got(model, row, message):
    with pytest.raises(ShapeError, match=message):
        Network(model, row)


def test_a_plan_that_asks_for_another_shape_than_the_network_has_is_refused():
    class PerRow(Layer):
        __abstract__ = True

        def trace(self, plan, x):
            plan.param("W", x.shape, Zeros())
            return x

    with pytest.raises(ShapeError, match=r"W: has shape \(4, 3\) here and \(1, 3\) before"):
        Plan(Network(PerRow(), (3,)), 4)


def test_one_path_cannot_be_declared_twice():
    flat = Flat()
    flat.declare("W", (2,))
    with pytest.raises(ShapeError, match="W: declared twice"):
        flat.declare("W", (2,))


shapes = st.lists(st.lists(st.integers(0, 5), max_size=3).map(tuple), max_size=6)


@given(shapes, st.integers(1, 3))
def test_parameters_lie_side_by_side_aligned_and_without_overlap(shapes, K):
    flat = Flat()
    for i, shape in enumerate(shapes):
        flat.declare(str(i), shape)
    array = np.zeros((K, flat.size), np.float32)
    assert flat.size % 16 == 0
    for i, (view, place, shape) in enumerate(zip(flat.views(array).values(), flat.values(), shapes, strict=True)):
        assert view.shape == (K, *shape)
        assert place.offset % 16 == 0
        assert not view.any()  # no other view has written here
        view += i + 1
        assert view.size == 0 or np.shares_memory(view, array)
    mask = flat.mask(lambda place: len(place.shape) > 1)
    matrices = sum(place.size for place in flat.values() if len(place.shape) > 1)
    assert (mask is None) == all(len(place.shape) > 1 for place in flat.values())
    assert mask is None or mask.sum() == matrices


@given(st.lists(st.tuples(st.lists(st.integers(0, 7), max_size=3).map(tuple), st.sampled_from(["u1", "f4", "f8"]))))
def test_an_arena_hands_out_what_it_measured_aligned_and_without_overlap(asked):
    measured = Arena(Backend())
    for shape, dtype in asked:
        assert measured.take(shape, dtype).shape == shape
    arena = Arena(Backend(), measured.used)
    base = arena.buffer.ctypes.data
    for i, (shape, dtype) in enumerate(asked):
        array = arena.take(shape, dtype)
        assert array.shape == shape
        assert array.dtype == dtype
        assert array.size == 0 or (array.ctypes.data - base) % 64 == 0
        assert not array.any()
        array.fill(i % 100 + 1)
    assert arena.used == measured.used == len(arena.buffer)


def test_measuring_takes_no_memory_worth_the_name():
    huge = Arena(Backend()).take((10**6, 10**6), np.float32)
    assert huge.base.nbytes <= 16


def test_plans_share_parameters_and_the_short_batch_teaches_the_same_network():
    net = Network(Chain(Dense(2)), (3,), seeds=(0, 1))
    whole, short = Plan(net, 5, training=True), Plan(net, 2)
    net.w += 1
    rows = np.random.default_rng(0).normal(size=(2, 5, 3)).astype("f4")
    whole.x.value[...], short.x.value[...] = rows, rows[:, :2]
    whole.forward()
    short.forward()
    np.testing.assert_allclose(short.y.value, whole.y.value[:, :2], rtol=1e-6)


def test_state_is_shared_between_plans_and_returns_to_its_start():
    net = Network(Chain(Dense(2, init={"W": 0.0}), Count()), (3,), seeds=(0, 1))
    assert list(net.states) == ["1-count/seen"]
    training, inference = Plan(net, 4, training=True), Plan(net, 2)
    for _ in range(3):
        training.forward()
    inference.forward()
    inference.forward()
    assert np.unique(inference.y.value).tolist() == [8]
    net.clock += 3
    net.reset()
    inference.forward()
    assert np.unique(inference.y.value).tolist() == [5]
    assert net.clock.tolist() == [0]


def test_reset_draws_the_first_parameters_again():
    net = Network(NESTED, (3,), seeds=(3, 4))
    first = net.w.copy()
    net.w += 1
    net.reset()
    assert net.w.tobytes() == first.tobytes()


def test_initial_parameters_are_a_function_of_seed_and_path():
    net = Network(Chain(Dense(4), Dense(4)), (4,), seeds=(3, 4, 3))
    first, second = (net.params.views(net.w)[f"{i}-dense/W"] for i in range(2))
    assert np.array_equal(first[0], first[2])
    assert not np.array_equal(first[0], first[1])
    assert not np.array_equal(first[0], second[0])
    longer = Network(Chain(Dense(4), Dense(4), Dense(1)), (4,), seeds=(3,))
    assert np.array_equal(longer.params.views(longer.w)["0-dense/W"][0], first[0])


def test_precisions_start_from_the_same_numbers():
    single, double = (Network(NESTED, (3,), dtype=dtype) for dtype in ("f4", "f8"))
    assert np.array_equal(double.w.astype("f4"), single.w)


def test_inference_has_no_gradients_and_no_backward():
    plan = Plan(Network(NESTED, (3,)), 2)
    assert plan.y.grad is None
    assert not plan.backwards
    assert all(slot.grad is None for _, slot in plan.outputs)


def test_nobody_asks_for_the_gradient_of_the_data():
    plan = Plan(Network(NESTED, (3,)), 2, training=True)
    assert plan.x.grad is None


def test_training_of_a_nested_model_goes_on_through_a_short_batch():
    net = Network(NESTED, (3,), seeds=(0, 1), dtype="f8")
    update = SGD(0.1, momentum=0.9).bind(net)
    update.rate[...] = update.lr
    rng = np.random.default_rng(0)

    def pull(plan):  # towards y = 0: L = y^2 / 2
        plan.step(None, lambda: plan.y.grad.__setitem__(..., plan.y.value))

    sizes = {}
    for batch in (8, 3):
        sizes[batch] = Plan(net, batch, training=True, loss=pull)
    first = None
    for _ in range(30):
        for plan in sizes.values():
            plan.x.value[...] = rng.normal(size=plan.x.value.shape)
            plan.forward()
            plan.backward()
            np.divide(net.g, plan.batch, out=net.g)
            update.step()
            net.clock += 1
        first = first or float((sizes[8].y.value ** 2).mean())
    assert float((sizes[8].y.value ** 2).mean()) < 0.2 * first


def test_arrays_begin_with_a_line_of_the_cache_and_so_do_the_parts_of_them():
    network = Network(Chain(Dense(5), Dense(3)), (7,), seeds=(0, 1, 2))
    plan = Plan(network, 4, training=True)
    update = SGD(0.1, momentum=0.9).bind(network)
    arrays = [network.w, network.g, network.w[1], plan.arena.buffer, *update.state.values()]
    arrays += [slot.value for _, slot in plan.outputs] + list(network.params.views(network.w).values())
    assert all(array.ctypes.data % 64 == 0 for array in arrays)
