"""Data sets: what is built in, how rows are split and prepared, and what a model needs to see raw rows the same way."""

import gzip
import hashlib
import tracemalloc

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gpbackprop import data
from gpbackprop.backend import random
from gpbackprop.data import split as splitting
from gpbackprop.data.catalog import CATALOG, cache_directory, embedded
from gpbackprop.data.moments import moments
from gpbackprop.data.table import BLOCK
from gpbackprop.errors import ConfigError, DataError

EMBEDDED = [name for name, entry in CATALOG.items() if entry.file]


def rows(split, field="inputs"):
    return getattr(split, field)[split.index]


def normalised(dataset, name="train"):
    p = dataset.preparation
    return (rows(dataset.splits[name]).astype(np.float64) - p.shift) * p.scale


@pytest.mark.parametrize("name", [*EMBEDDED, "xor", "spirals", "moons", "sine"])
def test_every_built_in_set_loads_as_its_catalog_entry_says(name):
    entry = CATALOG[name]
    dataset = data.load(name, missing="mean" if name == "penguins" else "error")
    train = dataset.splits["train"]
    assert len(train) == entry.rows
    assert ("classification" in entry.task) == bool(dataset.preparation.classes)
    assert f"{len(dataset.preparation.classes)} classes" in entry.task or not dataset.preparation.classes
    assert train.inputs.dtype == (np.uint8 if entry.pixels else np.float32)
    assert train.targets.dtype == (np.int64 if dataset.preparation.classes else np.float32)
    assert entry.available
    assert data.info(name)["licence"] == entry.licence


def test_iris_has_its_known_means_and_class_names_as_given():
    dataset = data.load("iris")
    np.testing.assert_allclose(dataset.preparation.shift, [5.843333, 3.057333, 3.758, 1.199333], atol=1e-6)
    assert dataset.preparation.classes == ("setosa", "versicolor", "virginica")
    np.testing.assert_array_equal(np.bincount(dataset.splits["train"].targets), [50, 50, 50])


def test_a_changed_embedded_file_is_refused(monkeypatch):
    import dataclasses

    with pytest.raises(DataError, match="was changed"):
        embedded(dataclasses.replace(CATALOG["iris"], sha256="0" * 64))


def test_digits_keep_their_bytes_and_the_stored_shape_on_request():
    flat, stored = data.load("digits"), data.load("digits", shape="stored")
    assert flat.splits["train"].inputs.shape == (1797, 64)
    assert stored.splits["train"].inputs.shape == (1797, 8, 8)
    image = data.load("digits", shape=[8, 8, 1])
    assert image.preparation.shift.shape == (1, 1, 1)
    np.testing.assert_array_equal(image.preparation.shift.ravel(), flat.preparation.shift)
    with pytest.raises(ConfigError, match=r"data\.shape = \[7, 9\]: 63 values, but a row .* has 64"):
        data.load("digits", shape=[7, 9])


def test_standard_and_minmax_are_of_the_training_rows_alone():
    standard = data.load("wine", validation=0.3, normalize="standard")
    z = normalised(standard)
    np.testing.assert_allclose(z.mean(axis=0), 0, atol=1e-9)
    np.testing.assert_allclose(z.std(axis=0), 1, atol=1e-9)
    assert abs(normalised(standard, "validation").mean()) > 1e-6
    low = data.load("wine", validation=0.3, normalize="minmax")
    u = normalised(low)
    np.testing.assert_allclose(u.min(axis=0), 0)
    np.testing.assert_allclose(u.max(axis=0), 1)
    none = data.load("wine", normalize="none").preparation
    np.testing.assert_array_equal(none.shift, 0)
    np.testing.assert_array_equal(none.scale, 1)


@pytest.mark.parametrize("n", [5, BLOCK // 3 + 7])
def test_moments_in_blocks_are_those_of_the_whole(n):
    rng = np.random.default_rng(0)
    x = rng.normal(1e4, 1, (n, 3)).astype(np.float32)
    shift, scale = moments(x, np.arange(n), "standard")
    np.testing.assert_allclose(shift, x.mean(axis=0, dtype=np.float64), rtol=1e-12)
    np.testing.assert_allclose(1 / scale, x.astype(np.float64).std(axis=0), rtol=1e-9)
    pixels = rng.integers(0, 256, (n, 2, 2, 3)).astype(np.uint8)
    pixels[..., 1] = 7
    shift, scale = moments(pixels, np.arange(n), "standard")
    assert shift.shape == (1, 1, 3)
    np.testing.assert_allclose(shift.ravel(), pixels.mean(axis=(0, 1, 2)), rtol=1e-12)
    assert scale.ravel()[1] == 1
    np.testing.assert_allclose(1 / scale.ravel()[::2], pixels.std(axis=(0, 1, 2))[::2], rtol=1e-9)


def test_a_column_that_does_not_vary_has_the_scale_1():
    x = np.full((7, 2), 0.1, np.float32)
    x[:, 1] = np.arange(7)
    for normalize in ("standard", "minmax"):
        assert moments(x, np.arange(7), normalize)[1][0] == 1


def test_one_hot_columns_stay_0_and_1_and_categories_are_sorted():
    dataset = data.load("penguins", missing="drop")
    island = dataset.preparation.columns[0]
    assert island.categories == ("Biscoe", "Dream", "Torgersen")
    z = normalised(dataset)
    np.testing.assert_array_equal(z[:, :3].sum(axis=1), 1)
    assert set(np.unique(z[:, :3])) == {0, 1}


def test_missing_values_follow_the_policy():
    with pytest.raises(
        DataError, match=r"penguins\.csv, line 5, column 'bill_length_mm': the value is missing.*drop.*mean"
    ):
        data.load("penguins")
    assert len(data.load("penguins", missing="drop").splits["train"]) == 333
    filled = data.load("penguins", missing="mean", validation=0.25)
    assert len(filled.splits["train"]) + len(filled.splits["validation"]) == 344
    bill = filled.preparation.columns[1]
    values = filled.splits["train"].inputs[:, 3]
    known = np.delete(filled.splits["train"].index, np.isin(filled.splits["train"].index, [3, 271]))
    assert bill.fill == pytest.approx(values[known].mean(dtype=np.float64))
    assert values[3] == np.float32(bill.fill)


def test_normalised_targets_have_mean_0_and_deviation_1_over_the_training_rows():
    dataset = data.load(
        "penguins",
        target="body_mass_g",
        task="regression",
        missing="drop",
        normalize_targets="standard",
        validation=0.2,
    )
    p = dataset.preparation
    t = (rows(dataset.splits["train"], "targets") - p.target_shift) * p.target_scale
    assert t.shape == (266, 1)
    assert t.mean() == pytest.approx(0, abs=1e-5)
    assert t.std() == pytest.approx(1, abs=1e-5)
    with pytest.raises(ConfigError, match="normalize_targets"):
        data.load("iris", normalize_targets="standard")


@given(
    labels=st.lists(st.integers(0, 3), min_size=2, max_size=80),
    fractions=st.tuples(st.floats(0.01, 0.49), st.floats(0.01, 0.49)),
    seed=st.integers(0, 9),
)
def test_splits_partition_the_rows_and_share_out_the_classes(labels, fractions, seed):
    y, n = np.array(labels), len(labels)
    asked = dict(zip(("test", "validation"), fractions, strict=True))
    try:
        parts = splitting.partition(n, asked, y, seed, "rows")
    except DataError:
        assume(False)
    together = np.concatenate(list(parts.values()))
    np.testing.assert_array_equal(np.sort(together), np.arange(n))
    for name, fraction in asked.items():
        assert len(parts[name]) == int(fraction * n + 0.5)
        assert (np.diff(parts[name]) > 0).all()
    test = np.bincount(y[parts["test"]], minlength=4)
    share = np.bincount(y, minlength=4) * len(parts["test"]) / n
    assert (np.abs(test - share) < 1 + 1e-9).all()
    again = splitting.partition(n, asked, y, seed, "rows")
    assert all(np.array_equal(parts[k], again[k]) for k in parts)


def test_a_split_without_classes_is_the_head_of_the_permutation():
    parts = splitting.partition(100, {"test": 0.25}, None, 7, "rows")
    np.testing.assert_array_equal(parts["test"], np.sort(random.permutation(100, 7, 0)[:25]))


def test_the_test_rows_do_not_depend_on_the_validation_and_the_seed_moves_them():
    first = data.load("iris", test=0.2).splits["test"].index
    np.testing.assert_array_equal(first, data.load("iris", test=0.2, validation=0.3).splits["test"].index)
    assert not np.array_equal(first, data.load("iris", test=0.2, seed=1).splits["test"].index)


def test_splits_share_one_table():
    splits = data.load("iris", test=0.2, validation=0.2).splits
    assert splits["train"].inputs is splits["validation"].inputs is splits["test"].inputs
    np.testing.assert_array_equal(np.bincount(rows(splits["test"], "targets")), [10, 10, 10])


def test_a_split_of_no_row_is_an_error():
    with pytest.raises(DataError, match=r"validation = 0\.1 of 4 rows is 0 and leaves 4 to train on"):
        data.load("xor", validation=0.1)
    with pytest.raises(ConfigError, match="expected less than 1"):
        data.load("iris", validation=0.5, test=0.5)


def test_the_digest_names_the_content():
    first = data.load("iris", validation=0.2)
    assert first.digest == data.load("iris", validation=0.2).digest == data.digest(first.splits)
    assert len({first.digest, data.load("iris").digest, data.load("iris", validation=0.2, seed=1).digest}) == 3
    first.splits["train"].inputs[3, 2] += 1
    assert data.digest(first.splits) != first.digest


def test_generated_sets_are_functions_of_seed_rows_and_noise():
    assert data.load("moons").digest == data.load("moons").digest
    assert data.load("moons").digest != data.load("moons", seed=1).digest
    xor = data.load("xor", normalize="none").splits["train"]
    np.testing.assert_array_equal(xor.inputs, [[0, 0], [0, 1], [1, 0], [1, 1]])
    np.testing.assert_array_equal(xor.targets, [0, 1, 1, 0])
    sine = data.load("sine", rows=10, noise=0.0).splits["train"]
    np.testing.assert_allclose(sine.targets, np.sin(sine.inputs), atol=1e-6)
    with pytest.raises(ConfigError, match=r"data\.rows"):
        data.load("iris", rows=10)


def test_an_unknown_name_is_told_the_nearest():
    with pytest.raises(DataError, match=r"'irsi' \(did you mean 'iris'\?\); there are: iris, digits"):
        data.load("irsi")
    with pytest.raises(DataError, match="there is no such file"):
        data.load("nowhere/iris.csv")


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("penguins", {"missing": "mean"}),
        ("digits", {"shape": "stored"}),
        ("sine", {"normalize_targets": "standard"}),
    ],
)
def test_a_preparation_comes_back_from_its_arrays_exactly(name, fields):
    preparation = data.load(name, **fields).preparation
    arrays = preparation.arrays()
    assert all(isinstance(a, np.ndarray) and a.dtype.kind in "uf" for a in arrays.values())
    again = data.Preparation.from_arrays(arrays)
    assert repr(again) == repr(preparation)
    for key, value in preparation.arrays().items():
        np.testing.assert_array_equal(again.arrays()[key], value)


def text(replace, by):
    def change(arrays):
        changed = arrays["text"].tobytes().decode().replace(replace, by)
        assert changed != arrays["text"].tobytes().decode()
        return {**arrays, "text": np.frombuffer(changed.encode(), np.uint8)}

    return change


HOSTILE = {
    "a missing array": lambda a: {k: v for k, v in a.items() if k != "scale"},
    "an unknown array": lambda a: {**a, "code": a["text"]},
    "one of two target arrays": lambda a: {**a, "target_shift": np.zeros(1)},
    "text that is no bytes": lambda a: {**a, "text": a["text"].astype(np.float64)},
    "no UTF-8": lambda a: {**a, "text": np.full(9, 255, np.uint8)},
    "no JSON": lambda a: {**a, "text": a["text"][:-1]},
    "deep JSON": lambda a: {**a, "text": np.frombuffer(b"[" * 100_000, np.uint8)},
    "a list": lambda a: {**a, "text": np.frombuffer(b"[]", np.uint8)},
    "an unknown key": text('"header"', '"footer"'),
    "a column of another kind": text('"categories": []', '"categories": 5'),
    "a fill that is text": text('"fill": 4', '"fill": "4'),
    "a class that is no text": text('"Gentoo"', "3"),
    "a repeated class": text('"Gentoo"', '"Adelie"'),
    "a fill of no category": text('"fill": "Biscoe"', '"fill": "Mars"'),
    "a row of another shape": text('"row_shape": [10]', '"row_shape": [11]'),
    "a negative row": text('"row_shape": [10]', '"row_shape": [-10]'),
    "a huge row": text('"row_shape": [10]', '"row_shape": [4294967296, 4294967296]'),
    "a shift of another shape": lambda a: {**a, "shift": np.zeros(9)},
    "a shift that is not finite": lambda a: {**a, "shift": np.full(10, np.nan)},
    "a shift of another type": lambda a: {**a, "shift": np.zeros(10, np.complex128)},
    "targets beside classes": lambda a: {**a, "target_shift": np.zeros(1), "target_scale": np.ones(1)},
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_preparation_is_a_value_error(what):
    arrays = data.load("penguins", missing="mean").preparation.arrays()
    with pytest.raises(ValueError, match=r"preparation"):
        data.Preparation.from_arrays(HOSTILE[what](arrays))


def test_mnist_is_read_as_bytes_within_20_mb_beside_the_data(data_directory):
    tracemalloc.start()
    dataset = data.load("mnist", validation=0.1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    train, test = dataset.splits["train"], dataset.splits["test"]
    size = sum(a.nbytes for s in (train, test) for a in (s.inputs, s.targets))
    assert train.inputs.shape == (60000, 784)
    assert train.inputs.dtype == np.uint8
    assert [len(dataset.splits[k]) for k in ("train", "validation", "test")] == [54000, 6000, 10000]
    assert peak < size + 20e6
    assert dataset.preparation.classes == tuple("0123456789")
    whole = data.load("mnist").preparation
    assert whole.shift[0] / 255 == pytest.approx(0.1307, abs=1e-4)
    assert 1 / whole.scale[0] / 255 == pytest.approx(0.3081, abs=1e-4)


def test_seeds_come_from_the_data_directory(data_directory):
    dataset = data.load("seeds", test=0.2)
    assert dataset.preparation.classes == ("1", "2", "3")
    assert dataset.splits["train"].inputs.shape == (210, 7)
    values = data.catalog()[-1].remote[0].values_sha256
    from gpbackprop.data.catalog import values_digest

    assert values_digest((data_directory / "seeds.csv").read_bytes()) == values


def test_a_set_that_is_not_here_names_both_ways_to_it(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("GPBACKPROP_DATA", raising=False)
    with pytest.raises(DataError, match=r"gpbackprop data fetch mnist.*GPBACKPROP_DATA"):
        data.load("mnist")
    assert not next(e for e in data.catalog() if e.name == "mnist").available


def test_a_fetched_set_is_found_in_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("GPBACKPROP_DATA", raising=False)
    cache_directory().mkdir()
    (cache_directory() / "seeds.csv").write_text("1.5,2,1\n2.5,2,2\n1,3,1\n1,5,2\n")
    assert len(data.load("seeds").splits["train"]) == 4


def fake_pooch(monkeypatch, retrieve):
    import logging
    import sys
    import types

    fake = types.SimpleNamespace(retrieve=retrieve, get_logger=lambda: logging.getLogger("fake pooch"))
    monkeypatch.setitem(sys.modules, "pooch", fake)


def test_fetch_asks_for_the_digests_it_knows_and_refuses_other_numbers(monkeypatch, tmp_path):
    asked = {}

    def retrieve(url, known_hash, fname, path, progressbar):
        asked[fname] = known_hash
        path.mkdir(parents=True, exist_ok=True)
        (path / fname).write_text("1,2\n")

    fake_pooch(monkeypatch, retrieve)
    assert data.fetch("mnist", tmp_path) == tmp_path
    assert len(asked) == 4
    assert all(h.startswith("sha256:") and len(h) == 71 for h in asked.values())
    with pytest.raises(DataError, match="not the ones expected"):
        data.fetch("seeds", tmp_path)
    assert not (tmp_path / "seeds.csv").exists()


def test_fetch_without_network_or_pooch_says_what_to_do(monkeypatch, tmp_path):
    def retrieve(*args, **kwargs):
        raise ConnectionError("no route to host")

    fake_pooch(monkeypatch, retrieve)
    with pytest.raises(DataError, match=r"cannot be fetched \(no route to host\).*set GPBACKPROP_DATA"):
        data.fetch("mnist", tmp_path)
    import sys

    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(DataError, match=r"gpbackprop\[fetch\].*GPBACKPROP_DATA"):
        data.fetch("mnist", tmp_path)
    with pytest.raises(DataError, match="nothing to fetch"):
        data.fetch("iris")


def test_embedded_files_are_small_and_reproducible():
    for name in EMBEDDED:
        path = embedded(CATALOG[name])
        assert path.stat().st_size < 64_000
        assert hashlib.sha256(path.read_bytes()).hexdigest() == CATALOG[name].sha256
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rt") as file:
            assert sum(1 for _ in file) == CATALOG[name].rows + 1
