"""The battery for every layer, and what single layers promise beyond it."""

import fake_cupy
import numpy as np
import pytest
from battery import (
    SMOOTH,
    Bench,
    Training,
    allocated,
    assert_no_growth,
    assert_same_bits,
    example,
    is_rowwise,
    layers,
    parts,
)

from gpbackprop.backend import select
from gpbackprop.errors import ConfigError, ShapeError
from gpbackprop.layers.activation import Activation, LeakyRelu, Linear, Relu, Sigmoid, Softmax, Softplus, Tanh
from gpbackprop.layers.base import Layer
from gpbackprop.layers.combine import Chain, Parallel, Residual
from gpbackprop.layers.dense import Dense
from gpbackprop.layers.dropout import Dropout
from gpbackprop.layers.shape import Flatten, Reshape
from gpbackprop.optim.sgd import SGD
from gpbackprop.plan import Network, Plan
from gpbackprop.spec import family

every_layer = pytest.mark.parametrize("make", layers())


@every_layer
def test_gradients_equal_central_differences(make):
    assert Bench(*make()).gradient_error() < SMOOTH


@every_layer
def test_backward_overwrites_and_reads_nothing_that_forward_did_not_write(make):
    bench = Bench(*make())
    clean = bench.gradients()
    bench.poison()
    poisoned = bench.gradients()
    for path, grad in clean.items():
        assert np.array_equal(grad, poisoned[path]), path
    for path, grad in bench.gradients().items():  # once more, on top of what is there
        assert np.array_equal(grad, clean[path]), path


@every_layer
def test_a_step_leaves_its_input_and_the_gradient_of_its_output_as_they_were(make):
    bench = Bench(*make())
    bench.gradients()
    assert np.array_equal(bench.plan.leaf.value, bench.x)
    if bench.plan.y is not bench.plan.leaf:
        assert np.array_equal(bench.plan.y.grad, bench.c)


@every_layer
def test_a_step_allocates_nothing_that_grows_with_the_batch(make):
    layer, row = make()

    def step_of(batch):
        training = Training(layer, row, batch=batch)
        training.load()
        return training.step

    assert_no_growth(step_of)


@every_layer
def test_a_row_alone_gives_what_it_gives_in_a_batch(make):
    layer, row = make()
    batch = Bench(layer, row, batch=3)
    alone = Bench(layer, row, batch=1, network=batch.net)
    if is_rowwise(layer):
        whole, sums = batch.gradients(), {}
        for b in range(3):
            alone.x, alone.c = batch.x[:, b : b + 1], batch.c[:, b : b + 1]
            alone.fill()
            for path, grad in alone.gradients().items():
                sums[path] = sums.get(path, 0) + grad
                if path == "x":
                    np.testing.assert_allclose(grad[:, 0], whole["x"][:, b], rtol=1e-11, atol=1e-13)
            np.testing.assert_allclose(alone.plan.y.value[:, 0], batch.plan.y.value[:, b], rtol=1e-11, atol=1e-13)
        for path in set(whole) - {"x"}:
            np.testing.assert_allclose(sums[path], whole[path], rtol=1e-11, atol=1e-12)
    inference = [Plan(batch.net, size) for size in (3, 1)]
    inference[0].x.value[...] = batch.x
    inference[0].forward()
    for b in range(3):
        inference[1].x.value[...] = batch.x[:, b : b + 1]
        inference[1].forward()
        np.testing.assert_allclose(inference[1].y.value[:, 0], inference[0].y.value[:, b], rtol=1e-11, atol=1e-13)


@every_layer
def test_inference_equals_training_where_the_layer_says_so(make):
    layer, row = make()
    bench = Bench(layer, row)
    bench.loss()
    inference = Plan(bench.net, 3)
    inference.x.value[...] = bench.x
    inference.forward()
    assert np.array_equal(inference.y.value, bench.plan.y.value) == is_rowwise(layer)
    assert inference.y.grad is None
    assert not inference.backwards


@every_layer
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_a_member_of_a_population_has_the_bits_of_the_network_alone(make, dtype):
    layer, row = make()
    hyper = {"lr": (0.1, 0.05, 0.2), "momentum": (0.9, 0.0, 0.5), "weight_decay": (0.0, 0.01, 0.1)}
    together = Training(layer, row, seeds=(3, 1, 7), batch=13, dtype=dtype, optimizer=SGD(**hyper)).run(4)
    for k, seed in enumerate((3, 1, 7)):
        own = SGD(**{name: (values[k],) for name, values in hyper.items()})
        alone = Training(layer, row, seeds=(seed,), batch=13, dtype=dtype, optimizer=own).run(4)
        own_momentum = len(alone) == len(together)
        assert own_momentum or hyper["momentum"][k] == 0
        assert_same_bits([array[k : k + 1] for array in together[: len(alone)]], alone)


@every_layer
def test_cuda_gives_the_bits_of_the_cpu_and_never_waits_in_a_step(make, monkeypatch):
    fake_cupy.install(monkeypatch)
    layer, row = make()
    run = {}
    for device in ("cpu", "cuda"):
        training = Training(layer, row, seeds=(0, 1), backend=select(device), optimizer=SGD(0.1, momentum=0.9))
        step = training.step

        def quietly(step=step):
            with fake_cupy.forbid_sync():
                step()

        training.step = quietly
        run[device] = training.run(3)
    assert_same_bits(run["cpu"], run["cuda"])


@pytest.mark.cuda
@every_layer
def test_a_gpu_gives_the_numbers_of_the_cpu(make, cuda):
    layer, row = make()
    run = [Training(layer, row, seeds=(0, 1), dtype="f8", backend=backend).run(3) for backend in (select("cpu"), cuda)]
    for cpu, gpu in zip(*run, strict=True):
        np.testing.assert_allclose(gpu, cpu, rtol=1e-9, atol=1e-11)


def test_a_class_without_an_example_is_told_what_to_give():
    class Needy(Layer):
        __abstract__ = True

        def __init__(self, width):
            self.width = width

    with pytest.raises(pytest.fail.Exception, match=r"Needy has no example.*classmethod `example`"):
        example(Needy)


def test_what_only_serves_as_a_base_cannot_be_named_in_a_config():
    names = family(Layer)
    assert {"layer", "activation", "group", "parametric", "exposed"}.isdisjoint(names)
    assert {"dense", "relu", "leaky_relu", "dropout", "flatten", "reshape", "chain", "residual"} <= set(names)


def outputs(layer, x, *, training=False, seeds=(0,), clock=0, dtype="f8"):
    """What a layer makes of one member's rows x."""
    net = Network(layer, x.shape[1:], seeds=seeds, dtype=dtype)
    net.clock.fill(clock)
    plan = Plan(net, len(x), training=training)
    plan.x.value[...] = x
    plan.forward()
    return plan.y.value.copy()


FORMULAS = {
    "linear": lambda a, x: x,
    "sigmoid": lambda a, x: 1 / (1 + np.exp(-x)),
    "tanh": lambda a, x: np.tanh(x),
    "relu": lambda a, x: np.where(x > 0, x, 0),
    "leaky_relu": lambda a, x: np.where(x > 0, x, a.slope * x),
    "elu": lambda a, x: np.where(x > 0, x, a.alpha * (np.exp(x) - 1)),
    "gelu": lambda a, x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "silu": lambda a, x: x / (1 + np.exp(-x)),
    "softplus": lambda a, x: np.log(1 + np.exp(x)),
    "softmax": lambda a, x: np.exp(x) / np.exp(x).sum(axis=-1, keepdims=True),
}


@pytest.mark.parametrize("name", sorted(FORMULAS))
def test_an_activation_is_its_formula(name):
    layer = family(Layer)[name]()
    x = np.random.default_rng(0).normal(size=(7, 5)) * 3
    np.testing.assert_allclose(outputs(layer, x)[0], FORMULAS[name](layer, x), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", sorted(family(Activation) | {"softmax": Softmax}))
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_an_activation_stays_finite_at_large_inputs_and_so_does_its_gradient(name, dtype):
    net = Network(Chain(Dense(3, init={"W": np.eye(3)}), {"type": name}), (3,), dtype=dtype)
    x = np.array([[-1e4, 0, 1e4], [-100, 1, 100], [1e4, 1e4, 1e4]])

    def weigh(plan):
        plan.step(None, lambda: plan.y.grad.fill(1))

    plan = Plan(net, 3, training=True, loss=weigh)
    plan.x.value[...] = x
    plan.forward()
    plan.backward()
    assert np.isfinite(plan.y.value).all()
    assert np.isfinite(net.g).all()


def test_softmax_gives_probabilities_even_of_large_inputs():
    y = outputs(Softmax(), np.array([[1e4, -1e4, 0], [-1e4, -1e4, -1e4]]))[0]
    np.testing.assert_allclose(y, [[1, 0, 0], [1 / 3] * 3])


def test_sigmoid_and_softplus_agree_at_the_far_ends():
    x = np.array([[-1e4, -30, 0, 30, 1e4]])
    np.testing.assert_allclose(outputs(Sigmoid(), x)[0], [[0, np.exp(-30), 0.5, 1, 1]], atol=1e-13)
    np.testing.assert_allclose(outputs(Softplus(), x)[0], [[0, np.exp(-30), np.log(2), 30, 1e4]], atol=1e-13)


def test_dense_is_a_product_plus_a_bias():
    W, b, x = np.arange(6.0).reshape(3, 2), [10, 20], np.arange(12.0).reshape(4, 3)
    assert np.array_equal(outputs(Dense(2, init={"W": W, "b": b}), x)[0], x @ W + b)
    assert np.array_equal(outputs(Dense(2, "relu", init={"W": -W, "b": b}), x)[0], np.maximum(b - x @ W, 0))


def test_dense_names_itself_where_it_gets_no_features():
    with pytest.raises(ShapeError, match=r"0-dense: wants rows of features .* got \(1,\)"):
        Network(Chain(Dense(2)), ())


def test_given_values_of_a_wrong_shape_name_the_parameter():
    with pytest.raises(
        ShapeError, match=r"0-dense/W: the given values have shape \(1, 2\), the parameter has \(3, 2\)"
    ):
        Network(Chain(Dense(2, init={"W": [[1, 2]]})), (3,))


def test_init_and_freeze_know_the_parameters_of_the_layer():
    with pytest.raises(ConfigError, match=r"no parameter 'w' \(did you mean 'W'\?\)|no parameter 'w'; it has W, b"):
        Dense(2, init={"w": 0})
    with pytest.raises(ConfigError, match="no parameter 'bias'"):
        Dense(2, freeze=("bias",))


def test_flatten_and_reshape_only_look_at_the_same_numbers():
    x = np.arange(12.0).reshape(2, 2, 3)
    assert np.array_equal(outputs(Flatten(), x)[0], x.reshape(2, 6))
    assert np.array_equal(outputs(Reshape((3, 2)), x)[0], x.reshape(2, 3, 2))
    net = Network(Chain(Flatten(), Reshape((3, 2))), (2, 3))
    plan = Plan(net, 4, training=True)
    assert np.shares_memory(plan.y.value, plan.x.value)
    assert not plan.forwards
    assert not plan.backwards


def test_reshape_says_what_does_not_fit():
    with pytest.raises(ShapeError, match="1-reshape: wants 6 features, got"):
        Network(Chain(Dense(5), Reshape((3, 2))), (4,))


def test_residual_is_x_plus_f_of_x():
    x = np.random.default_rng(0).normal(size=(4, 3))
    W = np.arange(9.0).reshape(3, 3)
    np.testing.assert_allclose(outputs(Residual(Dense(3, init={"W": W}), Tanh()), x)[0], x + np.tanh(x @ W))


def test_residual_needs_layers_that_keep_the_shape():
    with pytest.raises(ShapeError, match=r"1-residual: wants inner layers that keep the shape \(1, 4\), got \(1, 3\)"):
        Network(Chain(Dense(4), Residual(Dense(3))), (5,))


def test_parallel_joins_sums_or_multiplies_its_branches():
    x = np.random.default_rng(0).normal(size=(4, 3))
    assert np.array_equal(outputs(Parallel(Linear(), Relu()), x)[0], np.concatenate([x, np.maximum(x, 0)], axis=1))
    assert np.array_equal(outputs(Parallel(Linear(), Relu(), combine="sum"), x)[0], x + np.maximum(x, 0))
    assert np.array_equal(outputs(Parallel(Linear(), Relu(), combine="product"), x)[0], x * np.maximum(x, 0))


def test_of_a_product_a_branch_that_is_zero_learns_alone_and_two_of_them_not_at_all():
    zero, one = {"W": 0.0}, {"W": 0.0, "b": 1.0}
    for inits, alone in (((zero, one, one), 0), ((one, one, zero), 2), ((one, zero, zero), None)):
        grads = Bench(Parallel(*(Dense(2, init=init) for init in inits), combine="product"), (3,)).gradients()
        learns = [bool(grads[f"{i}-dense/W"].any()) for i in range(3)]
        assert learns == [i == alone for i in range(3)]


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (Parallel(Dense(3), Dense(2), combine="sum"), r"1-parallel: wants branches of one shape for their sum"),
        (
            Parallel(Dense(3), Dense(2), combine="product"),
            r"1-parallel: wants branches of one shape for their product, got \[\(1, 3\), \(1, 2\)\]",
        ),
        (Parallel(Dense(3), Reshape((2, 2))), r"1-parallel: wants branches that differ in the last axis alone"),
        (Parallel(branches=()), r"1-parallel: wants at least one branch, got none"),
    ],
)
def test_parallel_says_what_does_not_fit(layer, message):
    with pytest.raises(ShapeError, match=message):
        Network(Chain(Dense(4), layer), (5,))


def test_leaky_relu_refuses_a_slope_that_would_turn_it_around():
    for slope in (1.0, -0.1):
        with pytest.raises(ConfigError, match="slope"):
            LeakyRelu(slope=slope)


def test_dropout_keeps_its_share_and_the_mean():
    x = np.ones((500, 200))
    y = outputs(Dropout(0.3), x, training=True)[0]
    assert set(np.unique(y)) == {0, 1 / 0.7}
    assert abs((y > 0).mean() - 0.7) < 5 * np.sqrt(0.3 * 0.7 / x.size)
    columns, rows = (y > 0).mean(axis=0), (y > 0).mean(axis=1)
    for shares, n in ((columns, 500), (rows, 200)):  # no column and no row is favoured
        assert abs(shares.std() / np.sqrt(0.21 / n) - 1) < 0.2


def test_dropout_is_the_identity_at_inference_and_at_rate_zero():
    x = np.random.default_rng(0).normal(size=(4, 5))
    assert np.array_equal(outputs(Dropout(0.5), x)[0], x)
    assert np.array_equal(outputs(Dropout(0.0), x, training=True)[0], x)
    for rate in (1.0, -0.5):
        with pytest.raises(ConfigError, match="rate"):
            Dropout(rate=rate)


def test_dropout_masks_differ_by_step_layer_member_and_seed_and_come_again():
    x = np.ones((20, 30))

    def mask(layer=None, clock=0, seeds=(0,)):
        return outputs(layer or Chain(Dropout(0.5)), x, training=True, clock=clock, seeds=seeds) > 0

    first = mask()[0]
    others = {
        "another step": mask(clock=1)[0],
        "another layer": mask(Chain(Linear(), Dropout(0.5)))[0],
        "another seed": mask(seeds=(1,))[0],
        "another member": mask(seeds=(0, 1))[1],
    }
    for what, other in others.items():
        assert 0.35 < (first == other).mean() < 0.65, what
    assert np.array_equal(first, mask()[0])
    assert np.array_equal(mask(seeds=(0, 1))[0], first)
    assert np.array_equal(mask(seeds=(0, 1))[1], others["another seed"])


def test_dropout_draws_the_same_mask_in_both_precisions_and_in_a_short_batch():
    x = np.ones((6, 5))
    whole = outputs(Chain(Dropout(0.5)), x, training=True)[0] > 0
    assert np.array_equal(outputs(Chain(Dropout(0.5)), x, training=True, dtype="f4")[0] > 0, whole)
    assert np.array_equal(outputs(Chain(Dropout(0.5)), x[:2], training=True)[0] > 0, whole[:2])


def test_parts_finds_the_layers_inside():
    found = {type(part) for part in parts(Residual(Parallel(Dense(3, "tanh"), Chain(Dropout()))))}
    assert found == {Residual, Parallel, Dense, Tanh, Chain, Dropout}


def test_the_measure_of_allocations_sees_one():
    assert allocated(lambda: np.zeros(100_000).sum()) > 700_000
    assert allocated(lambda: None) < 1000
