"""Every config that is shipped does what its comment says one may expect."""

from pathlib import Path

import numpy as np
import pytest

from gpbackprop.config import read

CONFIGS = Path(__file__).parent.parent / "configs"

# name: (split, metric, the least and the largest value to expect), with the config as it is
EXPECTED = {
    "digits": ("test", "accuracy", 0.97, 0.99),
    "digits-autoencoder": ("test", "r2", 0.75, 0.79),
    "digits-augmented": ("test", "accuracy", 0.965, 0.985),
    "iris": ("test", "accuracy", 0.93, 1.0),
    "wine": ("test", "accuracy", 0.93, 1.0),
    "penguins": ("test", "accuracy", 0.97, 1.0),
    "penguin-mass": ("test", "r2", 0.84, 0.88),
    "spirals": ("test", "accuracy", 0.985, 1.0),
    "xor": ("train", "accuracy", 1.0, 1.0),
}
ELSEWHERE = ("wheat-seeds",)  # in test_folds.py
CONVOLUTIONS = ("digits-cnn", "digits-resnet", "mnist-cnn")  # in test_configs_conv.py
# After one epoch, not the whole training.
MNIST = {"mnist-mlp": (0.94, 0.985), "mnist-nielsen": (0.85, 0.95)}


def trained(name: str, *settings: str):
    trainer = read(CONFIGS / f"{name}.toml", settings).trainer("cpu")
    trainer.fit()
    return trainer


def test_every_shipped_config_is_tested_here():
    assert {path.stem for path in CONFIGS.glob("*.toml")} == {*EXPECTED, *MNIST, "mazur", *CONVOLUTIONS, *ELSEWHERE}


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.toml")), ids=lambda path: path.stem)
def test_a_config_says_first_what_it_is_and_what_to_expect(path):
    head = path.read_text(encoding="utf-8").partition("\n\n")[0]
    assert all(line.startswith("#") for line in head.splitlines())
    assert len(head.splitlines()) > 2
    assert read(path).name == path.stem


@pytest.mark.parametrize("name", EXPECTED)
def test_a_config_reaches_what_its_comment_says(name):
    split, metric, low, high = EXPECTED[name]
    values = np.atleast_1d(trained(name).evaluate(split)[metric])
    assert np.all(low <= values), values
    assert np.all(values <= high), values


@pytest.mark.parametrize("name", MNIST)
def test_mnist_is_well_on_its_way_after_one_epoch(name, data_directory):
    low, high = MNIST[name]
    assert low <= trained(name, "train.epochs=1").evaluate("test")["accuracy"] <= high


def test_mazur_prints_the_losses_of_the_page_without_its_slip():
    history = trained("mazur").history
    losses = {row["epoch"] - 1: row["train_loss"] for row in history}  # the loss before the update of an epoch
    expected = {0: 0.2983711087600027, 1: 0.29102777369359933, 2: 0.28354713312241997, 10: 0.22091859205390402}
    for updates, loss in expected.items():
        assert losses[updates] == pytest.approx(loss, abs=1e-12)


def test_without_a_hidden_layer_xor_cannot_be_learned():
    text = (CONFIGS / "xor.toml").read_text()
    hidden = text[text.index("[[model]]") : text.index("[[model]]", text.index("[[model]]") + 1)]
    from gpbackprop.config import parse

    trainer = parse(text.replace(hidden, ""), "xor.toml").trainer("cpu")
    trainer.fit()
    assert np.all(np.array(trainer.evaluate("train")["accuracy"]) < 1)


def test_wine_needs_its_normalisation():
    assert trained("wine", "data.normalize=none").evaluate("test")["accuracy"] < 0.6
