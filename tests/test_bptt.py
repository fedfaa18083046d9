"""Long sequences in windows: truncated backpropagation through time in the training loop."""

import numpy as np
import pytest

from gpbackprop.data import Dataset, Preparation, Split
from gpbackprop.errors import ConfigError
from gpbackprop.layers.combine import Chain
from gpbackprop.layers.dense import Dense
from gpbackprop.layers.gated import GRU, LSTM
from gpbackprop.layers.recurrent import SimpleRNN
from gpbackprop.losses import HalfSquaredError, MeanSquaredError, SoftmaxCrossEntropy
from gpbackprop.optim.sgd import SGD
from gpbackprop.trainer import Hook, Trainer


def sequences(n=5, steps=6, classes=0, lengths=None, x=None, t=None, weights=None):
    """Rows of two features with a target for each step."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, steps, 2)) if x is None else np.asarray(x, float)
    if t is None:
        t = rng.integers(0, classes, x.shape[:2]) if classes else rng.normal(size=(*x.shape[:2], 1))
    names = tuple(map(str, range(classes)))
    kind = "rows" if lengths is None else "sequences"
    preparation = Preparation((), ("y",), None, False, names, x.shape[1:], np.zeros(1), np.ones(1), kind=kind)
    split = Split(x, np.asarray(t), weights, np.arange(len(x)), lengths)
    return Dataset("sequences", {"train": split, "validation": split}, preparation, "")


def trainer(data, cell=LSTM, layers=1, **train):
    model = Chain(cell(3, layers=layers, returns="sequence"), Dense(len(data.preparation.classes) or 1))
    loss = SoftmaxCrossEntropy() if data.preparation.classes else MeanSquaredError()
    options = {"batch_size": 2, "dtype": "float64", "seed": 1, "population": 2, "device": "cpu"} | train
    return Trainer(model, loss, SGD(0.1, momentum=0.9), data, **options)


class StopAt:
    def __init__(self, step):
        self.at = step

    def on_step(self, trainer):
        trainer.stop_requested = trainer.step == self.at

    def on_epoch(self, trainer, row):
        pass


@pytest.mark.parametrize("cell", [SimpleRNN, LSTM, GRU])
def test_a_run_goes_on_with_the_same_bits_from_every_window(cell):
    data = sequences(classes=3)
    whole = trainer(data, cell, layers=2, bptt=2)
    whole.fit(2)
    assert whole.step == 2 * 3 * 3  # epochs, batches, windows
    wanted = whole.content()
    for step in range(1, whole.step):
        first = trainer(data, cell, layers=2, bptt=2)
        first.fit(2, hooks=[StopAt(step)])
        kept = {
            path: np.array(value) if isinstance(value, np.ndarray) else value for path, value in first.content().items()
        }
        kept["history"] = np.frombuffer(kept["history"], np.uint8)
        second = trainer(data, cell, layers=2, bptt=2)
        second.restore(kept)
        second.fit(2)
        for path, value in second.content().items():
            same = value.tobytes() == wanted[path].tobytes() if isinstance(value, np.ndarray) else value == wanted[path]
            assert same, (step, path)


def test_a_checkpoint_without_the_carried_state_would_not_go_on_with_the_same_bits():
    data = sequences(classes=3)
    whole, first, second = (trainer(data, bptt=2) for _ in range(3))
    whole.fit(1)
    first.fit(1, hooks=[StopAt(1)])
    kept = dict(first.content())
    kept["history"] = np.frombuffer(kept["history"], np.uint8)
    carried = [path for path in kept if path.startswith("progress/carried/")]
    assert sorted(path.split("/")[-1] for path in carried) == ["c-1", "c-2", "h-1", "h-2"]
    second.restore(kept | {path: kept[path] * 0 for path in carried})
    second.fit(1)
    assert not np.array_equal(second.network.w, whole.network.w)


@pytest.mark.parametrize("bptt", [1, 2, 3, 6])
def test_evaluation_in_windows_is_evaluation_of_the_whole(bptt):
    data = sequences(lengths=np.array([6, 1, 3, 5, 2]))
    whole, cut = trainer(data), trainer(data, bptt=bptt)
    found = cut.evaluate("validation")
    for name, value in whole.evaluate("validation").items():
        assert found[name] == pytest.approx(value), name
    np.testing.assert_allclose(cut.evaluations["validation"].outputs(), whole.evaluations["validation"].outputs())
    assert cut.evaluations["validation"].outputs().shape == (2, 5, 6, 1)


def test_a_member_of_a_population_is_the_network_alone_with_its_own_windows():
    data = sequences()
    together, alone = trainer(data, bptt=3), trainer(data, bptt=3, seed=2, population=1)
    together.fit(2)
    alone.fit(2)
    assert np.array_equal(together.network.w[1], alone.network.w[0])


class Spoil(Hook):
    """Leaves nonsense in what windows hand on, after the steps where `when(steps so far)` holds."""

    def __init__(self, when):
        self.when = when

    def on_step(self, trainer):
        if self.when(trainer.step):
            for array in trainer.carried.values():
                array.fill(7)


@pytest.mark.parametrize(("when", "same"), [(lambda n: n % 2 == 0, True), (lambda n: n % 2 == 1, False)])
def test_state_is_zero_where_a_sequence_begins_and_handed_on_within_it(when, same):
    data = sequences(n=2)
    plain, spoilt = (trainer(data, bptt=6 // 2, shuffle=False, batch_size=1) for _ in range(2))
    plain.fit(2)
    spoilt.fit(2, hooks=[Spoil(when)])
    assert (plain.network.w.tobytes() == spoilt.network.w.tobytes()) == same


H = (0.5370495669980353, 0.6228448439039872, 0.1957177996989362, 0.29731735570391843)


@pytest.mark.parametrize(
    ("k", "dw", "du"),
    [
        (1, -0.00047862884832313893, -0.0006113762379550964),
        (2, -0.0016504883852174529, 0.0003293552687465617),
        (4, -0.0021452512463457536, -0.0006557143837766457),
    ],
)
def test_the_worked_example_by_the_training_loop(k, dw, du):
    """One row of four steps, a loss at the last one alone, in windows of k steps; learning rate 1."""
    data = sequences(x=[[[1.0], [0.5], [-0.5], [0.25]]], t=np.full((1, 4, 1), 0.3), weights=np.array([[0, 0, 0, 1.0]]))
    model = SimpleRNN(1, returns="sequence", init={"W": 0.6, "U": 0.8}, freeze=("b",))
    run = Trainer(model, HalfSquaredError(reduce="sum"), SGD(1.0), data, bptt=k, dtype="float64", device="cpu")
    np.testing.assert_allclose(run.evaluate("train")["loss"], 3.598290209649464e-06, rtol=1e-12)
    np.testing.assert_allclose(run.evaluations["train"].outputs().ravel(), H, rtol=1e-14)
    run.fit(1)
    w = run.network.params.views(run.network.w)
    assert w["U"].item() == pytest.approx(0.8 - dw, rel=1e-15)
    assert w["W"].item() == pytest.approx(0.6 - du, rel=1e-15)


def test_what_does_not_fit_windows_is_said():
    data = sequences()
    with pytest.raises(ConfigError, match=r"train\.bptt = 4: does not divide the 6 steps of a row"):
        trainer(data, bptt=4)
    with pytest.raises(ConfigError, match="needs a target for each of its steps; the data has one for each row of 6"):
        trainer(sequences(t=np.zeros((5, 1))), bptt=3)
    flat = Preparation((), ("y",), None, False, (), (6,), np.zeros(1), np.ones(1))
    rows = Split(np.zeros((5, 6)), np.zeros((5, 1)), None, np.arange(5))
    with pytest.raises(ConfigError, match=r"needs rows of steps, these have the shape \(6,\)"):
        trainer(Dataset("flat", {"train": rows}, flat, ""), bptt=3)
