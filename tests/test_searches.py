"""Optimizers that take one step from all rows: L-BFGS, Levenberg-Marquardt, particle swarm."""

import dataclasses

import fake_cupy
import numpy as np
import pytest
from battery import Training, assert_same_bits, every, example
from test_rules import resumes_exactly, schedules

from gpbackprop import data
from gpbackprop.backend import random, select
from gpbackprop.errors import ConfigError
from gpbackprop.layers.combine import Chain
from gpbackprop.layers.dense import Dense
from gpbackprop.layers.dropout import Dropout
from gpbackprop.layers.recurrent import SimpleRNN
from gpbackprop.losses import BinaryCrossEntropy, HalfSquaredError, MeanSquaredError, SoftmaxCrossEntropy
from gpbackprop.model import load
from gpbackprop.optim.lbfgs import LBFGS, cubic, wolfe
from gpbackprop.optim.levenberg_marquardt import LevenbergMarquardt
from gpbackprop.optim.objective import Objective
from gpbackprop.optim.particle_swarm import ParticleSwarm
from gpbackprop.optim.search import Search
from gpbackprop.optim.sgd import SGD
from gpbackprop.spec import type_name
from gpbackprop.trainer import Trainer

every_search = pytest.mark.parametrize("cls", every(Search))
every_whole = pytest.mark.parametrize("cls", [*every(Search), pytest.param(ParticleSwarm, id="particle_swarm")])
TANH = Chain(Dense(4, activation="tanh"), Dense(2))


def full(rows, loss, optimizer, model, **train):
    settings = {"batch_size": "full", "dtype": "float64", "device": "cpu", "seed": 1, **train}
    return Trainer(model, loss, optimizer, data.load(rows, dtype="float64"), **settings)


@every_whole
def test_a_batch_of_some_rows_is_refused(cls):
    with pytest.raises(ConfigError, match=rf'{type_name(cls)} takes one step .* set batch_size = "full"'):
        full("sine", MeanSquaredError(), example(cls), Dense(1), batch_size=32, population=2)


@every_whole
@pytest.mark.parametrize("schedule", list(schedules()))
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(cls, schedule):
    optimizer = dataclasses.replace(example(cls), schedule=schedule, freeze=("0-*/b",))
    model = Chain(Dense(3, activation="tanh"), Dense(1))
    resumes_exactly(lambda: full("sine", MeanSquaredError(), optimizer, model, population=3, epochs=6), 3)


@every_search
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_a_member_of_a_population_has_the_bits_of_the_network_alone(cls, dtype):
    """One member may be in the middle of its search while another one is done."""
    options = {"batch": 20, "dtype": dtype, "optimizer": example(cls)}
    together = Training(TANH, (5,), seeds=(4, 2, 9), **options).run(6)
    for k, seed in enumerate((4, 2, 9)):
        alone = Training(TANH, (5,), seeds=(seed,), **options).run(6)
        assert_same_bits([array[k : k + 1] for array in together], alone)


@every_search
def test_the_loss_falls_in_every_step(cls):
    training = Training(TANH, (5,), seeds=(0, 1), batch=20, dtype="f8", optimizer=example(cls))
    training.load()
    decay = example(cls).weight_decay
    losses = []
    for _ in range(15):
        training.step()
        matrices = sum((w**2).reshape(2, -1).sum(axis=1) for path, w in views(training).items() if path.endswith("W"))
        training.plan.forward()
        losses.append(training.total[:, 0, 0] / training.mass[:, 0, 0] + decay / 2 * matrices)
    assert (np.diff(losses, axis=0) <= 1e-12).all()
    assert (losses[-1] < 0.7 * losses[0]).all()


@every_whole
def test_frozen_parameters_keep_their_bits_and_a_rate_of_zero_stands_still(cls):
    optimizer = dataclasses.replace(example(cls), lr=(1.0, 0.0), freeze=("0-dense/W",))
    training = Training(Chain(Dense(4, freeze=("b",)), Dense(2)), (5,), seeds=(0, 1), batch=20, optimizer=optimizer)
    before = {path: view.copy() for path, view in views(training).items()}
    training.run(4)
    for path, view in views(training).items():
        same = path in ("0-dense/W", "1-chain/0-dense/b")
        assert (view[0].tobytes() == before[path][0].tobytes()) == same, path
        assert view[1].tobytes() == before[path][1].tobytes(), path


@every_search
def test_weight_decay_shrinks_the_norm(cls):
    norms = []
    for decay in (0.0, 0.1):
        optimizer = dataclasses.replace(example(cls), weight_decay=decay)
        training = Training(TANH, (5,), batch=20, dtype="f8", optimizer=optimizer)
        training.load()
        for _ in range(10):
            training.step()
        norms.append(np.linalg.norm(views(training)["1-chain/1-dense/W"]))
    assert norms[1] < 0.8 * norms[0]


@every_search
def test_what_a_search_evaluates_is_not_counted_in_the_epoch(cls):
    trainer = full("sine", MeanSquaredError(), example(cls), Chain(Dense(4, activation="tanh"), Dense(1)))
    before = trainer.evaluate("train")["loss"]
    assert trainer.fit(1)[0]["train_loss"] == pytest.approx(before, rel=1e-12)


def views(training):
    return training.net.params.views(training.net.w)


# L-BFGS; its steps are held to PyTorch's in parity/test_torch.py.


def test_lbfgs_reaches_a_tighter_minimum_than_sgd_in_the_same_evaluations(monkeypatch):
    count, evaluate = [0], Objective.evaluate

    def counted(self, gradient=True):
        count[0] += 1
        return evaluate(self, gradient)

    monkeypatch.setattr(Objective, "evaluate", counted)
    model = Chain(Dense(5, activation="tanh"), Dense(3))
    ours = full("iris", SoftmaxCrossEntropy(), LBFGS(weight_decay=1e-3), model)
    ours.fit(40)
    passes = 40 + count[0]
    penalised = []
    for trainer in (ours, *(full("iris", SoftmaxCrossEntropy(), SGD(lr, momentum=0.9, weight_decay=1e-3), model)
                            for lr in (0.03, 0.1, 0.3))):  # fmt: skip
        if trainer is not ours:
            trainer.fit(passes)
        w = trainer.network.params.views(trainer.network.w)
        decay = 1e-3 / 2 * sum(float((view**2).sum()) for path, view in w.items() if path.endswith("W"))
        penalised.append(trainer.evaluate("train")["loss"] + decay)
    assert penalised[0] < min(penalised[1:]) - 1e-5
    assert passes < 90


def searched(f, slope, length, most=25):
    """The length that the line search ends with, and how often it looked."""
    search, looks = wolfe(length, f(0.0), slope(0.0), 1.0, most), 0
    trial = next(search)
    try:
        while True:
            looks += 1
            trial = search.send((f(trial), slope(trial)))
    except StopIteration as done:
        return done.value, looks


@pytest.mark.parametrize("length", [1e-3, 0.1, 1.0, 30.0, 100.0])
@pytest.mark.parametrize(
    ("f", "slope"),
    [
        (lambda a: (a - 2) ** 2, lambda a: 2 * (a - 2)),
        (lambda a: -a / (a * a + 2), lambda a: (a * a - 2) / (a * a + 2) ** 2),  # More and Thuente, 1994
        (lambda a: (a + 0.004) ** 5 - 2 * (a + 0.004) ** 4, lambda a: 5 * (a + 0.004) ** 4 - 8 * (a + 0.004) ** 3),
    ],
    ids=["parabola", "flat", "quintic"],
)
def test_a_line_search_ends_where_the_wolfe_conditions_hold(f, slope, length):
    a, looks = searched(f, slope, length)
    assert f(a) <= f(0) + 1e-4 * a * slope(0)
    assert abs(slope(a)) <= 0.9 * abs(slope(0))
    assert looks <= 26


def test_a_line_search_turns_back_where_the_loss_is_not_finite():
    def f(a):
        return (a - 2) ** 2 if a < 3 else float("nan")

    a, _ = searched(f, lambda a: 2 * (a - 2), 100.0)
    assert 0 < a < 3
    assert f(a) < f(0)


def test_the_cubic_finds_the_minimum_of_a_parabola_and_keeps_its_bounds():
    points = [(x, (x - 2) ** 2, 2 * (x - 2)) for x in (0.0, 5.0)]
    assert cubic(*points, 0, 5) == pytest.approx(2)
    assert cubic(*reversed(points), 0, 5) == pytest.approx(2)
    assert cubic(*points, 3, 5) == 3


# Levenberg-Marquardt.


@pytest.mark.parametrize("loss", [HalfSquaredError(), MeanSquaredError(), MeanSquaredError(reduce="sum")], ids=repr)
def test_levenberg_marquardt_is_its_formula(loss):
    """The Jacobian by central differences, the rows weighted; more rows than are taken at once."""
    optimizer = LevenbergMarquardt(0.5, damping=0.3, tries=1, weight_decay=0.05, freeze=("1-chain/0-dense/b",))
    training = Training(TANH, (5,), batch=70, dtype="f8", loss=loss, optimizer=optimizer)
    training.load()
    trained = {path: view for path, view in views(training).items() if path != "1-chain/0-dense/b"}
    start = {path: view.copy() for path, view in trained.items()}
    scale = training.target.weight[0] / (training.target.weight.sum() if loss.reduce == "mean" else 1)
    c = np.repeat(scale, 2)  # d^2l/dy^2 is 1, and for the mean of two outputs 2/O = 1
    assert loss.curvature(2) == 1

    def outputs():
        training.plan.forward()
        return training.plan.y.value[0].ravel().copy()

    J = []
    for view in trained.values():
        for i in np.ndindex(view.shape):
            kept = view[i]
            view[i] = kept + 1e-6
            above = outputs()
            view[i] = kept - 1e-6
            J.append((above - outputs()) / 2e-6)
            view[i] = kept
    J, r = np.array(J).T, outputs() - training.target.value[0].ravel()
    decay = 0.05 * np.concatenate([np.full(view.size, float(path.endswith("W"))) for path, view in start.items()])
    w = np.concatenate([view.ravel() for view in start.values()])
    H = J.T @ (c[:, None] * J) + np.diag(decay) + 0.3 * np.eye(len(w))
    expected = w - 0.5 * np.linalg.solve(H, J.T @ (c * r) + decay * w)
    training.step()
    np.testing.assert_allclose(np.concatenate([v.ravel() for v in trained.values()]), expected, rtol=1e-6, atol=1e-8)
    assert training.update.scalars["damping"][0, 0] == pytest.approx(0.03)


def test_levenberg_marquardt_solves_a_linear_problem_in_one_step():
    trainer = full("sine", MeanSquaredError(), LevenbergMarquardt(damping=1e-12), Dense(1))
    trainer.fit(1)
    split = trainer.data.splits["train"]
    x = np.column_stack([(split.inputs - trainer.data.preparation.shift) * trainer.data.preparation.scale,
                         np.ones(len(split))])  # fmt: skip
    solution = np.linalg.lstsq(x, split.targets, rcond=None)[0]
    w = trainer.network.params.views(trainer.network.w)
    np.testing.assert_allclose(np.concatenate([w["W"][0], w["b"]]), solution, rtol=1e-8, atol=1e-10)


def test_levenberg_marquardt_fits_a_sine_in_few_epochs():
    trainer = full("sine", MeanSquaredError(), LevenbergMarquardt(), Chain(Dense(8, activation="tanh"), Dense(1)))
    trainer.fit(25)
    assert trainer.evaluate("train")["r2"] > 0.97  # the noise alone leaves 0.98
    slow = full("sine", MeanSquaredError(), SGD(0.1, momentum=0.9), Chain(Dense(8, activation="tanh"), Dense(1)))
    slow.fit(25)
    assert slow.evaluate("train")["loss"] > 4 * trainer.evaluate("train")["loss"]


def test_levenberg_marquardt_damps_more_where_a_step_does_not_help():
    training = Training(TANH, (5,), batch=20, dtype="f8", optimizer=LevenbergMarquardt(lr=100.0, tries=3))
    before = training.net.w.copy()
    training.run(1)
    assert np.array_equal(training.net.w, before)
    assert training.update.scalars["damping"][0, 0] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("loss", "model", "message"),
    [
        (SoftmaxCrossEntropy(), Dense(3), "levenberg_marquardt is for least squares"),
        (HalfSquaredError(class_weights=(1.0, 2.0, 1.0)), Dense(3), "without class_weights"),
        (
            HalfSquaredError(),
            Chain(Dropout(0.5), Dense(3)),
            "dropout draws for a batch; leave dropout out, or take lbfgs",
        ),
        (HalfSquaredError(), Chain(Dense(800), Dense(3)), "6403 parameters; it takes up to 4000. Take lbfgs"),
    ],
)
def test_levenberg_marquardt_says_what_it_cannot_do(loss, model, message):
    with pytest.raises(ConfigError, match=message):
        full("iris", loss, LevenbergMarquardt(), model)


# Particle swarm.


def swarm(optimizer, **train):
    settings = {"population": 30, "seed": 1, **train}
    return full("xor", BinaryCrossEntropy(), optimizer, Chain(Dense(4, activation="tanh"), Dense(1)), **settings)


def test_a_swarm_solves_xor_and_the_best_particle_is_what_it_shows():
    trainer = swarm(ParticleSwarm())
    trainer.fit(100)
    results = trainer.evaluate("train")
    assert results["accuracy"] == 1.0
    assert results["loss"] < 0.01
    losses = [row["train_loss"] for row in trainer.history]
    assert losses == sorted(losses, reverse=True)  # the best never becomes worse
    content = trainer.content()
    assert all(content["params/0-dense/W"][k].tobytes() == content["params/0-dense/W"][0].tobytes() for k in range(30))


def test_the_model_of_a_swarm_is_one_network(tmp_path):
    trainer = swarm(ParticleSwarm())
    trainer.fit(60)
    trainer.save(tmp_path / "swarm.h5")
    model = load(tmp_path / "swarm.h5")
    split = trainer.data.splits["train"]
    assert model.predict(split.inputs).tolist() == [split.targets.tolist()]
    assert model.evaluate(split) == trainer.evaluate("train")


def test_a_swarm_is_its_formula():
    options = {"inertia": 0.6, "own": 1.2, "social": 0.8, "limit": 0.5}
    trainer = swarm(ParticleSwarm(0.9, **options), population=4)
    net = trainer.network
    w, v = net.w.copy(), trainer.update.state["velocity"].copy()
    assert 0.4 < np.abs(v).max() <= 1
    best, least, f = w.copy(), np.full(4, np.inf), losses_of(trainer)
    for step in range(6):
        now = f(w)
        best[now < least] = w[now < least]
        least = np.minimum(now, least)
        leader = best[least.argmin()]
        r1, r2 = (numbers(net, pull, step) for pull in ("own", "social"))
        v = np.clip(0.6 * v + 1.2 * r1 * (best - w) + 0.8 * r2 * (leader - w), -0.5, 0.5)
        w = w + 0.9 * v
        trainer.fit(step + 1)
        np.testing.assert_allclose(net.w, w, rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(trainer.update.result, np.broadcast_to(leader, w.shape), rtol=1e-12, atol=1e-14)


def losses_of(trainer):
    other = swarm(SGD(0.0), population=4)

    def losses(w):
        other.network.w[...] = w
        return np.array(other.evaluate("train")["loss"])  # of each member: SGD is no swarm

    return losses


def numbers(net, pull, step):
    """r (K, P), drawn for one particle at a time."""
    out, bits = np.empty((1, net.w.shape[1])), np.empty((2, 1, net.w.shape[1]), np.uint32)
    index, rows = np.arange(net.w.shape[1], dtype=np.uint32), []
    for seed in net.seeds:
        key = random.key(seed, f"particle_swarm/{pull}")[None]
        random.uniform(np, out, bits, index, key, np.array([step], np.uint32))
        rows.append(out[0].copy())
    return np.array(rows)


def test_a_swarm_of_one_is_refused():
    with pytest.raises(ConfigError, match=r"population: is 1, .* set population = 30"):
        swarm(ParticleSwarm(), population=1)


def test_a_swarm_runs_on_cuda_without_waiting_in_a_step(monkeypatch):
    fake_cupy.install(monkeypatch)
    runs = []
    for device in ("cpu", "cuda"):
        training = Training(TANH, (5,), seeds=(0, 1, 2), backend=select(device), optimizer=ParticleSwarm(limit=1.0))
        step = training.update.step

        def quietly(step=step):
            with fake_cupy.forbid_sync():
                step()

        object.__setattr__(training.update, "step", quietly)
        runs.append(training.run(3))
    assert_same_bits(*runs)


@pytest.mark.cuda
@every_whole
def test_a_gpu_gives_the_numbers_of_the_cpu(cls, cuda):
    runs = [
        Training(TANH, (5,), seeds=(0, 1), dtype="f8", batch=20, backend=backend, optimizer=example(cls)).run(3)
        for backend in (select("cpu"), cuda)
    ]
    for cpu, gpu in zip(*runs, strict=True):
        np.testing.assert_allclose(gpu, cpu, rtol=1e-7, atol=1e-9)


@every_whole
def test_windows_of_sequences_are_refused(cls):
    rows = data.load("copy", rows=20, window=30)
    with pytest.raises(ConfigError, match=r"^train.bptt = 10: takes a step from each window .* leave train.bptt out"):
        Trainer(Chain(SimpleRNN(4, returns="sequence"), Dense(9)), SoftmaxCrossEntropy(), example(cls), rows, bptt=10)
