"""The options around every rule, what the rules are known for, and runs that are stopped and resumed in the middle."""

import dataclasses
import itertools

import numpy as np
import pytest
from battery import every, example
from test_optim import Steps

from gpbackprop import data
from gpbackprop.errors import ConfigError
from gpbackprop.layers.combine import Chain
from gpbackprop.layers.dense import Dense
from gpbackprop.losses import SoftmaxCrossEntropy
from gpbackprop.optim.adam import Adam, AdamW
from gpbackprop.optim.local import DeltaBarDelta, Quickprop
from gpbackprop.optim.rule import GradientRule
from gpbackprop.optim.schedules import ReduceOnPlateau, Schedule, Warmup
from gpbackprop.optim.sgd import SGD
from gpbackprop.spec import family
from gpbackprop.trainer import Trainer

every_rule = pytest.mark.parametrize("cls", every(GradientRule))
MODEL = Chain(Dense(3, activation="tanh"), Dense(3))
ALL = {"clip_value": 0.5, "clip_norm": 0.7, "l1": 0.01, "weight_decay": 0.02, "max_norm": 1.5, "average": 0.8}


def steps_of(optimizer, **options):
    return Steps(optimizer, **{"model": Chain(Dense(4), Dense(2)), **options})


# The options, for SGD and one parameter w (m, n) or (n,): few lines each.


def clipped_by_norm(gradients, bound):
    norm = np.sqrt(sum((g**2).sum() for g in gradients.values()))
    return {path: g * min(1, bound / (norm + 1e-6)) for path, g in gradients.items()}


REFERENCES = {
    "clip_value": (0.5, lambda w, g: {p: w[p] - 0.1 * np.clip(g[p], -0.5, 0.5) for p in w}),
    "clip_norm": (0.7, lambda w, g: {p: w[p] - 0.1 * h for p, h in clipped_by_norm(g, 0.7).items()}),
    "l1": (0.3, lambda w, g: {p: w[p] - 0.1 * (g[p] + 0.3 * np.sign(w[p]) * (w[p].ndim > 1)) for p in w}),
    "weight_decay": (0.3, lambda w, g: {p: w[p] - 0.1 * (g[p] + 0.3 * w[p] * (w[p].ndim > 1)) for p in w}),
    "max_norm": (
        1.2,
        lambda w, g: {
            p: (v := w[p] - 0.1 * g[p]) * (np.minimum(1, 1.2 / np.linalg.norm(v, axis=0)) if v.ndim > 1 else 1)
            for p in w
        },
    ),
    "lr_factors": (
        {"*": 0.5, "*/b": 0.0},
        lambda w, g: {p: w[p] - 0.1 * {"W": 0.5, "b": 0.0}[p[-1]] * g[p] for p in w},
    ),
    "freeze": (("0-*", "1-dense/b"), lambda w, g: {p: w[p] - 0.1 * g[p] * (p == "1-dense/W") for p in w}),
}


@pytest.mark.parametrize("name", REFERENCES)
def test_an_option_is_its_formula(name):
    value, reference = REFERENCES[name]
    steps = steps_of(SGD(0.1, **{name: value}))
    members = [{path: view[k].copy() for path, view in steps.w.items()} for k in range(2)]
    after = steps.run(4)
    for k, w in enumerate(members):
        for step in range(4):
            w = reference(w, {path: g[k] for path, g in steps.gradient(step).items()})
        for path, view in after.items():
            np.testing.assert_allclose(view[k], w[path], rtol=1e-12, atol=1e-14, err_msg=path)


def test_a_gradient_within_its_bound_keeps_its_bits():
    clipped, free = (steps_of(SGD(0.1, **options)).run(3) for options in ({"clip_norm": 50, "clip_value": 50}, {}))
    assert all(clipped[path].tobytes() == free[path].tobytes() for path in free)


def test_the_average_follows_the_weights():
    steps = steps_of(SGD(0.1, average=0.8))
    mean = {path: view.copy() for path, view in steps.w.items()}
    for step in range(5):
        for path, grad in steps.gradient(step).items():
            steps.g[path][...] = grad
        steps.update.step()
        mean = {path: 0.8 * mean[path] + 0.2 * view for path, view in steps.w.items()}
    for path, view in steps.net.params.views(steps.update.result).items():
        np.testing.assert_allclose(view, mean[path], rtol=1e-13)


@every_rule
def test_three_accumulated_batches_are_one_step_along_their_mean(cls):
    one, other = steps_of(example(cls)), steps_of(dataclasses.replace(example(cls), accumulate=3))
    assert other.update.every == 3
    for window in range(2):
        batches = [other.gradient(3 * window + i) for i in range(3)]
        for i, batch in enumerate(batches):
            for path, grad in batch.items():
                other.g[path][...] = grad
            (other.update.gather if i < 2 else other.update.step)()
        for path in one.g:
            one.g[path][...] = sum(batch[path] for batch in batches) / 3
        one.update.step()
    for path, view in one.w.items():
        np.testing.assert_allclose(other.w[path], view, rtol=1e-10, atol=1e-12)


@every_rule
def test_with_all_options_what_is_frozen_keeps_its_bits_and_the_average_too(cls):
    steps = steps_of(dataclasses.replace(example(cls), **ALL, freeze=("0-dense/*",)), dtype="f4")
    before = {path: view.tobytes() for path, view in steps.w.items()}
    steps.run(5)
    for views in (steps.w, steps.net.params.views(steps.update.result)):
        for path, view in views.items():
            assert (view.tobytes() == before[path]) == path.startswith("0-dense"), path


@every_rule
def test_with_all_options_a_member_has_the_bits_of_the_network_alone(cls):
    optimizer = dataclasses.replace(example(cls), **ALL)
    together, alone = steps_of(optimizer, K=3), steps_of(optimizer, K=1)
    gradient = alone.gradient
    alone.gradient = lambda step: {path: gradient(step)[path][:1] for path in alone.g}
    together.gradient = lambda step: {path: np.repeat(gradient(step)[path], 3, axis=0) for path in together.g}
    together.net.w[...] = alone.net.w
    many, one = together.run(5), alone.run(5)
    for path, view in one.items():
        for k in range(3):
            assert many[path][k].tobytes() == view[0].tobytes(), path


@every_rule
def test_weight_decay_shrinks_the_norm(cls):
    norms = []
    for decay in (0.0, 0.1):
        steps = steps_of(dataclasses.replace(example(cls), weight_decay=decay), K=1)
        steps.net.w *= 3
        after = steps.run(20)
        norms.append(np.linalg.norm(after["0-dense/W"]))
    assert norms[1] < norms[0]


def test_decoupled_decay_does_not_depend_on_the_gradient():
    steps = steps_of(AdamW(0.1, weight_decay=0.5))
    before = {path: view.copy() for path, view in steps.w.items()}
    steps.update.step()
    for path, view in steps.w.items():
        np.testing.assert_allclose(view, before[path] * (1 - 0.1 * 0.5 if path.endswith("W") else 1), rtol=1e-14)


@pytest.mark.parametrize("options", [{"freeze": ("0-dens/W",)}, {"lr_factors": {"0-dens/W": 2.0}}], ids=str)
def test_a_pattern_that_matches_nothing_is_told_with_the_paths_there_are(options):
    with pytest.raises(ConfigError, match=r"'0-dens/W' matches no parameter; the parameters are 0-dense/W, 0-dense/b"):
        steps_of(SGD(0.1, **options))


# What the rules are known for, on L = 1/2 sum_i c_i (w_i - 1)^2.


def bowl(optimizer, curvature, steps):
    """The loss before each step and after the last."""
    run = Steps(optimizer, K=1, model=Chain(Dense(len(curvature))))
    run.net.w.fill(0)
    w, g, losses = run.w["0-dense/W"], run.g["0-dense/W"], []
    for _ in range(steps):
        losses.append(float((curvature * (w - 1) ** 2).sum() / 2))
        g[...] = curvature * (w - 1)
        run.update.step()
    return [*losses, float((curvature * (w - 1) ** 2).sum() / 2)]


ROUND, ILL = np.array([1.0, 3.0]), np.array([1.0, 10.0, 100.0])


def test_quickprop_solves_a_bowl_in_few_steps():
    losses = bowl(Quickprop(0.02, growth=1e3), ROUND, 5)
    assert losses[5] < 1e-12 * losses[0]
    assert bowl(SGD(0.02), ROUND, 5)[5] > 0.5 * losses[0]


def test_quickprop_steps_grow_by_its_factor_at_most():
    run = Steps(Quickprop(0.02), K=1)
    sizes = []
    for _ in range(8):  # a slope that stays the same: the parabola's minimum is infinitely far
        before = run.w["0-dense/b"].copy()
        run.g["0-dense/b"].fill(1)
        run.update.step()
        sizes.append(float(np.abs(run.w["0-dense/b"] - before).max()))
    for one, after in itertools.pairwise(sizes):
        assert one < after <= 1.75 * one + 0.02 + 1e-12


def test_delta_bar_delta_beats_sgd_on_an_ill_conditioned_bowl():
    sgd = min(bowl(SGD(lr), ILL, 60)[-1] for lr in (0.002, 0.005, 0.01, 0.015, 0.019))
    assert bowl(DeltaBarDelta(0.01, kappa=0.5, phi=0.3), ILL, 60)[-1] < 0.01 * sgd


# The trainer.


def iris(optimizer, **train):
    rows = data.load("iris", dtype="float64", validation=0.2)
    settings = {"batch_size": 32, "dtype": "float64", "device": "cpu", "seed": 3, "population": 2, "epochs": 4}
    return Trainer(MODEL, SoftmaxCrossEntropy(), optimizer, rows, **{**settings, **train})


def assert_same_run(one, other):
    for name, value in one.content().items():
        if name != "config":
            assert np.asarray(value).tobytes() == np.asarray(other.content()[name]).tobytes(), name
    assert one.history == other.history


def stopped_at(trainer, step):
    """Train until the step is done."""

    class Stop:
        def on_step(self, trainer):
            trainer.stop_requested = trainer.step == step

        def on_epoch(self, trainer, row): ...

    trainer.fit(hooks=[Stop()])
    assert trainer.step == step
    return trainer


def resumes_exactly(make, step):
    whole, part, other = make(), make(), make()
    whole.fit()
    content = {name: np.array(np.frombuffer(v, np.uint8) if isinstance(v, bytes) else v)
               for name, v in stopped_at(part, step).content().items()}  # fmt: skip
    for view in other.network.params.views(other.network.w).values():
        view.fill(7)  # nothing but the checkpoint may count
    other.restore(content)
    other.fit()
    assert_same_run(whole, other)
    return whole


def schedules():
    for name, cls in sorted(family(Schedule).items()):
        yield pytest.param(example(cls), id=name)
    yield pytest.param(Warmup(1, then=ReduceOnPlateau(patience=0, threshold=0.2)), id="warmup to plateau")


@pytest.mark.parametrize("schedule", list(schedules()))
@every_rule
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(cls, schedule):
    options = {"schedule": schedule, "accumulate": 3, "average": 0.9, "clip_norm": 1.0, "freeze": ("0-*/b",)}
    optimizer = dataclasses.replace(example(cls), **options)
    resumes_exactly(lambda: iris(optimizer), 10)  # within an epoch, and within three batches


def test_evaluation_and_checkpoints_take_the_average_and_training_goes_on_from_the_weights():
    plain, averaged = iris(Adam(0.01)), iris(Adam(0.01, average=0.9))
    plain.fit()
    averaged.fit()
    assert plain.network.w.tobytes() == averaged.network.w.tobytes()
    assert plain.history[-1]["train_loss"] == averaged.history[-1]["train_loss"]
    assert plain.history[-1]["validation_loss"] != averaged.history[-1]["validation_loss"]
    content = averaged.content()
    views = averaged.network.params.views(averaged.update.result)
    assert content["params/0-dense/W"].tobytes() == views["0-dense/W"].tobytes()
    assert content["optimizer/weights/0-dense/W"].tobytes() == plain.content()["params/0-dense/W"].tobytes()
    loss = averaged.evaluate("validation")["loss"]
    averaged.network.w[...] = averaged.update.result
    averaged.update = dataclasses.replace(averaged.update, result=None)
    assert averaged.evaluate("validation")["loss"] == loss


def test_accumulated_batches_in_a_run_are_larger_batches():
    rows = {"shuffle": False, "epochs": 3, "population": 1}
    small = iris(SGD(0.1, momentum=0.9, accumulate=2), batch_size=30, **rows)
    large = iris(SGD(0.1, momentum=0.9), batch_size=60, **rows)
    small.fit()
    large.fit()
    np.testing.assert_allclose(small.network.w, large.network.w, rtol=1e-12, atol=1e-14)


def test_a_step_that_more_batches_share_than_there_are_is_refused():
    with pytest.raises(ConfigError, match=r"accumulate = 16: is more than the 4 batches .* 3 epochs together"):
        iris(SGD(0.1, accumulate=16), batch_size=30, epochs=3)
    iris(SGD(0.1, accumulate=12), batch_size=30, epochs=3)


def test_reduce_on_plateau_is_its_rule():
    s = ReduceOnPlateau(gamma=0.5, patience=2, threshold=0.1, cooldown=2, floor=0.1)
    assert s.factor(0, 9, ()) == 1
    assert s.factor(3, 9, (1.0, 0.8, 0.6)) == 1
    assert s.factor(4, 9, (1.0, 0.95, 0.95)) == 1  # two epochs without enough of a gain: still patient
    assert s.factor(4, 9, (1.0, 0.95, 0.95, 0.95)) == 0.5
    assert s.factor(8, 9, (1.0, *7 * (0.95,))) == 0.5
    assert s.factor(9, 9, (1.0, *8 * (0.95,))) == 0.25  # two epochs of rest, three bad ones
    assert s.factor(99, 99, (1.0, *98 * (0.95,))) == 0.1
    assert s.factor(4, 9, (1.0, float("nan"), float("nan"), float("nan"))) == 0.5
    assert s.factor(4, 9, (-0.5, -0.52, -0.53, -0.54)) == 0.5  # an accuracy, signed


def test_reduce_on_plateau_follows_each_member_in_the_run():
    schedule = ReduceOnPlateau(gamma=0.5, patience=0, threshold=0.1)
    run = iris(SGD([0.05, 2.0], schedule=schedule), epochs=8)
    run.fit()
    rates = np.array([row["lr"] for row in run.history])
    losses = np.array([row["validation_loss"] for row in run.history])
    for k in range(2):
        factors = [schedule.factor(0, 8, losses[:epoch, k]) for epoch in range(8)]
        np.testing.assert_allclose(rates[:, k], rates[0, k] * np.array(factors))
    assert len(set(rates[:, 1])) > 1
    alone = iris(SGD(2.0, schedule=schedule), epochs=8, seed=4, population=1)
    alone.fit()
    assert alone.network.w[0].tobytes() == run.network.w[1].tobytes()


def test_reduce_on_plateau_needs_no_early_stopping_and_watches_its_metric():
    train = {"early_stopping": {"patience": 5, "monitor": "validation_accuracy"}, "epochs": 6}
    run = iris(SGD(0.1, schedule=ReduceOnPlateau(patience=0)), **train)
    run.fit()
    assert run.monitor.past(run.history, run.network.K)[0] == tuple(
        -row["validation_accuracy"][0] for row in run.history
    )
