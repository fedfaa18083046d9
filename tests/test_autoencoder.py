"""Reconstruction: networks whose targets are their own normalised inputs."""

import json

import numpy as np
import pytest
from commands import call
from test_configs import trained

from gpbackprop.backend import Backend
from gpbackprop.config import parse
from gpbackprop.data import Preparation, load
from gpbackprop.data.batches import Feed
from gpbackprop.errors import ConfigError
from gpbackprop.model import load as load_model

IRIS = ("sepal_length_cm", "sepal_width_cm", "petal_length_cm", "petal_width_cm")
TEXT = """
[data]
source = "SOURCE"
task = "reconstruction"
KEYS

[[model]]
type = "dense"
units = 3

[[model]]
type = "dense"
units = 4

[loss]
type = "mean_squared_error"

[optimizer]
type = "adam"
lr = 0.02

[train]
epochs = 3
"""


def config(source="iris", keys=""):
    return parse(TEXT.replace("SOURCE", str(source)).replace("KEYS", keys), "test.toml")


def prepared(trainer, name):
    split, prep = trainer.data.splits[name], trainer.data.preparation
    return ((split.inputs - prep.shift) * prep.scale)[split.index]


def test_the_autoencoder_of_digits_is_better_than_the_best_linear_one():
    trainer = trained("digits-autoencoder")
    results = trainer.evaluate("test")
    train, test = prepared(trainer, "train"), prepared(trainer, "test")
    mean = train.mean(axis=0)
    axes = np.linalg.svd(train - mean, full_matrices=False)[2][:8]
    error = ((test - mean) @ axes.T @ axes + mean - test) ** 2
    assert error.mean() == pytest.approx(0.17, abs=0.005)
    assert 0.11 < results["loss"] < 0.13
    assert results["r2"] == pytest.approx(0.77, abs=0.02)
    assert results["mean_absolute_error"] == pytest.approx(1.4, abs=0.1)


def test_the_target_is_the_input_of_the_plan_and_no_second_table():
    trainer = config().trainer("cpu")
    batch = trainer.training.batch(trainer.batch_size)
    plan, objective = batch.plan, batch.objective
    assert objective.target.value is plan.x.value
    assert Feed(Backend(), trainer.data.splits["train"], trainer.data.preparation).targets is None
    index = np.arange(trainer.batch_size)[None]
    batch.load(index)
    before = plan.x.value.copy()
    plan.forward()
    plan.backward()
    assert np.array_equal(plan.x.value, before)
    y = plan.y.value.astype(np.float64)
    assert objective.value()[0] == pytest.approx(((y - prepared(trainer, "train")[index]) ** 2).mean(), rel=1e-6)


def test_a_catalog_leaves_its_label_aside_and_a_file_has_none(tmp_path):
    assert load("iris", task="reconstruction").preparation.target == IRIS
    (tmp_path / "t.csv").write_text("a,kind,w,b\n1,x,1,2\n3,y,2,5\n4,x,1,6\n")
    data = load("t.csv", tmp_path, task="reconstruction", weight="w")
    assert data.preparation.target == ("a", "kind = x", "kind = y", "b")
    assert data.splits["train"].targets is data.splits["train"].inputs
    assert data.splits["train"].weights.tolist() == [1, 2, 1]
    assert load("t.csv", tmp_path, task="reconstruction", inputs=("a", "b")).preparation.target == ("a", "b")
    np.savez(tmp_path / "t.npz", x=np.random.default_rng(0).normal(size=(9, 2, 3)))
    assert load("t.npz", tmp_path, task="reconstruction", shape="stored").preparation.row_shape == (2, 3)


def test_predictions_are_in_raw_units_of_the_inputs(tmp_path):
    trainer = config(keys='normalize = "minmax"\ntest = 0.2').trainer("cpu")
    trainer.fit(300)
    trainer.save(tmp_path / "model.h5")
    model = load_model(tmp_path / "model.h5")
    split = trainer.data.splits["test"]
    raw = split.inputs[split.index]
    error = np.abs(model.predict(raw)[0] - raw)
    assert error.mean() == pytest.approx(trainer.evaluate("test")["mean_absolute_error"], rel=1e-5)
    assert error.mean() < 0.25  # centimetres


def test_the_command_line_reconstructs_and_evaluates_rows_without_a_label(tmp_path):
    trainer = config().trainer("cpu")
    trainer.fit()
    trainer.save(tmp_path / "model.h5")
    raw, rows = trainer.data.splits["train"].inputs[:20], tmp_path / "rows.csv"
    rows.write_text("".join(",".join(map(str, row)) + "\n" for row in [IRIS, *raw]))
    lines = call("predict", tmp_path / "model.h5", rows).stdout.splitlines()
    assert lines[0] == ",".join(IRIS)
    expected = load_model(tmp_path / "model.h5").predict(raw)[0]
    np.testing.assert_allclose(np.array([line.split(",") for line in lines[1:]], float), expected, rtol=1e-5)
    results = json.loads(call("evaluate", tmp_path / "model.h5", "--data", rows, "--json").stdout)["results"]
    assert results["mean_absolute_error"] == pytest.approx(np.abs(expected - raw).mean(), rel=1e-5)


def test_images_come_back_as_images_of_any_shape(tmp_path):
    keys = '[data]\nsource = "digits"\ntask = "reconstruction"\nshape = [8, 8, 1]\n'
    model = '[[model]]\ntype = "conv2d"\nunits = 1\nkernel = 3\npadding = "same"\n'
    rest = '[loss]\ntype = "mean_squared_error"\n[optimizer]\ntype = "adam"\nlr = 0.01\n[train]\nepochs = 2\n'
    for last in ("", '[[model]]\ntype = "flatten"\n'):
        trainer = parse(keys + model + last + rest, "test.toml").trainer("cpu")
        trainer.fit()
        trainer.save(tmp_path / "model.h5")
        found = load_model(tmp_path / "model.h5")
        raw = trainer.data.splits["train"].inputs[:50]
        y = found.predict(raw)[0]
        assert y.shape == ((50, 8, 8, 1) if not last else (50, 64))
        assert np.abs(y.reshape(raw.shape) - raw).mean() < 3


def test_folds_of_a_reconstruction_have_moments_of_their_own():
    data = load("iris", task="reconstruction", folds=3)
    trainer = config(keys="folds = 3").trainer("cpu", data)
    trainer.fit(2)
    together = trainer.evaluate("validation")
    for k in range(3):
        alone = parse(config(keys=f"folds = 3\nfold = {k}").text(), "test.toml", [f"seed={k}"]).trainer("cpu")
        alone.fit(2)
        assert alone.evaluate("validation") == {name: values[k] for name, values in together.items()}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"target": "kind"}, "target: found 'kind', but the targets of a reconstruction are its inputs"),
        ({"normalize_targets": "standard"}, "normalize_targets: the targets of a reconstruction"),
        ({"source": "sunspots", "window": 5}, 'data.task = "reconstruction": the rows of .* are windows over a series'),
    ],
)
def test_what_does_not_fit_a_reconstruction_is_refused_with_its_key(fields, message):
    with pytest.raises(ConfigError, match=message):
        load(**{"source": "iris", "task": "reconstruction"} | fields)


def test_outputs_of_another_number_are_refused():
    with pytest.raises(ConfigError, match="gives 4 outputs a row, the data has 64 targets; give the last layer units"):
        config("digits").trainer("cpu")


def test_the_preparation_of_a_reconstruction_comes_back_from_its_arrays():
    prep = load("iris", task="reconstruction").preparation
    assert Preparation.from_arrays(prep.arrays()).reconstructs
