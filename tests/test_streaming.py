"""Data that come in portions: the same rows, moments and bits as from memory, and no more memory than was said."""

import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import fake_cupy
import h5py
import numpy as np
import pytest
from commands import call
from hypothesis import assume, given
from hypothesis import strategies as st

import gpbackprop as gp
from gpbackprop import passes, sizes
from gpbackprop.backend import select
from gpbackprop.config import differences, parse
from gpbackprop.data import stored, streaming
from gpbackprop.data.arrays import read_hdf5
from gpbackprop.data.batches import order
from gpbackprop.data.portions import Portions, Stream, block_rows, order_within
from gpbackprop.errors import ConfigError, DataError, OutOfMemoryError
from gpbackprop.run import Run

RNG = np.random.default_rng(3)
X = RNG.normal(5, 3, (501, 6)).astype(np.float32)
Y = (X[:, :3].argmax(axis=1) + 1).astype(np.int64)
SMALL = "4 kB"  # 100 rows of X


def save(path: Path, x=X, y=Y, **options) -> str:
    """The rows in an HDF5 file, and in an NPZ file beside it."""
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=x, **options)
        file["y"] = y
    np.savez(path.with_suffix(".npz"), x=x, y=y)
    return str(path)


@pytest.fixture
def rows(tmp_path):
    return save(tmp_path / "rows.h5")


def npz(path: str) -> str:
    return path.replace(".h5", ".npz")


def load(path: str, stream=SMALL, **fields):
    return gp.data.load(path, **{"stream": stream, "validation": 0.1, "test": 0.1} | fields)


def trainer(data, model=None, optimizer=None, **settings):
    model = model or gp.Chain(gp.Dense(5, activation="tanh"), gp.Dropout(0.2), gp.Dense(3))
    settings = {"batch_size": 16, "epochs": 2, "device": "cpu"} | settings
    return gp.Trainer(model, gp.SoftmaxCrossEntropy(), optimizer or gp.Adam(0.01), data, **settings)


def bits(run) -> dict[str, bytes]:
    """All that a trainer has come to, but for its config."""
    return {path: np.asarray(value).tobytes() for path, value in run.content().items() if path != "config"}


def frozen(run) -> dict[str, np.ndarray]:
    """What a checkpoint would hold."""
    return {
        path: np.frombuffer(value, np.uint8) if isinstance(value, bytes) else np.array(value)
        for path, value in run.content().items()
    }


def trained(*arguments, **settings):
    run = trainer(*arguments, **settings)
    run.fit()
    return run


# The order.


@given(
    n=st.integers(1, 400),
    batch=st.integers(1, 50),
    size=st.integers(1, 20_000),
    kept=st.floats(0.05, 1),
    seed=st.integers(0, 9),
)
def test_the_portions_of_an_epoch_hold_each_row_once_in_whole_batches(n, batch, size, kept, seed):
    index = np.flatnonzero(np.random.default_rng(seed).random(n) <= kept)
    assume(len(index))
    portions = Portions(X[:n], index, batch, Stream(size, seed))
    for shuffle in (True, False):
        parts = [portions.of(3, number, shuffle) for number in range(portions.count)]
        assert all(len(part) == portions.rows and len(part) % batch == 0 for part in parts[:-1])
        assert 0 < len(parts[-1]) <= portions.rows
        assert all((np.diff(part) > 0).all() for part in parts)
        np.testing.assert_array_equal(np.sort(np.concatenate(parts)), index)
    np.testing.assert_array_equal(np.concatenate(parts), index)
    assert portions.rows <= max(batch, size // (X[0].nbytes + 16))


def test_epochs_differ_in_their_portions_and_portions_in_the_order_within():
    portions = Portions(X, np.arange(500), 20, Stream(4000, 1))
    assert (portions.rows, portions.count, portions.block) == (100, 5, 6)
    first, again, second = (portions.of(epoch, 0, True) for epoch in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert len(np.intersect1d(first, second)) < 60
    assert not np.array_equal(first, Portions(X, np.arange(500), 20, Stream(4000, 2)).of(0, 0, True))
    within = [order_within(100, (7, 8), epoch, number, True) for epoch, number in ((0, 0), (0, 1), (1, 0))]
    drawn = np.concatenate(within)
    np.testing.assert_array_equal(np.sort(drawn), np.broadcast_to(np.arange(100), drawn.shape))
    assert len(np.unique(drawn, axis=0)) == 6


def test_rows_that_lie_together_in_a_block_come_together_but_at_the_ends_of_portions(tmp_path):
    table = read_hdf5(Path(save(tmp_path / "rows.h5", chunks=(7, 6))), most=0)["train"].inputs
    portions = Portions(table, np.arange(len(X)), 10, Stream(8000))
    assert portions.block == 7 == block_rows(table, Stream(100))
    assert block_rows(table, Stream(40 * 16 * 15)) == 14
    places = [np.unique(portions.of(0, number, True) // 7) for number in range(portions.count)]
    seen = np.bincount(np.concatenate(places))
    assert (seen >= 1).all()
    assert (seen > 1).sum() < portions.count


def the_order_of(run):
    """What stands in the place of `passes.order`: the rows of all portions of the trainer `run`, as it visits them."""
    portions = run.training.portions

    def found(split, batch, seeds, epoch, shuffle):
        if len(split) != len(portions.index):
            return order(split, batch, seeds, epoch, shuffle)
        parts = []
        for number in range(portions.count):
            here = portions.of(epoch, number, shuffle)
            parts.append(here[order_within(len(here), seeds, epoch, number, shuffle)])
        return np.concatenate(parts, axis=1)

    return found


@pytest.mark.parametrize("settings", [{}, {"population": 3}, {"shuffle": False}, {"batch_size": 7}])
@pytest.mark.parametrize("options", [{}, {"chunks": (10, 4), "compression": "gzip", "shuffle": True}])
def test_a_run_in_portions_has_the_bits_of_one_in_memory_that_takes_the_same_order(
    settings, options, tmp_path, monkeypatch
):
    path = save(tmp_path / "rows.h5", **options)
    streamed = trained(load(path), **settings)
    monkeypatch.setattr(passes, "order", the_order_of(streamed))
    held = trained(load(npz(path), stream=False), **settings)
    assert held.training.portions is None
    assert streamed.training.portions.count > 3
    assert bits(streamed) == bits(held)


def test_rows_of_a_file_and_rows_in_memory_come_in_the_same_portions(rows):
    one, other = load(rows), load(npz(rows))
    assert one.digest == other.digest
    assert isinstance(one.splits["train"].inputs, stored.Stored)
    assert isinstance(other.splits["train"].inputs, np.ndarray)
    assert bits(trained(one)) == bits(trained(other))


def test_a_member_of_a_population_has_the_bits_of_the_network_alone(rows):
    together = trained(load(rows), population=3, seed=4)
    alone = trained(load(rows), seed=6)
    assert together.network.w[2].tobytes() == alone.network.w[0].tobytes()
    assert alone.network.w.tobytes() != trained(load(rows), seed=5).network.w.tobytes()
    assert alone.network.w.tobytes() != trained(load(rows, seed=1, validation=0.0, test=0.0)).network.w.tobytes()


def test_compiled_steps_see_each_portion(rows, monkeypatch):
    pytest.importorskip("llvmlite", reason="steps are compiled by the package llvmlite (extra: compile)")
    streamed = trained(load(rows), compile=True, batch_size=4)
    monkeypatch.setattr(passes, "order", the_order_of(streamed))
    assert bits(streamed) == bits(trained(load(npz(rows), stream=False), compile=True, batch_size=4))


def test_every_step_is_one_to_go_on_from(rows):
    class Keep(gp.Hook):
        def on_step(self, run):
            contents.append(frozen(run))

    contents: list = []
    run = trainer(load(rows))
    run.fit(hooks=[Keep()])
    wanted = bits(run)
    assert len(contents) == 2 * run.steps_per_epoch == 52
    for number, content in enumerate(contents):
        run = trainer(load(rows)) if number % 9 == 0 else run  # one that has trained to the end: nothing may be left
        run.restore(content)
        run.fit()
        assert bits(run) == wanted, number


def test_the_rows_of_a_step_are_named_by_their_numbers_in_the_data():
    table = np.ones((300, 2), np.float32)
    table[250] = 1e38
    prepared = gp.data.Preparation((), ("t",), None, False, (), (2,), np.zeros(1), np.ones(1))
    split = gp.data.Split(table, np.zeros((300, 1), np.float32), None, np.arange(300), stream=Stream(1000))
    data = gp.data.Dataset("p", {"train": split}, prepared, "")
    model = gp.Chain(gp.Dense(1, init={"W": [[1e4], [1e4]]}))
    run = gp.Trainer(model, gp.MeanSquaredError(), gp.SGD(0.0), data, batch_size=4, device="cpu")
    with pytest.raises(gp.errors.NumericalError, match=r"for row 250 of the data"):
        run.fit()


# What the data are.


@pytest.mark.parametrize(
    "x",
    [
        X,
        X.astype(np.float64),
        X.astype(">f4"),
        (X * 10).astype(np.int16),
        RNG.integers(0, 256, (501, 5, 4, 3)),
        RNG.integers(0, 256, (501, 6)).astype(np.uint8),
        X > 5,
        X[:, 0],
    ],
    ids=["float32", "float64", "big-endian", "int16", "images", "uint8", "bool", "one column"],
)
@pytest.mark.parametrize("normalize", ["standard", "minmax", "none"])
def test_moments_and_rows_are_those_of_the_table_in_memory_to_the_bit(x, normalize, tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "READ", 2000)  # many reads
    shape = "stored" if x.ndim > 2 else "flat"
    path = save(tmp_path / "rows.h5", x, chunks=(9, *x.shape[1:]))
    one, other = (load(p, normalize=normalize, shape=shape) for p in (path, npz(path)))
    table, whole = one.splits["train"].inputs, other.splits["train"].inputs
    assert (table.shape, table.dtype, table.nbytes) == (whole.shape, whole.dtype, whole.nbytes)
    for index in (one.splits["validation"].index, np.arange(501), np.array([0, 500])):
        np.testing.assert_array_equal(table[index], whole[index])
    for name, array in one.preparation.arrays().items():
        assert array.tobytes() == other.preparation.arrays()[name].tobytes(), name


def test_the_digest_names_the_content_and_the_blocks(tmp_path):
    found = {load(save(tmp_path / f"{n}.h5", x, **options), stream).digest for n, (x, stream, options) in enumerate([
        (X, SMALL, {}), (X + 1, SMALL, {}), (X, "8 kB", {}), (X, SMALL, {"chunks": (9, 6)}), (X, False, {}),
    ])}  # fmt: skip
    assert len(found) == 5


def test_a_number_that_is_not_finite_is_named_by_its_row(tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "READ", 2000)
    x = X.copy()
    x[444, 2] = np.nan
    with pytest.raises(DataError, match=r"rows\.h5, row 444, column 2: nan"):
        load(save(tmp_path / "rows.h5", x))


def test_a_symbol_that_an_embedding_lacks_is_named_by_its_row(tmp_path):
    x = RNG.integers(0, 10, (501, 6))
    x[444, 2] = 11
    data = load(save(tmp_path / "rows.h5", x), normalize="none", validation=0.0, test=0.0)
    model = gp.Chain(gp.Embedding(10, 4), gp.Flatten(), gp.Dense(3))
    with pytest.raises(DataError, match=r"row 444, input 2 .* found 11"):
        trainer(data, model)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_images_are_augmented_and_rows_reconstructed(dtype, tmp_path, monkeypatch):
    path = save(tmp_path / "rows.h5", RNG.integers(0, 256, (200, 6, 6)), Y[:200])
    fields = {"shape": [6, 6, 1], "augment": gp.data.source.Augment(shift=1, flip=True), "dtype": dtype}
    model = gp.Chain(gp.Flatten(), gp.Dense(3))
    assert bits(trained(load(path, **fields), model, dtype=dtype)) == bits(
        trained(load(npz(path), **fields), model, dtype=dtype)
    )
    runs = [
        gp.Trainer(
            gp.Chain(gp.Dense(4), gp.Dense(36)), gp.MeanSquaredError(), gp.SGD(0.01),
            load(p, task="reconstruction", dtype=dtype), device="cpu", dtype=dtype, epochs=2, batch_size=16,
        )
        for p in (path, npz(path))
    ]  # fmt: skip
    for run in runs:
        run.fit()
    assert bits(runs[0]) == bits(runs[1])


def test_sequences_with_lengths_and_weights_come_in_portions(tmp_path):
    x, lengths = RNG.normal(size=(120, 5, 2)).astype(np.float32), RNG.integers(1, 6, 120)
    with h5py.File(tmp_path / "rows.h5", "w") as file:
        file["x"], file["y"], file["lengths"], file["w"] = x, Y[:120], lengths, np.linspace(0.5, 1, 120)
    with h5py.File(tmp_path / "rows.h5") as file:
        np.savez(tmp_path / "rows.npz", **{name: file[name][()] for name in file})
    path = str(tmp_path / "rows.h5")
    model = gp.Chain(gp.LSTM(3, returns="last"), gp.Dense(3))
    one, other = (trained(load(p, weight="w", normalize="none"), model) for p in (path, npz(path)))
    assert bits(one) == bits(other)
    with pytest.raises(ConfigError, match=r"data\.normalize = 'standard' of rows with lengths.*data\.stream = false"):
        load(path)


# Evaluation and prediction.


def test_evaluation_and_outputs_are_those_of_the_rows_in_memory(rows, tmp_path):
    run = trained(load(rows))
    held = load(npz(rows), stream=False)
    for name in ("train", "validation", "test"):
        split = held.splits[name]
        wanted = passes.Evaluation(run.network, run.loss, run.metrics, split, held.preparation)
        found = passes.Evaluation(run.network, run.loss, run.metrics, run.data.splits[name], run.data.preparation)
        assert run.evaluate(name) == wanted() == found() == found()
        assert wanted.outputs().tobytes() == found.outputs().tobytes()
    run.save(tmp_path / "model.h5")
    model = gp.load(tmp_path / "model.h5")
    x, _ = gp.data.read_rows(model.preparation, rows, most=0)
    assert isinstance(x, stored.Stored)
    assert model.outputs(x).tobytes() == model.outputs(gp.data.read_inputs(model.preparation, npz(rows))).tobytes()
    split = gp.data.read_labelled(model.preparation, rows, most=0)
    assert model.evaluate(split) == model.evaluate(gp.data.read_labelled(model.preparation, npz(rows)))


def test_the_commands_take_a_file_that_is_larger_than_what_is_free(rows, tmp_path, monkeypatch):
    trained(load(rows, stream=False)).save(tmp_path / "model.h5")
    lines = [
        ("predict", tmp_path / "model.h5", rows, "--probabilities", "--device", "cpu"),
        ("evaluate", tmp_path / "model.h5", "--data", rows, "--json", "--device", "cpu"),
    ]
    wanted = [call(*line).stdout for line in lines]
    monkeypatch.setattr(streaming.memory, "available", lambda: 1000)
    monkeypatch.setattr(passes, "EVALUATION_SHARE", 16_000)
    read = stored.Stored.read
    seen: list = []
    monkeypatch.setattr(stored.Stored, "read", lambda self, *a: seen.append(len(a[0])) or read(self, *a))
    assert [call(*line).stdout for line in lines] == wanted
    assert len(seen) > 4


def test_gradients_are_checked_and_steps_traced_on_rows_of_a_file(rows, tmp_path):
    (tmp_path / "c.toml").write_text(CONFIG.format(rows=rows, stream=f'"{SMALL}"'))
    for line in (["gradcheck"], ["trace", "--steps", "1"]):
        call(*line, tmp_path / "c.toml")


# What a run writes down.


CONFIG = """\
seed = 4
[data]
source = "{rows}"
validation = 0.1
stream = {stream}
[[model]]
type = "dense"
units = 3
[loss]
type = "softmax_cross_entropy"
[optimizer]
type = "sgd"
lr = 0.1
[train]
epochs = 3
batch_size = 16
"""


@pytest.mark.parametrize(("free", "said"), [(2 * X.nbytes - 2, "64 MB"), (2 * X.nbytes, False), (None, False)])
def test_auto_streams_what_is_larger_than_half_of_what_is_free_and_a_run_keeps_to_it(
    free, said, rows, tmp_path, monkeypatch
):
    config = parse(CONFIG.format(rows=rows, stream='"auto"'), "c.toml")
    assert config.data.stream == "auto"
    monkeypatch.setattr(streaming.memory, "available", lambda: free)
    monkeypatch.setattr(sizes, "expect_room", lambda measured, room: measured(None))
    run = Run.start(tmp_path / "run", config, "", "cpu")
    run.train(epochs=2)
    assert bool(run.trainer.training.portions) == bool(said)
    resolved = (tmp_path / "run" / "config.resolved.toml").read_text()
    assert ('stream = "64 MB"' if said else "stream = false") in resolved
    saved = gp.checkpoint.latest(tmp_path / "run" / "checkpoints")
    assert parse(saved.config, "saved").data.stream == said
    monkeypatch.setattr(streaming.memory, "available", lambda: None if said else 1000)  # another machine
    again = Run.open(tmp_path / "run", "cpu")
    assert bool(again.trainer.training.portions) == bool(said)
    assert again.train()[0] == 0
    (tmp_path / "c.toml").write_text(CONFIG.format(rows=rows, stream='"auto"'))
    call("train", tmp_path / "c.toml", "--run-dir", tmp_path / "run", "--resume", "-q", "--device", "cpu")


def test_what_is_left_to_the_machine_is_not_different_from_what_it_decided():
    auto, true, false, large = (
        parse(CONFIG.format(rows="rows.h5", stream=said), "c.toml") for said in ('"auto"', "true", "false", '"1 GB"')
    )
    assert differences(auto, true) == differences(true, auto) == differences(false, auto) == []
    assert differences(true, large) == ["data.stream: '64 MB', not '1 GB'"]
    assert differences(false, true) == ["data.stream: False, not '64 MB'"]


def test_true_is_the_usual_size_and_what_is_no_size_is_refused():
    assert gp.data.Data("rows.h5", stream=True).stream == "64 MB"
    assert gp.data.Data("rows.h5", stream="64MB").stream == "64 MB"
    for wrong in ("64", "64 TB", "0 MB", "64 mb", 64, "", None):
        with pytest.raises(ConfigError, match=r'stream: found .*, expected "auto", true, false, or .* "64 MB"'):
            gp.data.Data("rows.h5", stream=wrong)


def test_a_run_that_was_stopped_in_a_portion_ends_with_the_same_bits(rows, tmp_path, caplog):
    caplog.set_level("INFO", "gpbackprop")
    config = parse(CONFIG.format(rows=rows, stream=f'"{SMALL}"'), "c.toml")
    whole = Run.start(tmp_path / "whole", config, "", "cpu")
    whole.train()
    assert "the rows come from their file in portions of 0.004 MB (data.stream)" in caplog.text

    class StopAt(gp.Hook):
        def on_step(self, run):
            run.stop_requested = run.step == 34

    stopped = Run.start(tmp_path / "stopped", config, "", "cpu")
    stopped.train(hooks=[StopAt()])
    assert stopped.trainer.batch_in_epoch == 34 - 29
    Run.open(tmp_path / "stopped", "cpu").train()
    names = [max((tmp_path / run / "checkpoints").glob("step-*.h5")) for run in ("whole", "stopped")]
    assert names[0].read_bytes() == names[1].read_bytes()


# What does not go together.


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"folds": 3, "validation": 0.0}, r"stream: found '4 kB', but the networks of the 3 folds share one table"),
        ({"window": 4}, r"data\.stream = '4 kB': reads the rows of .*rows\.h5 in portions, but data\.window"),
        ({"missing": "drop"}, r'data\.missing = "drop" looks in memory for rows'),
    ],
)
def test_data_that_cannot_come_in_portions_are_refused(fields, said, rows):
    with pytest.raises(ConfigError, match=said):
        load(rows, **fields)
    load(rows, stream="auto", **fields)


def test_chunks_that_are_larger_than_a_portion_are_refused_with_a_size_that_would_do(tmp_path):
    path = save(tmp_path / "rows.h5", chunks=(400, 6))
    with pytest.raises(ConfigError, match=r'chunks of 400 rows.* say data\.stream = "1 MB" or more'):
        load(path)
    assert load(path, stream="1 MB")


@pytest.mark.parametrize(
    ("optimizer", "settings", "said"),
    [
        (gp.LBFGS(), {"batch_size": "full"}, r"data\.stream: .* but lbfgs takes one step from all of them"),
        (gp.SGD(0.1), {"batch_size": "full"}, r'data\.stream: .* but train\.batch_size = "full" takes one step'),
    ],
)
def test_what_takes_a_step_from_all_rows_is_refused(optimizer, settings, said, rows):
    with pytest.raises(ConfigError, match=said):
        trainer(load(rows), optimizer=optimizer, **settings)


def test_truncated_backpropagation_over_portions_is_refused(tmp_path):
    x, y = RNG.normal(size=(60, 4, 2)).astype(np.float32), RNG.integers(0, 3, (60, 4))
    with h5py.File(tmp_path / "rows.h5", "w") as file:
        file["x"], file["y"], file["lengths"] = x, y, np.full(60, 4)
    data = load(str(tmp_path / "rows.h5"), normalize="none")
    with pytest.raises(ConfigError, match=r"train\.bptt = 2: .* data\.stream reads them in portions"):
        trainer(data, gp.Chain(gp.LSTM(3), gp.Dense(3)), bptt=2)


# What fails.


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "reader of a portion"]


def test_a_file_that_changes_under_a_run_ends_it_with_the_rows_and_it_goes_on_when_it_is_back(rows, tmp_path):
    whole, before = trained(load(rows)), Path(rows).read_bytes()

    class CutOff(gp.Hook):
        def on_step(self, run):
            if run.step == 3:
                os.truncate(rows, 3000)

    run = trainer(load(rows))
    with pytest.raises(
        DataError, match=r"rows\.h5: rows \d+ to \d+ of '/x' cannot be read \(.*\); bring the file back"
    ):
        run.fit(hooks=[CutOff()])
    assert 3 < run.step < run.steps_per_epoch
    content = frozen(run)
    Path(rows).write_bytes(before)
    again = trainer(load(rows))
    again.restore(content)
    again.fit()
    assert bits(again) == bits(whole)


@pytest.mark.parametrize(
    "error", [OSError(5, "Input/output error"), MemoryError("no more"), ZeroDivisionError("a bug")]
)
def test_what_the_reader_fails_with_comes_out_at_the_next_portion_once(error, rows, monkeypatch):
    run, whole, read, calls = trainer(load(rows)), trained(load(rows)), stored.Source.read, []

    def fails(self, *arguments):
        calls.append(threading.current_thread())
        if len(calls) == 9:
            raise DataError(str(error)) if isinstance(error, OSError) else error
        read(self, *arguments)

    monkeypatch.setattr(stored.Source, "read", fails)
    expected = DataError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected, match=str(error.args[-1])):
        run.fit()
    assert run.batch_in_epoch % (run.training.portions.rows // 16) == 0
    assert threading.main_thread() not in calls
    run.fit()  # the reader is well again
    assert bits(run) == bits(whole)


def test_readers_end_with_what_they_read_and_training_does_without_a_thread(rows, monkeypatch):
    run = trained(load(rows))
    for thread in readers():
        thread.join(5)
    assert not readers()

    def refuse(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert bits(trained(load(rows))) == bits(run)


def test_what_a_reader_did_not_end_is_read_again(rows):
    """As after a fork, which leaves the thread behind."""

    class Fork(gp.Hook):
        def on_step(self, run):
            if run.step == 3:
                reading = run.training.feed.streamed._reading
                reading.wait()
                reading.into["inputs"][:] = np.nan
                reading.done = False

    whole, run = trained(load(rows)), trainer(load(rows))
    run.fit(hooks=[Fork()])
    assert bits(run) == bits(whole)


def test_a_portion_is_read_while_the_one_before_is_trained_on(rows, monkeypatch):
    original, second_step, read = stored.Stored.read, threading.Event(), []

    def slow(self, numbers, out):
        read.append(not read or second_step.wait(5))  # whoever waits for the second portion before it, waits in vain
        original(self, numbers, out)

    class Watch(gp.Hook):
        def on_step(self, run):
            if run.step == 2:
                second_step.set()

    run = trainer(load(rows), epochs=1)
    monkeypatch.setattr(stored.Stored, "read", slow)
    run.fit(hooks=[Watch()])
    assert len(read) >= 5
    assert all(read)


# Memory.


def test_the_memory_of_portions_is_counted(rows):
    run = trainer(load(rows))
    two = lambda turned: turned.feed.streamed.nbytes  # noqa: E731
    run.evaluate("validation")
    run.evaluate("test")
    made = [run.training, *(run.evaluations[name].run for name in ("validation", "test"))]
    assert run.sizes.portions == sum(map(two, made)) > 0
    assert ("portions of the data", run.sizes.portions) in run.sizes.rows()
    assert run.sizes.data == 0
    assert run.sizes.order == sum(each.order.nbytes for each in made)
    held = trainer(load(npz(rows), stream=False))
    assert held.sizes.portions == 0
    assert "portions of the data" not in dict(held.sizes.rows())


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the most memory that a process has had")
def test_a_file_of_300_mb_takes_no_more_than_its_portions(tmp_path):
    with h5py.File(tmp_path / "rows.h5", "w") as file:
        x = file.create_dataset("x", (300_000, 250), "f4", chunks=(2000, 250))
        for start in range(0, len(x), 20_000):
            x[start : start + 20_000] = RNG.normal(size=(20_000, 250)).astype(np.float32)
        file["y"] = np.arange(300_000) % 3
    program = textwrap.dedent("""
        import sys
        from pathlib import Path
        import h5py
        import gpbackprop as gp
        def most():
            lines = Path("/proc/self/status").read_text().splitlines()
            return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) / 1000
        model = gp.Chain(gp.Dense(3))
        small = gp.Trainer(model, gp.SoftmaxCrossEntropy(), gp.SGD(0.1), gp.data.load("iris"), epochs=1, device="cpu")
        small.fit()
        before = most()
        data = gp.data.load("rows.h5", validation=0.1, stream=sys.argv[1] == "stream" and "16 MB")
        run = gp.Trainer(model, gp.SoftmaxCrossEntropy(), gp.SGD(0.1), data, epochs=1, device="cpu", batch_size=1000)
        run.fit()
        print(most() - before)
    """)

    def growth(how: str) -> float:
        command = [sys.executable, "-c", program, how]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=True)
        return float(done.stdout)

    assert growth("stream") < 100
    assert growth("hold") > 300


# A CUDA device.


@pytest.fixture
def fake(monkeypatch):
    machine = fake_cupy.install(monkeypatch)
    monkeypatch.setattr(fake_cupy.Graph, "launched", 0)
    return machine


@pytest.mark.parametrize("kind", ["file", "memory"])
def test_a_device_takes_portions_through_pinned_memory_with_the_same_bits(kind, rows, fake, monkeypatch):
    path = rows if kind == "file" else npz(rows)
    settings = {"batch_size": 4, "epochs": 3, "population": 2}
    on_host = trained(load(path), **settings)
    filled: list[bool] = []
    original, take = stored.Stored.read, np.take

    def read(self, numbers, out):
        filled.extend(memory.copies == memory.over for memory in fake_cupy.Pinned.of(out))
        original(self, numbers, out)

    def taken(a, indices, axis=None, out=None, mode="raise"):
        filled.extend(memory.copies == memory.over for memory in fake_cupy.Pinned.of(out) if out is not None)
        return take(a, indices, axis=axis, out=out, mode=mode)

    monkeypatch.setattr(stored.Stored, "read", read)
    monkeypatch.setattr(np, "take", taken)
    on_device = trained(load(path), device="cuda", **settings)
    assert on_device.training.portions.count == 5
    assert fake_cupy.Graph.launched > 3
    assert len(filled) > 2 * 5
    assert all(filled), "pinned memory was written while a copy from it may have been under way"
    for name, found in on_device.content().items():
        if name.startswith(("params", "progress", "optimizer")):
            assert np.asarray(found).tobytes() == np.asarray(on_host.content()[name]).tobytes(), name


def test_steps_that_go_to_a_device_together_end_with_the_portion(rows, fake):
    run = trainer(load(rows), device="cuda", batch_size=2, epochs=1)
    assert run.training.portions.rows == 100

    class Watch(gp.Hook):
        def on_step(self, run):
            ends.append(run.step)

    ends: list[int] = []
    run.fit(hooks=[Watch()])
    assert ends[:4] == [1, 17, 33, 49]
    assert {50, 66, 82, 98, 100, 116} < set(ends)
    assert set(range(50, 201, 50)) <= set(ends)


def test_a_table_in_memory_that_does_not_fit_the_device_is_sent_in_portions(rows, fake):
    config = parse(CONFIG.format(rows=npz(rows), stream='"auto"'), "c.toml")
    assert config.trainer("cuda").data.source.stream is False
    fake.free = 4 * X.nbytes  # each of two splits has the table on the device
    assert gp.data.load(config.data, device=select("cuda")).source.stream is False
    fake.free -= 1
    data = gp.data.load(config.data, device=select("cuda"))
    assert data.source.stream == "64 MB"
    assert isinstance(data.splits["train"].inputs, np.ndarray)
    assert gp.data.load(config.data, device=select("cpu")).source.stream is False


def test_a_set_with_a_name_is_sent_in_portions_and_its_run_goes_on_like_that(fake, tmp_path, monkeypatch, caplog):
    """So that a size of a portion is no mistake where there is no file: what "auto" came to is one, in a new config."""
    caplog.set_level("INFO", "gpbackprop")
    config = parse(CONFIG.format(rows="iris", stream='"auto"'), "c.toml")
    monkeypatch.setattr(sizes, "expect_room", lambda measured, room: measured(None))
    fake.free = 1000
    Run.start(tmp_path / "run", config, "", "cuda").train(epochs=2)
    assert 'stream = "64 MB"' in (tmp_path / "run" / "config.resolved.toml").read_text()
    assert "the rows come from memory in portions of 64 MB (data.stream)" in caplog.text
    again = Run.open(tmp_path / "run", "cuda")
    assert again.trainer.training.portions
    assert again.train()[0] == 0
    for name, more in (("iris", {}), ("moons", {}), ("wave", {"window": 4})):
        assert gp.data.load(name, stream=SMALL, **more).splits["train"].stream.size == 4000


def test_data_that_fill_a_device_are_told_of_portions(rows, fake):
    data = load(npz(rows), stream=False)
    fake.free = 40_000  # three splits over a table of 12 kB, and 30 kB of all else
    with pytest.raises(OutOfMemoryError, match=r"beside the data; with data\.stream = true they come in portions"):
        trainer(data, device="cuda")
    trainer(load(npz(rows)), device="cuda")


def test_a_model_on_a_device_predicts_rows_that_do_not_fit_it(rows, fake, tmp_path):
    trained(load(npz(rows), stream=False)).save(tmp_path / "model.h5")
    x = gp.data.read_inputs(gp.load(tmp_path / "model.h5").preparation, npz(rows))
    wanted = gp.load(tmp_path / "model.h5").outputs(x)
    model = gp.load(tmp_path / "model.h5", "cuda")
    fake.free = 1000
    assert model.outputs(x).tobytes() == wanted.tobytes()
    assert fake_cupy.Pinned.all
