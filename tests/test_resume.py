"""A run that is gone on with has the bits of one that was never touched, or says that it could not."""

import importlib
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import gpbackprop as gp
from gpbackprop import numerics, run
from gpbackprop.backend import Backend
from gpbackprop.config import Config, parse
from gpbackprop.errors import NumericalError, UsageError
from gpbackprop.optim.base import Optimizer
from gpbackprop.run import Run, read_metrics
from gpbackprop.spec import family

ROOT = Path(gp.__file__).parent.parent
CONFIG = """
seed = 4
[data]
source = "iris"
validation = 0.2
[[model]]
type = "dense"
units = 4
activation = "tanh"
[[model]]
type = "dense"
units = 3
[loss]
type = "softmax_cross_entropy"
[optimizer]
type = "sgd"
lr = 0.1
[train]
epochs = 4
batch_size = 40
"""


def begun(path: Path, *settings: str) -> Run:
    config = parse(CONFIG, "small.toml", settings)
    return Run.start(path, config, config.text(), "cpu")


def lines(path: Path) -> list[dict]:
    """What metrics.jsonl says, without what a clock says."""
    return [
        {name: value for name, value in row.items() if name not in ("seconds", "samples_per_second")}
        for row in read_metrics(path / "metrics.jsonl")
    ]


def newest(path: Path) -> bytes:
    return max((path / "checkpoints").glob("step-*.h5")).read_bytes()


@pytest.fixture
def whole(tmp_path):
    """A finished run."""
    begun(tmp_path / "whole").train()
    return tmp_path / "whole"


# Every step.


@pytest.fixture
def torture(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    return importlib.import_module("torture_resume")


@pytest.mark.parametrize("name", sorted(family(Optimizer)))
def test_every_step_of_some_runs_with_each_optimizer_is_one_to_go_on_from(name, torture, tmp_path):
    rng = random.Random(name)
    kinds = [kind for kind in torture.matrix() if type(kind.optimizer) is family(Optimizer)[name]]
    kinds = [rng.choice([kind for kind in kinds if kind.network == network]) for network in torture.NETWORKS]
    row = torture.in_matrix(name, tmp_path, kinds[: 1 + (name == "adam") * 2], Backend(), rng)
    assert row.injected >= 12
    assert row.notes == []
    assert row.survived == row.injected


def test_state_that_a_checkpoint_lacks_is_counted(torture, tmp_path, monkeypatch):
    restore = gp.Trainer.restore

    def forgetful(self, content):
        restore(self, content)
        for array in self.update.state.values():
            array.fill(0)

    monkeypatch.setattr(gp.Trainer, "restore", forgetful)
    kind = next(k for k in torture.matrix() if isinstance(k.optimizer, gp.SGD) and k.optimizer.momentum)
    row = torture.in_matrix("x", tmp_path, [kind], Backend(), random.Random(1))
    assert row.silent > 5


def test_a_run_with_folds_goes_on_by_its_directory(torture, tmp_path):
    row = torture.by_directory("folds", tmp_path / "folds", torture.RUNS["folds"], "cpu", short=True)
    assert row.survived == row.injected >= 2


def test_a_run_in_portions_goes_on_by_its_directory(torture, tmp_path):
    row = torture.by_directory("portions", tmp_path / "portions", torture.RUNS["portions"], "cpu", short=True)
    assert row.survived == row.injected >= 2


# metrics.jsonl.


def damaged(path: Path, how) -> None:
    """Train two epochs of four, then change the lines of metrics.jsonl."""
    begun(path, "train.epochs=2").train()
    file = path / "metrics.jsonl"
    file.write_bytes(b"".join(how(file.read_bytes().splitlines(keepends=True))))


@pytest.mark.parametrize(
    "how",
    [
        lambda rows: [*rows, b'{"epoch": 3, "tra'],
        lambda rows: [*rows, rows[1].replace(b'"epoch": 2', b'"epoch": 3')],
        lambda rows: [*rows, b"\0" * 512],
        lambda rows: [*rows, b"\xff\xfe\n"],
        lambda rows: [rows[0], rows[1][:-20]],
        lambda rows: [rows[0], rows[0], rows[1], rows[1]],
        lambda rows: [rows[1]],
        lambda rows: [b"7\n", *rows],
        lambda rows: [rows[0], rows[1].replace(b'"step": 6', b'"step": 7')],
        lambda rows: [],
    ],
    ids=["torn", "later", "zeros", "no text", "torn within", "doubled", "gap", "no rows", "changed", "gone"],
)
def test_metrics_have_each_epoch_once_after_whatever_happened_to_the_file(how, whole, tmp_path):
    damaged(tmp_path / "r", how)
    Run.open(tmp_path / "r", "cpu", epochs=4).train()
    assert lines(tmp_path / "r") == lines(whole)


def test_what_is_not_damaged_in_metrics_keeps_its_seconds(tmp_path):
    damaged(tmp_path / "r", lambda rows: [*rows, b"{"])
    before = read_metrics(tmp_path / "r" / "metrics.jsonl")
    Run.open(tmp_path / "r", "cpu")
    assert read_metrics(tmp_path / "r" / "metrics.jsonl") == before
    assert all("seconds" in row for row in before)


# A crash before there is a checkpoint.


KILL = """
import os, signal, sys
from gpbackprop import run, trainer
def die(self, *a): os.kill(os.getpid(), signal.SIGKILL)
{target} = die
sys.argv = ["gpbackprop", "train", "small.toml", "--run-dir", "r", "--resume", "--device", "cpu", "-q"]
from gpbackprop.cli import main
main()
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL")
@pytest.mark.parametrize("target", ["trainer.Trainer._finish_epoch", "run.Run._fit", "run._replace"])
def test_the_same_line_starts_cleanly_after_a_crash_before_the_first_checkpoint(target, whole, tmp_path):
    (tmp_path / "small.toml").write_text(CONFIG)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    call = {"cwd": tmp_path, "env": environment, "capture_output": True, "encoding": "utf-8", "timeout": 60}
    killed = subprocess.run([sys.executable, "-c", KILL.format(target=target)], **call)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    line = ["train", "small.toml", "--run-dir", "r", "--resume", "--device", "cpu", "-q"]
    done = subprocess.run([sys.executable, "-m", "gpbackprop", *line], **call)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert lines(tmp_path / "r") == lines(whole)
    content = [gp.checkpoint.latest(path / "checkpoints").arrays("params") for path in (tmp_path / "r", whole)]
    assert all(content[0][name].tobytes() == content[1][name].tobytes() for name in content[1])
    assert "taken over from process" in (tmp_path / "r" / "log.txt").read_text()


def test_a_run_that_another_process_began_in_the_meantime_is_left_alone(tmp_path, monkeypatch):
    config, trainer = parse(CONFIG, "small.toml"), Config.trainer

    def slow(self, *arguments):
        monkeypatch.undo()
        begun(tmp_path / "r", "train.epochs=1").train()
        return trainer(self, *arguments)

    monkeypatch.setattr(Config, "trainer", slow)
    with pytest.raises(UsageError, match="holds a run by now"):
        Run.start(tmp_path / "r", config, config.text(), "cpu")
    assert Run.open(tmp_path / "r", "cpu").config.train.epochs == 1


def test_checkpoints_whose_config_is_gone_are_not_trained_over(whole):
    config, before = parse(CONFIG, "small.toml"), (whole / "metrics.jsonl").read_bytes()
    (whole / "config.resolved.toml").unlink()
    with pytest.raises(UsageError, match=r"holds checkpoints, but the config\.resolved\.toml"):
        Run.start(whole, config, config.text(), "cpu")
    assert (whole / "metrics.jsonl").read_bytes() == before


def test_a_resume_removes_what_a_kill_has_left_and_nothing_else(whole):
    left = whole / ".metrics.jsonl.0123456789abcdef.tmp"
    foreign = whole / ".metrics.jsonl.tmp"
    for path in (left, foreign):
        path.write_text("{")
    Run.open(whole, "cpu")
    assert not left.exists()
    assert foreign.exists()


def test_a_process_that_lost_its_directory_stops_before_it_writes_there(tmp_path):
    one = begun(tmp_path / "r")
    one._lock._heart.lost = True
    with pytest.raises(UsageError, match="another process has taken it over"):
        one.train()
    assert not [*(tmp_path / "r" / "checkpoints").iterdir()]


# Other machines.


def test_a_resume_where_other_bits_would_come_is_refused_says_why_and_can_be_allowed(tmp_path, monkeypatch, caplog):
    begun(tmp_path / "r", "train.epochs=2").train()
    here = numerics.numerics(Backend())
    assert Run.open(tmp_path / "r", "cpu", epochs=3)  # the very same machine
    assert Run.open(tmp_path / "r", "cpu", epochs=2)
    monkeypatch.setattr(run, "numerics", lambda backend: here | {"numpy": "9.9.9", "BLAS threads": 77})
    with pytest.raises(
        UsageError, match=r"numpy: 9\.9\.9 here, .* before\n  BLAS threads: 77 here, (.*\n)*.*--allow-inexact"
    ):
        Run.open(tmp_path / "r", "cpu", epochs=3)
    assert Run.open(tmp_path / "r", "cpu").train()[0] == 0  # complete: nothing is trained, and it stays refused
    with pytest.raises(UsageError, match="--allow-inexact"):
        Run.open(tmp_path / "r", "cpu", epochs=3)
    with caplog.at_level("WARNING", "gpbackprop"):
        Run.open(tmp_path / "r", "cpu", epochs=3, allow_inexact=True).train()
    assert "numpy: 9.9.9 here" in caplog.text
    facts = json.loads((tmp_path / "r" / "run.json").read_text())
    assert facts["numerics"]["numpy"] == "9.9.9"
    assert facts["sessions"][-1]["inexact"][0].startswith("numpy: 9.9.9 here")
    assert "inexact" not in facts["sessions"][0]
    Run.open(tmp_path / "r", "cpu", epochs=4).train()  # and from now on this is the machine


def test_a_resume_without_run_json_says_what_is_not_known(tmp_path, caplog):
    begun(tmp_path / "r", "train.epochs=2").train()
    (tmp_path / "r" / "run.json").unlink()
    with caplog.at_level("WARNING", "gpbackprop"):
        Run.open(tmp_path / "r", "cpu", epochs=3)
    assert "run.json: does not say on what the run was trained" in caplog.text


def test_a_run_without_a_checkpoint_starts_on_any_machine(tmp_path, monkeypatch):
    one = begun(tmp_path / "r")
    one._write_facts([])
    one._lock.close()
    monkeypatch.setattr(run, "numerics", lambda backend: {"numpy": "9.9.9"})
    assert Run.open(tmp_path / "r", "cpu").train()[0] == 0


def test_numerics_name_what_the_bits_depend_on(monkeypatch):
    facts = numerics.numerics(Backend())
    assert facts["numpy"] == np.__version__
    assert facts["gpbackprop"] == gp.__version__
    assert facts["BLAS threads"] == 1  # as conftest.py asks for
    assert facts == numerics.numerics(Backend())
    monkeypatch.setattr(numerics, "openblas", lambda: None)
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "3")
    assert numerics.numerics(Backend())["BLAS threads"] == 3
    assert numerics.differences({"a": 1, "b": 2}, {"b": 2, "c": 3}) == [
        "a: nothing here, 1 before",
        "c: 3 here, nothing before",
    ]


# Rollback.


WILD = ("optimizer.lr=3e37", "train.on_nan=rollback", "train.checkpoint_every=1", "train.rollbacks=200")


def test_a_rollback_goes_back_to_the_last_checkpoint_with_half_the_rate_until_it_holds(tmp_path, caplog):
    with caplog.at_level("WARNING", "gpbackprop"):
        code, _ = begun(tmp_path / "r", *WILD).train()
    assert code == 0
    rows = lines(tmp_path / "r")
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    told = [row["rollback"] for row in rows if "rollback" in row]
    assert told[-1]["count"] == caplog.text.count("Rolled back: on from step")
    assert rows[-1]["lr"] == pytest.approx(3e37 * 0.5 ** told[-1]["count"])
    assert "with half the learning rate, rollback 1 of up to 200" in caplog.text
    facts = json.loads((tmp_path / "r" / "run.json").read_text())
    assert facts["sessions"][0]["exit_code"] == 0
    assert (tmp_path / "r" / "log.txt").read_text().count("Rolled back") == told[-1]["count"]


def test_a_run_that_was_stopped_before_or_after_a_rollback_goes_on_to_the_same_bits(tmp_path, torture):
    wild = ("optimizer.lr=1.4e37", *WILD[1:])
    whole = begun(tmp_path / "whole", *wild)
    whole.train()
    assert whole.trainer.rollbacks == 1
    for step in range(1, 2 * whole.trainer.steps_per_epoch + 1):
        path = tmp_path / f"{step}"
        begun(path, *wild).train(hooks=[torture.StopAt(step)])
        Run.open(path, "cpu").train()
        assert newest(path) == newest(tmp_path / "whole"), step
        assert lines(path) == lines(tmp_path / "whole"), step


def test_going_back_leaves_the_step_as_the_newest_and_no_best_that_is_gone(tmp_path):
    begun(tmp_path / "r").train()
    directory = tmp_path / "r" / "checkpoints"
    first, *later = sorted(gp.checkpoint.files(directory))
    assert later
    gp.checkpoint.mark_best(directory, later[-1], {"value": 1.0})
    gp.checkpoint.go_back(directory, first)
    assert [*gp.checkpoint.files(directory)] == [first]
    assert gp.checkpoint.best(directory) is None
    assert int(gp.checkpoint.latest(directory).arrays("progress")["step"]) == first
    assert json.loads((directory / "last.json").read_text())["step"] == first


def test_rollbacks_come_to_an_end(tmp_path):
    with pytest.raises(NumericalError, match="training stopped"):
        begun(tmp_path / "r", *WILD[:2], "train.rollbacks=1").train()
    facts = json.loads((tmp_path / "r" / "run.json").read_text())
    assert facts["sessions"][0]["exit_code"] == 6
    assert (tmp_path / "r" / "log.txt").read_text().count("Rolled back") == 1
    assert gp.load(tmp_path / "r")  # the last good one is whole
