"""The configs over sequences do what their comments say, most of them in a shorter form."""

from pathlib import Path

import numpy as np
import pytest

from gpbackprop.config import read
from gpbackprop.data.sequences import REBER, legal

CONFIGS = Path(__file__).parent.parent / "configs" / "sequences"


def trained(name: str, *settings: str):
    trainer = read(CONFIGS / f"{name}.toml", settings).trainer("cpu")
    trainer.fit()
    return trainer


def test_every_config_over_sequences_is_tested_here():
    here = Path(__file__).read_text(encoding="utf-8")
    assert {path.stem for path in CONFIGS.glob("*.toml") if f'"{path.stem}"' not in here} == set()


@pytest.mark.parametrize("name", ["adding-lstm", "adding-gru"])
def test_the_adding_problem_is_solved(name):
    """At length 20; at length 50 it takes half a minute."""
    shorter = ("data.window=20", "data.rows=3000", "model.0.units=32", "train.epochs=10", "optimizer.lr=0.01")
    assert trained(name, *shorter).evaluate("test")["loss"] < 0.01


def test_only_legal_symbols_follow_in_the_reber_grammar():
    trainer = trained("reber")
    trainer.evaluate("test")
    y, split, names = (
        trainer.evaluations["test"].outputs()[0],
        trainer.data.splits["test"],
        trainer.data.preparation.classes,
    )
    right, unseen, unseen_right = [], [], []
    known = {trainer.data.splits["train"].inputs[row].tobytes() for row in trainer.data.splits["train"].index}
    for output, row in zip(y, split.index, strict=True):
        n = split.lengths[row]
        string = "".join(REBER[i] for i in split.inputs[row, :n].argmax(axis=1)) + "E"
        largest = [{names[i] for i in np.argsort(-output[t])[: len(ways)]} for t, ways in enumerate(legal(string))]
        right.append(all(found == set(ways) for found, ways in zip(largest, legal(string), strict=True)))
        if split.inputs[row].tobytes() not in known:
            unseen.append(string)
            unseen_right.append(right[-1])
    assert np.mean(right) >= 0.99
    assert len(unseen) > 30
    assert np.mean(unseen_right) >= 0.97


def test_the_airline_forecast_beats_the_month_before():
    assert trained("airline").evaluate("test")["r2"] > 0.57
    linear = 'model=[{type="flatten"}, {type="dense", units=1}]'
    assert trained("airline", linear).evaluate("test")["r2"] > 0.85


def test_the_sunspots_forecast_beats_the_year_before():
    assert 0.75 < trained("sunspots").evaluate("test")["r2"] < 0.95


def test_the_characters_of_a_text_are_learnt(tmp_path):
    """A text whose next character is nearly always known: words of a fixed list in random order."""
    words, rng = ["window", "carried", "state", "gradient", "sequence"], np.random.default_rng(0)
    text = " ".join(words[i] for i in rng.integers(0, 5, 1500))
    (tmp_path / "text.txt").write_text(text)
    settings = (
        f'data.source="{tmp_path / "text.txt"}"', f"model.2.units={len(set(text))}", "model.1.units=48",
        "train.epochs=12", "data.window=100", "optimizer.lr=0.01",
    )  # fmt: skip
    found = trained("characters", *settings).evaluate("validation")
    assert found["accuracy"] > 0.8  # only the first letter of a word is open: one in 6.6 characters
    assert found["loss"] < 0.5
