"""gradcheck agrees with right gradients, finds wrong ones and says where, and takes kinks for what they are."""

import json
from pathlib import Path

import numpy as np
import pytest
from battery import layers
from commands import call

import gpbackprop as gp
from gpbackprop.data import Dataset, Split, load
from gpbackprop.data.preparation import Preparation
from gpbackprop.errors import ConfigError, NumericalError
from gpbackprop.gradcheck import check
from gpbackprop.layers.activation import Activation, Linear, Relu, Sigmoid, Tanh
from gpbackprop.layers.base import Layer
from gpbackprop.layers.combine import Chain, Parallel, Residual
from gpbackprop.layers.dense import Dense
from gpbackprop.layers.dropout import Dropout
from gpbackprop.layers.shape import Flatten
from gpbackprop.losses import HalfSquaredError, MeanAbsoluteError, SoftmaxCrossEntropy
from gpbackprop.plan import Network

CONFIGS = Path(__file__).parent.parent / "configs"
IRIS = load("iris", dtype="float64")


def numbers(x, t) -> Dataset:
    """A data set of the inputs x and the targets t, as they are."""
    x, t = (np.asarray(array, np.float64) for array in (x, t))
    prep = Preparation((), ("t",), None, False, (), x.shape[1:], np.zeros(1), np.ones(1))
    return Dataset("numbers", {"train": Split(x, t, None, np.arange(len(x)))}, prep, "")


class Wrong(Layer):
    """y = x, with a backward that gives `factor` times the gradient, or adds `bias` to its first entry."""

    __abstract__ = True

    def __init__(self, factor: float = 1.0, bias: float = 0.0):
        self.factor, self.bias = factor, bias

    def trace(self, plan, x):
        y = plan.slot(x.shape)

        def forward():
            y.value[...] = x.value

        def backward():
            np.multiply(y.grad, self.factor, out=x.grad)
            x.grad[..., 0] += self.bias

        plan.step(forward, backward)
        return y


def paths(checks) -> list[str]:
    return [check.path for check in checks]


def test_every_parameter_and_every_layer_is_checked_in_forward_order():
    report = check(
        Chain(Dense(5, activation="tanh"), Residual(Dense(5), Tanh()), Dense(3)), SoftmaxCrossEntropy(), IRIS
    )
    assert paths(report.checks) == [
        "0-dense/W", "0-dense/b", "0-dense/z", "0-dense/y",
        "1-residual/0-dense/W", "1-residual/0-dense/b", "1-residual/0-dense/y", "1-residual/1-tanh/y", "1-residual/y",
        "2-dense/W", "2-dense/b", "2-dense/y",
    ]  # fmt: skip
    assert report.wrong == []
    assert report.suspect == ""
    assert max(check.worst.error for check in report.checks) < 1e-6
    assert all(check.entries == np.prod(check.shape) for check in report.checks if not check.directions)


def test_the_values_are_those_of_the_worked_example():
    config = gp.config.read(CONFIGS / "mazur.toml")
    report = check(Chain(*config.model), config.loss, load(config.data, dtype="float64"))
    found = {check.path: check.worst for check in report.checks}
    assert report.loss == pytest.approx(0.2983711087600027, rel=1e-15)
    worst = found["1-dense/z"]
    assert [0.138498561629, -0.038098236517][worst.index[1]] == pytest.approx(worst.analytic, rel=1e-10)
    assert worst.numeric == pytest.approx(worst.analytic, rel=1e-8)


@pytest.mark.parametrize("make", layers())
def test_no_layer_gives_a_false_alarm(make):
    layer, row = make()
    rng = np.random.default_rng(1)
    symbols = Network(Chain(layer), row).symbols
    x = rng.integers(0, symbols, (4, *row)) if symbols else rng.normal(size=(4, *row))
    data = numbers(x, rng.normal(size=(4, 2)))
    report = check(Chain(layer, Flatten(), Dense(2)), HalfSquaredError(), data, rows=3)
    assert not report.wrong, [(check.path, check.worst) for check in report.wrong]
    report = check(Chain(layer, Flatten(), Dense(2)), HalfSquaredError(), data, rows=3, random=True)
    assert not report.wrong, [(check.path, check.worst) for check in report.wrong]


@pytest.mark.parametrize(
    "wrong", [Wrong(1.0001), Wrong(0), Wrong(-1), Wrong(1, bias=1e-5)], ids=["0.01%", "zero", "sign", "one entry"]
)
def test_a_wrong_layer_is_found_and_named(wrong):
    model = Chain(Dense(4, activation=Tanh()), wrong, Dense(3))
    report = check(model, SoftmaxCrossEntropy(), IRIS)
    assert paths(report.wrong) == ["0-dense/W", "0-dense/b", "0-dense/z", "0-dense/y"]
    assert report.suspect == "the backward of 1-wrong, where it fills the gradient of its input"


def test_a_small_error_of_a_small_gradient_is_not_put_down_to_a_kink():
    last = Dense(3, init={"W": np.eye(4, 3).tolist()})
    faint = Dense(4, init={"W": (1e-3 * np.eye(4)).tolist()})
    right, wrong = (
        check(Chain(Dense(4), Wrong(by), Tanh(), faint, last), SoftmaxCrossEntropy(), IRIS) for by in (1, 1.00003)
    )
    assert not right.wrong
    assert "0-dense/b" in paths(wrong.wrong)


def test_a_view_of_a_layers_output_is_not_checked_as_an_array_of_its_own():
    model = Chain(Dense(4), Residual(Linear()), Flatten(), Dense(3))
    report = check(model, SoftmaxCrossEntropy(), IRIS)
    assert not report.wrong
    assert [check.path for check in report.checks if not check.parameter] == ["0-dense/y", "1-residual/y", "3-dense/y"]


def test_one_wrong_entry_of_a_large_matrix_is_found_when_it_matters():
    class Torn(Dense):
        """Forgets the gradient of W's last unit."""

        __abstract__ = True

        def trace(self, plan, x):
            def tear():
                plan.network.params["0-torn/W"].of(plan.network.g)[..., -1] = 0

            plan.step(None, tear)  # before the layer's own step: backward runs in the reverse order
            return super().trace(plan, x)

    report = check(Chain(Torn(60), Dense(3)), SoftmaxCrossEntropy(), IRIS)
    assert paths(report.wrong) == ["0-torn/W"]
    assert report.wrong[0].directions == 3
    assert report.suspect == "the backward of 0-torn, where it fills the gradient of W"


def test_a_wrong_activation_inside_a_layer_is_named():
    class Steep(Activation):
        """tanh with the slope of the sigmoid."""

        __abstract__ = True
        apply, derivative = Tanh.apply, Sigmoid.derivative

    report = check(Chain(Dense(4), Dense(4, activation=Steep()), Dense(3)), SoftmaxCrossEntropy(), IRIS)
    assert report.suspect == "the backward of the activation of 1-dense"


def test_a_wrong_loss_is_named():
    class Tilted(HalfSquaredError):  # noqa: N818
        __abstract__ = True

        def rows(self, plan, y, t, each):
            forward, backward = super().rows(plan, y, t, each)

            def tilted():
                backward()
                np.multiply(y.grad, 1.1, out=y.grad)

            return forward, tilted

    report = check(Chain(Dense(1)), Tilted(), numbers([[1.0, 2.0]], [[0.5]]))
    assert report.suspect == "the backward of the loss"


def test_a_wrong_layer_in_a_branch_is_found():
    model = Chain(Parallel(Chain(Dense(3), Wrong(0.5), Tanh()), Chain(Dense(2))), Dense(3))
    report = check(model, SoftmaxCrossEntropy(), IRIS)
    assert paths(report.wrong) == [f"0-parallel/0-chain/0-dense/{name}" for name in "Wby"]
    assert report.suspect.startswith("the backward of 0-parallel/0-chain/1-wrong")


def test_entries_at_a_kink_are_counted_and_not_judged():
    # the row (0, 0) with b = 0 puts every relu at 0
    data = numbers([[0, 0], [1, 2], [2, -1]], [[1.0], [0.0], [0.5]])
    report = check(Chain(Dense(3, activation=Relu()), Dense(1)), HalfSquaredError(), data)
    found = {check.path: check for check in report.checks}
    assert not report.wrong
    assert found["0-dense/b"].kinks == 3
    assert found["0-dense/b"].worst is None
    assert found["0-dense/z"].kinks == 3
    assert found["0-dense/z"].worst is not None
    assert found["0-dense/W"].kinks == found["1-dense/W"].kinks == 0
    away = check(Chain(Dense(3, activation=Relu()), Dense(1)), HalfSquaredError(), data, random=True)
    assert not away.wrong
    assert all(check.kinks == 0 for check in away.checks)


def test_a_kink_beside_the_point_is_no_false_alarm():
    # z = 3e-6 is nearer to the kink at 0 than the step 1e-5
    data = numbers([[3e-6], [1.0]], [[1.0], [0.2]])
    model = Chain(Dense(1, activation=Relu(), init={"W": [[1.0]]}), Dense(1, init={"W": [[0.7]]}))
    report = check(model, HalfSquaredError(), data)
    assert not report.wrong
    assert all(check.kinks == 0 for check in report.checks)


def test_a_kink_hides_no_wrong_gradient_elsewhere():
    data = numbers([[0, 0], [1, 2], [2, -1]], [[1.0], [0.0], [0.5]])
    report = check(Chain(Dense(3), Wrong(1.01), Relu(), Dense(1)), HalfSquaredError(), data)
    assert paths(report.wrong) == ["0-dense/W", "0-dense/y"]


def test_a_loss_of_zero_can_be_checked():
    report = check(Chain(Dense(1, init={"W": [[0.0]]})), MeanAbsoluteError(), numbers([[1.0]], [[0.0]]))
    assert report.loss == 0
    assert not report.wrong


def test_dropout_has_one_mask_for_all_passes():
    report = check(Chain(Dense(20, activation="tanh"), Dropout(0.5), Dense(3)), SoftmaxCrossEntropy(), IRIS)
    assert not report.wrong


def test_the_batch_is_the_first_rows_of_the_training_split():
    one, all_rows = (check(Chain(Dense(3)), SoftmaxCrossEntropy(), IRIS, rows=rows) for rows in (1, 10_000))
    assert one.rows == 1
    assert all_rows.rows == len(IRIS.splits["train"])
    assert {check.shape for check in one.checks if check.name == "y"} == {(1, 3)}


def test_a_tolerance_or_a_loss_that_says_nothing_is_refused():
    with pytest.raises(ConfigError, match="tolerance is 0"):
        check(Chain(Dense(3)), SoftmaxCrossEntropy(), IRIS, tolerance=0)
    with pytest.raises(NumericalError, match="not finite"):
        check(Chain(Dense(1)), HalfSquaredError(), numbers([[1e300, 1e300]], [[0.0]]))


# ---- the command


def test_the_command_prints_a_table_and_agrees():
    done = call("gradcheck", CONFIGS / "mazur.toml")
    assert done.stdout.startswith("mazur: 1 row of the training split, loss 0.298371\n")
    assert "All 8 gradients checked agree" in done.stdout


def test_the_command_says_so_in_json():
    done = call(
        "gradcheck",
        CONFIGS / "xor.toml",
        "--json",
        "--random",
        "--set",
        "model.0.units=3",
        "--set",
        "seed=[4]",
        "--set",
        "population=1",
    )
    facts = json.loads(done.stdout)
    assert facts["ok"]
    assert facts["random"]
    assert facts["suspect"] is None
    assert facts["checks"][0]["path"] == "0-dense/W"
    assert facts["checks"][0]["worst"]["analytic"] == pytest.approx(facts["checks"][0]["worst"]["numeric"], rel=1e-5)


def test_the_command_ends_with_1_where_a_gradient_is_wrong(monkeypatch):
    def derivative(self, xp, x, y, out, t):
        xp.subtract(1, y, out=out)  # forgets the factor y

    monkeypatch.setattr(Sigmoid, "derivative", derivative)
    done = call("gradcheck", CONFIGS / "mazur.toml", code=1)
    assert "WRONG" in done.stdout
    assert "Look at the backward of the activation of 1-dense." in done.stdout
    facts = json.loads(call("gradcheck", CONFIGS / "mazur.toml", "--json", code=1).stdout)
    assert facts["suspect"] == "the backward of the activation of 1-dense"
    assert "1-dense/y" not in facts["wrong"]
    assert "1-dense/z" in facts["wrong"]
    call("gradcheck", CONFIGS / "mazur.toml", "--tolerance", 0.9)
