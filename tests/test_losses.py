"""Every loss: its formula in plain NumPy, its gradient, and what it says when outputs and targets do not fit."""

import dataclasses

import fake_cupy
import numpy as np
import pytest
from battery import SMOOTH, Held, assert_no_growth, assert_same_bits, every, example, outputs_and_targets

from gpbackprop.backend import select
from gpbackprop.errors import ConfigError
from gpbackprop.losses import (
    BinaryCrossEntropy,
    HalfSquaredError,
    Hinge,
    Huber,
    Loss,
    MeanAbsoluteError,
    MeanSquaredError,
    SoftmaxCrossEntropy,
)


def softmax(y):
    e = np.exp(y - y.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


# The loss of a row with the target vector t. Hinge and perceptron train the other classes towards -1, others towards 0.
FORMULAS = {
    "half_squared_error": lambda loss, y, t: ((y - t) ** 2).sum(axis=-1) / 2,
    "mean_squared_error": lambda loss, y, t: ((y - t) ** 2).mean(axis=-1),
    "mean_absolute_error": lambda loss, y, t: np.abs(y - t).mean(axis=-1),
    "huber": lambda loss, y, t: np.where(
        np.abs(y - t) <= loss.delta, (y - t) ** 2 / 2, loss.delta * (np.abs(y - t) - loss.delta / 2)
    ).mean(axis=-1),
    "softmax_cross_entropy": lambda loss, y, t: -(t * np.log(softmax(y))).sum(axis=-1),
    "binary_cross_entropy": lambda loss, y, t: (
        -(t * np.log(1 / (1 + np.exp(-y))) + (1 - t) * np.log(1 / (1 + np.exp(y)))).mean(axis=-1)
    ),
    "hinge": lambda loss, y, t: np.maximum(0, 1 - t * y).sum(axis=-1),
    "perceptron": lambda loss, y, t: np.maximum(0, -t * y).sum(axis=-1),
}

every_loss = pytest.mark.parametrize("cls", every(Loss))
WEIGHTS = ["no weights", "row weights", "class weights", "both weights"]


def made(cls, reduce="mean", weights="no weights", classes=True, O=3, **fields):  # noqa: E741
    """A loss with its options, and what it is held to: (loss, y, t, number of classes, row weights)."""
    class_weights = (0.5, 2.0, 3.0)[:O] if weights in ("class weights", "both weights") else None
    loss = dataclasses.replace(example(cls), reduce=reduce, class_weights=class_weights, **fields)
    y, t = outputs_and_targets(loss, classes, O=O)
    row_weights = np.random.default_rng(1).uniform(0.5, 2, y.shape[:2])
    return loss, y, t, O if classes else 0, row_weights if weights in ("row weights", "both weights") else None


def expected(loss, y, t, classes, weight):
    """The loss of each member by its formula."""
    name = next(name for name, cls in ((case.id, case.values[0]) for case in every(Loss)) if cls is type(loss))
    assert name in FORMULAS, f"{name}: give test_losses.FORMULAS its formula in plain NumPy"
    vectors = t if not classes else np.where(np.eye(classes) == 1, 1, -1 if name in ("hinge", "perceptron") else 0)[t]
    w = np.ones(y.shape[:2]) if weight is None else weight
    if loss.class_weights:
        w = w * np.array(loss.class_weights)[t]
    total = (w * FORMULAS[name](loss, y, vectors)).sum(axis=1)
    return total / w.sum(axis=1) if loss.reduce == "mean" else total


@every_loss
@pytest.mark.parametrize(
    ("weights", "classes"), [*((w, True) for w in WEIGHTS), ("no weights", False), ("row weights", False)]
)
@pytest.mark.parametrize("reduce", ["mean", "sum"])
def test_a_loss_is_its_formula_and_its_gradient_equals_central_differences(cls, weights, classes, reduce):
    case = made(cls, reduce, weights, classes)
    held = Held(*case)
    np.testing.assert_allclose(held.run()[0], expected(*case), rtol=1e-13)
    assert held.gradient_error() < SMOOTH


@pytest.mark.parametrize("cls", [case for case in every(Loss) if case.values[0].binary])
def test_one_output_stands_for_two_classes(cls):
    loss = example(cls)
    rng = np.random.default_rng(0)
    y, t = rng.normal(size=(2, 6, 1)), rng.integers(0, 2, (2, 6))
    held = Held(loss, y, t, classes=2)
    vectors = np.where(t == 1, 1.0, loss.low)[..., None]
    np.testing.assert_allclose(held.run()[0], expected(loss, y, vectors, 0, None), rtol=1e-13)
    assert held.gradient_error() < SMOOTH
    middle = np.full((1, 1, 1), loss.threshold)  # as far from the one class as from the other
    low, high = (Held(loss, middle, np.array([[c]]), classes=2).run()[0] for c in (0, 1))
    np.testing.assert_allclose(low, high)


@every_loss
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_a_loss_and_its_gradient_stay_finite_at_extreme_outputs(cls, dtype):
    y = np.array([[[1e4, -1e4, 0], [-1e4, -1e4, -1e4], [1e4, 1e4, -1e4], [-1e4, 0, 1e4]]])
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        value, grad = Held(example(cls), y, np.array([[0, 1, 2, 0]]), classes=3, dtype=dtype).run()
    assert np.isfinite(value).all()
    assert np.isfinite(grad).all()
    assert value > 0


@every_loss
def test_a_loss_of_many_vectors_a_row_weighs_each_by_its_row(cls):
    loss = example(cls)
    y, t = outputs_and_targets(loss, classes=False, K=2, B=12)
    weight = np.random.default_rng(1).uniform(0.5, 2, (2, 4))
    value, grad = Held(loss, y.reshape(2, 4, 3, 3), t.reshape(2, 4, 3, 3), weight=weight).run()
    plain_value, plain_grad = Held(loss, y, t, weight=np.repeat(weight, 3, axis=1)).run()
    assert np.array_equal(value, plain_value)
    assert np.array_equal(grad.reshape(y.shape), plain_grad)


@every_loss
def test_a_row_of_weight_two_counts_as_two_rows_and_one_of_weight_zero_as_none(cls):
    loss = dataclasses.replace(example(cls), reduce="sum")
    y, t = outputs_and_targets(loss, classes=True, K=1, B=3)
    value, grad = Held(loss, y, t, 3, np.array([[2.0, 0.0, 1.0]])).run()
    rows = [0, 0, 2]
    again, _ = Held(loss, y[:, rows], t[:, rows], 3).run()
    np.testing.assert_allclose(value, again, rtol=1e-13)
    assert not grad[:, 1].any()


@every_loss
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_rows_that_all_weigh_nothing_teach_nothing(cls, dtype):
    loss = example(cls)
    y, t = outputs_and_targets(loss, classes=True, K=1)
    held = Held(loss, y, t, 3, np.zeros((1, 5)), dtype)
    held.plan.forward()
    held.plan.backward()
    assert held.total.tolist() == [[[0]]]
    assert not held.plan.leaf.grad.any()


@every_loss
def test_backward_overwrites_and_reads_nothing_that_forward_did_not_write(cls):
    held = Held(*made(cls, weights="both weights"))
    value, grad = held.run()
    held.plan.arena.buffer.fill(0xFF)
    held.fill()
    for _ in range(2):
        again, grad_again = held.run()
        assert np.array_equal(value, again)
        assert np.array_equal(grad, grad_again)


@every_loss
@pytest.mark.parametrize("weights", ["no weights", "both weights"])
def test_a_loss_allocates_nothing_that_grows_with_the_batch(cls, weights):
    loss, *_ = made(cls, weights=weights)

    def step_of(batch):
        y, t = outputs_and_targets(loss, classes=True, B=batch)
        held = Held(loss, y, t, 3, np.ones((2, batch)) if weights == "both weights" else None, dtype="f4")

        def step():
            held.plan.forward()
            held.plan.backward()

        return step

    assert_no_growth(step_of)


@every_loss
@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("outputs", [3, 1])
def test_a_member_of_a_population_has_the_bits_of_the_network_alone(cls, dtype, outputs):
    loss = example(cls)
    y, t = outputs_and_targets(loss, classes=False, K=3, B=301, O=outputs)
    weight = np.random.default_rng(0).uniform(0.5, 2, (3, 301))
    together = Held(loss, y, t, 0, weight, dtype).run()
    for k in range(3):
        one = slice(k, k + 1)
        alone = Held(loss, y[one], t[one], 0, weight[one], dtype).run()
        assert_same_bits([array[one] for array in together], alone)


@every_loss
@pytest.mark.parametrize("weights", ["no weights", "both weights"])
def test_cuda_gives_the_bits_of_the_cpu_and_never_waits_in_a_step(cls, weights, monkeypatch):
    fake_cupy.install(monkeypatch)
    case, results = made(cls, weights=weights), []
    for device in ("cpu", "cuda"):
        held = Held(*case, dtype="f4", backend=select(device))
        with fake_cupy.forbid_sync():
            held.plan.forward()
            held.plan.backward()
        results.append(held.run())
    assert_same_bits(*results)


@pytest.mark.cuda
@every_loss
def test_a_gpu_gives_the_numbers_of_the_cpu(cls, cuda):
    case = made(cls, weights="both weights")
    for cpu, gpu in zip(*(Held(*case, backend=backend).run() for backend in (select("cpu"), cuda)), strict=True):
        np.testing.assert_allclose(gpu, cpu, rtol=1e-12, atol=1e-14)


def test_the_textbook_loss_and_the_mean_loss_differ_by_their_factor():
    y, t = np.array([[[1.0, 2.0]]]), np.array([[[4.0, 6.0]]])
    assert Held(HalfSquaredError(), y, t).run()[0].tolist() == [12.5]
    assert Held(MeanSquaredError(), y, t).run()[0].tolist() == [12.5]
    wide = (np.zeros((1, 1, 4)), np.ones((1, 1, 4)))
    assert Held(HalfSquaredError(), *wide).run()[0].tolist() == [2]
    assert Held(MeanSquaredError(), *wide).run()[0].tolist() == [1]
    assert Held(MeanAbsoluteError(), *wide).run()[0].tolist() == [1]


@pytest.mark.parametrize("classes", [3, 0], ids=["classes", "numbers"])
def test_label_smoothing_mixes_the_target_with_all_classes(classes):
    loss, y, t, *_ = made(SoftmaxCrossEntropy, label_smoothing=0.2)
    held = Held(loss, y, t if classes else np.eye(3)[t], classes)
    smooth = 0.8 * np.eye(3)[t] + 0.2 / 3
    np.testing.assert_allclose(held.run()[0], expected(loss, y, smooth, 0, None), rtol=1e-13)
    assert held.gradient_error() < SMOOTH


def test_huber_changes_from_square_to_line_at_delta():
    y, t = np.array([[[0.5, 2.0, 2.5, -7.0]]]), np.zeros((1, 1, 4))
    value, grad = Held(Huber(delta=2.0), y, t).run()
    assert value.tolist() == [np.mean([0.125, 2, 3, 12])]
    assert grad[0, 0].tolist() == [0.125, 0.5, 0.5, -0.5]


def test_cross_entropy_of_equal_outputs_is_the_log_of_the_number_of_classes():
    value, _ = Held(SoftmaxCrossEntropy(), np.zeros((1, 2, 10)), np.array([[3, 4]]), 10).run()
    np.testing.assert_allclose(value, np.log(10), rtol=1e-14)


def test_probabilities_are_those_of_the_loss():
    y = np.array([[0.0, 1.0, 2.0], [1e4, -1e4, 0.0]])
    np.testing.assert_allclose(SoftmaxCrossEntropy().probabilities(y), softmax(y))
    np.testing.assert_allclose(BinaryCrossEntropy().probabilities(y[0]), 1 / (1 + np.exp(-y[0])))
    assert np.isfinite(BinaryCrossEntropy().probabilities(y)).all()


Y3, CLASSES3 = np.zeros((1, 4, 3)), np.zeros((1, 4), int)


@pytest.mark.parametrize(
    ("loss", "y", "t", "classes", "message"),
    [
        (SoftmaxCrossEntropy(), Y3, CLASSES3, 5, "gives 3 outputs a row, the data has 5 classes; .* units = 5"),
        (SoftmaxCrossEntropy(), Y3[..., :1], CLASSES3, 2, "gives 1 outputs .* has 2 classes; .* units = 2"),
        (BinaryCrossEntropy(), Y3[..., :1], CLASSES3, 3, "gives 1 outputs a row, the data has 3 classes"),
        (MeanSquaredError(), Y3, np.zeros((1, 4, 2)), 0, "gives 3 outputs a row, the data has 2 targets; .* units = 2"),
        (MeanSquaredError(), Y3, np.zeros((1, 4)), 0, "gives 3 outputs a row, the data has 1 targets; .* units = 1"),
        (
            MeanSquaredError(), np.zeros((1, 4, 2, 3)), np.zeros((1, 4, 3)), 0,
            "gives 6 outputs a row, the data has 3 targets; put a flatten layer",
        ),
        (
            SoftmaxCrossEntropy(), np.zeros((1, 4, 2, 3)), CLASSES3, 3,
            "gives 2 outputs of 3 for each row, the data has one class a row; put a flatten layer",
        ),
        (SoftmaxCrossEntropy(class_weights=(1, 2)), Y3, CLASSES3, 3, "weights: has 2 entries, the data has 3 classes"),
        (Hinge(class_weights=(1, 2, 3)), Y3, Y3, 0, "class_weights: has 3 entries, the data has no classes"),
    ],
)  # fmt: skip
def test_outputs_and_targets_that_do_not_fit_are_told(loss, y, t, classes, message):
    with pytest.raises(ConfigError, match=message):
        Held(loss, y, t, classes)


@pytest.mark.parametrize(
    ("cls", "fields"),
    [
        (Huber, {"delta": 0.0}),
        (SoftmaxCrossEntropy, {"label_smoothing": 1.0}),
        (SoftmaxCrossEntropy, {"class_weights": (1.0, -1.0)}),
        (MeanSquaredError, {"reduce": "median"}),
    ],
)
def test_values_out_of_range_are_refused_by_name(cls, fields):
    with pytest.raises(ConfigError, match=next(iter(fields))):
        cls(**fields)
