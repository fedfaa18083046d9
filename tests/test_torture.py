"""The short forms of scripts/torture.py: nothing is lost, and what is lost would be counted."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parent.parent / "scripts"
MEMORY = Path("/dev/shm")  # a directory in memory, where a run takes a tenth of the time

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def torture(*arguments, tmp_path):
    place = MEMORY if os.access(MEMORY, os.W_OK) else tmp_path
    command = [sys.executable, SCRIPTS / "torture.py", *arguments, "--place", place, "--json", tmp_path / "all.json"]
    out = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=120)
    return out, json.loads((tmp_path / "all.json").read_text())["rows"] if out.returncode < 2 else out.stderr


@pytest.mark.parametrize(("name", "least"), [("kill", 100), ("io", 80), ("signals", 6), ("data", 1000)])
def test_nothing_is_lost(name, least, tmp_path):
    out, rows = torture(name, "--short", tmp_path=tmp_path)
    assert out.returncode == 0, out.stdout + out.stderr
    assert sum(row["injected"] for row in rows) >= least
    assert all(row["survived"] == row["injected"] for row in rows)


@pytest.fixture
def tortured(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module("torture_run")


def test_a_checkpoint_that_is_damaged_or_missing_counts_as_lost(tortured, tmp_path):
    tortured.train(tmp_path / "r", tortured.config(1))
    newest = max((tmp_path / "r" / "checkpoints").glob("step-*.h5"))
    step = int(newest.stem[5:])
    assert tortured.lost(tmp_path / "r", step) == ""
    newest.rename(tmp_path / "aside")
    assert f"step {step} was said to be saved" in tortured.lost(tmp_path / "r", step)
    newest.write_bytes((tmp_path / "aside").read_bytes()[:-1])
    assert "unreadable" in tortured.lost(tmp_path / "r", step)


def test_other_final_bits_count_as_silent(tortured, tmp_path):
    tortured.train(tmp_path / "r", tortured.config(1))
    wanted = tortured.Outcome.of(tmp_path / "r")
    row = tortured.Row("x")
    tortured.judge(row, tmp_path / "r", wanted, "nothing")
    metrics = tmp_path / "r" / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('"epoch": 1', '"epoch": 2'))
    tortured.judge(row, tmp_path / "r", wanted, "a change")
    assert (row.injected, row.survived, row.silent) == (2, 1, 1)
    assert row.notes == ["a change: other metrics than without a fault"]


def test_a_file_renamed_before_its_data_are_synced_is_lost_in_a_power_cut(tortured, tmp_path, monkeypatch):
    from gpbackprop.checkpoint import disk

    power = importlib.import_module("torture_power")
    create = disk._create

    def hasty(path, parts):
        with monkeypatch.context() as patch:
            patch.setattr(disk.calls, "fsync", lambda fd: None, raising=False)
            create(path, parts)

    monkeypatch.setattr(disk, "_create", hasty)
    row = power.power_cuts(tmp_path, tortured.config(1), None, None)
    assert row.lost
