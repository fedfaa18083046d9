"""Checkpoints are saved while training goes on, when they are due, and what the disk refuses is told."""

import errno
import itertools
import json
import logging
import os
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from gpbackprop import checkpoint, recorder
from gpbackprop.checkpoint import disk, series
from gpbackprop.config import parse
from gpbackprop.errors import CheckpointError, ConfigError
from gpbackprop.run import Run, read_metrics
from gpbackprop.settings import Train

CONFIG = """
seed = 5
data = { source = "spirals", rows = 50, validation = 0.2 }
model = [{ type = "dense", units = 4 }, { type = "dropout", rate = 0.2 }, { type = "dense", units = 2 }]
loss = "softmax_cross_entropy"
optimizer = { type = "adam", lr = 0.01 }

[train]
epochs = 3
batch_size = 10
"""  # an epoch has 4 steps


@pytest.fixture(autouse=True)
def _no_fsync(monkeypatch):
    """These tests ask what is written and when; tests/test_checkpoint.py asks in which order it reaches the disk."""
    monkeypatch.setattr(disk.Calls, "fsync", staticmethod(lambda fd: None))


def content(step):
    return {"config": b"", "params/W": np.full((1, 500), step, "f4"), "progress/step": np.int64(step)}


def begun(path, **train):
    text = CONFIG + "".join(f"{key} = {json.dumps(value)}\n" for key, value in train.items())
    return Run.start(path, parse(text, "small.toml"), text, "cpu")


def steps(path):
    return [int(name[5:14]) for name in sorted(os.listdir(path / "checkpoints")) if name.endswith(".h5")]


def at(path, step):
    return checkpoint.read(path / "checkpoints" / f"step-{step:09d}.h5").arrays()


def outcome(path):
    """What of a finished run does not depend on the clock."""
    clock = ("seconds", "samples_per_second", "save_error")
    rows = [{key: row[key] for key in row if key not in clock} for row in read_metrics(path / "metrics.jsonl")]
    arrays = checkpoint.latest(path / "checkpoints").arrays()
    arrays.pop("config")
    return {name: array.tobytes() for name, array in arrays.items()}, rows, checkpoint.best(path / "checkpoints").name


class Refusing(disk.Calls):
    """Writes no file that has `word` in its name, while `times` lasts."""

    def __init__(self, word, times, code=errno.ENOSPC):
        self.word, self.times, self.code, self.refused = word, times, code, 0

    def open(self, path, *arguments):
        if self.word in str(path) and len(arguments) > 1 and self.refused < self.times:
            self.refused += 1
            raise OSError(self.code, os.strerror(self.code))
        return os.open(path, *arguments)


# The thread


def test_what_is_saved_is_what_was_there_when_the_save_began(tmp_path, monkeypatch):
    go, save = threading.Event(), series.save
    monkeypatch.setattr(series, "save", lambda *args: (go.wait(10), save(*args)))
    saver, given = checkpoint.Saver(tmp_path, keep=3), content(1)
    saver.begin(1, given)
    given["params/W"][...] = 7
    assert saver.saved is None
    go.set()
    saver.wait()
    assert saver.saved == 1
    assert (checkpoint.latest(tmp_path).arrays("params")["W"] == 1).all()


def test_the_file_has_the_bytes_of_one_written_at_once(tmp_path):
    saver = checkpoint.Saver(tmp_path / "series", keep=3)
    saver.begin(3, content(3))
    saver.wait()
    checkpoint.write(tmp_path / "a.h5", content(3))
    assert (tmp_path / "series" / "step-000000003.h5").read_bytes() == (tmp_path / "a.h5").read_bytes()


def test_one_save_at_a_time_in_order_from_the_same_memory(tmp_path, monkeypatch):
    seen, at_once, save = [], [], series.save

    def slow(directory, step, copy, *args):
        at_once.append(step)
        threading.Event().wait(0.01)
        seen.append((step, copy["params/W"].ctypes.data, float(copy["params/W"][0, 0])))
        assert at_once == [step]
        save(directory, step, copy, *args)
        at_once.remove(step)

    monkeypatch.setattr(series, "save", slow)
    saver = checkpoint.Saver(tmp_path, keep=2)
    for step in 1, 2, 3:
        saver.begin(step, content(step))
    saver.wait()
    assert [(step, value) for step, _, value in seen] == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert len({address for _, address, _ in seen}) == 1
    assert sorted(os.listdir(tmp_path)) == ["last.json", "step-000000002.h5", "step-000000003.h5"]


def test_the_best_one_is_kept_and_the_one_before_goes_with_the_same_save(tmp_path):
    saver = checkpoint.Saver(tmp_path, keep=1)
    for step, best in (1, {"value": 0.5}), (2, None), (3, {"value": 0.25}):
        saver.begin(step, content(step), best)
        saver.wait()
        assert checkpoint.best(tmp_path).name == f"step-00000000{1 if step < 3 else 3}.h5"
    assert sorted(os.listdir(tmp_path)) == ["best.json", "last.json", "step-000000003.h5"]


def test_without_a_thread_to_be_had_it_is_saved_at_once(tmp_path, monkeypatch):
    def none_left(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", none_left)
    saver = checkpoint.Saver(tmp_path, keep=3)
    saver.begin(1, content(1))
    assert saver.saved == 1
    saver.check()
    (tmp_path / "step-000000009.h5").touch()  # a later one, which is another run's
    saver.begin(2, content(2))
    with pytest.raises(CheckpointError, match="another run's"):
        saver.check()
    saver.wait()


def test_an_error_in_the_thread_is_raised_once_and_the_next_save_works(tmp_path, monkeypatch):
    saver = checkpoint.Saver(tmp_path, keep=2)
    saver.begin(1, content(1))
    saver.wait()
    monkeypatch.setattr(disk, "calls", Refusing("step-000000002", 1))
    saver.begin(2, content(2))
    saver._thread.join()
    with pytest.raises(CheckpointError, match=r"No space left.*untouched"):
        saver.check()
    saver.check()
    assert saver.saved == 1
    assert sorted(os.listdir(tmp_path)) == ["last.json", "step-000000001.h5"]
    saver.begin(3, content(3))
    saver.wait()
    assert saver.saved == 3


def test_whatever_goes_wrong_in_the_thread_comes_out(tmp_path, monkeypatch):
    def broken(*args):
        raise MemoryError

    monkeypatch.setattr(series, "save", broken)
    saver = checkpoint.Saver(tmp_path, keep=2)
    saver.begin(1, content(1))
    with pytest.raises(MemoryError):
        saver.begin(2, content(2))


# When


@pytest.mark.parametrize(
    ("every", "meaning"),
    [
        (2, (2, "epoch")),
        ("3 epochs", (3, "epoch")),
        ("1 step", (1, "step")),
        ("500 steps", (500, "step")),
        ("10 minutes", (10, "minute")),
        ("0.5 minutes", (0.5, "minute")),
    ],
)
def test_an_interval_is_a_number_of_epochs_steps_or_minutes(every, meaning):
    assert Train(checkpoint_every=every).saving == meaning


@pytest.mark.parametrize("every", [0, -1, 2.0, True, None, "0 steps", "0.5 steps", "10", "steps", "5 hours", [5]])
def test_other_intervals_are_refused_with_the_key(every):
    with pytest.raises(
        ConfigError, match=r'checkpoint_every: found .*, expected a number of epochs, or text like "500'
    ):
        Train(checkpoint_every=every)
    if every is not None:
        with pytest.raises(ConfigError, match=r"small.toml:11: train.checkpoint_every: found"):
            parse(CONFIG + f"checkpoint_every = {json.dumps(every)}\n", "small.toml")


@pytest.mark.parametrize(
    ("every", "expected"),
    [
        (2, [8, 12]),
        ("1 steps", [*range(1, 13)]),
        ("3 steps", [3, 6, 9, 12]),
        ("5 steps", [5, 10, 12]),
        ("1 minutes", [5, 10, 12]),
    ],
)
def test_checkpoints_are_saved_when_they_are_due(tmp_path, monkeypatch, every, expected):
    clock = itertools.count(step=13)  # seconds, from one look to the next: one in a step, one where a save begins
    monkeypatch.setattr(recorder, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(recorder.Recorder, "_best", lambda self: None)
    run = begun(tmp_path / "r", checkpoint_every=every, keep=100)
    run.train()
    assert steps(tmp_path / "r") == expected
    for step in expected:
        progress = checkpoint.read(tmp_path / "r" / "checkpoints" / f"step-{step:09d}.h5").arrays("progress")
        assert (int(progress["epoch"]), int(progress["batch_in_epoch"])) == divmod(step, 4)


def test_a_run_goes_on_from_any_step_with_the_same_bits(tmp_path):
    begun(tmp_path / "whole", checkpoint_every="1 steps", keep=100).train()
    whole = {
        step: {name: array.tobytes() for name, array in at(tmp_path / "whole", step).items()} for step in range(1, 13)
    }
    for step in range(1, 12):
        path = tmp_path / f"cut-{step}"
        begun(path, checkpoint_every="1 steps", keep=100)._lock.close()
        (path / "metrics.jsonl").write_text(
            "".join(
                line + "\n" for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()[: step // 4]
            )
        )
        name = f"checkpoints/step-{step:09d}.h5"
        (path / name).write_bytes((tmp_path / "whole" / name).read_bytes())
        Run.open(path, "cpu").train()
        for later in range(step, 13):
            found = {name: array.tobytes() for name, array in at(path, later).items()}
            assert found == whole[later], (step, later)
        assert outcome(path)[1] == outcome(tmp_path / "whole")[1]


def test_the_record_of_the_best_epoch_that_a_crash_prevented_is_made_up_for(tmp_path):
    run = begun(tmp_path / "r")
    run.train()
    best = tmp_path / "r" / "checkpoints" / "best.json"
    known = best.read_bytes()
    assert json.loads(known)["step"] == 12  # or the test would not test
    best.unlink()
    Run.open(tmp_path / "r", "cpu").train()
    assert best.read_bytes() == known


# What the disk refuses


def test_a_full_disk_stops_the_run_says_what_is_safe_and_it_goes_on_once_there_is_room(tmp_path, monkeypatch):
    begun(tmp_path / "whole", checkpoint_every="1 steps").train()
    run = begun(tmp_path / "r", checkpoint_every="1 steps")
    with monkeypatch.context() as patch:
        patch.setattr(disk, "calls", Refusing("step-000000007", 1))
        with pytest.raises(CheckpointError) as error:
            run.train()
    assert error.value.exit_code == 4
    for part in "No space left on device", "Make room in", "Step 6 is saved", "gpbackprop resume", "epoch 2":
        assert part in str(error.value)
    assert json.loads((tmp_path / "r" / "run.json").read_text())["sessions"][-1]["exit_code"] == 4
    assert max(steps(tmp_path / "r")) == 6
    assert not [name for name in os.listdir(tmp_path / "r" / "checkpoints") if name.endswith(".tmp")]
    Run.open(tmp_path / "r", "cpu").train()
    assert outcome(tmp_path / "r") == outcome(tmp_path / "whole")


def test_by_policy_training_goes_on_warns_and_tries_again(tmp_path, monkeypatch, caplog):
    begun(tmp_path / "whole").train()
    run = begun(tmp_path / "r", on_save_error="continue")
    monkeypatch.setattr(disk, "calls", Refusing("step-000000004", 1))
    with caplog.at_level(logging.WARNING, "gpbackprop"):
        assert run.train()[0] == 0
    assert [record.getMessage() for record in caplog.records if "No space left on device" in record.getMessage()]
    assert "the next save tries again" in (tmp_path / "r" / "log.txt").read_text()
    told = [row.get("save_error", "") for row in read_metrics(tmp_path / "r" / "metrics.jsonl")]
    assert ["No space left" in text for text in told].count(True) == 1
    assert not told[0]  # its save had not failed yet
    assert steps(tmp_path / "r") == [8, 12]
    assert outcome(tmp_path / "r") == outcome(tmp_path / "whole")


def test_what_cannot_be_saved_at_the_end_is_an_error_whatever_the_policy(tmp_path, monkeypatch):
    run = begun(tmp_path / "r", on_save_error="continue")
    monkeypatch.setattr(disk, "calls", Refusing("step-", 1000, errno.EROFS))
    with pytest.raises(CheckpointError, match=r"after step 12.*Read-only.*No step of this run is saved yet") as error:
        run.train()
    assert "resume" in str(error.value)


def test_a_save_under_way_is_finished_when_training_fails(tmp_path, monkeypatch):
    save = series.save
    monkeypatch.setattr(series, "save", lambda *args: (threading.Event().wait(0.05), save(*args)))
    run = begun(tmp_path / "r", checkpoint_every="3 steps")

    class Broken(recorder.Hook):
        def on_step(self, trainer):
            if trainer.step == 3:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run.train(hooks=[Broken()])
    assert steps(tmp_path / "r") == [3]


def test_a_lost_save_is_told_when_training_fails_with_something_else(tmp_path, monkeypatch, caplog):
    run = begun(tmp_path / "r", checkpoint_every="3 steps")
    monkeypatch.setattr(disk, "calls", Refusing("step-", 1))

    class Broken(recorder.Hook):
        def on_step(self, trainer):
            if trainer.step == 3:
                raise ZeroDivisionError

    with caplog.at_level(logging.WARNING, "gpbackprop"), pytest.raises(ZeroDivisionError):
        run.train(hooks=[Broken()])
    assert "No space left on device" in caplog.text


@pytest.mark.parametrize("policy", ["stop", "continue"])
def test_lines_of_metrics_that_found_no_room_are_written_later_or_training_stops(tmp_path, policy):
    begun(tmp_path / "whole").train()
    run = begun(tmp_path / "r", on_save_error=policy)
    metrics = tmp_path / "r" / "metrics.jsonl"
    metrics.mkdir()

    class Repair(recorder.Hook):
        def on_epoch(self, trainer, row):
            if trainer.epoch == 2:
                metrics.rmdir()

    if policy == "stop":
        with pytest.raises(CheckpointError, match=r"metrics.jsonl: could not be written.*resume"):
            run.train(hooks=[Repair()])
    else:
        assert run.train(hooks=[Repair()])[0] == 0
        assert outcome(tmp_path / "r") == outcome(tmp_path / "whole")


def test_a_step_whose_save_is_under_way_when_training_stops_is_named_as_safe(tmp_path, monkeypatch):
    run, stopping, save = begun(tmp_path / "r"), threading.Event(), series.save
    metrics = tmp_path / "r" / "metrics.jsonl"

    class Fill(recorder.Hook):
        def on_epoch(self, trainer, row):
            metrics.unlink()
            metrics.mkdir()
            threading.Timer(0.1, stopping.set).start()

    monkeypatch.setattr(series, "save", lambda *args: (stopping.wait(10), save(*args)))
    with pytest.raises(CheckpointError, match=r"metrics.jsonl: could not be written.* Step 4 is saved, and whole"):
        run.train(hooks=[Fill()])
    assert steps(tmp_path / "r") == [4]


def test_half_a_line_of_metrics_is_cut_off_before_the_line_is_written_again(tmp_path, monkeypatch):
    class Torn:
        """A file that takes half of the second line."""

        lines = 0

        def __init__(self, path, mode):
            self.file = open(path, mode, buffering=0)  # noqa: SIM115
            self.tell, self.truncate = self.file.tell, self.file.truncate

        def write(self, text):
            Torn.lines += 1
            if Torn.lines == 2:
                self.file.write(text[: len(text) // 2])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self.file.write(text)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

    begun(tmp_path / "whole").train()
    run = begun(tmp_path / "r", on_save_error="continue")
    monkeypatch.setattr(recorder, "open", Torn, raising=False)
    assert run.train()[0] == 0
    assert outcome(tmp_path / "r") == outcome(tmp_path / "whole")


@pytest.mark.parametrize(("code", "fatal"), [(errno.EINVAL, False), (errno.EIO, True)])
def test_a_file_system_that_never_syncs_a_directory_is_used_and_a_broken_one_is_told(
    tmp_path, monkeypatch, code, fatal
):
    def fsync(fd):
        if os.path.isdir(f"/proc/self/fd/{fd}"):
            raise OSError(code, os.strerror(code))

    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("needs /proc, which tells a directory from a file")
    monkeypatch.setattr(disk.Calls, "fsync", staticmethod(fsync))
    if fatal:
        with pytest.raises(CheckpointError, match=r"did not confirm it: Input/output error"):
            checkpoint.save(tmp_path, 1, content(1), keep=1)
    else:
        checkpoint.save(tmp_path, 1, content(1), keep=1)
        assert checkpoint.latest(tmp_path)


def test_a_log_and_facts_that_cannot_be_written_are_told_and_training_goes_on(tmp_path, monkeypatch, caplog):
    run = begun(tmp_path / "r")
    (tmp_path / "r" / "log.txt").mkdir()
    monkeypatch.setattr(disk, "calls", Refusing("run.json", 1000))

    class Talking(recorder.Hook):
        def on_epoch(self, trainer, row):
            recorder.log.info("epoch %d", trainer.epoch)

    with caplog.at_level(logging.INFO, "gpbackprop"):
        assert run.train(hooks=[Talking()])[0] == 0
    told = [record.getMessage() for record in caplog.records]
    assert len([text for text in told if "log.txt: could not be written" in text]) == 1
    assert [text for text in told if "run.json: could not be written" in text]
