"""scripts/slurm_train.sh with a Slurm of our own: as many attempts as it takes, and the bits of one."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import gpbackprop
from gpbackprop import checkpoint

ROOT = Path(gpbackprop.__file__).parent.parent
pytestmark = pytest.mark.skipif(not shutil.which("bash"), reason="there is no bash")


@pytest.fixture
def job(tmp_path):
    """Starts an attempt of the job with so many epochs; commands of Slurm are noted in the file `asked`."""
    text = (ROOT / "scripts" / "slurm_train.sh").read_text()
    for there, here in [
        ("configs/digits.toml", f"{ROOT}/configs/iris.toml -q --device cpu --set train.epochs=$EPOCHS"),
        ("--grace 100", "--grace 100 --set train.checkpoint_every=100000"),
    ]:
        assert text.count(there) == 1
        text = text.replace(there, here)
    (tmp_path / "train.sh").write_text(text)
    (tmp_path / "gpbackprop").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m gpbackprop "$@"\n')
    (tmp_path / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> "{tmp_path}/asked"\n')
    for name in ("gpbackprop", "scontrol"):
        (tmp_path / name).chmod(0o755)

    def start(epochs: int, attempt: int = 0, number: int = 9) -> subprocess.Popen:
        environment = os.environ | {
            "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "SLURM_JOB_ID": str(number),
            "SLURM_RESTART_COUNT": str(attempt),
            "EPOCHS": str(epochs),
        }
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(["bash", tmp_path / "train.sh"], cwd=tmp_path, env=environment, **pipes)

    return start


def newest(run: Path):
    return checkpoint.latest(run / "checkpoints")


def grown(run: Path) -> int:
    file = run / "metrics.jsonl"
    return file.stat().st_size if file.exists() else 0


def test_a_job_goes_back_to_the_queue_when_its_time_ends_alone_and_ends_with_the_bits_of_one_attempt(job, tmp_path):
    run = tmp_path / "runs" / "digits-9"
    for attempt, number in enumerate((signal.SIGUSR1, signal.SIGTERM)):
        before = newest(run).arrays("progress")["step"] if attempt else 0
        size = grown(run)
        process = job(100000, attempt)
        while process.poll() is None and grown(run) <= size:
            time.sleep(0.01)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 75, err
        assert ("attempt 1 of job 9" in out) == (number == signal.SIGUSR1)
        assert newest(run).arrays("progress")["step"] > before
    assert (tmp_path / "asked").read_text() == "requeue 9\n"
    epochs = int(newest(run).arrays("progress")["epoch"]) + 2
    for number in (9, 10):
        done = job(epochs, 2, number)
        out, err = done.communicate(timeout=60)
        assert done.returncode == 0, err
        assert "requeue" not in out
    assert (tmp_path / "asked").read_text() == "requeue 9\n"
    one, other = (newest(tmp_path / "runs" / name).arrays("params") for name in ("digits-9", "digits-10"))
    assert all(one[name].tobytes() == other[name].tobytes() for name in one)


def test_a_job_that_fails_is_not_sent_back(job, tmp_path):
    process = job(0)
    process.communicate(timeout=60)
    assert process.returncode == 2
    assert not (tmp_path / "asked").exists()
