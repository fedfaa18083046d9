"""A file that somebody made to harm is refused at once, by name, and nothing in it is run, fetched or believed."""

import io
import os
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import h5py
import numpy as np
import pytest

import gpbackprop as gp
from gpbackprop import checkpoint
from gpbackprop.checkpoint import format, reader, structure
from gpbackprop.data import csv
from gpbackprop.errors import CheckpointError, DataError

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))

import fuzz
import hostile
import torture_bits
import torture_hostile
from hostile import content, sealed

pytestmark = [
    pytest.mark.skipif(os.name == "nt", reason="pipes, devices and links of a POSIX system"),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),  # the children only read, and end
]


@pytest.mark.parametrize("kind", hostile.KINDS)
def test_a_hostile_file_is_refused_at_once_by_name(tmp_path, kind):
    build, why = hostile.KINDS[kind]
    path = hostile.make(tmp_path, build)
    start, worked = time.perf_counter(), time.process_time()
    with pytest.raises(CheckpointError, match=why) as error:
        checkpoint.read(path).arrays()
    assert time.process_time() - worked < 1
    assert time.perf_counter() - start < 10  # on a machine that does other work too
    assert str(path) in str(error.value)
    assert str(error.value).isascii()
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize("kind", ["giant attribute", "gzip bomb", "sparse, of 15 GiB", "terabytes"])
def test_refusing_takes_little_memory(tmp_path, kind):
    path = hostile.make(tmp_path, hostile.KINDS[kind][0])
    tracemalloc.start()
    try:
        assert torture_hostile.refusal(path)
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


def test_files_changed_at_random_with_the_right_digest_are_read_or_refused(tmp_path):
    row = torture_hostile.at_random(tmp_path, 500, seed=1)
    assert (row.injected, row.survived) == (500, 500), row.notes


@pytest.mark.parametrize("kind", torture_bits.KINDS)
def test_a_damaged_file_is_never_read_as_something_else(tmp_path, kind):
    row = torture_bits.damaged(tmp_path, kind, torture_bits.KINDS[kind], 100, seed=2)
    assert (row.injected, row.survived) == (100, 100), row.notes


def test_other_bits_and_a_reader_that_dies_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(reader, "_verified", lambda path, *_: memoryview(path.read_bytes())[:-48])
    row = torture_bits.damaged(tmp_path, "bits", torture_bits.bits, 100, seed=2)
    assert row.silent
    monkeypatch.setattr(checkpoint, "read", lambda path: os.kill(os.getpid(), 9))
    monkeypatch.setattr(torture_bits, "written", lambda *args, **kwargs: (b"x" * 100, {}))
    row = torture_bits.damaged(tmp_path, "bits", torture_bits.bits, 2, seed=2)
    assert row.lost == 2
    path = tmp_path / "a.h5"
    assert "died" in torture_hostile.judged(path, "")[0]
    monkeypatch.undo()
    checkpoint.write(path, content())
    assert torture_hostile.judged(path, "")[0] == "accepted"


@pytest.mark.parametrize("name", fuzz.TARGETS)
def test_what_the_fuzzer_asks_holds_for_its_seeds_and_for_parts_of_them(name):
    target, seeds = fuzz.TARGETS[name]()
    for seed in seeds:
        target(seed)
        target(seed[: len(seed) // 2])


def test_libhdf5_is_given_nothing_to_read(tmp_path, monkeypatch):
    checkpoint.write(tmp_path / "a.h5", content())
    for name in "open", "open_file_image":
        monkeypatch.setattr(h5py.h5f, name, None, raising=False)
    monkeypatch.setattr(h5py, "File", None)
    found = checkpoint.read(tmp_path / "a.h5").arrays()
    np.testing.assert_array_equal(found["params/0-dense/W"], content()["params/0-dense/W"])
    code = "import sys; sys.modules['h5py'] = None; import gpbackprop.checkpoint.reader"
    assert "writer" in subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr


AUDITED = """
import sys
from pathlib import Path
import gpbackprop as gp
from gpbackprop import checkpoint
from gpbackprop.errors import CheckpointError

def load(path):
    try:
        checkpoint.read(path).arrays()
        return gp.load(path).network.w.sum()
    except CheckpointError as error:
        return str(error)

paths = [Path(path) for path in sys.argv[1:]]
before = list(map(load, paths))  # what Python and its packages import at their first use is their own
seen = []
sys.addaudithook(lambda event, args: seen.append((event, *args)))
assert list(map(load, paths)) == before
events = {event.partition(".")[0] for event, *_ in seen} - {"object", "code", "builtins", "sys"}
print(sorted(events))
print(sorted({args[0] for event, *args in seen if event == "open"}) == sorted(map(str, paths)))
"""


def test_loading_runs_nothing_imports_nothing_and_opens_nothing_else(tmp_path):
    """Python tells of each `exec`, `compile`, `import`, unpickled class, process and connection."""
    model = gp.Chain(gp.Dense(3, activation="tanh"), gp.Dense(3))
    gp.Trainer(model, gp.SoftmaxCrossEntropy(), gp.Adam(), gp.data.load("iris", test=0.2)).save(tmp_path / "good.h5")
    sealed(tmp_path / "pickle.h5", hostile.pickled(bytearray()))
    sealed(tmp_path / "objects.h5", hostile.objects(bytearray()))
    (tmp_path / "bare.h5").write_bytes(hostile.pickled(bytearray()))
    paths = map(str, sorted(tmp_path.glob("*.h5")))
    run = subprocess.run([sys.executable, "-c", AUDITED, *paths], capture_output=True, text=True)
    assert run.stdout.splitlines() == ["['open']", "True"], run.stdout + run.stderr
    assert not Path("/tmp/gpbackprop-was-fooled").exists()


def test_python_reads_what_libhdf5_reads(tmp_path, monkeypatch):
    monkeypatch.setattr(format, "CHUNK", 64)
    monkeypatch.setattr(format, "SMALL", 1)
    rng = np.random.default_rng(0)
    many = {
        f"state/{'long-' * (n % 9)}{n}/{n}": np.full(2, n, "i4") for n in range(1200)
    }  # a heap, a tree of two levels
    chunks = {
        f"params/{n}": rng.standard_normal((n, 7)).astype("f4") for n in (1, 2, 63, 1300, 3000)
    }  # more than a page
    checkpoint.write(tmp_path / "a.h5", {**content(), **many, **chunks})
    found = checkpoint.read(tmp_path / "a.h5").arrays()
    with h5py.File(tmp_path / "a.h5") as file:
        assert sorted(found) == sorted(name for name in names(file) if name != "format")
        for name, array in found.items():
            np.testing.assert_array_equal(array, file[name][()], strict=True)


def names(file):
    found = []
    file.visititems(lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) else None)
    return found


def test_the_types_are_those_that_libhdf5_writes():
    written = {h5py.h5t.py_create(dtype).encode()[2:]: dtype for dtype in format.DTYPES}
    assert written == structure.TYPES


def test_a_newer_version_is_named_before_anything_else_about_it(tmp_path):
    buffer = io.BytesIO(bytes(checkpoint.image(content())))
    with h5py.File(buffer, "r+", libver=("v110", "v110")) as file:
        hostile.head(version=7)(file, tmp_path)
        file["new"] = "what version 7 brings"
    sealed(tmp_path / "a.h5", buffer.getvalue())
    with pytest.raises(CheckpointError, match=r"version 7, and this .* up to 1.*upgrade") as error:
        checkpoint.read(tmp_path / "a.h5")
    assert not isinstance(error.value, checkpoint.DamagedError)


def test_a_parameter_that_is_not_finite_is_not_handed_out(tmp_path):
    buffer = io.BytesIO(bytes(checkpoint.image(content())))
    with h5py.File(buffer, "r+", libver=("v110", "v110")) as file:
        file["params/0-dense/W"][0, 0, 0] = np.nan
    sealed(tmp_path / "a.h5", buffer.getvalue())
    with pytest.raises(checkpoint.DamagedError, match="params/0-dense/W holds NaN"):
        checkpoint.read(tmp_path / "a.h5").arrays("params")


def test_text_that_is_not_utf8_is_damage(tmp_path):
    checkpoint.write(tmp_path / "a.h5", {"config": b"\xff"})
    with pytest.raises(checkpoint.DamagedError, match="config is not UTF-8"):
        _ = checkpoint.read(tmp_path / "a.h5").config


def test_no_hdf5_plugin_is_ever_loaded():
    code = "import os, gpbackprop.checkpoint; print(os.environ['HDF5_PLUGIN_PRELOAD'])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "::\n"


def test_a_csv_of_very_many_columns_takes_no_longer_for_each(tmp_path):
    path = tmp_path / "wide.csv"
    path.write_text(",".join(map(str, range(100_000))) + "\n")
    start = time.process_time()
    layout = csv.scan(path)
    columns, _ = csv.read(layout, dict(zip(layout.names, layout.numeric, strict=True)))
    assert len(columns) == 100_000
    assert time.process_time() - start < 5


def test_a_cell_of_very_many_letters_is_not_all_shown(tmp_path):
    path = tmp_path / "long.csv"
    path.write_text("a\n" + "9" * 100_000 + "\n")
    with pytest.raises(DataError, match=r"line 2, column 'a': '9+\.\.\. \(100000 letters\)' is infinite") as error:
        csv.read(csv.scan(path), {"a": True})
    assert len(str(error.value)) < 500
