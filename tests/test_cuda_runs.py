"""Runs on a CUDA device: what run.json keeps, what resumes, and how a failure ends the program."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import fake_cupy
import pytest

from gpbackprop import cli
from gpbackprop.backend import devices, faults, select
from gpbackprop.config import differences, parse, placed
from gpbackprop.errors import ConfigError, DeviceError
from gpbackprop.run import Run

CONFIG = """\
[data]
source = "iris"
[[model]]
type = "dense"
units = 3
[loss]
type = "softmax_cross_entropy"
[optimizer]
type = "sgd"
lr = 0.05
[train]
epochs = 2
batch_size = 16
precision = "tf32"
"""


def test_a_run_keeps_its_precision_and_the_version_of_what_multiplies(monkeypatch, tmp_path):
    machine = fake_cupy.install(monkeypatch)
    run = Run.start(tmp_path / "run", parse(CONFIG, "c.toml"), CONFIG, "cuda")
    run.train()
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert facts["precision"] == "tf32"
    assert facts["numerics"]["cuBLASLt"] == "13.1.4"
    assert {made for made, _, shape in machine.lt.seen if 16 in shape} == {77}
    again = Run.open(tmp_path / "run", "cuda", epochs=3)
    assert again.trainer.backend.precision == "tf32"
    assert again.train()[0] == 0


def test_another_precision_is_another_config_and_no_resume():
    one, other = (parse(CONFIG.replace("tf32", precision), "c.toml") for precision in ("tf32", "float32"))
    assert differences(one, other) == ["train.precision: 'tf32', not 'float32'"]


def test_a_precision_that_the_cpu_lacks_is_refused_with_its_line_before_anything_is_written(tmp_path):
    with (
        pytest.raises(ConfigError, match=r"^c\.toml:14: train\.precision: found 'tf32', which CUDA devices can do"),
        placed(CONFIG, "c.toml"),
    ):
        Run.start(tmp_path / "run", parse(CONFIG, "c.toml"), CONFIG, "cpu")
    assert not (tmp_path / "run").exists()


def test_a_precision_that_there_is_not_is_refused_with_those_there_are():
    with pytest.raises(ConfigError, match=r"c\.toml:14: train\.precision: .*bfloat16"):
        parse(CONFIG.replace("tf32", "float16"), "c.toml")


def test_each_gpu_that_cannot_be_used_has_a_reason_of_its_own(monkeypatch):
    busy = fake_cupy.CUDARuntimeError("cudaErrorDevicesUnavailable")
    fake_cupy.install(monkeypatch, devices=3, use_error=busy, broken=(1,))
    rows = devices()
    assert [row[:2] for row in rows] == [("cpu", True), ("cuda:0", True), ("cuda:1", False), ("cuda:2", True)]
    assert rows[2][2].startswith("cuda:1: the device is busy")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (fake_cupy.CUDARuntimeError("cudaErrorLaunchFailure", "unspecified launch failure"), 5),
        (fake_cupy.CUDARuntimeError("cudaErrorMemoryAllocation", "out of memory"), 7),
    ],
)
def test_an_error_of_cuda_outside_of_training_ends_any_command_with_its_code(monkeypatch, capsys, error, code):
    fake_cupy.install(monkeypatch)
    select("cuda")
    monkeypatch.setattr(sys, "argv", ["gpbackprop", "devices"])
    monkeypatch.setattr("gpbackprop.backend.devices", lambda: (_ for _ in ()).throw(error))
    assert cli._run() == code
    said = capsys.readouterr().err
    assert "internal error" not in said
    assert faults.reason(error) in said


def test_an_error_of_ours_or_of_the_file_system_is_not_taken_for_one_of_cuda():
    assert faults.told(DeviceError("cudaErrorNoDevice"), "cuda:0") is None
    assert faults.told(OSError("libcuda.so.1: No space left on device"), "cuda:0") is None


def test_a_run_that_fails_on_the_device_ends_with_code_5_and_says_why(tmp_path):
    """In a program of its own: the error arises in a hook, as the next wait for the device would raise it."""
    (tmp_path / "c.toml").write_text(CONFIG)
    program = textwrap.dedent("""
        import sys, pytest, fake_cupy
        from gpbackprop import cli, trainer
        fake_cupy.install(pytest.MonkeyPatch())
        def fails(self, plan, last):
            raise fake_cupy.CUDARuntimeError("cudaErrorIllegalAddress", "an illegal memory access was encountered")
        trainer.Trainer._probe = fails
        cli.main()
    """)
    command = [sys.executable, "-c", program, "train", "c.toml", "--device", "cuda", "--run-dir", "run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, env=_environment())
    assert done.returncode == 5, done.stderr
    assert "cuda:0: CUDARuntimeError: cudaErrorIllegalAddress" in done.stderr
    assert json.loads((tmp_path / "run" / "run.json").read_text())["sessions"][0]["exit_code"] == 5


def _environment():
    here = Path(__file__).parent
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(here), str(here.parent)])}
