"""Update rules and schedules: their formulas, what they leave alone, and populations."""

import dataclasses
import math

import fake_cupy
import numpy as np
import pytest
from battery import Training, allocated, assert_no_growth, assert_same_bits, every, example
from hypothesis import given
from hypothesis import strategies as st

from gpbackprop.backend import select
from gpbackprop.errors import ConfigError
from gpbackprop.layers.combine import Chain
from gpbackprop.layers.dense import Dense
from gpbackprop.optim.rule import GradientRule
from gpbackprop.optim.schedules import Constant, Cosine, Exponential, Schedule, Step, Warmup
from gpbackprop.optim.sgd import SGD
from gpbackprop.plan import Network
from gpbackprop.spec import family

MODEL = Chain(Dense(4), Dense(2, freeze=("W",)))
every_optimizer = pytest.mark.parametrize("cls", every(GradientRule))


class Steps:
    """An optimizer on a network whose gradients are given."""

    def __init__(self, optimizer, K=2, dtype="f8", model=MODEL):
        self.net = Network(model, (3,), seeds=range(K), dtype=dtype)
        self.w, self.g = (self.net.params.views(array) for array in (self.net.w, self.net.g))
        for place in self.w.values():
            place += 1  # so that biases are not zero
        self.update = optimizer.bind(self.net)
        self.update.rate[...] = self.update.lr

    def gradient(self, step):
        """The same for every optimizer: (path: array)."""
        rng = np.random.default_rng(step)
        return {path: rng.normal(size=view.shape) for path, view in self.g.items()}

    def run(self, steps):
        for step in range(steps):
            for path, grad in self.gradient(step).items():
                self.g[path][...] = grad
            self.update.step()
        return {path: view.copy() for path, view in self.w.items()}


def sgd(w, gradients, lr, momentum=0.0, nesterov=False, weight_decay=0.0):
    """SGD as its docstring has it, for one parameter."""
    w, v = w.copy(), np.zeros_like(w)
    for g in gradients:
        if w.ndim > 1:
            g = g + weight_decay * w
        v = momentum * v + g
        w = w - lr * (g + momentum * v if nesterov else v)
    return w


OPTIONS = [
    {},
    {"momentum": 0.9},
    {"momentum": 0.9, "nesterov": True},
    {"weight_decay": 0.1},
    {"momentum": 0.5, "nesterov": True, "weight_decay": 0.1},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_sgd_is_its_formula(options):
    steps = Steps(SGD(0.1, **options))
    before = {path: view.copy() for path, view in steps.w.items()}
    gradients = [steps.gradient(step) for step in range(5)]
    after = steps.run(5)
    for path, start in before.items():
        for k in range(2):
            given = [g[path][k] for g in gradients]
            expected = start[k] if path == "1-dense/W" else sgd(start[k], given, 0.1, **options)
            np.testing.assert_allclose(after[path][k], expected, rtol=1e-13, atol=1e-15)


@every_optimizer
def test_frozen_parameters_keep_their_bits(cls):
    steps = Steps(example(cls), dtype="f4")
    before = steps.w["1-dense/W"].tobytes()
    after = steps.run(10)
    assert after["1-dense/W"].tobytes() == before
    assert after["1-dense/b"].tobytes() != np.ones_like(after["1-dense/b"]).tobytes()


@every_optimizer
def test_an_optimizer_descends(cls):
    training = Training(Dense(2), (3,), batch=16, optimizer=example(cls))
    training.load()
    losses = []
    for _ in range(60):
        training.step()
        losses.append(float(training.total[0, 0, 0]))
    assert losses[-1] < 0.5 * losses[0]


@every_optimizer
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_a_member_of_a_population_has_the_bits_of_the_network_alone(cls, dtype):
    together = Training(Dense(3), (5,), seeds=(4, 2, 9), dtype=dtype, optimizer=example(cls)).run(5)
    for k, seed in enumerate((4, 2, 9)):
        alone = Training(Dense(3), (5,), seeds=(seed,), dtype=dtype, optimizer=example(cls)).run(5)
        assert_same_bits([array[k : k + 1] for array in together], alone)


@every_optimizer
def test_a_learning_rate_may_differ_by_member_and_zero_stands_still(cls):
    steps = Steps(dataclasses.replace(example(cls), lr=(0.1, 0.0)))
    before = steps.net.w.copy()
    steps.run(3)
    assert not np.array_equal(steps.net.w[0], before[0])
    assert np.array_equal(steps.net.w[1], before[1])


@every_optimizer
def test_an_update_allocates_nothing_that_grows_with_the_network(cls):
    def step_of(width):
        steps = Steps(example(cls), K=1, dtype="f4", model=Chain(Dense(width), Dense(2, freeze=("W",))))
        return steps.update.step

    assert_no_growth(step_of)
    assert allocated(step_of(100)) < 10_000


@every_optimizer
def test_cuda_gives_the_bits_of_the_cpu_and_never_waits_in_a_step(cls, monkeypatch):
    fake_cupy.install(monkeypatch)
    runs = []
    for device in ("cpu", "cuda"):
        training = Training(Dense(3, freeze=("b",)), (5,), seeds=(0, 1), backend=select(device), optimizer=example(cls))
        step = training.update.step

        def quietly(step=step):
            with fake_cupy.forbid_sync():
                step()

        object.__setattr__(training.update, "step", quietly)
        runs.append(training.run(3))
    assert_same_bits(*runs)


@pytest.mark.cuda
@every_optimizer
def test_a_gpu_gives_the_numbers_of_the_cpu(cls, cuda):
    runs = [
        Training(Dense(3), (5,), seeds=(0, 1), dtype="f8", backend=backend, optimizer=example(cls)).run(3)
        for backend in (select("cpu"), cuda)
    ]
    for cpu, gpu in zip(*runs, strict=True):
        np.testing.assert_allclose(gpu, cpu, rtol=1e-10, atol=1e-12)


def test_weight_decay_shrinks_matrices_and_leaves_biases_alone():
    steps = Steps(SGD(0.1, weight_decay=0.5), model=Chain(Dense(4), Dense(2)))
    before = {path: view.copy() for path, view in steps.w.items()}
    steps.net.g.fill(0)
    steps.update.step()
    for path, view in steps.w.items():
        if path.endswith("W"):
            np.testing.assert_allclose(view, before[path] * (1 - 0.1 * 0.5), rtol=1e-14)
        else:
            assert np.array_equal(view, before[path]), path


def test_momentum_and_decay_may_differ_by_member():
    hyper = {"momentum": [0.0, 0.9], "weight_decay": [0.1, 0.0]}
    together = Steps(SGD([0.1, 0.2], **hyper)).run(4)
    for k in range(2):
        alone = Steps(SGD([0.1, 0.2][k], **{name: values[k] for name, values in hyper.items()})).run(4)
        for path, view in together.items():
            np.testing.assert_allclose(view[k], alone[path][k], rtol=1e-14)


def test_velocity_is_what_a_checkpoint_holds():
    steps = Steps(SGD(0.1, momentum=0.9))
    assert list(steps.update.state) == ["velocity"]
    assert not steps.update.state["velocity"].any()
    steps.run(1)
    velocity = steps.net.params.views(steps.update.state["velocity"])
    assert np.array_equal(velocity["0-dense/W"], steps.gradient(0)["0-dense/W"])
    assert not velocity["1-dense/W"].any()  # frozen
    assert not Steps(SGD(0.1)).update.state


@pytest.mark.parametrize("field", ["lr", "momentum", "weight_decay"])
def test_a_list_of_a_wrong_length_is_told(field):
    with pytest.raises(ConfigError, match=rf"optimizer.{field}: has 3 entries for a population of 2"):
        Steps(SGD(**{"lr": 0.1, field: [0.1, 0.2, 0.3]}))


@pytest.mark.parametrize("fields", [{"lr": -0.1}, {"lr": 0.1, "momentum": 1.0}, {"lr": 0.1, "weight_decay": -1.0}])
def test_values_out_of_range_are_refused_by_name(fields):
    with pytest.raises(ConfigError, match=list(fields)[-1]):
        SGD(**fields)


# Schedules: the factor at time t of a training that ends at T, both in epochs.
FORMULAS = {
    "constant": lambda s, t, T: 1,
    "step": lambda s, t, T: s.gamma ** (t // s.every),
    "exponential": lambda s, t, T: s.gamma ** (t // 1),
    "polynomial": lambda s, t, T: s.floor + (1 - s.floor) * (1 - t / T) ** s.power,
    "cosine": lambda s, t, T: s.floor + (1 - s.floor) / 2 * (1 + np.cos(np.pi * t / T)),
    "warm_restarts": lambda s, t, T: (
        np.cos(np.pi / 2 * (t / 2 if t < 2 else (t - 2) / 4 if t < 6 else (t - 6) / 8)) ** 2
    ),
    "one_cycle": lambda s, t, T: (
        s.start + (1 - s.start) * np.sin(np.pi / 2 * t / T / s.rise) ** 2
        if t < s.rise * T
        else s.end + (1 - s.end) * np.cos(np.pi / 2 * (t / T - s.rise) / (1 - s.rise)) ** 2
    ),
    "reduce_on_plateau": lambda s, t, T: 1,  # as long as it has seen nothing
    "warmup": lambda s, t, T: (
        s.start + (1 - s.start) * t / s.epochs if t < s.epochs else s.then.factor(t - s.epochs, T - s.epochs)
    ),
}


@pytest.mark.parametrize("cls", every(Schedule))
def test_a_schedule_is_its_formula(cls):
    name = next(case.id for case in every(Schedule) if case.values[0] is cls)
    assert name in FORMULAS, f"{name}: give test_optim.FORMULAS its formula"
    schedule = example(cls)
    for t in np.linspace(0, 10, 41)[:-1]:
        assert schedule.factor(t, 10) == pytest.approx(FORMULAS[name](schedule, t, 10), rel=1e-14, abs=1e-15)


times = st.floats(0, 1) | st.floats(0, 1, exclude_max=True)


@given(name=st.sampled_from(sorted(family(Schedule))), share=times, T=st.integers(1, 1000))
def test_the_factor_of_a_schedule_lies_between_zero_and_one(name, share, T):
    factor = example(family(Schedule)[name]).factor(share * T, T)
    assert math.isfinite(factor)
    assert 0 <= factor <= 1


def test_schedules_at_their_landmarks():
    assert [Step(every=2, gamma=0.5).factor(t, 9) for t in (0, 1.9, 2, 4)] == [1, 1, 0.5, 0.25]
    assert [Exponential(0.5).factor(t, 9) for t in (0, 0.9, 1, 3)] == [1, 1, 0.5, 0.125]
    assert [Cosine().factor(t, 8) for t in (0, 4, 8)] == pytest.approx([1, 0.5, 0])
    assert Cosine(floor=0.1).factor(8, 8) == pytest.approx(0.1)
    assert Cosine(floor=0.1).factor(9, 8) == pytest.approx(0.1)  # after the end
    warmup = Warmup(epochs=4, start=0.2, then=Cosine())
    assert [warmup.factor(t, 12) for t in (0, 2, 4, 8, 12)] == pytest.approx([0.2, 0.6, 1, 0.5, 0])


def test_a_warm_up_longer_than_the_training_does_not_divide_by_zero():
    warmup = Warmup(epochs=4, then=Cosine())
    assert warmup.factor(2, 3) == 0.5
    assert math.isfinite(warmup.factor(4, 4))


def test_a_schedule_is_named_in_the_optimizer():
    assert SGD(0.1).schedule == Constant()
    assert SGD(0.1, schedule="cosine").schedule == Cosine()
    table = {"type": "warmup", "epochs": 2, "then": {"type": "step", "every": 3}}
    assert SGD(0.1, schedule=table).schedule == Warmup(2, then=Step(3))


def test_a_number_too_large_for_the_dtype_is_told():
    with pytest.raises(ConfigError, match=r"optimizer\.lr: found 1e\+300, which is too large for float32"):
        Steps(SGD((0.1, 1e300)), dtype="f4")
    Steps(SGD(1e300), dtype="f8")
