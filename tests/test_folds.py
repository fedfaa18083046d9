"""Cross-validation: the folds train as one population, and each is the network that trains without it, alone."""

import dataclasses
import json
from pathlib import Path

import fake_cupy
import numpy as np
import pytest
from commands import call

import gpbackprop as gp
from gpbackprop import checkpoint
from gpbackprop.config import parse, read
from gpbackprop.data import Preparation, folds, load, read_labelled
from gpbackprop.data.moments import moments
from gpbackprop.errors import CheckpointError, ConfigError, DataError
from gpbackprop.model import from_checkpoint
from gpbackprop.run import Run, read_metrics
from gpbackprop.tracing.record import record

CONFIGS = Path(__file__).parent.parent / "configs"
IRIS = ("data.folds=3", "train.epochs=2", "train.batch_size=16")  # 120 rows less a test split: 80 to train, 40 each
MASS = ("data.folds=4", "data.validation=0", 'data.missing="drop"', "train.epochs=2")
CASES = {"iris": IRIS, "penguin-mass": MASS, "digits": ("data.folds=3", "data.validation=0", "train.epochs=1")}


def config(name: str, *settings: str):
    return read(CONFIGS / f"{name}.toml", [*CASES.get(name, ()), *settings])


def trained(path: Path, config) -> Run:
    run = Run.start(path, config, config.text(), "cpu")
    run.train()
    return run


class StopAt(gp.Hook):
    def __init__(self, step):
        self.step = step

    def on_step(self, trainer):
        trainer.stop_requested = trainer.step == self.step


# Which rows.


@pytest.mark.parametrize(("n", "count"), [(30, 3), (47, 5), (8, 8), (11, 2)])
def test_folds_are_apart_equally_large_and_leave_less_rows_than_there_are_folds(n, count):
    rows = np.arange(100, 100 + n)
    dealt = folds.deal(rows, count, None, 3, 0, "here")
    assert dealt["validation"].shape == (count, n // count)
    assert dealt["train"].shape == (count, n - n // count)
    assert len(np.unique(dealt["validation"])) == dealt["validation"].size
    for train, validation in zip(dealt["train"], dealt["validation"], strict=True):
        np.testing.assert_array_equal(np.sort(np.concatenate([train, validation])), rows)
    left = np.setdiff1d(rows, dealt["validation"])
    assert len(left) == n % count
    assert all(np.isin(left, train).all() for train in dealt["train"])


def test_every_class_is_in_every_fold_with_its_share():
    classes = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [60, 25, 8]))
    dealt = folds.deal(np.arange(93), 5, classes, 0, 0, "here")
    counts = np.array([np.bincount(classes[own], minlength=3) for own in dealt["validation"]])
    assert (np.ptp(counts, axis=0) <= 1).all()
    assert (counts.min(axis=0) >= [11, 4, 1]).all()


def test_folds_depend_on_the_seed_of_the_data_and_leave_the_test_rows_alone():
    one, same, other = (load("iris", test=0.2, folds=4, seed=seed) for seed in (0, 0, 1))
    plain = load("iris", test=0.2)
    np.testing.assert_array_equal(one.splits["test"].index, plain.splits["test"].index)
    assert np.unique(one.splits["validation"].index).tolist() == plain.splits["train"].index.tolist()
    np.testing.assert_array_equal(one.splits["train"].index, same.splits["train"].index)
    assert one.digest == same.digest
    assert one.digest != plain.digest
    assert not np.array_equal(one.splits["train"].index, other.splits["train"].index)


# Their preparation.


@pytest.mark.parametrize("normalize", ["standard", "minmax"])
@pytest.mark.parametrize(("name", "shape"), [("iris", "flat"), ("digits", "flat"), ("digits", [8, 8, 1])])
def test_each_fold_is_normalised_by_its_own_training_rows(name, shape, normalize):
    found = load(name, folds=3, normalize=normalize, shape=shape)
    split, prep = found.splits["train"], found.preparation
    assert prep.folds == 3
    for k, rows in enumerate(split.index):
        shift, scale = moments(split.inputs, rows, normalize)
        own = prep.of_fold(k)
        np.testing.assert_array_equal(
            np.broadcast_to(own.shift, prep.row_shape), np.broadcast_to(shift, prep.row_shape)
        )
        np.testing.assert_array_equal(
            np.broadcast_to(own.scale, prep.row_shape), np.broadcast_to(scale, prep.row_shape)
        )
    assert name == "digits" or len(np.unique(prep.shift[:, 0, 0])) > 1


def test_targets_of_a_regression_are_normalised_by_fold_and_categories_are_those_of_the_whole_table():
    found = load("penguins", target="body_mass_g", missing="drop", folds=5, normalize_targets="standard")
    split, prep = found.splits["train"], found.preparation
    assert prep.target_shift.shape == prep.target_scale.shape == (5, 1, 1)
    for k, rows in enumerate(split.index):
        values = split.targets[rows].astype(np.float64)
        np.testing.assert_allclose(prep.of_fold(k).target_shift, values.mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(1 / prep.of_fold(k).target_scale, values.std(axis=0), rtol=1e-12)
    assert any(column.categories for column in prep.columns)
    one_hot = np.repeat([bool(c.categories) for c in prep.columns], [c.width for c in prep.columns])
    np.testing.assert_array_equal(prep.shift[:, 0, one_hot], 0)


def test_a_preparation_of_folds_is_read_back_and_a_damaged_one_is_refused():
    prep = load("penguins", target="body_mass_g", missing="drop", folds=3, normalize_targets="standard").preparation
    arrays = prep.arrays()
    again = Preparation.from_arrays(arrays)
    assert again.folds == 3
    assert all(np.array_equal(again.arrays()[name], array) for name, array in arrays.items())
    for name, damaged in {
        "scale": arrays["scale"][:2],
        "shift": arrays["shift"][:0],
        "target_shift": arrays["target_shift"][:, 0],
        "target_scale": np.repeat(arrays["target_scale"], 2, axis=1),
    }.items():
        with pytest.raises(ValueError, match=r"shape|fit"):
            Preparation.from_arrays(arrays | {name: damaged})


# Their training.


@pytest.mark.parametrize("name", CASES)
def test_a_member_is_the_network_that_trains_on_its_fold_alone(name):
    population = config(name).trainer("cpu")
    population.fit()
    count = population.network.K
    assert population.seeds == tuple(range(population.seeds[0], population.seeds[0] + count))
    for k in (0, count - 1):
        alone = config(name, f"data.fold={k}", f"seed={population.seeds[k]}").trainer("cpu")
        alone.fit()
        assert alone.network.K == 1
        np.testing.assert_array_equal(population.network.w[k], alone.network.w[0])
        for row, own in zip(population.history, alone.history, strict=True):
            assert [row[name][k] for name in own if "_" in name] == [own[name] for name in own if "_" in name]
        assert population.data.digest != alone.data.digest
    if "test" in population.data.splits:
        assert {name: value[-1] for name, value in population.evaluate("test").items()} == alone.evaluate("test")


def test_the_folds_of_sequences_are_cut_into_windows_and_prepared_alike_at_all_steps(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(3, 2, (10, 4, 2)).astype(np.float32)
    np.savez(tmp_path / "s.npz", x=x, y=x[..., :1] * 2, lengths=np.array([4, 3] * 5))
    text = f"""
        train = {{ epochs = 2, bptt = 2, batch_size = 3 }}
        data = {{ source = "{(tmp_path / "s.npz").as_posix()}", folds = 3, normalize_targets = "standard" }}
        model = [{{ type = "simple_rnn", units = 3, returns = "sequence" }}, {{ type = "dense", units = 1 }}]
        loss = {{ type = "mean_squared_error" }}
        optimizer = {{ type = "sgd", lr = 0.1 }}
    """
    text = "\n".join(line.strip() for line in text.splitlines())
    population = parse(text, "here").trainer("cpu")
    population.fit()
    alone = parse(text, "here", ["data.fold=1", "seed=1"]).trainer("cpu")
    alone.fit()
    np.testing.assert_array_equal(population.network.w[1], alone.network.w[0])


def test_folds_train_on_a_device(monkeypatch):
    fake_cupy.install(monkeypatch)
    here, there = (config("iris").trainer(device) for device in ("cpu", "cuda"))
    for trainer in (here, there):
        trainer.fit()
    np.testing.assert_allclose(there.backend.host(there.network.w), here.network.w, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["iris", "penguin-mass"])
def test_a_stopped_run_of_folds_goes_on_with_the_same_bits(tmp_path, name):
    whole = trained(tmp_path / "whole", config(name))
    half = Run.start(tmp_path / "half", config(name), "", "cpu")
    half.train(hooks=[StopAt(whole.trainer.steps_per_epoch + 2)])
    again = Run.open(tmp_path / "half", "cpu")
    again.train()
    assert 0 < half.trainer.step < again.trainer.step
    for path, item in whole.trainer.content().items():
        assert np.array_equal(item, again.trainer.content()[path]), path
    assert read(tmp_path / "half" / "config.resolved.toml").data.folds == config(name).data.folds


@pytest.mark.parametrize("name", CASES)
def test_a_member_becomes_the_run_of_its_fold(tmp_path, name):
    run = trained(tmp_path / "folds", config(name))
    member = run.member(1, tmp_path / "one")
    alone = trained(tmp_path / "alone", config(name, "data.fold=1", f"seed={run.trainer.seeds[1]}"))
    for path, item in alone.trainer.content().items():
        assert np.array_equal(item, member.trainer.content()[path]), path
    file = f"checkpoints/step-{alone.trainer.step:09d}.h5"
    assert (member.path / file).read_bytes() == (alone.path / file).read_bytes()
    assert Run.open(tmp_path / "one", "cpu").trainer.epoch == alone.trainer.epoch  # the data's digest is its own
    facts = [
        [{k: v for k, v in row.items() if "second" not in k} for row in read_metrics(path / "metrics.jsonl")]
        for path in (member.path, alone.path)
    ]
    assert facts[0] == facts[1]


def test_a_model_of_folds_prepares_raw_rows_for_each_member_as_its_fold_was(tmp_path):
    run = trained(tmp_path / "folds", config("penguin-mass"))
    whole, one = gp.load(run.path), gp.load(run.member(2, tmp_path / "one").path)
    rows = gp.data.read_labelled(one.preparation, _penguins(tmp_path))
    y = whole.predict(rows.inputs)
    assert y.shape == (4, len(rows), 1)
    np.testing.assert_array_equal(y[2], one.predict(rows.inputs)[0])
    assert abs(np.mean(y) - 4200) < 800  # grams
    assert whole.evaluate(rows)["loss"][2] == one.evaluate(rows)["loss"]
    file = read_labelled(whole.preparation, _penguins(tmp_path))
    np.testing.assert_array_equal(file.targets, rows.targets)


def _penguins(folder: Path) -> Path:
    table = Path(gp.__file__).parent / "data" / "files" / "penguins.csv"
    lines = [line for line in table.read_text().splitlines() if "NA" not in line and ",," not in line]
    (folder / "penguins.csv").write_text("\n".join(line for line in lines[:60] if not line.endswith(",")) + "\n")
    return folder / "penguins.csv"


def test_a_checkpoint_whose_folds_are_not_its_members_is_refused(tmp_path):
    content = config("iris").trainer("cpu").content()
    two = load("iris", test=0.2, folds=2).preparation.arrays()
    checkpoint.write(tmp_path / "c.h5", content | {f"preparation/{name}": array for name, array in two.items()})
    with pytest.raises(CheckpointError, match="2 folds and has 3 members"):
        from_checkpoint(checkpoint.read(tmp_path / "c.h5"))


# What looks at one network takes the first fold.


def test_trace_and_gradcheck_look_at_the_first_fold():
    small = ("model.0.units=2",)
    assert record(config("iris", *small), row=3) == record(config("iris", *small, "data.fold=0"), row=3)
    model, loss = gp.Chain(gp.Dense(3)), gp.SoftmaxCrossEntropy()
    reports = [
        gp.gradcheck.check(model, loss, load("iris", "", "float64", folds=3, **one)) for one in ({}, {"fold": 0})
    ]
    assert reports[0] == reports[1]
    assert not reports[0].wrong


# What cannot be.


@pytest.mark.parametrize(
    ("name", "settings", "told"),
    [
        ("iris", ["data.folds=1"], "command line: data.folds: found 1, expected greater than or equal to 2"),
        ("iris", ["data.fold=3"], "command line: data.fold: found 3, expected 0 to 2: there are 3 folds"),
        ("iris", ["data.validation=0.2"], "data.validation: found 0.2, but with folds .* --set data.validation=0"),
        ("iris", ["data.missing=mean"], 'data.missing: found "mean", which would differ from fold to fold'),
        ("iris", ["population=2"], "population: found 2, but data.folds = 3 trains one member for each fold"),
        ("iris", ["seed=[1, 2]"], "seed: has 2 entries for a population of 3"),
        ("iris", ["optimizer.lr=[0.1, 0.2]"], "optimizer.lr: has 2 entries for a population of 3"),
        ("iris", ["optimizer.type=particle_swarm"], "data.folds: found 3, but all particles of a swarm are one"),
        ("wine", ["data.fold=1"], "data.fold: 1 is one of no folds; set data.folds too"),
    ],
)
def test_what_does_not_go_with_folds_is_told_with_its_place(name, settings, told):
    with pytest.raises(ConfigError, match=told):
        config(name, *settings)


def test_rows_that_are_windows_in_time_have_no_folds(tmp_path):
    with pytest.raises(ConfigError, match="windows of a series follow each other in time"):
        load("sunspots", window=5, folds=3)
    (tmp_path / "t.txt").write_text("a text " * 20)
    with pytest.raises(ConfigError, match="windows of a text follow each other in time"):
        load(str(tmp_path / "t.txt"), window=5, folds=3)


def test_there_are_no_more_folds_than_rows():
    assert load("iris", folds=150).splits["validation"].index.shape == (150, 1)
    with pytest.raises(DataError, match=r"data\.folds = 151, but there are 150 rows"):
        load("iris", folds=151)


def test_a_population_of_folds_may_be_named_and_another_is_refused():
    parts = (gp.Chain(gp.Dense(3)), gp.SoftmaxCrossEntropy(), gp.SGD(0.1), load("iris", folds=3))
    assert config("iris", "population=3").population == config("iris").population == 3
    assert gp.Trainer(*parts, device="cpu").network.K == 3
    assert gp.Trainer(*parts, seed=(4, 1, 9), device="cpu").seeds == (4, 1, 9)
    for wrong in ({"population": 2}, {"seed": (1, 2), "population": 2}):
        with pytest.raises(ConfigError, match="population: found 2, but 3 folds make 3 members"):
            gp.Trainer(*parts, **wrong, device="cpu")
    assert config("iris", "data.fold=1", "population=4").trainer("cpu").network.K == 4  # seeds on one fold


def test_a_config_of_folds_is_written_out_and_means_the_same():
    for settings in ((), ("data.fold=1",)):
        found = config("iris", *settings)
        assert parse(found.text(), "again") == found
    assert config("iris").member(1) == dataclasses.replace(config("iris", "data.fold=1"), seed=config("iris").seed + 1)


# The command.


@pytest.fixture
def command(tmp_path, monkeypatch):
    """What a command prints that runs in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: call(*arguments).stdout


def test_train_prints_each_fold_their_mean_and_deviation_and_so_does_json(command):
    line = ("train", CONFIGS / "iris.toml", "--folds", 4, "--epochs", 2, "--device", "cpu", "-q")
    out = json.loads(command(*line, "--json", "--run-dir", "a"))
    accuracy = out["validation"]["accuracy"]
    assert len(accuracy) == len(out["test"]["loss"]) == 4
    assert out["folds"]["mean"]["accuracy"] == pytest.approx(np.mean(accuracy))
    assert out["folds"]["deviation"]["accuracy"] == pytest.approx(np.std(accuracy, ddof=1))
    text = command(*line, "--run-dir", "b")
    lines = [row.split() for row in text.splitlines()]
    start = lines.index(["fold", "loss", "accuracy"])
    assert [row[0] for row in lines[start + 1 : start + 7]] == ["0", "1", "2", "3", "mean", "deviation"]
    assert lines[start + 1][2] == f"{accuracy[0]:.4f}"
    assert lines[start + 5][2] == f"{np.mean(accuracy):.4f}"
    results = json.loads(command("evaluate", "a", "--split", "validation", "--json", "--device", "cpu"))["results"]
    assert results["accuracy"] == accuracy
    assert ", 4 folds" in command("inspect", "a")
    assert set(json.loads(command("resume", "a", "--epochs", 3, "--json", "-q"))["folds"]) == {"mean", "deviation"}


# The config.


def test_wheat_seeds_is_well_above_guessing_after_a_tenth_of_its_epochs(data_directory):
    """0.919 to 0.948 over six ways to deal the folds and two seeds each; guessing gives a third."""
    trainer = config("wheat-seeds", "train.epochs=50").trainer("cpu")
    trainer.fit()
    assert 0.9 < np.mean(trainer.history[-1]["validation_accuracy"]) < 0.97
    assert trainer.data.splits["validation"].index.shape == (5, 42)
