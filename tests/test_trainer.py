"""The loop, the monitor and the model that it leaves."""

import math

import fake_cupy
import numpy as np
import pytest

import gpbackprop as gp
from gpbackprop.data import Dataset, Preparation, Split
from gpbackprop.errors import ConfigError, NumericalError, UsageError
from gpbackprop.monitor import Monitor
from gpbackprop.passes import plain
from gpbackprop.settings import EarlyStopping


def trainer(loss=None, optimizer=None, model=None, data=None, **settings):
    data = data or gp.data.load("iris", validation=0.2, test=0.2)
    model = model or gp.Chain(gp.Dense(5, activation="tanh"), gp.Dense(3))
    settings = {"batch_size": 16, "epochs": 3, "device": "cpu"} | settings
    return gp.Trainer(model, loss or gp.SoftmaxCrossEntropy(), optimizer or gp.SGD(0.1), data, **settings)


class StopAt(gp.Hook):
    def __init__(self, step):
        self.step = step

    def on_step(self, trainer):
        trainer.stop_requested = trainer.step == self.step


def poisoned(at: int, rows: int = 40) -> Dataset:
    """Rows in their order, of which number `at` overflows in the second layer."""
    x = np.ones((rows, 2), np.float32)
    x[at] = 1e38
    prepared = Preparation((), ("t",), None, False, (), (2,), np.zeros(1), np.ones(1))
    return Dataset("p", {"train": Split(x, np.zeros((rows, 1), np.float32), None, np.arange(rows))}, prepared, "")


def straight(**settings):
    model = gp.Chain(gp.Dense(2, init={"W": [[1, 0], [0, 1]]}), gp.Dense(1, init={"W": [[1e4], [1e4]]}))
    return trainer(gp.MeanSquaredError(), gp.SGD(0.0), model, batch_size=4, shuffle=False, **settings)


# Numbers that are not finite.


def test_a_loss_that_is_not_finite_is_named_by_step_layer_and_rate_before_the_update():
    run = straight(data=poisoned(13))
    before = run.network.w.copy()
    said = (
        r"at step 4 \(epoch 1\).* leave 1-dense, for row 13 of the data \(the batch is rows 12 to 15, counted "
        r"from 0\)\. The largest activation before it is 1e\+38, of 0-dense; the largest parameter that led there is "
        r"1-dense/W with 1e\+04\. The learning rate was 0:"
    )
    with pytest.raises(NumericalError, match=said):
        run.fit()
    assert run.step == 3
    assert (run.network.w == before).all()  # a rate of 0 moves nothing, but 0 nan = nan would have


def test_the_member_and_the_shuffled_rows_of_a_loss_that_is_not_finite_are_named():
    rows = poisoned(13)
    rows.splits["train"].inputs[13] = 1
    model = gp.Chain(gp.Dense(2, init={"W": [[1, 0], [0, 1]]}), gp.Dense(1, init={"W": [[1e4], [1e4]]}))
    run = trainer(gp.MeanSquaredError(), gp.SGD(0.1), model, rows, batch_size=8, population=2, seed=5)
    run.network.params.views(run.network.w)["1-dense/b"][1] = np.inf
    with pytest.raises(NumericalError, match=r"member 1 \(seed 6\), for rows .* 1-dense/b is not finite") as told:
        run.fit()
    order = run.training.rows(0)[1].tolist()
    assert f"(the batch is rows {', '.join(map(str, order))}, counted" in str(told.value)


def test_a_value_that_is_not_finite_in_the_data_is_told_by_its_row():
    rows = poisoned(13)
    rows.splits["train"].inputs[13] = np.nan
    with pytest.raises(NumericalError, match="leave the input, for row 13 of the data") as told:
        straight(data=rows).fit()
    assert "parameter" not in str(told.value)


def test_where_the_loss_is_looked_at_now_and_then_the_steps_between_are_named(monkeypatch):
    fake_cupy.install(monkeypatch)
    run = straight(data=poisoned(13), device="cuda")
    with pytest.raises(NumericalError, match=r"by step 10, at one of the steps 2 to 10 \(epoch 1\)"):
        run.fit()  # looked at after the first, and at the end


def test_a_loss_that_was_not_looked_at_reaches_no_checkpoint(monkeypatch, tmp_path):
    fake_cupy.install(monkeypatch)
    rows = poisoned(13)
    rows.splits["train"].inputs[13] = 1
    rows.splits["train"].targets[13] = 1e25  # the square is too large for float32, and the gradient is not
    run = straight(data=rows, device="cuda")
    run.fit(hooks=[StopAt(4)])
    assert run.step >= 4
    assert np.isfinite(run.backend.host(run.network.w)).all()
    with pytest.raises(NumericalError, match=r"at one of the steps 2 to \d+ \(epoch 1\): the loss is not finite\. "):
        run.save(tmp_path / "model.h5")
    assert not list(tmp_path.iterdir())


def test_a_validation_loss_that_is_not_finite_stops_before_the_epoch_counts():
    model = gp.Chain(gp.Dense(5, activation="softplus"), gp.Dense(3))
    run = trainer(optimizer=gp.SGD(1e38), model=model, batch_size="full", epochs=1)
    with pytest.raises(NumericalError, match=r"after epoch 1 \(step 1\): the validation loss is not finite"):
        run.fit()
    assert run.history == []
    assert run.monitor.best_epoch == 0


def test_a_rollback_halves_the_rate_from_there_on_and_is_told_in_one_row_for_ever():
    plain, rolled = (trainer(optimizer=gp.SGD(0.4, momentum=0.9), epochs=3) for _ in range(2))
    rolled.fit(hooks=[StopAt(8)])
    rolled.roll_back(content(straight_to(3, epochs=3)))
    assert (rolled.step, rolled.rollbacks) == (3, 1)
    history = rolled.fit()
    assert history[0]["rollback"] == {"count": 1, "from_step": 8, "to_step": 3, "lr_factor": 0.5}
    assert [row["lr"] for row in history] == [pytest.approx(0.2)] * 3
    assert ["rollback" in row for row in history] == [True, False, False]
    again = trainer(optimizer=gp.SGD(0.4, momentum=0.9), epochs=4)
    again.restore(content(rolled))
    assert again.fit()[-1]["lr"] == pytest.approx(0.2)
    assert "rollback" not in again.history[-1]
    slow = trainer(optimizer=gp.SGD(0.2, momentum=0.9), epochs=3)
    slow.restore(content(straight_to(3, epochs=3)))
    slow.fit()
    assert slow.network.w.tobytes() == rolled.network.w.tobytes()
    assert plain.fit()[-1]["lr"] == pytest.approx(0.4)


def straight_to(step, **settings):
    run = trainer(optimizer=gp.SGD(0.4, momentum=0.9), **settings)
    run.fit(hooks=[StopAt(step)])
    return run


def test_a_parameter_that_is_not_finite_reaches_no_checkpoint(tmp_path):
    run = trainer()
    run.network.w[0, 3] = np.inf
    with pytest.raises(NumericalError, match=r"params/0-dense/W is not finite after step 0, with learning rate"):
        run.save(tmp_path / "model.h5")
    assert not list(tmp_path.iterdir())


def test_results_are_numbers_that_json_has():
    assert plain(np.array([1.5, np.nan, np.inf])) == [1.5, None, None]
    assert plain(np.array([[1, 2]])) == [[1, 2]]


# The epoch that is best.


def row(epoch, value, column="validation_loss"):
    return {"epoch": epoch, column: value}


def test_patience_counts_from_an_improvement_of_more_than_min_delta_but_best_is_best():
    monitor = Monitor(EarlyStopping(patience=2, min_delta=0.5), ["validation_loss"])
    for epoch, (loss, exhausted) in enumerate([(3.0, False), (2.0, False), (1.9, False), (1.8, True)], 1):
        monitor.see(row(epoch, loss))
        assert monitor.exhausted == exhausted
    assert (monitor.best, monitor.best_epoch) == (1.8, 4)


def test_accuracies_shall_rise_and_members_are_averaged():
    monitor = Monitor(EarlyStopping(patience=9, monitor="validation_accuracy"), ["train_loss", "validation_accuracy"])
    for epoch, value in enumerate([[0.5, 0.7], [0.9, 0.5], [0.6, 0.7]], 1):
        monitor.see(row(epoch, value, "validation_accuracy"))
    assert (monitor.best, monitor.best_epoch) == (0.7, 2)
    assert monitor.past([row(1, [0.5, 0.7], "validation_accuracy")], 2) == [(-0.5,), (-0.7,)]


def test_a_value_that_is_no_number_is_never_better():
    monitor = Monitor(None, ["validation_loss"])
    for epoch, value in enumerate([math.nan, 2.0, None, 3.0], 1):
        monitor.see(row(epoch, value))
    assert (monitor.best, monitor.best_epoch) == (2.0, 2)


def test_the_state_of_a_monitor_comes_back():
    stopping = EarlyStopping(patience=3, min_delta=0.5)
    one, other = (Monitor(stopping, ["validation_loss"]) for _ in range(2))
    one.see(row(1, 2.0))
    one.see(row(2, 1.9))
    other.restore(one.state())
    assert vars(other) == vars(one)


def test_a_column_that_is_not_recorded_is_told_before_training():
    with pytest.raises(ConfigError, match=r"'validation_acuracy' is not recorded \(did you mean 'validation_accuracy'"):
        trainer(early_stopping={"patience": 2, "monitor": "validation_acuracy"})
    with pytest.raises(ConfigError, match="'validation_loss' is not recorded"):
        trainer(data=gp.data.load("iris"), early_stopping={"patience": 2, "monitor": "validation_loss"})


def test_early_stopping_stops_and_stays_stopped_after_a_resume(tmp_path):
    stopping = {"patience": 2, "monitor": "validation_loss"}
    run = trainer(optimizer=gp.SGD(0.0), epochs=50, early_stopping=stopping)
    run.fit()
    assert run.epoch == 3  # nothing improves after the first epoch
    again = trainer(optimizer=gp.SGD(0.0), epochs=50, early_stopping=stopping)
    again.restore({name: np.array(value) for name, value in content(run).items()})
    again.fit()
    assert again.epoch == 3


def content(run) -> dict:
    """A run's content, as the checkpoint gives it back."""
    return {
        name: np.frombuffer(value, np.uint8) if isinstance(value, bytes) else value
        for name, value in run.content().items()
    }


# Going on, and what is left behind.


@pytest.mark.parametrize("population", [1, 3])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_run_goes_on_from_every_step_with_the_same_bits(population, dtype):
    model = gp.Chain(gp.Dense(5, activation="tanh"), gp.Dropout(0.3), gp.Dense(3))
    schedule = {"type": "warmup", "epochs": 0.5, "then": "cosine"}
    optimizer = gp.SGD(0.1, momentum=0.9, nesterov=True, weight_decay=0.01, schedule=schedule)
    make = {"optimizer": optimizer, "model": model, "population": population, "dtype": dtype, "epochs": 2}
    whole = trainer(**make)
    whole.fit()
    for step in range(1, whole.step):
        first = trainer(**make)
        first.fit(hooks=[StopAt(step)])
        assert first.step == step
        then = trainer(**make)
        then.restore(content(first))
        then.fit()
        assert then.network.w.tobytes() == whole.network.w.tobytes(), step
        assert then.history == whole.history, step


def test_full_batch_and_online_take_as_many_steps_as_they_should():
    assert [len(trainer(batch_size="full").fit()), trainer(batch_size="full").steps_per_epoch] == [3, 1]
    online = trainer(batch_size=1, epochs=1)
    online.fit()
    assert online.step == online.steps_per_epoch == len(online.data.splits["train"])


def test_a_model_saved_from_python_is_loaded_evaluated_and_predicts(tmp_path, monkeypatch):
    run = trainer()
    run.fit()
    run.save(tmp_path / "iris.h5")
    monkeypatch.chdir(tmp_path)
    model = gp.load("iris.h5")
    split = run.data.splits["test"]
    assert model.evaluate(split) == run.evaluate("test")
    inputs = split.inputs[split.index]
    p = model.probabilities(inputs)
    assert p.shape == (1, len(split), 3)
    np.testing.assert_allclose(p.sum(axis=-1), 1, rtol=1e-6)
    assert (p.argmax(axis=-1) == model.predict(inputs)).all()
    assert model.config.trainer("cpu").data.digest == run.data.digest


def test_scores_are_not_called_probabilities():
    y = np.array([[0.2, 0.9]])
    for loss in (gp.Hinge(), gp.Perceptron()):
        with pytest.raises(UsageError, match="scores"):
            loss.probabilities(y)
    assert gp.HalfSquaredError().probabilities(y) is y
    with pytest.raises(UsageError, match="half_squared_error was trained on scores"):
        gp.HalfSquaredError().probabilities(2 * y)
    np.testing.assert_allclose(gp.BinaryCrossEntropy().probabilities(np.array([0.0, 800.0])), [0.5, 1])


def test_two_runs_do_not_share_a_directory(tmp_path):
    config = gp.config.parse(trainer().text(), "text")
    run = gp.Run.start(tmp_path / "run", config, "", "cpu")
    with pytest.raises(UsageError, match="another process works in it"):
        gp.Run.open(tmp_path / "run", "cpu")
    run.train()
    assert gp.Run.open(tmp_path / "run", "cpu").trainer.epoch == 3
