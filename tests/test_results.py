"""The results that tutorials report on whole data sets, reached within what the seeds make of them.

Those on MNIST take minutes; what their configs say of them is measured, and here an epoch is held to it.
"""

from pathlib import Path

import numpy as np
import pytest

from gpbackprop.config import read
from gpbackprop.data import load

WORKED = Path(__file__).parent.parent / "configs" / "worked"
LINEAR = 'model=[{type="dense", units=1}]'
NORMAL = 'model.0.init={W="normal", b="normal"}'


def trained(name: str, *settings: str):
    trainer = read(WORKED / f"{name}.toml", settings).trainer("cpu")
    trainer.fit()
    return trainer


def accuracy(trainer, split: str) -> np.ndarray:
    return np.atleast_1d(trainer.evaluate(split)["accuracy"])


@pytest.mark.parametrize("normalize", ["standard", "minmax"])
def test_iris_forty_rows_of_each_species_teach_the_other_ten(normalize):
    trainer = trained("iris-forty", f"data.normalize={normalize}", "population=5")
    assert [len(trainer.data.splits[name]) for name in ("train", "test")] == [120, 30]
    np.testing.assert_array_equal(np.bincount(trainer.data.splits["test"].targets), [10, 10, 10])
    assert (accuracy(trainer, "train") > 0.924).all()
    assert (accuracy(trainer, "test") > 0.966).all()


def test_iris_the_two_files_hold_the_embedded_rows_in_their_order():
    whole = load("iris", normalize="none").splits["train"]
    parts = load("iris-train.csv", base=WORKED, test="iris-test.csv", normalize="none").splits
    first = np.arange(150) % 50 < 40
    for name, rows in (("train", first), ("test", ~first)):
        np.testing.assert_array_equal(parts[name].inputs, whole.inputs[rows])
        np.testing.assert_array_equal(parts[name].targets, whole.targets[rows])


def test_digits_two_hidden_layers_on_three_quarters_of_the_rows():
    trainer = trained("digits-64-32-16-10", "population=4")
    assert [len(trainer.data.splits[name]) for name in ("train", "test")] == [1348, 449]
    assert (accuracy(trainer, "test") >= 0.967).all()


def test_xor_two_hidden_units_can_from_most_starts():
    trainer = trained("xor-2-2-1")
    learnt = accuracy(trainer, "train") == 1
    loss = np.array(trainer.evaluate("train")["loss"])
    assert learnt.sum() == 17
    assert (loss[learnt] < 0.005).all()
    np.testing.assert_allclose(loss[~learnt], np.log(2) / 2, atol=0.002)


def test_xor_none_of_twenty_starts_can_without_a_hidden_layer():
    trainer = trained("xor-2-2-1", LINEAR, "train.epochs=300")
    assert (accuracy(trainer, "train") <= 0.75).all()
    np.testing.assert_allclose(trainer.evaluate("train")["loss"], [np.log(2)] * 20, atol=1e-12)


def test_nielsen_smaller_initial_weights_start_better(data_directory):
    small = trained("nielsen-weights", "train.epochs=1", "train.dtype=float32")
    large = trained("nielsen-weights", "train.epochs=1", "train.dtype=float32", NORMAL)
    assert 0.915 < small.history[0]["validation_accuracy"] < 0.94
    assert 0.84 < large.history[0]["validation_accuracy"] < small.history[0]["validation_accuracy"] - 0.02
