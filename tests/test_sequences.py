"""Data whose rows are sequences: series, texts, padded sequences with lengths, and generated tasks."""

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpbackprop import data
from gpbackprop.data import sequences
from gpbackprop.data.preparation import Preparation
from gpbackprop.errors import ConfigError, DataError

AIRLINE_1949 = [112, 118, 132, 129, 121, 135, 148, 148, 136, 119, 104, 118]


def unchanged(preparation):
    """A preparation after it went through a checkpoint."""
    return Preparation.from_arrays(preparation.arrays())


@given(M=st.integers(4, 30), window=st.integers(1, 8), horizon=st.integers(1, 4))
def test_a_row_of_a_series_is_a_window_and_its_target_lies_horizon_steps_later(tmp_path_factory, M, window, horizon):
    path = tmp_path_factory.mktemp("series") / "s.csv"
    path.write_text("t,v\n" + "".join(f"{t},{t * t}.5\n" for t in range(M)))
    options = {"window": window, "horizon": horizon, "normalize": "none", "dtype": "float64", "target": "v"}
    if window + horizon > M:
        with pytest.raises(DataError, match="too short"):
            data.load(path.as_posix(), **options)
        return
    split = data.load(path.as_posix(), **options).splits["train"]
    v = np.arange(M) ** 2 + 0.5
    assert len(split) == M - window - horizon + 1
    for n in range(len(split)):
        assert split.inputs[n].tolist() == v[n : n + window, None].tolist()
        assert split.targets[n].tolist() == [v[n + window - 1 + horizon]]


def test_the_airline_series_and_its_splits_in_time():
    found = data.load("airline", window=12, validation=0.2, test=0.1, dtype="float64")
    train, validation, test = (found.splits[name] for name in ("train", "validation", "test"))
    assert train.inputs[0, :, 0].tolist() == AIRLINE_1949
    assert train.targets[0].item() == 115
    assert train.targets[-1].item() == 432
    assert [len(part) for part in (train, validation, test)] == [93, 26, 13]
    assert list(train.index) + list(validation.index) + list(test.index) == list(range(132))
    prep = unchanged(found.preparation)
    assert (prep.kind, prep.horizon, prep.row_shape, prep.target) == ("series", 1, (12, 1), ("passengers",))
    seen = train.inputs[train.index]
    assert prep.shift.item() == pytest.approx(seen.mean())  # of the training windows alone, the same at every step
    assert prep.scale.item() == pytest.approx(1 / seen.std())


def test_sunspots_are_the_yearly_ones():
    table = data.load("sunspots", normalize="none", dtype="float64").splits["train"]
    assert len(table) == 309
    assert (table.inputs[0, 0], table.targets[0, 0]) == (1700, 5)
    assert (table.inputs[-1, 0], table.targets[-1, 0]) == (2008, 2.9)
    assert table.targets.sum() == pytest.approx(15373.4, abs=0.2)


def test_a_series_of_several_columns_from_arrays_and_columns(tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(20, 2)), rng.normal(size=20)
    np.savez(tmp_path / "s.npz", x=x, y=y)
    np.savez(tmp_path / "alone.npz", x=x)
    with h5py.File(tmp_path / "s.h5", "w") as file:
        file["x"], file["y"] = x, y
    (tmp_path / "s.csv").write_text("a,b,y\n" + "".join(f"{p},{q},{r}\n" for (p, q), r in zip(x, y, strict=True)))
    options = {"base": tmp_path, "window": 3, "horizon": 2, "normalize": "none", "dtype": "float64"}
    rows = {
        "npz": data.load("s.npz", **options), "h5": data.load("s.h5", **options),
        "csv": data.load("s.csv", inputs=("a", "b"), **options),
    }  # fmt: skip
    for found in rows.values():
        split = found.splits["train"]
        assert np.array_equal(split.inputs, np.stack([x[n : n + 3] for n in range(16)]))
        assert np.array_equal(split.targets[:, 0], y[4:])
    own = data.load("alone.npz", **options).splits["train"]
    assert np.array_equal(own.targets, x[4:])


def test_a_file_is_read_with_the_windows_of_the_model(tmp_path):
    found = data.load("wave", window=10, horizon=3, validation=0.2, seed=3)
    prep = unchanged(found.preparation)
    new = np.arange(14.0)
    (tmp_path / "new.csv").write_text("y\n" + "".join(f"{v}\n" for v in new))
    x, lengths = data.read_rows(prep, tmp_path / "new.csv")
    assert lengths is None
    assert x.shape == (5, 10, 1)  # the last window too, whose target is not known yet
    assert x[-1, :, 0].tolist() == new[4:].tolist()
    labelled = data.read_labelled(prep, tmp_path / "new.csv")
    assert labelled.inputs.shape == (2, 10, 1)
    assert labelled.targets[:, 0].tolist() == [12, 13]


def test_a_text_is_cut_into_rows_of_characters_and_what_follows(tmp_path):
    text = "hello wörld, hello you!\n"
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    found = data.load("a.txt", base=tmp_path, window=5, validation=0.25)
    split, prep = found.splits["train"], unchanged(found.preparation)
    names = prep.classes
    assert names == tuple(sorted(set(text[:21])))
    assert ["".join(names[c] for c in row) for row in split.inputs] == ["hello", " wörl", "d, he", "llo y"]
    assert ["".join(names[c] for c in row) for row in split.targets] == ["ello ", "wörld", ", hel", "lo yo"]
    assert (prep.kind, prep.row_shape, prep.shift.tolist(), prep.scale.tolist()) == ("text", (5,), [0], [1])
    assert found.splits["validation"].index.tolist() == [3]
    (tmp_path / "b.txt").write_text("hello hello")
    x, _ = data.read_rows(prep, tmp_path / "b.txt")
    assert ["".join(names[int(c)] for c in row) for row in x] == ["hello", " hell"]
    (tmp_path / "b.txt").write_text("hello\nQhello")
    with pytest.raises(DataError, match=r"b\.txt, character 6: '\\n' is not in the text"):
        data.read_rows(prep, tmp_path / "b.txt")
    with pytest.raises(DataError, match=r"has 12 characters; data\.window = 12 needs 13"):
        data.load("b.txt", base=tmp_path, window=12)


def padded(folder, **arrays):
    rng = np.random.default_rng(0)
    given_arrays = {"x": rng.normal(size=(6, 4, 2)) + 5, "y": rng.integers(0, 3, (6, 4)), "lengths": [4, 1, 2, 3, 4, 2]}
    np.savez(folder / "p.npz", **given_arrays | arrays)
    return given_arrays | arrays


def test_sequences_with_lengths_count_their_own_steps(tmp_path):
    given_arrays = padded(tmp_path)
    found = data.load("p.npz", base=tmp_path, validation=0.34, dtype="float64")
    split, prep = found.splits["train"], unchanged(found.preparation)
    assert (prep.kind, prep.row_shape, prep.classes) == ("sequences", (4, 2), ("0", "1", "2"))
    assert split.lengths.tolist() == [4, 1, 2, 3, 4, 2]
    assert np.array_equal(split.targets, given_arrays["y"])
    assert split.weights.tolist() == [[1.0] * n + [0.0] * (4 - n) for n in split.lengths]
    valid = np.concatenate([split.inputs[row, : split.lengths[row]] for row in split.index])
    assert prep.shift.tolist() == pytest.approx(valid.mean(axis=0))
    assert prep.scale.tolist() == pytest.approx(1 / valid.std(axis=0))
    x, lengths = data.read_rows(prep, tmp_path / "p.npz")
    assert x.shape == (6, 4, 2)
    assert lengths.tolist() == [4, 1, 2, 3, 4, 2]


def test_sequences_may_have_one_target_a_row_or_numbers_at_each_step(tmp_path):
    padded(tmp_path, y=np.arange(6))
    one = data.load("p.npz", base=tmp_path)
    assert one.splits["train"].targets.shape == (6,)
    assert one.splits["train"].weights is None
    padded(tmp_path, y=np.random.default_rng(1).normal(size=(6, 4, 3)))
    each = data.load("p.npz", base=tmp_path, normalize_targets="standard", dtype="float64")
    assert each.splits["train"].targets.shape == (6, 4, 3)
    assert each.splits["train"].weights.shape == (6, 4)
    assert each.preparation.target_shift.shape == (3,)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"lengths": [4, 0, 2, 3, 4, 2]}, r"row 1: the length 0; expected 1 to 4"),
        ({"lengths": [4, 1, 2, 3, 4, 5]}, r"row 5: the length 5; expected 1 to 4"),
        ({"lengths": [4, 1, 2]}, r"expected a whole number for each of the 6 rows"),
        ({"lengths": [4.0, 1, 2, 3, 4, 2]}, r"lengths is float64"),
    ],
)
def test_lengths_that_cannot_be_are_refused_with_their_row(tmp_path, arrays, message):
    padded(tmp_path, **arrays)
    with pytest.raises(DataError, match=message):
        data.load("p.npz", base=tmp_path)


def test_adding_asks_for_the_sum_of_the_two_marked_numbers():
    split = data.load("adding", rows=200, window=20, normalize="none", dtype="float64").splits["train"]
    x, mark = split.inputs[..., 0], split.inputs[..., 1]
    assert split.inputs.shape == (200, 20, 2)
    assert (mark[:, :10].sum(axis=1) == 1).all()
    assert (mark[:, 10:].sum(axis=1) == 1).all()
    np.testing.assert_allclose(split.targets[:, 0], (x * mark).sum(axis=1))
    assert np.mean((split.targets - 1) ** 2) == pytest.approx(1 / 6, abs=0.05)


def test_copy_asks_for_the_first_ten_symbols_at_the_end():
    found = data.load("copy", rows=20, window=25, normalize="none")
    x = found.splits["train"].inputs.argmax(axis=-1)
    y = np.array(["ABCDEFGH-".index(name) for name in found.preparation.classes])[found.splits["train"].targets]
    assert found.preparation.row_shape == (25, 10)
    assert np.array_equal(x[:, :10], y[:, -10:])
    assert (x[:, 14] == 9).all()
    assert (np.delete(x[:, 10:], 4, axis=1) == 8).all()
    assert (y[:, :-10] == 8).all()
    with pytest.raises(DataError, match="need 21 steps"):
        data.load("copy", window=20)


def test_reber_strings_are_strings_of_the_grammar_and_of_all_its_ways():
    found = data.load("reber", rows=400, window=30, normalize="none")
    split, names = found.splits["train"], found.preparation.classes
    assert set(names) == set(sequences.REBER)
    seen = set()
    for x, y, n, weight in zip(split.inputs, split.targets, split.lengths, split.weights, strict=True):
        read = "".join(sequences.REBER[i] for i in x[:n].argmax(axis=1))
        follows = "".join(names[i] for i in y[:n])
        assert read[1:] == follows[:-1]
        string = read + follows[-1]
        assert string[0] + string[-1] == "BE"
        assert string[1] == string[-2]
        assert all(symbol in ways for symbol, ways in zip(follows, sequences.legal(string), strict=True))
        assert weight.tolist() == [1.0] * n + [0.0] * (30 - n)
        assert not x[n:].any()
        seen |= {string[2:-2][i : i + 2] for i in range(len(string) - 5)}
    assert seen >= {"BT", "BP", "TS", "TX", "SS", "SX", "XS", "XX", "PT", "PV", "TT", "TV", "VP", "VV", "PX", "PS"}
    assert sequences.legal("BTBTXSETE") == ["TP", "B", "TP", "SX", "XS", "E", "T", "E"]


def test_generated_sequences_are_functions_of_the_seed():
    for name in ("adding", "copy", "reber"):
        one, same, other = (data.load(name, rows=50, seed=seed).digest for seed in (1, 1, 2))
        assert one == same != other


def test_fields_that_do_not_fit_are_told():
    with pytest.raises(ConfigError, match="'wave' is a series; say how many steps"):
        data.load("wave")
    with pytest.raises(ConfigError, match="horizon = 2: only a series has it"):
        data.load("iris", horizon=2)
    with pytest.raises(ConfigError, match="would join what lies apart in a series"):
        data.load("airline", window=3, missing="drop")
    with pytest.raises(ConfigError, match="are sequences, which keep theirs"):
        data.load("adding", rows=10, shape=(100,))
    with pytest.raises(DataError, match="of 132 windows leaves one of the splits without any"):
        data.load("airline", window=12, test=0.001)
    with pytest.raises(DataError, match=r"adding: data\.window = 1; each half of a row needs a step to mark"):
        data.load("adding", rows=10, window=1)


def test_a_preparation_of_an_unknown_kind_is_refused():
    arrays = data.load("wave", window=3).preparation.arrays()
    text = arrays["text"].tobytes()
    for old, new in ((b'"kind": "series"', b'"kind": "serious"'), (b'"horizon": 1', b'"horizon": 0')):
        with pytest.raises(ValueError, match="a preparation of the kind"):
            Preparation.from_arrays(arrays | {"text": np.frombuffer(text.replace(old, new), np.uint8)})
