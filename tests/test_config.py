"""Config files: what is wrong is said with its place, what is right comes back the same."""

import re
import tomllib
from pathlib import Path

import pytest
from commands import call
from hypothesis import given, settings
from hypothesis import strategies as st

from gpbackprop.config import Config, differences, parse, placed, read
from gpbackprop.data import Data, load
from gpbackprop.errors import ConfigError, DataError
from gpbackprop.initializers import He, Normal, Orthogonal
from gpbackprop.layers.activation import Elu, LeakyRelu, Relu, Tanh
from gpbackprop.layers.combine import Chain, Parallel, Residual
from gpbackprop.layers.dense import Dense
from gpbackprop.layers.dropout import Dropout
from gpbackprop.losses import BinaryCrossEntropy, Huber, SoftmaxCrossEntropy
from gpbackprop.metrics import Accuracy, TopK
from gpbackprop.optim.schedules import Constant, Cosine, Step, Warmup
from gpbackprop.optim.sgd import SGD
from gpbackprop.settings import EarlyStopping, Train
from gpbackprop.trainer import Trainer

GOOD = """\
name = "small"
seed = 1

[data]
source = "iris"

[[model]]
type = "dense"
units = 8
activation = "tanh"

[[model]]
type = "dense"
units = 3

[loss]
type = "softmax_cross_entropy"

[optimizer]
type = "sgd"
lr = 0.05
"""


def report(text: str, *changes: str) -> list[str]:
    """The lines of the error that a config text gives."""
    with pytest.raises(ConfigError) as error:
        parse(text, "c.toml", changes)
    return str(error.value).splitlines()


def test_a_config_becomes_the_objects_of_a_run():
    config = parse(GOOD, "c.toml")
    assert config.model == (Dense(8, activation="tanh"), Dense(3))
    assert config.loss == SoftmaxCrossEntropy()
    assert config.optimizer == SGD(lr=0.05)
    assert config.train == Train()


def test_every_mistake_of_a_file_comes_in_one_report_in_the_order_of_its_lines():
    text = (
        GOOD.replace("seed = 1", "sed = 1")
        .replace('source = "iris"', 'source = "iris"\nvalidation = 1.5\nnormalise = "minmax"')
        .replace('type = "dense"\nunits = 8', 'type = "dens"\nunits = 8')
        .replace("units = 3", 'units = "three"')
        .replace('type = "softmax_cross_entropy"', 'type = "softmax"')
        .replace("lr = 0.05", 'lr = -1\nschedule = { type = "step", evry = 3 }')
    )
    lines = report(text)
    found = [re.match(r"c\.toml:(\d+): ([\w.]+): (.+)", line) for line in lines]
    numbers = [int(match[1]) for match in found]
    assert numbers == sorted(numbers)
    source = text.splitlines()
    places = {match[2]: source[int(match[1]) - 1] for match in found}
    assert places["sed"] == "sed = 1"
    assert places["data.validation"] == "validation = 1.5"
    assert places["data.normalise"] == 'normalise = "minmax"'
    assert places["model.0"] == "[[model]]"
    assert places["model.1.units"] == 'units = "three"'
    assert places["loss"] == "[loss]"
    assert places["optimizer.lr"] == "lr = -1"
    assert places["optimizer.schedule.evry"].startswith("schedule = ")
    said = "\n".join(lines)
    for word in ("'seed'", "'normalize'", "'dense'", "'softmax_cross_entropy'", "'every'"):
        assert f"did you mean {word}" in said


@pytest.mark.parametrize(
    ("change", "place", "found", "expected"),
    [
        (("units = 3", 'units = "three"'), "14: model.1.units", "'three'", "an integer"),
        (("units = 3", "units = 0"), "14: model.1.units", "0", "greater than 0"),
        (("units = 3", "units = 3.0"), "14: model.1.units", "3.0", "an integer"),
        (("units = 3", "units = true"), "14: model.1.units", "True", "an integer"),
        (("lr = 0.05", "lr = inf"), "21: optimizer.lr", "inf", "a finite number"),
        (("lr = 0.05", "lr = [0.1, -0.2]"), "21: optimizer.lr.1", "-0.2", "greater than or equal to 0"),
        (("units = 3", 'units = 3\nactivation = "rellu"'), "15: model.1.activation", "'rellu'", "relu"),
        (("units = 3", "units = 3\nfreeze = ['w']"), "12: model.1", "'w'", "W, b"),
        (("units = 3", "units = 3\ninit = { W = 'hee' }"), "15: model.1.init.W", "'hee'", "he"),
        (("units = 3", "units = 3\ninit = { W = [[1, 2], [3]] }"), "15: model.1.init.W", "", "rows of one length"),
        (('name = "small"', 'name = "a/b"'), "1: name", "'a/b'", "without slashes"),
        (("seed = 1", "seed = [1, 2]"), "2: seed", "2 entries", "population of 1"),
        (('type = "softmax_cross_entropy"', "x = 1"), "16: loss", "type", "softmax_cross_entropy"),
        (('[loss]\ntype = "softmax_cross_entropy"', ""), "1: loss", "", "is missing"),
        (('source = "iris"', "source = 3"), "5: data.source", "3", "a string"),
        (('source = "iris"', 'source = "iris"\nnormalize = "z"'), "6: data.normalize", "'z'", "'minmax'"),
    ],
)
def test_a_mistake_is_told_with_line_path_what_was_found_and_what_is_expected(change, place, found, expected):
    (line,) = report(GOOD.replace(*change))
    assert line.startswith(f"c.toml:{place}: ")
    assert found in line
    assert expected in line
    assert "Value error" not in line


def test_lists_that_do_not_fit_the_population_come_together_each_with_its_line():
    text = GOOD.replace("seed = 1", "seed = [1]\npopulation = 2").replace(
        "lr = 0.05", "lr = [1, 2, 3]\nmomentum = [0.9]"
    )
    assert report(text.replace("0.9", "0.9, 0, 0")) == [
        "c.toml:2: seed: has 1 entries for a population of 2",
        "c.toml:22: optimizer.lr: has 3 entries for a population of 2",
        "c.toml:23: optimizer.momentum: has 3 entries for a population of 2",
    ]
    one = parse(text.replace("[1]", "[1, 4]").replace("[1, 2, 3]", "[1, 2]"), "c.toml")  # one number holds for all
    assert (one.seed, one.optimizer.momentum) == ((1, 4), (0.9,))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("lr = 0.05", "lr = 0.05\nfreeze = ['2-dense/*']"), "c.toml:22: optimizer.freeze: '2-dense/*' matches no"),
        (("[optimizer]", "class_weights = [1.0]\n\n[optimizer]"), "c.toml:19: loss.class_weights: has 1 entries"),
        (("units = 3", "units = 3\ninit = { W = [[1.0]] }"), "c.toml:15: 1-dense/W: the given values have shape"),
        (("units = 3", "units = 3\n[model.init]\nb = [1.0]\n"), "c.toml:16: 1-dense/b: the given values have shape"),
        (("units = 3", "units = 4"), "c.toml:16: loss: the model gives 4 outputs a row"),
        (("[loss]", "[[model]]\ntype = 'residual'\nlayers = ['relu', {type = 'dense', units = 2}]\n\n[loss]"),
         "c.toml:16: 2-residual: wants inner layers that keep the shape"),
        (('"iris"', '"iris"\nshape = [3, 3]'), "c.toml:6: data.shape = [3, 3]: 9 values"),
        (("lr = 0.05", 'lr = 0.05\n[train]\nmetrics = ["accuracy", { type = "top_k", k = 5 }]'),
         "c.toml:23: train.metrics: top_k has k = 5, the model gives 3 outputs; expected k up to 3"),
        (("lr = 0.05", 'lr = 0.05\n[train]\nmetrics = ["r2"]'), "c.toml:23: train.metrics: r2 needs numbers"),
    ],
)  # fmt: skip
def test_what_is_seen_when_the_network_is_built_is_told_with_its_line_too(change, said):
    text = GOOD.replace(*change)
    config = parse(text, "c.toml")
    with pytest.raises(ConfigError) as error, placed(text, "c.toml"):
        config.trainer("cpu")
    assert str(error.value).startswith(said)


@pytest.mark.parametrize("command", ["train", "gradcheck", "trace"])
def test_every_command_that_builds_the_network_tells_the_line(command, tmp_path):
    path = tmp_path / "c.toml"
    path.write_text(GOOD.replace("units = 3", "units = 4"))
    with pytest.raises(ConfigError) as error:
        call(command, path)
    assert str(error.value).startswith(f"{path}:16: loss: the model gives 4 outputs a row")


def test_a_setting_is_told_as_the_place_of_what_is_seen_late_and_other_errors_stay_as_they_are():
    setting = "loss.class_weights=[1.0]"
    with (
        pytest.raises(ConfigError, match=r"^command line: loss\.class_weights: has 1"),
        placed(GOOD, "c.toml", [setting]),
    ):
        parse(GOOD, "c.toml", [setting]).trainer("cpu")
    with pytest.raises(ConfigError, match=r"^the tolerance is 3"), placed(GOOD, "c.toml"):
        raise ConfigError("the tolerance is 3: too much")


@pytest.mark.parametrize(("seed", "population"), [(2**63, 1), (2**63 - 1, 2), (-1, 1), ((0, 2**63), 2)])
def test_a_seed_that_no_checkpoint_can_store_is_refused_by_the_trainer_too(seed, population):
    config = parse(GOOD, "c.toml")
    with pytest.raises(ConfigError, match=r"seed: found .* expected 0 to 9223372036854775807"):
        Trainer(Chain(*config.model), config.loss, config.optimizer, load("iris"), seed=seed, population=population)


def test_a_misspelt_source_is_told_with_its_line(tmp_path):
    (tmp_path / "c.toml").write_text(GOOD.replace("iris", "iriss"))
    with pytest.raises(DataError, match=r"c\.toml:5: data\.source: .*did you mean 'iris'"):
        read(tmp_path / "c.toml")
    with pytest.raises(DataError, match=r"^command line: data\.source: .*did you mean 'wine'"):
        read(tmp_path / "c.toml", ["data.source=wines"])


def test_lines_are_found_in_inline_quoted_and_dotted_keys():
    text = (
        GOOD.replace("[optimizer]\n", "")
        .replace('type = "sgd"\nlr = 0.05', "")
        .replace("seed = 1", "seed = 1\noptimizer.type = 'sgd'\noptimizer.lr = 'x'")
    )
    (line,) = report(text)
    assert line.startswith("c.toml:4: optimizer.lr: ")
    (line,) = report(GOOD.replace("[data]\nsource", '["data"]\n"source"').replace('"iris"', "1"))
    assert line.startswith("c.toml:5: data.source: ")
    (line,) = report(GOOD + "[train]\nearly_stopping = { patience = 0 }\n")
    assert line.startswith("c.toml:23: train.early_stopping.patience: ")
    (line,) = report(GOOD + "[train.early_stopping]\n\npatience = 0\n")
    assert line.startswith("c.toml:24: train.early_stopping.patience: ")


def test_a_text_that_is_not_toml_is_told_with_its_line(tmp_path):
    (line,) = report(GOOD.replace("seed = 1", "seed = = 1"))
    assert line.startswith("c.toml:2: is not TOML")
    (tmp_path / "bytes.toml").write_bytes(b"name = '\xff\xfe'")
    with pytest.raises(ConfigError, match="UTF-8"):
        read(tmp_path / "bytes.toml")


def test_a_byte_order_mark_and_windows_line_ends_are_no_matter(tmp_path):
    (tmp_path / "c.toml").write_bytes(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())
    assert read(tmp_path / "c.toml") == parse(GOOD, "c.toml")


def test_a_missing_file_is_told_with_the_nearest_name(tmp_path):
    (tmp_path / "digits.toml").write_text(GOOD)
    with pytest.raises(ConfigError, match=r"did you mean 'digits\.toml'"):
        read(tmp_path / "digit.toml")


# Settings.


@pytest.mark.parametrize(
    ("setting", "get", "value"),
    [
        ("optimizer.lr=0.5", lambda c: c.optimizer.lr, 0.5),
        ("optimizer.lr=[0.5]", lambda c: c.optimizer.lr, (0.5,)),
        ("model.1.units = 4", lambda c: c.model[1].units, 4),
        ("model.0.activation=relu", lambda c: c.model[0].activation, Relu()),
        ('model.0.activation={type="elu", alpha=2.0}', lambda c: c.model[0].activation, Elu(2.0)),
        ("model.0.init.W=he", lambda c: c.model[0].init["W"], He()),
        ("train.epochs=3", lambda c: c.train.epochs, 3),
        ("train.batch_size=full", lambda c: c.train.batch_size, "full"),
        ("optimizer.schedule=cosine", lambda c: c.optimizer.schedule, Cosine()),
        ("loss.label_smoothing=0.1", lambda c: c.loss.label_smoothing, 0.1),
        ('name="x=y"', lambda c: c.name, "x=y"),
        ("name=x=y", lambda c: c.name, "x=y"),
        ("seed=7", lambda c: c.seed, 7),
    ],
)
def test_a_setting_changes_a_key_as_the_file_would(setting, get, value):
    assert get(parse(GOOD, "c.toml", [setting])) == value


def test_the_last_of_two_settings_holds():
    assert parse(GOOD, "c.toml", ["seed=2", "seed=3"]).seed == 3


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("optimizer.lr", "KEY=VALUE"),
        ("=3", "KEY=VALUE"),
        ("optimizer..lr=3", "KEY=VALUE"),
        ("model.2.units=3", "entries 0 to 1"),
        ("model.x.units=3", "entries 0 to 1"),
        ("seed.x=3", "not a table"),
        ("seed=[1]", "seed: has 1 entries for a population of 2"),
        ("seed=9223372036854775808", "expected less than or equal to 9223372036854775807"),
        ("seed=9223372036854775807", "end above 2^63 - 1"),
        ("data.seed=9223372036854775808", "expected less than or equal to 9223372036854775807"),
        ("optimizer.lr=[0.1, 0.2, 0.3]", "optimizer.lr: has 3 entries for a population of 2"),
        ("trian.epochs=3", "did you mean 'train'"),
        ("train.epochs=x", "train.epochs: found 'x', expected an integer"),
        ("model.0.units=-1", "model.0.units"),
    ],
)
def test_a_setting_that_cannot_be_used_is_told_as_one(setting, said):
    (line,) = report("population = 2\n" + GOOD, setting)
    assert said in line
    assert line.startswith(("--set", "command line:"))


# The resolved config.


def made(cls, *fields, **named):
    """Objects of a class from strategies for its fields; only those, whatever Hypothesis reads in its annotations."""
    return st.builds(lambda *values, **others: cls(*values, **others), *fields, **named)


positive = st.floats(1e-6, 10)
seeds = st.integers(0, 2**31)
activations = st.sampled_from([None, Relu(), Tanh(), LeakyRelu(0.2), Elu(0.5)])
initial = st.one_of(
    st.just(He(distribution="normal")),
    made(Normal, st.floats(-1, 1), st.floats(0, 2)),
    made(Orthogonal, positive),
    st.floats(-3, 3),
    st.just([[0.25, -1.5e-7], [1.0, 2.0]]),
)
dense = made(
    Dense,
    st.integers(1, 64),
    activation=activations,
    init=st.dictionaries(st.sampled_from("Wb"), initial),
    freeze=st.sampled_from([(), ("b",), ("W", "b")]),
)
layers = st.recursive(
    st.one_of(dense, made(Dropout, st.floats(0, 0.9))),
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(lambda row: Residual(*row)),
        st.lists(inner, min_size=1, max_size=3).map(lambda row: Parallel(*row, combine="sum")),
    ),
    max_leaves=5,
)
schedules = st.recursive(
    st.one_of(st.just(Constant()), made(Cosine, st.floats(0, 0.9)), made(Step, st.integers(1, 99), positive)),
    lambda inner: made(Warmup, positive, st.floats(0, 1), inner),
    max_leaves=2,
)
losses = st.one_of(
    made(SoftmaxCrossEntropy, label_smoothing=st.floats(0, 0.9), reduce=st.sampled_from(["mean", "sum"])),
    made(BinaryCrossEntropy, class_weights=st.sampled_from([None, (1.0, 2.5)])),
    made(Huber, delta=positive),
)
sources = made(
    Data,
    source=st.sampled_from(["iris", "my rows.csv", 'quote".csv', "C:\\new\\table.npz", "größe.csv"]),
    target=st.sampled_from([None, "y", -1, ("a", 2)]),
    validation=st.one_of(st.floats(0, 0.9), st.just("v.csv")),
    test=st.sampled_from([None, 0.25]),
    normalize=st.sampled_from(["standard", "minmax", "none"]),
    shape=st.sampled_from(["flat", "stored", (2, 2)]),
    header=st.sampled_from(["auto", True, False]),
)
trainings = made(
    Train,
    epochs=st.integers(1, 999),
    batch_size=st.one_of(st.integers(1, 999), st.just("full")),
    shuffle=st.booleans(),
    metrics=st.sampled_from([None, (), (Accuracy(), TopK(2))]),
    early_stopping=st.sampled_from([None, EarlyStopping(3), EarlyStopping(5, min_delta=0.1, monitor="train_loss")]),
)
configs = st.integers(1, 9).flatmap(
    lambda members: made(
        Config,
        data=sources,
        model=st.lists(layers, min_size=1, max_size=3).map(tuple),
        loss=losses,
        optimizer=made(
            SGD,
            st.one_of(positive, st.lists(positive, min_size=members, max_size=members).map(tuple)),
            schedules,
            momentum=st.floats(0, 0.99),
            nesterov=st.booleans(),
        ),
        train=trainings,
        name=st.text(st.characters(exclude_characters="/\\.", exclude_categories=["C"]), min_size=1),
        seed=seeds,
        population=st.just(members),
    )
)


@given(configs)
@settings(max_examples=60)
def test_the_resolved_config_loads_again_to_the_same_config_and_text(config):
    text = config.text()
    again = parse(text, "config.resolved.toml")
    assert again == config
    assert again.text() == text
    assert differences(config, again) == []


def test_the_resolved_config_writes_every_default_out():
    table = tomllib.loads(parse(GOOD, "c.toml").text())
    written = {"type": "sgd", "lr": 0.05, "schedule": {"type": "constant"}, "momentum": 0.0, "nesterov": False}
    assert written.items() <= table["optimizer"].items()
    assert table["train"]["batch_size"] == 64
    assert table["data"]["normalize"] == "standard"


def test_differences_name_the_keys_with_both_values():
    changed = parse(GOOD, "c.toml", ["optimizer.lr=0.1", "model.0.units=9", "optimizer.schedule=cosine"])
    assert differences(changed, parse(GOOD, "c.toml")) == [
        "model.0.units: 9, not 8",
        "optimizer.lr: 0.1, not 0.05",
        "optimizer.schedule.type: 'cosine', not 'constant'",
        "optimizer.schedule.floor: 0.0, not 'not given'",
    ]


# Paths.


def test_a_relative_path_starts_at_the_folder_of_the_config_and_a_typed_one_here(tmp_path, monkeypatch):
    folder, here = tmp_path / "configs", tmp_path / "here"
    folder.mkdir()
    here.mkdir()
    monkeypatch.chdir(here)
    text = GOOD.replace('source = "iris"', 'source = "rows/a.csv"\nvalidation = "../b.csv"\ntest = 0.2')
    (folder / "c.toml").write_text(text)
    for path in (folder / "c.toml", Path("../configs/c.toml")):
        data = read(path).data
        assert (data.source, data.validation, data.test) == (
            str(folder / "rows" / "a.csv"), str(tmp_path / "b.csv"), 0.2,
        )  # fmt: skip
    assert read(folder / "c.toml", ["data.source=mine.csv"]).data.source == str(here / "mine.csv")


def test_a_name_of_the_catalog_stays_a_name(tmp_path):
    (tmp_path / "iris").mkdir()
    (tmp_path / "c.toml").write_text(GOOD)
    assert read(tmp_path / "c.toml").data.source == "iris"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (("units = 3", "units = " + "9" * 5000), "a number that is too long"),
        (("units = 3", "units = " + "[" * 5000), "nested too deeply"),
        (
            ("[[model]]\n", "\ntype = 'residual'\n".join(f"[[model{'.layers' * n}]]" for n in range(900)) + "\n"),
            "too deeply",
        ),
        (('source = "iris"', r'source = "a\u0000.csv"'), "data.source: .* is no path"),
    ],
    ids=["digits", "brackets", "layers", "NUL"],
)
def test_what_a_fuzzer_would_write_is_refused_with_the_reason(change, why):
    text = (Path(__file__).parent.parent / "configs" / "iris.toml").read_text(encoding="utf-8")
    assert text.count(change[0])
    with pytest.raises(ConfigError, match=why):
        parse(text.replace(*change, 1), "odd.toml", base=Path("."))


def test_the_home_of_nobody_is_a_path_like_any_other():
    text = (Path(__file__).parent.parent / "configs" / "iris.toml").read_text(encoding="utf-8")
    found = parse(text.replace('source = "iris"', 'source = "~no-such-user/a.csv"'), "odd.toml", base=Path("/data"))
    assert found.data.source == "/data/~no-such-user/a.csv"
