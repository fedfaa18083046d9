"""A checkpoint comes back whole or is refused with the reason, whatever the disk, the clock or an attacker does."""

import errno
import hashlib
import json
import os
import random
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpbackprop import checkpoint
from gpbackprop.checkpoint import disk, format
from gpbackprop.errors import CheckpointError

h5py = pytest.importorskip("h5py")


def content(step=1):
    rng = np.random.default_rng(step)
    return {
        "config": b'name = "caf\xc3\xa9"\n',
        "params/0-dense/W": rng.standard_normal((2, 3, 4)).astype("f4"),
        "params/1-residual/0-dense/W": rng.standard_normal((2, 4, 4)),
        "state/1-residual/1-norm/mean": np.zeros((2, 4), "f4"),
        "optimizer/sgd/velocity": rng.standard_normal((2, 28)).astype("f4"),
        "optimizer/sgd/nothing": np.zeros((2, 0), "f4"),
        "progress/step": np.int64(step),
        "progress/best": np.array([np.inf, 0.5]),
        "history": b'{"epoch": 1}\n',
        "preparation/classes": json.dumps(["a", "b"]).encode(),
    }


def same(found, wanted):
    arrays = {k: np.frombuffer(v, np.uint8) if isinstance(v, bytes) else np.asarray(v) for k, v in wanted.items()}
    assert list(found) == sorted(arrays)
    for path, array in arrays.items():
        assert found[path].dtype == array.dtype
        np.testing.assert_array_equal(found[path], array, strict=True)


def test_what_is_written_comes_back(tmp_path):
    path = tmp_path / "a.h5"
    digest = checkpoint.write(path, content())
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    found = checkpoint.read(path)
    same(found.arrays(), content())
    assert found.config == 'name = "café"\n'
    assert found.text("history") == '{"epoch": 1}\n'
    assert found.entries["params/0-dense/W"] == checkpoint.Entry((2, 3, 4), np.dtype("f4"))
    assert os.listdir(tmp_path) == ["a.h5"]


def test_any_hdf5_tool_opens_the_file(tmp_path):
    checkpoint.write(tmp_path / "a.h5", content())
    with h5py.File(tmp_path / "a.h5") as file:
        assert file.attrs["version"] == format.VERSION
        assert json.loads(file["format"][()].tobytes()) == {"format": "gpbackprop-checkpoint", "version": 1}
        np.testing.assert_array_equal(file["params/0-dense/W"][()], content()["params/0-dense/W"])


def test_the_same_content_gives_the_same_bytes_whenever_and_in_whatever_order_it_is_written(monkeypatch):
    first = bytes(checkpoint.image(content()))
    time.sleep(1.1)  # HDF5 keeps times in seconds
    assert bytes(checkpoint.image(dict(reversed(content().items())))) == first


@given(
    shape=st.lists(st.integers(0, 5), max_size=4),
    dtype=st.sampled_from([*format.DTYPES, np.dtype(">f4"), np.dtype(">i2")]),
    chunk=st.sampled_from([8, 64, 4 << 20]),
)
def test_every_shape_and_number_type_comes_back(tmp_path_factory, shape, dtype, chunk):
    path = tmp_path_factory.getbasetemp() / "shape.h5"
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(format, "CHUNK", chunk)
        patch.setattr(format, "SMALL", 1)
        checkpoint.write(path, {"config": b"", "params/x": array})
        found = checkpoint.read(path).arrays("params", {"x": (array.shape, dtype.newbyteorder("<"))})["x"]
    np.testing.assert_array_equal(found, array)


@given(shape=st.lists(st.integers(1, 3000), min_size=1, max_size=4), itemsize=st.sampled_from([1, 4, 8]))
def test_chunks_fit_the_limit_cover_whole_rows_and_waste_little(shape, itemsize):
    chunk = format.chunks(tuple(shape), itemsize)
    size = np.prod(chunk, dtype=float) * itemsize
    counts = [-(-n // c) for n, c in zip(shape, chunk, strict=True)]
    assert size <= format.CHUNK
    assert all(c <= n for c, n in zip(chunk, shape, strict=True))
    assert np.prod(counts) == 1 or size > format.CHUNK / 4
    assert np.prod(counts) * size <= 2 * np.prod(shape, dtype=float) * itemsize


def test_an_array_of_many_chunks_comes_back(tmp_path):
    big = np.random.default_rng(0).standard_normal((2, 1200, 700))
    checkpoint.write(tmp_path / "a.h5", {"config": b"", "params/x": big})
    with h5py.File(tmp_path / "a.h5") as file:
        assert file["params/x"].id.get_num_chunks() == 4
    np.testing.assert_array_equal(checkpoint.read(tmp_path / "a.h5").arrays("params")["x"], big)


def test_arrays_that_the_config_does_not_describe_are_all_listed(tmp_path):
    checkpoint.write(tmp_path / "a.h5", content())
    found = checkpoint.read(tmp_path / "a.h5")
    good = {"0-dense/W": ((2, 3, 4), "float32"), "1-residual/0-dense/W": ((2, 4, 4), "float64")}
    assert list(found.arrays("params", good)) == list(good)
    assert list(found.arrays("params", {**good, "0-dense/W": ((2, None, 4), "float32")})) == list(good)
    bad = {"0-dense/W": ((2, 3, 5), "float32"), "0-dense/b": ((2, 5), "float32")}
    with pytest.raises(CheckpointError) as error:
        found.arrays("params", bad)
    assert "0-dense/W: found (2, 3, 4) float32, expected (2, 3, 5) float32" in str(error.value)
    assert "0-dense/b: missing, expected (2, 5) float32" in str(error.value)
    assert "1-residual/0-dense/W: found (2, 4, 4) float64, expected nothing" in str(error.value)
    for wrong in ((2, 3, 4), "float64"), ((2, 3), "float32"), ((2, None, 5), "float32"):
        with pytest.raises(CheckpointError, match="0-dense/W: found"):
            found.arrays("params", {**good, "0-dense/W": wrong})


def test_only_text_is_read_as_text(tmp_path):
    others = {"state/a": np.zeros(3, "f4"), "state/b": np.zeros((2, 2), "u1")}
    checkpoint.write(tmp_path / "a.h5", {**content(), **others})
    for path in [*others, "state/c"]:
        with pytest.raises(CheckpointError, match=f"holds no text {path}"):
            checkpoint.read(tmp_path / "a.h5").text(path)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"params/0-dense/W": np.array([1, np.nan])}, "NaN or infinity"),
        ({"params/0-dense/W": np.array([[-np.inf]], "f4")}, "NaN or infinity"),
        ({"params/0-dense/W": np.array([True])}, "dtype bool"),
        ({"params/0-dense/W": np.array(["a"])}, "dtype <U1"),
        ({"params/0-dense/W": np.array([None])}, "dtype object"),
        ({"params/a\nb": np.zeros(1)}, "not a place"),
        ({"params/../x": np.zeros(1)}, "not a place"),
        ({"params//x": np.zeros(1)}, "not a place"),
        ({"params": np.zeros(1)}, "not a place"),
        ({"else/x": np.zeros(1)}, "not a place"),
        ({"config/x": np.zeros(1)}, "not a place"),
        ({"params/" + "a/" * 40 + "b": np.zeros(1)}, "not a place"),
        ({"params/0-dense/W/x": np.zeros(1)}, "is an array and also holds arrays"),
        ({"format": b"{}"}, "leave it out"),
    ],
)
def test_what_a_reader_would_refuse_is_not_written(tmp_path, change, why):
    path = tmp_path / "a.h5"
    checkpoint.write(path, content())
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match=why):
        checkpoint.write(path, {**content(), **change})
    assert path.read_bytes() == before


def test_a_checkpoint_is_never_larger_than_a_reader_takes(tmp_path, monkeypatch):
    path = tmp_path / "a.h5"
    checkpoint.write(path, content())
    with h5py.File(path) as file:
        objects = []
        file.visit(objects.append)
    for limit, most in {"OBJECTS": len(objects), "LIMIT": path.stat().st_size}.items():
        with monkeypatch.context() as patch:
            patch.setattr(format, limit, most)
            checkpoint.write(path, content())
            checkpoint.read(path, limit=most if limit == "LIMIT" else format.LIMIT)
            patch.setattr(format, limit, most - 1)
            with pytest.raises(CheckpointError, match="a reader would refuse"):
                checkpoint.write(path, content())


def test_a_checkpoint_without_config_is_not_written(tmp_path):
    with pytest.raises(CheckpointError, match="config: missing"):
        checkpoint.write(tmp_path / "a.h5", {"params/x": np.zeros(1)})


# Damage


def damaged(data, rng):
    """Versions of `data` that a disk could give back."""
    yield b""
    yield data + b"\0"
    yield data + data
    yield data[1:]
    for _ in range(300):
        at = rng.randrange(len(data))
        yield data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
    for _ in range(100):
        yield data[: rng.randrange(len(data))]
    for at in range(0, len(data), 512):
        if any(data[at : at + 512]):
            yield data[:at] + bytes(len(data[at : at + 512])) + data[at + 512 :]


def test_a_damaged_file_is_always_found_out(tmp_path):
    path = tmp_path / "a.h5"
    checkpoint.write(path, content())
    for data in damaged(path.read_bytes(), random.Random(1)):
        path.write_bytes(data)
        with pytest.raises(checkpoint.DamagedError):
            checkpoint.read(path)


def test_what_is_not_a_readable_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="there is no such file"):
        checkpoint.read(tmp_path / "a.h5")
    with pytest.raises(CheckpointError, match="is not a file"):
        checkpoint.read(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(CheckpointError, match="is not a file"):
            checkpoint.read(tmp_path / "pipe")
    (tmp_path / "empty.h5").touch()
    with pytest.raises(checkpoint.DamagedError, match="has 0 bytes, too few"):
        checkpoint.read(tmp_path / "empty.h5")
    with (tmp_path / "huge.h5").open("wb") as file:
        file.truncate(format.LIMIT)
    start = time.perf_counter()
    with pytest.raises(checkpoint.DamagedError, match="does not end as"):
        checkpoint.read(tmp_path / "huge.h5")
    assert time.perf_counter() - start < 1
    with pytest.raises(CheckpointError, match="more than the limit"):
        checkpoint.read(tmp_path / "huge.h5", limit=1000)


# The disk refuses


class Failing(disk.Calls):
    """Calls of which the n-th fails with `code`."""

    def __init__(self, n, code):
        self.left, self.code, self.failed = n, code, None

    def __getattribute__(self, name):
        call = super().__getattribute__(name)
        if name not in vars(disk.Calls) or name.startswith("_"):
            return call

        def counted(*args, **kwargs):
            self.left -= 1
            if self.left == 0:
                self.failed = name
                if name == "close":
                    call(*args)
                raise OSError(self.code, os.strerror(self.code))
            return call(*args, **kwargs)

        return counted


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EACCES, errno.EROFS, errno.EINTR])
def test_whichever_call_fails_the_error_is_clean_and_the_old_checkpoint_whole(tmp_path, monkeypatch, code):
    failed, n = [], 0
    while not failed or failed[-1]:
        n += 1
        directory = tmp_path / f"{n}"
        checkpoint.save(directory, 1, content(1), keep=1)
        calls, warned, refused = Failing(n, code), [], None
        with monkeypatch.context() as patch:
            patch.setattr(disk, "calls", calls)
            try:
                checkpoint.save(directory, 2, content(2), keep=1, warn=warned.append)
            except CheckpointError as error:
                refused = str(error)
        assert refused is None or (os.strerror(code) in refused and str(directory) in refused)
        failed.append(calls.failed)
        newest = checkpoint.latest(directory)
        same(newest.arrays(), content(int(newest.arrays("progress")["step"])))
        assert newest.path.name == "step-000000002.h5" or refused
        assert (calls.failed is None) == (not refused and not warned)
        assert not [name for name in os.listdir(directory) if name.endswith(".tmp")]
        checkpoint.save(directory, 3, content(3), keep=1)
        assert sorted(os.listdir(directory)) == ["last.json", "step-000000003.h5"]
    assert {"open", "write", "fsync", "close", "read", "replace", "unlink", "listdir"} <= set(failed)


def test_short_writes_are_continued(tmp_path, monkeypatch):
    class Short(disk.Calls):
        write = staticmethod(lambda fd, data: os.write(fd, data[:1000]))

    monkeypatch.setattr(disk, "calls", Short())
    checkpoint.write(tmp_path / "a.h5", content())
    same(checkpoint.read(tmp_path / "a.h5").arrays(), content())


def test_a_disk_that_returns_other_bytes_or_takes_none_is_an_error(tmp_path, monkeypatch):
    checkpoint.write(tmp_path / "a.h5", content(1))
    for name, call in {"write": lambda fd, data: os.write(fd, bytes(len(data))), "read": lambda fd, size: b""}.items():
        with monkeypatch.context() as patch:
            patch.setattr(disk, "calls", type("Broken", (disk.Calls,), {name: staticmethod(call)})())
            with pytest.raises(CheckpointError, match=r"could not be written.*untouched"):
                checkpoint.write(tmp_path / "a.h5", content(2))
    with monkeypatch.context() as patch:
        patch.setattr(disk, "calls", type("Broken", (disk.Calls,), {"write": staticmethod(lambda fd, data: 0)})())
        with pytest.raises(CheckpointError, match="took no bytes"):
            checkpoint.write(tmp_path / "a.h5", content(2))
    same(checkpoint.read(tmp_path / "a.h5").arrays(), content(1))
    assert os.listdir(tmp_path) == ["a.h5"]


def test_an_interrupt_while_saving_leaves_no_temporary_file(tmp_path, monkeypatch):
    def interrupted(fd):
        raise KeyboardInterrupt

    monkeypatch.setattr(disk, "calls", type("Interrupted", (disk.Calls,), {"fsync": staticmethod(interrupted)})())
    with pytest.raises(KeyboardInterrupt):
        checkpoint.write(tmp_path / "a.h5", content())
    assert os.listdir(tmp_path) == []


def test_names_are_durable_in_this_order(tmp_path, monkeypatch):
    log = []

    class Logged(disk.Calls):
        def __getattribute__(self, name):
            call = getattr(disk.Calls, name)
            return lambda *args, **kwargs: (log.append(name), call(*args, **kwargs))[1]

    checkpoint.save(tmp_path, 1, content(1), keep=1)
    monkeypatch.setattr(disk, "calls", Logged())
    checkpoint.save(tmp_path, 2, content(2), keep=1)
    kept = [name for name in log if name in ("write", "fsync", "close", "replace", "unlink")]
    one = ["write", "fsync", "close", "replace", "fsync", "close"]
    assert kept == ["write", *one, *one, "unlink"]  # the image and its trailer; last.json; then the old one goes


# The series


def names(directory):
    return sorted(os.listdir(directory))


def test_the_newest_and_the_best_are_kept_and_foreign_files_never_touched(tmp_path):
    foreign = ["step-1.h5", "step-000000001.h5.bak", "model.h5", "notes.txt", ".step-000000001.h5.tmp", "x.tmp"]
    for name in foreign:
        (tmp_path / name).write_bytes(b"mine")
    (tmp_path / ".step-000000009.h5.0123456789abcdef.tmp").write_bytes(b"left by a kill")
    for step in 10, 20, 30, 40:
        checkpoint.save(tmp_path, step, content(step), keep=2)
        if step == 20:
            checkpoint.mark_best(tmp_path, step, {"validation_loss": 0.25})
    assert names(tmp_path) == sorted(
        [*foreign, "best.json", "last.json", *(f"step-0000000{step}.h5" for step in (20, 30, 40))]
    )
    assert checkpoint.best(tmp_path) == tmp_path / "step-000000020.h5"
    assert json.loads((tmp_path / "best.json").read_text())["validation_loss"] == 0.25
    last = json.loads((tmp_path / "last.json").read_text())
    assert (last["file"], last["step"]) == ("step-000000040.h5", 40)
    assert last["sha256"] == hashlib.sha256((tmp_path / last["file"]).read_bytes()).hexdigest()
    assert checkpoint.latest(tmp_path).path == tmp_path / "step-000000040.h5"


def test_keeping_none_keeps_the_newest(tmp_path):
    for step in 1, 2:
        checkpoint.save(tmp_path, step, content(step), keep=0)
    assert names(tmp_path) == ["last.json", "step-000000002.h5"]


def test_saving_the_same_step_again_replaces_it_and_an_earlier_one_is_refused(tmp_path):
    checkpoint.save(tmp_path, 10, content(1), keep=3)
    checkpoint.save(tmp_path, 10, content(2), keep=3)
    same(checkpoint.latest(tmp_path).arrays(), content(2))
    with pytest.raises(CheckpointError, match="holds step 10 already"):
        checkpoint.save(tmp_path, 9, content(1), keep=3)
    assert names(tmp_path) == ["last.json", "step-000000010.h5"]


def test_damage_is_told_kept_aside_and_the_next_older_taken(tmp_path):
    for step in 1, 2, 3:
        checkpoint.save(tmp_path, step, content(step), keep=3)
    for step in 2, 3:
        path = tmp_path / f"step-00000000{step}.h5"
        path.write_bytes(path.read_bytes()[:-1])
    (tmp_path / "step-000000003.h5.damaged").write_bytes(b"an earlier one")
    told = []
    assert checkpoint.latest(tmp_path, told.append).path.name == "step-000000001.h5"
    assert len(told) == 2
    assert "step-000000003.h5: does not end" in told[0]
    assert "Kept as step-000000003.h5.damaged-2" in told[0]
    assert (tmp_path / "step-000000003.h5.damaged").read_bytes() == b"an earlier one"
    assert "step-000000002.h5.damaged" in names(tmp_path)
    told.clear()
    checkpoint.latest(tmp_path, told.append)
    assert "last.json names it and it is gone" in told[0]
    with pytest.warns(UserWarning, match="it is gone"):
        checkpoint.latest(tmp_path)


def test_a_checkpoint_that_its_run_replaces_before_it_is_read_is_not_missed(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, 1, content(1), keep=1)

    def late(path, whole):
        monkeypatch.undo()
        checkpoint.save(tmp_path, 2, content(2), keep=1)
        return checkpoint.read(path, whole=whole)

    told = []
    monkeypatch.setattr(checkpoint.series, "read", late)
    assert checkpoint.latest(tmp_path, told.append).path.name == "step-000000002.h5"
    (tmp_path / "last.json").write_text((tmp_path / "last.json").read_text().replace("2.h5", "1.h5"))
    assert checkpoint.latest(tmp_path, told.append).path.name == "step-000000002.h5"  # as after a crash in between
    assert told == []


def test_when_none_is_whole_it_never_starts_afresh_silently(tmp_path):
    assert checkpoint.latest(tmp_path) is None
    assert checkpoint.latest(tmp_path / "none") is None
    (tmp_path / "notes.txt").write_bytes(b"")
    assert checkpoint.latest(tmp_path) is None
    path = checkpoint.save(tmp_path, 1, content(), keep=1)
    path.write_bytes(b"")
    for _ in range(2):  # the second time only the file set aside is left
        with pytest.raises(CheckpointError, match=r"no checkpoint is whole.*step-000000001.h5.damaged"):
            checkpoint.latest(tmp_path, lambda why: None)
    record = (tmp_path / "last.json").rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=r"no checkpoint is whole.*step-000000001.h5.damaged"):
        checkpoint.latest(tmp_path)
    record.rename(tmp_path / "last.json")
    (tmp_path / "step-000000001.h5.damaged").unlink()
    with pytest.raises(CheckpointError, match=r"only a last.json that names step-000000001.h5"):
        checkpoint.latest(tmp_path, lambda why: None)


def test_a_newer_checkpoint_is_not_passed_over(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, 1, content(1), keep=2)
    with monkeypatch.context() as patch:
        patch.setattr(format, "VERSION", 2)
        checkpoint.save(tmp_path, 2, content(2), keep=2)
    with pytest.raises(CheckpointError, match="upgrade"):
        checkpoint.latest(tmp_path)
    assert "step-000000002.h5" in names(tmp_path)


@pytest.mark.parametrize(
    "record", [b"", b"{", b"[]", b'{"file": 1}', b'{"file": "../../etc/passwd"}', b"[" * 9000, b"\xff"]
)
def test_damaged_records_are_told_and_nothing_is_removed_on_their_word(tmp_path, record):
    for step in 1, 2:
        checkpoint.save(tmp_path, step, content(step), keep=2)
    for name in "last.json", "best.json":
        (tmp_path / name).write_bytes(record)
    told = []
    assert checkpoint.latest(tmp_path, told.append).path.name == "step-000000002.h5"
    assert "last.json" in told[0]
    with pytest.raises(CheckpointError, match=r"best.json: "):
        checkpoint.best(tmp_path)
    told.clear()
    checkpoint.save(tmp_path, 3, content(3), keep=1, warn=told.append)
    assert "old ones were not removed" in told[0]
    assert len([name for name in names(tmp_path) if name.endswith(".h5")]) == 3


def test_only_a_saved_checkpoint_can_be_the_best(tmp_path):
    assert checkpoint.best(tmp_path) is None
    with pytest.raises(CheckpointError, match="save it first"):
        checkpoint.mark_best(tmp_path, 1, {})


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_any_moment_no_acknowledged_step_is_lost(tmp_path):
    script = textwrap.dedent("""
        import os, random, signal, sys, time
        from pathlib import Path
        import numpy as np
        from gpbackprop import checkpoint
        directory, rng, begun = Path(sys.argv[1]), random.Random(3), 0
        def content(step):
            return {"config": b"", "params/W": np.full((1, 50_000), step, "f4"), "progress/step": np.int64(step)}
        for kill in range(20):
            reader, writer = os.pipe()
            if not (pid := os.fork()):
                for step in range(begun + 1, begun + 10_000):
                    checkpoint.save(directory, step, content(step), keep=2)
                    os.write(writer, step.to_bytes(4))
            os.close(writer)
            first = os.read(reader, 4)
            time.sleep(rng.random() * 0.02)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            with os.fdopen(reader, "rb") as pipe:
                acknowledged = int.from_bytes((first + pipe.read())[-4:])
            found = checkpoint.latest(directory, warn=sys.exit)
            begun = int(found.arrays("progress")["step"])
            assert acknowledged <= begun <= acknowledged + 1, (acknowledged, begun)
            assert (found.arrays("params")["W"] == begun).all()
            assert len([name for name in os.listdir(directory) if name.endswith(".tmp")]) <= 1
        print(begun)
    """)
    run = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) >= 20
