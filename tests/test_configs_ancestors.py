"""The networks before networks: what each config in configs/ancestors/ says of itself, held to it."""

from pathlib import Path

import numpy as np
import pytest
from battery import Bench

from gpbackprop.config import read
from gpbackprop.layers.combine import Chain, Parallel
from gpbackprop.layers.dense import Dense
from gpbackprop.layers.pool import MaxPool1d
from gpbackprop.layers.shape import Flatten, Reshape

FOLDER = Path(__file__).parent.parent / "configs" / "ancestors"


def trained(name, *settings):
    trainer = read(FOLDER / f"{name}.toml", settings).trainer("cpu")
    trainer.fit()
    return trainer


def weights(trainer):
    """W and b of the first layer of the first member, in one row."""
    views = trainer.network.params.views(trainer.network.w)
    return [*views["0-dense/W"][0].ravel().tolist(), *views["0-dense/b"][0].tolist()]


def prepared(trainer):
    """The training rows as the network sees them, with a column of ones; the targets."""
    split, prep = trainer.data.splits["train"], trainer.data.preparation
    x = ((split.inputs - prep.shift) * prep.scale)[split.index]
    t = split.targets[split.index]
    if prep.target_scale is not None:
        t = (t - prep.target_shift) * prep.target_scale
    return np.column_stack([x, np.ones(len(x))]), t


def rosenblatt(rows, epochs):
    """The rule of 1958: the weights and bias after each epoch."""
    w, seen = np.zeros(3), []
    for _ in range(epochs):
        for *x, target in rows:
            t = 2 * target - 1
            if t * np.dot(w, (*x, 1)) <= 0:
                w = w + t * np.array([*x, 1])
        seen.append(w.tolist())
    return seen


def corners(gate):
    return [(a, b, gate(a, b)) for a in (0, 1) for b in (0, 1)]


@pytest.mark.parametrize(
    ("name", "gate", "epochs", "end", "accuracy"),
    [
        ("and", lambda a, b: a & b, 8, [3, 2, -4], 1.0),
        ("or", lambda a, b: a | b, 5, [2, 2, -1], 1.0),
        ("xor", lambda a, b: a ^ b, 1, [0, 0, 0], 0.5),
    ],
)
def test_the_perceptron_learns_and_or_but_not_xor_by_his_rule(name, gate, epochs, end, accuracy):
    trainer = read(FOLDER / "perceptron.toml", [f"data.source={FOLDER / name}.csv"]).trainer("cpu")
    for epoch, expected in enumerate(rosenblatt(corners(gate), 10), 1):
        trainer.fit(epoch)
        assert weights(trainer) == expected
        assert (expected == end) == (epoch >= epochs)
    assert trainer.evaluate("train")["accuracy"] == accuracy


def test_linear_regression_is_the_solution_of_the_normal_equations():
    trainer = trained("linear-regression")
    x, t = prepared(trainer)
    np.testing.assert_allclose(weights(trainer), np.linalg.lstsq(x, t, rcond=None)[0][:, 0], atol=1e-3)
    assert trainer.evaluate("train")["r2"] == pytest.approx(0.761, abs=0.001)


def test_logistic_regression_tells_the_sex_of_a_penguin_and_stands_where_the_gradient_is_zero():
    trainer = trained("logistic-regression")
    assert trainer.evaluate("train")["accuracy"] == pytest.approx(0.92, abs=0.015)
    assert trainer.evaluate("test")["accuracy"] == pytest.approx(0.91, abs=0.015)
    x, t = prepared(trainer)
    w = np.array(weights(trainer))
    slope = x.T @ (1 / (1 + np.exp(-x @ w)) - t) / len(t)
    slope[:-1] += 0.001 * w[:-1]
    assert np.abs(slope).max() < 0.02


def test_softmax_regression_parts_the_cultivars():
    trainer = trained("softmax-regression")
    assert trainer.evaluate("train")["accuracy"] == 1.0
    assert trainer.evaluate("test")["accuracy"] == pytest.approx(0.97, abs=0.03)


def test_the_support_vector_machine_comes_near_the_least_of_its_objective_and_parts_setosa():
    trainer = trained("svm")
    results = trainer.evaluate("train")
    views = trainer.network.params.views(trainer.update.result)
    W, b = views["0-dense/W"][0], views["0-dense/b"][0]
    assert results["loss"] + 0.01 / 2 * float((W**2).sum()) == pytest.approx(0.720, abs=0.002)
    assert results["accuracy"] == pytest.approx(0.93, abs=0.015)
    x, t = prepared(trainer)
    margin = np.where(np.eye(3) == 1, 1, -1)[t] * (x[:, :-1] @ W + b)
    assert (margin[:, 0] > 0).all()
    inside = (margin[:, 0] < 1.001).sum()
    assert 2 <= inside < 20  # few rows hold the street of setosa


def test_a_swarm_solves_xor():
    trainer = trained("xor-swarm")
    results = trainer.evaluate("train")
    assert results["accuracy"] == 1.0
    assert trainer.history[59]["train_loss"] < 0.001


def test_a_circuit_of_gates_has_the_gradients_of_the_hackers_guide():
    trainer = read(FOLDER / "gates.toml").trainer("cpu")
    batch = trainer.training.batch(1)
    plan = batch.plan
    batch.load(np.zeros((1, 1), np.int64))
    plan.forward()
    plan.backward()
    assert {path: slot.value.item() for path, slot in plan.outputs}["0-parallel"] == -12
    assert plan.y.grad.item() == -1  # the guide pulls upwards
    grads = trainer.network.params.views(trainer.network.g)
    names = ["0-parallel/0-parallel/0-dense/W", "0-parallel/0-parallel/1-dense/W", "0-parallel/1-dense/W"]
    assert [-grads[name].item() for name in names] == [-4, -4, 3]
    trainer.fit()
    weights = trainer.network.params.views(trainer.network.w)
    assert [weights[name].item() for name in names] == pytest.approx([-2.04, 4.96, -3.97], abs=1e-15)
    plan.forward()
    assert plan.y.value.item() == pytest.approx(-11.5924, abs=1e-12)


def test_a_maximum_of_branches_is_a_gate_too():
    """f = 2 (x y + max(z, w)): the circuit of Stanford's CS231n."""
    x, y, z, w = (Dense(1, init={"W": value}) for value in (3.0, -4.0, 2.0, -1.0))
    largest = Chain(Parallel(z, w), Reshape((2, 1)), MaxPool1d(2), Flatten())
    circuit = Chain(Parallel(Parallel(x, y, combine="product"), largest, combine="sum"), Dense(1, init={"W": 2.0}))
    bench = Bench(circuit, (1,), batch=1, K=1)
    bench.x[...] = bench.c[...] = 1
    bench.fill()
    grads = bench.gradients()
    assert bench.plan.y.value.item() == -20
    dx, dy = (grads[f"0-parallel/0-parallel/{i}-dense/W"].item() for i in range(2))
    dz, dw = (grads[f"0-parallel/1-chain/0-parallel/{i}-dense/W"].item() for i in range(2))
    assert (dx, dy, dz, dw) == (-8, 6, 2, 0)
