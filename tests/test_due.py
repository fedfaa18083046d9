"""Which steps a run saves that nobody stops; what a stop saves takes no place among them."""

from pathlib import Path

import fake_cupy
import pytest

from gpbackprop.config import parse
from gpbackprop.due import Due
from gpbackprop.run import Run, read_metrics
from gpbackprop.trainer import Hook

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
PER_EPOCH = 3


class StopAt(Hook):
    def __init__(self, *steps: int):
        self.steps = steps

    def on_step(self, trainer):
        if trainer.step in self.steps:
            trainer.stop()


def begun(path: Path, *settings: str) -> Run:
    config = parse(CONFIG, "small.toml", settings)
    return Run.start(path, config, config.text(), "cpu")


def steps(path: Path) -> list[int]:
    return sorted(int(file.stem[5:]) for file in (path / "checkpoints").glob("*.h5"))


def newest(path: Path) -> bytes:
    return max((path / "checkpoints").glob("*.h5")).read_bytes()


@pytest.mark.parametrize(
    ("every", "due"),
    [
        ("1", {0, 3, 6, 9}),
        ("2", {0, 6}),
        ('"4 steps"', {0, 4, 8}),
        ('"1 minute"', set(range(12))),
    ],
)
def test_what_is_due_is_known_of_every_step(tmp_path, every, due):
    one = begun(tmp_path / "r", f"train.checkpoint_every={every}")
    assert one.trainer.steps_per_epoch == PER_EPOCH
    assert {step for step in range(12) if Due(one.trainer).at(step)} == due


def test_the_best_epochs_of_the_history_are_due(tmp_path):
    one = begun(tmp_path / "r", "train.checkpoint_every=100")
    one.train()
    best, rows = float("inf"), []
    for row in read_metrics(one.metrics_file):
        if row["validation_loss"] < best:
            best = row["validation_loss"]
            rows.append(row["step"])
    assert rows
    assert {step for step in range(1, 13) if Due(one.trainer).at(step)} == set(rows)


def test_stops_push_no_checkpoint_out_that_an_undisturbed_run_keeps(tmp_path):
    settings = ("train.keep=2", "train.early_stopping={patience=9, monitor='train_loss'}")
    begun(tmp_path / "r", *settings).train(hooks=[StopAt(7)])
    assert steps(tmp_path / "r") == [3, 6, 7]
    Run.open(tmp_path / "r", "cpu").train(hooks=[StopAt(8)])
    assert steps(tmp_path / "r") == [3, 6, 8]
    Run.open(tmp_path / "r", "cpu").train()
    assert steps(tmp_path / "r") == [9, 12]


def test_a_run_that_was_stopped_has_what_a_rollback_goes_to(tmp_path):
    settings = ("optimizer.lr=3e37", "train.on_nan=rollback", "train.rollbacks=200", "train.keep=1")
    begun(tmp_path / "whole", *settings).train()
    begun(tmp_path / "r", *settings).train(hooks=[StopAt(1)])
    Run.open(tmp_path / "r", "cpu").train()
    assert newest(tmp_path / "r") == newest(tmp_path / "whole")


# Where several steps go to the device together.

RUNAWAY = """
seed = 4
[data]
source = "iris"
task = "reconstruction"
normalize = "none"
[[model]]
type = "dense"
units = 4
[loss]
type = "half_squared_error"
[optimizer]
type = "sgd"
lr = 0.07
[train]
epochs = 2
batch_size = 3
on_nan = "rollback"
"""


class StopFrom(StopAt):
    """Stops at the first chance from a step on."""

    def on_step(self, trainer):
        trainer.stop_requested = trainer.step >= self.steps[0]


@pytest.mark.parametrize("every", [20, 60])
@pytest.mark.parametrize("schedule", ["{type='constant'}", "{type='cosine', floor=0.95}"])
def test_on_cuda_too_a_stopped_run_goes_back_from_and_to_the_same_steps(tmp_path, monkeypatch, every, schedule):
    """With a rate that changes at each step they go one by one, else 16 at a time; the loss is looked at at times."""
    fake_cupy.install(monkeypatch)
    config = parse(RUNAWAY, "c.toml", (f"train.checkpoint_every='{every} steps'", f"optimizer.schedule={schedule}"))
    whole = Run.start(tmp_path / "whole", config, config.text(), "cuda")
    whole.train()
    assert whole.trainer.rollbacks == 1
    for step in (4, 21, 30, 39, 45):  # from step 38 on the loss is not finite, which is seen at step 40 or 50
        path = tmp_path / f"{step}"
        Run.start(path, config, config.text(), "cuda").train(hooks=[StopFrom(step)])
        resumed = Run.open(path, "cuda")
        resumed.train()
        assert resumed.trainer.history == whole.trainer.history, step
        assert steps(path) == steps(tmp_path / "whole"), step
        assert newest(path) == newest(tmp_path / "whole"), step
