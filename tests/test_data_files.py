"""Data files: what is written comes back, and a wrong file is an error that names the place and what to do."""

import csv
import gzip
import struct
import tracemalloc
import zipfile
from contextlib import suppress

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gpbackprop import data
from gpbackprop.data import csv as csv_files
from gpbackprop.data import idx
from gpbackprop.errors import ConfigError, DataError

GOOD = "a,b,kind\n1,2,x\n3,4,y\n5,6,x\n7,8,y\n"


@pytest.fixture
def write(tmp_path):
    def write(content, name="rows.csv"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def load(path, **fields):
    return data.load(str(path), **fields)


def train(path, **fields):
    return load(path, **{"normalize": "none", **fields}).splits["train"]


def write_idx(path, x):
    kind = {np.dtype(t).newbyteorder("="): k for k, t in idx.TYPES.items()}[x.dtype]
    content = struct.pack(f">2xBB{x.ndim}I", kind, x.ndim, *x.shape) + x.astype(idx.TYPES[kind]).tobytes()
    path.write_bytes(gzip.compress(content, 1) if path.suffix == ".gz" else content)


# ---- CSV

LABELS = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=6).map(
    lambda s: f"w{s}"
)


@given(
    x=hnp.arrays(np.float32, st.tuples(st.integers(2, 12), st.integers(1, 4)), elements=st.floats(-1e6, 1e6, width=32)),
    words=st.lists(LABELS, min_size=2, max_size=3, unique=True),
    delimiter=st.sampled_from(",;\t"),
    end=st.sampled_from(["\n", "\r\n"]),
    bom=st.booleans(),
    packed=st.booleans(),
)
def test_a_csv_comes_back_as_it_was_written(tmp_path_factory, x, words, delimiter, end, bom, packed):
    path = tmp_path_factory.mktemp("csv") / ("rows.csv.gz" if packed else "rows.csv")
    labels = [words[i % len(words)] for i in range(len(x))]
    with (gzip.open if packed else open)(path, "wt", encoding="utf-8-sig" if bom else "utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter, lineterminator=end, quoting=csv.QUOTE_NONNUMERIC)
        writer.writerow([f"column {i}" for i in range(x.shape[1])] + ["a label"])
        writer.writerows([[float(v) for v in row] + [label] for row, label in zip(x, labels, strict=True)])
    dataset = load(path, normalize="none")
    split = dataset.splits["train"]
    np.testing.assert_array_equal(split.inputs, x)
    assert [dataset.preparation.classes[t] for t in split.targets] == labels
    assert dataset.preparation.columns[0].name == "column 0"
    np.testing.assert_array_equal(data.read_inputs(dataset.preparation, path), x)


@pytest.mark.parametrize("content", [GOOD, "\ufeff" + GOOD, GOOD.replace("\n", "\r\n"), GOOD.replace(",", ";"),
                                     GOOD.replace(",", "\t"), GOOD.replace("\n", "\n\n"), GOOD.strip()])  # fmt: skip
def test_bom_line_ends_delimiters_and_blank_lines_change_nothing(write, content):
    split = train(write(content))
    np.testing.assert_array_equal(split.inputs, [[1, 2], [3, 4], [5, 6], [7, 8]])
    np.testing.assert_array_equal(split.targets, [0, 1, 0, 1])


def test_a_file_without_a_header_has_columns_by_position(write):
    path = write("1,2,x\n3,4,y\n")
    dataset = load(path)
    assert [column.name for column in dataset.preparation.columns] == ["c0", "c1"]
    np.testing.assert_array_equal(data.read_inputs(dataset.preparation, write("9,8\n", "new.csv")), [[9, 8]])
    assert len(data.read_labelled(dataset.preparation, path)) == 2
    numbers = write("2019,2020,y\n1,2,0\n3,4,1\n5,6,0\n7,8,1\n")
    assert [c.name for c in load(numbers, header=True).preparation.columns] == ["2019", "2020"]


def test_target_inputs_and_weight_pick_columns_by_name_or_position(write):
    path = write("w,kind,a,b\n1,x,1,2\n2,y,3,4\n0.5,x,5,6\n")
    dataset = load(path, target="kind", inputs=["b"], weight="w", normalize="none")
    np.testing.assert_array_equal(dataset.splits["train"].inputs, [[2], [4], [6]])
    np.testing.assert_array_equal(dataset.splits["train"].weights, np.float32([1, 2, 0.5]))
    assert load(path, target=1).preparation.target == ("kind",)
    two = load(path, target=["a", -1], inputs=["w"])
    np.testing.assert_array_equal(two.splits["train"].targets, [[1, 2], [3, 4], [5, 6]])


def test_classes_are_told_from_numbers(write):
    assert load(write("a,y\n1,3\n2,1\n3,3\n4,1\n")).preparation.classes == ("1", "3")
    assert load(write("a,y\n1,10\n2,9.0\n3,10\n4,9\n")).preparation.classes == ("9.0", "10")
    assert load(write("a,y\n1,0.5\n2,1\n3,1\n4,1\n")).preparation.classes == ()
    assert load(write("a,y\n1,1\n2,2\n3,3\n")).preparation.classes == ()
    assert load(write("a,y\n1,3\n2,1\n3,3\n4,1\n"), task="regression").preparation.classes == ()


def test_predict_finds_columns_by_name_and_fills_what_is_missing(write):
    path = write("a,colour,y\n1,red,p\n3,,q\nNA,blue,p\n5,blue,q\n")
    preparation = load(path, missing="mean").preparation
    assert preparation.columns[0].fill == 3
    assert preparation.columns[1].fill == "blue"
    new = write("extra,colour,a\n0,red,7\n0,?,null\n", "new.csv")
    np.testing.assert_array_equal(data.read_inputs(preparation, new), [[7, 0, 1], [3, 1, 0]])
    with pytest.raises(
        DataError, match=r"line 2, column 'colour': 'rde' is none of the categories.*did you mean 'red'"
    ):
        data.read_inputs(preparation, write("a,colour\n1,rde\n", "new.csv"))
    with pytest.raises(DataError, match=r"the column 'colour' is missing; the file has: a, b"):
        data.read_inputs(preparation, write("a,b\n1,red\n", "new.csv"))
    strict = load(write(GOOD)).preparation
    with pytest.raises(DataError, match=r"line 3, column 'b': the value is missing"):
        data.read_inputs(strict, write("a,b\n1,2\n1,\n", "new.csv"))


def test_a_validation_file_uses_the_classes_and_the_drop_policy_of_the_training(write, tmp_path):
    path, other = write(GOOD.replace("3,4,y", "3,,y")), write("kind,b,a\ny,1,2\nx,1,\n", "other.csv")
    dataset = data.load("rows.csv", base=tmp_path, validation="other.csv", missing="drop")
    assert len(dataset.splits["train"]) == 3
    np.testing.assert_array_equal(dataset.splits["validation"].targets, [1])
    np.testing.assert_array_equal(dataset.splits["validation"].inputs, [[2, 1]])
    other.write_text("a,b,kind\n1,2,z\n")
    with pytest.raises(DataError, match=r"other\.csv, line 2: the label 'z' is none of the 2 classes.*x, y"):
        load(path, validation=str(other), missing="drop")


WRONG = {
    "empty": ("", r"rows\.csv: the file is empty"),
    "blank": ("\n\n", "the file is empty"),
    "header only": ("a,b,c\n", "has a header and no rows"),
    "ragged": ("a,b,c\n1,2,x\n3,y\n", r"rows\.csv, line 3: 2 values, but line 1 has 3"),
    "ragged after a blank line": ("a,b,c\n\n1,2,x\n1,2,3,4\n", r"rows\.csv, line 4: 4 values"),
    "missing": ("a,b,c\n1,2,x\n1,NA,y\n", r"line 3, column 'b': the value is missing"),
    "missing label": ("a,b,c\n1,2,x\n1,2,\n", r"line 3, column 'c': the value is missing"),
    "infinite": ("a,b,c\n1,-inf,x\n1,2,y\n", r"line 2, column 'b': '-inf' is infinite"),
    "overflow": ("a,b,c\n1,1e300,x\n1,2,y\n", r"line 2, column 'b': inf \(as float32\)"),
    "text among numbers": ("a,b,c\n1,2,x\n1,2,y\n1,two,x\n", r"line 4, column 'b': 'two' is not a number"),
    "one class": ("a,b,c\n1,2,x\n3,4,x\n", r"all rows have the class 'x'; expected at least two"),
    "text among number labels": ("a,y\n1,1.5\n2,2.5\n3,oops\n4,3.5\n", r"line 4, target 'y': 'oops' is not a number"),
    "a name twice": ("a,a,c\n1,2,x\n3,4,y\n", r"line 1: two columns are called 'a'"),
    "an open quote": ('a,b,c\n1,"2,x\n3,4,y\n', r"line 3: unexpected end of data; check the quotes"),
    "only a target": ("c\nx\ny\n", "no column is left for the inputs"),
    "not UTF-8": (b"a,c\n1,caf\xe9\n2,x\n", "not UTF-8 text"),
    "UTF-16": ("a,c\n1,x\n".encode("utf-16"), "not UTF-8 text"),
    "too many categories": (
        "name,y\n" + "".join(f"n{i},{'xy'[i % 2]}\n" for i in range(300)),
        "column 'name': 300 different texts",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_csv_names_the_place_and_what_is_wrong(write, what):
    content, message = WRONG[what]
    with pytest.raises(DataError, match=message):
        load(write(content))


def test_wrong_fields_name_the_key(write):
    path = write(GOOD, "good.csv")
    with pytest.raises(DataError, match=r"data\.target = 'kidn' is no column of the file \(did you mean 'kind'\?\)"):
        load(path, target="kidn")
    with pytest.raises(DataError, match=r"data\.target = 3 is no column"):
        load(path, target=3)
    with pytest.raises(DataError, match=r"column 'kind' cannot be an input"):
        load(path, inputs=["a", "kind"])
    with pytest.raises(DataError, match=r"line 3: the weight -1\.0; expected weights >= 0"):
        load(write("w,a,y\n1,1,x\n-1,2,y\n"), weight="w")
    with pytest.raises(DataError, match=r"line 2, target 'kind': 'x' is not a finite number"):
        load(path, task="regression")
    with pytest.raises(DataError, match="not a kind of file"):
        load(write("x", "rows.parquet"))
    with pytest.raises(DataError, match="it is a directory"):
        load(path.parent, missing="drop")


def test_a_damaged_gzip_is_a_data_error(write):
    whole = gzip.compress(GOOD.encode() * 100)
    for content in (whole[:-20], b"not gzip", whole[:30] + b"\xff\xff\xff" + whole[33:]):
        with pytest.raises(DataError, match="damaged"):
            load(write(content, "rows.csv.gz"))


def test_a_small_csv_with_an_endless_line_is_refused_before_memory_is_taken(write, monkeypatch):
    monkeypatch.setattr(csv_files, "LONGEST_LINE", 1 << 16)
    path = write(gzip.compress(b"0," * (8 << 20)), "rows.csv.gz")
    refused_cheaply(lambda: load(path), r"rows\.csv\.gz, line 1: has 65536 letters or more")


# ---- NPZ and HDF5


def save(path, **arrays):
    if path.suffix == ".npz":
        np.savez_compressed(path, **arrays)
        return path
    with h5py.File(path, "w") as file:
        for name, value in arrays.items():
            group, _, name = name.rpartition("/")
            (file.require_group(group) if group else file).create_dataset(name, data=value)
    return path


X = np.arange(12, dtype=np.float64).reshape(4, 3) / 7
Y = np.array([2, 5, 2, 5])


@pytest.mark.parametrize("name", ["rows.npz", "rows.h5"])
@pytest.mark.parametrize("names", [("x", "y"), ("inputs", "targets")])
def test_arrays_come_back_under_either_name(tmp_path, name, names):
    path = save(tmp_path / name, **dict(zip(names, (X, Y), strict=True)))
    dataset = load(path)
    np.testing.assert_array_equal(dataset.splits["train"].inputs, X.astype(np.float32))
    assert dataset.preparation.classes == ("2", "5")
    np.testing.assert_array_equal(dataset.splits["train"].targets, [0, 1, 0, 1])
    np.testing.assert_array_equal(data.read_inputs(dataset.preparation, path), X.astype(np.float32))
    np.testing.assert_array_equal(data.read_labelled(dataset.preparation, path).targets, [0, 1, 0, 1])


@pytest.mark.parametrize("name", ["rows.npz", "rows.h5"])
@pytest.mark.parametrize(
    ("given", "kept"), [(np.uint8, np.uint8), (bool, np.uint8), (np.int64, np.uint8), (np.float64, np.float32)]
)
def test_bytes_stay_bytes_and_other_numbers_become_float32(tmp_path, name, given, kept):
    path = save(tmp_path / name, x=np.arange(8).reshape(4, 2).astype(given), y=Y)
    assert train(path).inputs.dtype == kept
    for far in (-1, 249):
        path = save(tmp_path / name, x=np.arange(8).reshape(4, 2) + far, y=Y)
        assert train(path).inputs.dtype == np.float32


def test_float64_is_kept_to_the_digit_where_it_is_asked_for(tmp_path, write):
    table = "w,x,y\n0.1,0.05,0.01\n0.2,1e300,0.99\n"
    path = write(table)
    dataset = load(path, task="regression", weight="w", dtype="float64", normalize="none")
    split = dataset.splits["train"]
    for found, expected in (
        (split.inputs, [[0.05], [1e300]]),
        (split.targets, [[0.01], [0.99]]),
        (split.weights, [0.1, 0.2]),
    ):
        assert found.dtype == np.float64
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(data.read_inputs(dataset.preparation, path, "float64"), [[0.05], [1e300]])
    np.testing.assert_array_equal(data.read_labelled(dataset.preparation, path, dtype="float64").targets, split.targets)
    with pytest.raises(
        DataError, match=r"line 3, column 'x': inf \(as float32\); expected a finite number below 3\.4e\+38"
    ):
        data.read_inputs(dataset.preparation, path)
    with pytest.raises(DataError, match=r"column 'x': inf \(as float32\)"):
        load(path, task="regression", weight="w")
    small = load(write(table.replace("1e300", "0.1")), task="regression", weight="w").splits["train"]
    assert {a.dtype for a in (small.inputs, small.targets, small.weights)} == {np.dtype(np.float32)}


@pytest.mark.parametrize("name", ["rows.npz", "rows.h5"])
def test_arrays_keep_float64_and_bytes_where_float64_is_asked_for(tmp_path, name):
    far = np.array([[2**40 + 1], [-1], [0], [1]])
    for x, kept in (
        (X, np.float64),
        (far, np.float64),
        (X.astype(np.float32), np.float64),
        (Y.astype(np.uint8), np.uint8),
    ):
        path = save(tmp_path / name, x=x, y=X[:, 0])
        split = train(path, dtype="float64")
        assert split.inputs.dtype == kept
        np.testing.assert_array_equal(split.inputs.ravel(), x.ravel())
        np.testing.assert_array_equal(split.targets[:, 0], X[:, 0])


def test_test_rows_beside_the_training_rows_are_the_test_split(tmp_path):
    npz = save(tmp_path / "rows.npz", x=X, y=Y, x_test=X[:2] + 1, y_test=Y[:2])
    hdf5 = save(tmp_path / "rows.h5", **{"train/x": X, "train/y": Y, "test/x": X[:2] + 1, "test/y": Y[:2]})
    for path in (npz, hdf5):
        splits = load(path).splits
        np.testing.assert_array_equal(splits["test"].inputs, (X[:2] + 1).astype(np.float32))
        assert "test" not in load(path, test=0).splits
        with pytest.raises(ConfigError, match="comes with its own test rows"):
            load(path, test=0.25)


def test_arrays_with_text_labels_weights_rows_and_several_targets(tmp_path):
    text = save(tmp_path / "text.npz", x=X, y=np.array(["no", "yes", "no", "no"]), w=np.ones(4))
    dataset = load(text, weight="w")
    assert dataset.preparation.classes == ("no", "yes")
    np.testing.assert_array_equal(dataset.splits["train"].weights, np.ones(4, np.float32))
    fixed = save(tmp_path / "text.h5", x=X, y=np.array([b"no", b"yes", b"no", b"no"]))
    assert load(fixed).preparation.classes == ("no", "yes")
    two = save(tmp_path / "two.npz", x=X, y=X[:, :2])
    assert train(two).targets.shape == (4, 2)
    image = save(tmp_path / "image.npz", x=X.reshape(4, 1, 3, 1), y=Y)
    assert train(image, shape="stored").inputs.shape == (4, 1, 3, 1)
    line = save(tmp_path / "line.npz", x=X[:, 0], y=X[:, 0])
    assert train(line).inputs.shape == (4, 1)


@pytest.mark.parametrize("name", ["rows.npz", "rows.h5"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32, bool])
def test_one_hot_rows_are_classes_unless_a_regression_is_asked_for(tmp_path, name, dtype):
    labels = np.array([2, 0, 1, 2])
    path = save(tmp_path / name, x=X, y=np.eye(4)[labels].astype(dtype))
    for task in ("auto", "classification"):
        dataset = load(path, task=task)
        assert dataset.preparation.classes == ("0", "1", "2", "3")
        np.testing.assert_array_equal(dataset.splits["train"].targets, labels)
        np.testing.assert_array_equal(data.read_labelled(dataset.preparation, path).targets, labels)
    assert load(path, task="regression").splits["train"].targets.shape == (4, 4)
    numbers = save(tmp_path / "numbers.npz", x=X, y=np.array([0, 2, 3, 2]))
    np.testing.assert_array_equal(data.read_labelled(dataset.preparation, numbers).targets, [0, 2, 3, 2])


@pytest.mark.parametrize("row", [[0, 0], [1, 1], [0.5, 0.5], [2, -1]])
def test_rows_that_are_not_one_hot_stay_numbers_and_are_no_classes(tmp_path, row):
    path = save(tmp_path / "rows.npz", x=X, y=np.array([[1, 0], [0, 1], row, [1, 0]], float))
    assert load(path).preparation.classes == ()
    with pytest.raises(DataError, match="or one-hot rows"):
        load(path, task="classification")


def test_several_columns_of_a_csv_are_one_hot_classes_where_a_classification_is_asked_for(write):
    path = write("x,cat,dog\n1,1,0\n2,0,1\n3,0,1\n")
    assert load(path, target=("cat", "dog")).preparation.classes == ()
    dataset = load(path, target=("cat", "dog"), task="classification")
    assert dataset.preparation.classes == ("cat", "dog")
    np.testing.assert_array_equal(dataset.splits["train"].targets, [0, 1, 1])
    np.testing.assert_array_equal(data.read_labelled(dataset.preparation, path).targets, [0, 1, 1])


def test_what_was_loaded_names_its_files_from_everywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.npz", "b.npz"):
        save(tmp_path / name, x=X, y=Y)
    source = load("a.npz", validation="b.npz").source
    assert (source.source, source.validation) == (str(tmp_path / "a.npz"), str(tmp_path / "b.npz"))
    assert load("iris").source.source == "iris"


def test_a_csv_of_numbers_serves_a_model_that_was_trained_on_arrays(tmp_path, write):
    preparation = load(save(tmp_path / "rows.npz", x=X, y=Y)).preparation
    np.testing.assert_array_equal(data.read_inputs(preparation, write("1,2,3\n4,5,6\n")), [[1, 2, 3], [4, 5, 6]])
    np.testing.assert_array_equal(data.read_labelled(preparation, write("1,2,3,5\n4,5,6,2\n")).targets, [1, 0])
    with pytest.raises(DataError, match="a row has 2 values; expected 3 inputs"):
        data.read_inputs(preparation, write("1,2\n"))


def test_wrong_arrays_name_the_place(tmp_path):
    nan = X.copy()
    nan[2, 1] = np.nan
    for name in ("rows.npz", "rows.h5"):
        path = tmp_path / name
        with pytest.raises(DataError, match=r"row 2, column 1: nan \(as float32\)"):
            load(save(path, x=nan, y=Y))
        assert len(load(path, missing="drop").splits["train"]) == 3
        with pytest.raises(ConfigError, match=r"data\.missing = 'mean'"):
            load(path, missing="mean")
        with pytest.raises(DataError, match="no inputs in"):
            load(save(path, a=X, y=Y))
        with pytest.raises(DataError, match="no targets"):
            load(save(path, x=X))
        with pytest.raises(DataError, match="no array 'label' with the targets"):
            load(save(path, x=X, y=Y), target="label")
        with pytest.raises(DataError, match=r"y has the shape \(3,\); expected \(4,\)"):
            load(save(path, x=X, y=Y[:3]))
        with pytest.raises(DataError, match=r"the shape \(0, 3\)"):
            load(save(path, x=X[:0], y=Y[:0]))
        with pytest.raises(DataError, match="complex128"):
            load(save(path, x=X.astype(complex), y=Y))
        path.write_bytes(b"junk")
        with pytest.raises(DataError, match=r"not an (NPZ|HDF5) file"):
            load(path)


def npz_with_header(path, shape, dtype="<f8", content=b"\0" * 64):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        header = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + content)
    return path


def refused_cheaply(load_it, message):
    tracemalloc.start()
    with pytest.raises(DataError, match=message):
        load_it()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16e6


def test_a_hostile_npz_is_refused_before_memory_is_taken(tmp_path):
    path = npz_with_header(tmp_path / "rows.npz", (10**9, 3))
    refused_cheaply(lambda: load(path), "no room for; it is damaged")
    np.savez(path, x=np.array([{}], dtype=object), y=Y)
    refused_cheaply(lambda: load(path), "Python objects")
    npz_with_header(path, (-1, 3))
    refused_cheaply(lambda: load(path), "damaged")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", b"not an array")
    refused_cheaply(lambda: load(path), "damaged")


@pytest.mark.parametrize(
    "header", ["{", "(" * 5000, "-" * 9000, "'''", "  1\n 2", "{'descr': '<f8', 'shape': (True, 3)}"]
)
def test_a_header_of_npz_that_is_none_is_refused(tmp_path, header):
    with zipfile.ZipFile(tmp_path / "rows.npz", "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode())
    with pytest.raises(DataError, match=r"rows\.npz: 'x' is .*damaged"):
        load(tmp_path / "rows.npz")


def test_an_array_whose_name_is_damaged_is_not_taken_for_one_that_is_absent(tmp_path):
    path = save(tmp_path / "rows.npz", x=X, y=Y, lengths=np.ones(4, int))
    before, _, after = path.read_bytes().rpartition(b"lengths")
    path.write_bytes(before + b"length5" + after)
    with pytest.raises(DataError, match="damaged"):
        load(path)


def test_an_array_that_a_damaged_directory_passes_over_is_not_taken_for_one_that_is_absent(tmp_path):
    path = save(tmp_path / "rows.npz", x=X, y=Y, lengths=np.ones(4, int))
    content = bytearray(path.read_bytes())
    at = content.rfind(b"y.npy") - 14  # the length of the comment after this name: all of the next entry
    content[at : at + 2] = struct.pack("<H", 46 + len("lengths.npy"))
    path.write_bytes(content)
    with pytest.raises(DataError, match="says 3 arrays and names 2"):
        load(path)


@pytest.mark.parametrize("letter", [0x80000041, 0xD800])
def test_labels_of_letters_that_are_none_are_refused(tmp_path, letter):
    labels = np.array([letter, 65, 65, 65], np.uint32).view("U1")
    with pytest.raises(DataError, match="y holds text that is not UTF-8"):
        load(save(tmp_path / "rows.npz", x=X, y=labels))


@pytest.mark.parametrize("stream", [False, True])
def test_a_hostile_hdf5_is_refused_before_memory_is_taken(stream, tmp_path):
    path, other = tmp_path / "rows.h5", save(tmp_path / "other.h5", x=X, y=Y)
    (tmp_path / "secret").write_bytes(X.tobytes())

    def external(file):
        file.create_dataset("x", (4, 3), "f8", external=[(str(tmp_path / "secret"), 0, 96)])

    def external_link(file):
        file["x"] = h5py.ExternalLink(str(other), "/x")

    def soft_link(file):
        file["hidden"] = X
        file["x"] = h5py.SoftLink("/hidden")

    def virtual(file):
        layout = h5py.VirtualLayout((4, 3), "f8")
        layout[:] = h5py.VirtualSource(str(other), "x", (4, 3))
        file.create_virtual_dataset("x", layout)

    def huge(file):
        file.create_dataset("x", (10**9, 550), "f8", chunks=(1, 550))

    def strings(file):
        file.create_dataset("x", data=["a", "b"], dtype=h5py.string_dtype())

    for make in (external, external_link, soft_link, virtual, huge, strings):
        with h5py.File(path, "w") as file:
            make(file)
            file["y"] = Y
        refused_cheaply(
            lambda: load(path, stream=stream), "external, virtual|link to another place|damaged|has the type"
        )


def test_an_array_file_with_columns_of_text_is_sent_to_csv(tmp_path, write):
    preparation = load(write("a,colour,y\n1,red,p\n3,blue,q\n")).preparation
    with pytest.raises(DataError, match="give a CSV file"):
        data.read_inputs(preparation, save(tmp_path / "rows.npz", x=X))


def test_a_test_file_with_another_number_of_targets_is_refused(tmp_path):
    other = save(tmp_path / "other.npz", x=X, y=X[:, :2])
    with pytest.raises(DataError, match="test: 2 targets a row, but the training rows have 3"):
        load(save(tmp_path / "rows.npz", x=X, y=X), test=str(other))


def test_an_array_of_targets_with_its_own_name_is_found_again(tmp_path):
    path = save(tmp_path / "rows.h5", x=X, label=Y)
    preparation = load(path, target="label").preparation
    np.testing.assert_array_equal(data.read_labelled(preparation, path).targets, [0, 1, 0, 1])


# ---- IDX


@given(
    x=hnp.arrays(
        st.sampled_from([np.uint8, np.int8, np.int16, np.int32, np.float32, np.float64]),
        hnp.array_shapes(min_dims=1, max_dims=4, max_side=5),
    ),
    packed=st.booleans(),
)
def test_an_idx_file_comes_back_as_it_was_written(tmp_path_factory, x, packed):
    path = tmp_path_factory.mktemp("idx") / ("x.idx.gz" if packed else "x.idx")
    write_idx(path, x)
    again = idx.read(path)
    assert again.dtype == x.dtype
    np.testing.assert_array_equal(again, x)


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_labels_are_found_beside_the_images(tmp_path, ending):
    images, labels = np.arange(24, dtype=np.uint8).reshape(4, 2, 3), np.uint8([7, 1, 7, 1])
    write_idx(tmp_path / f"t-images-idx3-ubyte{ending}", images)
    path = tmp_path / f"t-images-idx3-ubyte{ending}"
    with pytest.raises(DataError, match="no file of labels beside it"):
        load(path)
    write_idx(tmp_path / "t-labels-idx1-ubyte", labels)
    dataset = load(path, shape="stored")
    np.testing.assert_array_equal(dataset.splits["train"].inputs, images)
    assert dataset.preparation.classes == ("1", "7")
    np.testing.assert_array_equal(data.read_inputs(dataset.preparation, path), images)
    np.testing.assert_array_equal(data.read_labelled(dataset.preparation, path).targets, [1, 0, 1, 0])
    np.testing.assert_array_equal(load(path, target="t-labels-idx1-ubyte").splits["train"].targets, [1, 0, 1, 0])


HEADERS = {
    "10^9 rows": (struct.pack(">2xBB3I", 8, 3, 10**9, 28, 28) + b"\0" * 99, "header says 1000000000 x 28 x 28 values"),
    "2^128 values": (struct.pack(">2xBB4I", 8, 4, *[2**32 - 1] * 4) + b"\0", "it is damaged"),
    "too short": (struct.pack(">2xBB1I", 8, 1, 9) + b"\0" * 8, "damaged"),
    "too long": (struct.pack(">2xBB1I", 8, 1, 9) + b"\0" * 10, "the file holds more"),
    "another format": (b"\x89PNG\r\n\x1a\n", "not an IDX file"),
    "unknown type": (struct.pack(">2xBB1I", 7, 1, 1) + b"\0", "not an IDX file"),
    "no values": (struct.pack(">2xBB4I", 8, 4, 0, *[2**32 - 1] * 3), "which are none"),
    "a cut header": (struct.pack(">2xBB1I", 8, 3, 1), "ends inside its header"),
    "nothing": (b"", "not an IDX file"),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("what", HEADERS)
def test_a_hostile_idx_header_is_refused_before_memory_is_taken(tmp_path, what, packed):
    content, message = HEADERS[what]
    path = tmp_path / ("x.idx.gz" if packed else "x.idx")
    path.write_bytes(gzip.compress(content) if packed else content)
    refused_cheaply(lambda: idx.read(path), message)


@given(content=st.binary(max_size=60))
def test_any_bytes_are_an_array_or_a_data_error(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("any")
    for name in ("a.idx", "a.idx.gz", "a.csv", "a.csv.gz", "a.npz"):
        (folder / name).write_bytes(content)
        with suppress(DataError):
            load(folder / name, target="a.idx" if "idx" in name else None)
