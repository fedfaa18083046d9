"""scripts/gpu_facts.py and scripts/gpu_suite.sh, as far as they go without a GPU."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import fake_cupy
import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def facts(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import gpu_facts

    monkeypatch.setattr(gpu_facts, "REPEATS", 1)
    monkeypatch.setattr(gpu_facts, "SHAPES", [(2, 3, 4, 5)])
    return gpu_facts


def test_the_facts_of_a_device_are_measured_printed_and_written(facts, monkeypatch, tmp_path, capsys):
    fake_cupy.install(monkeypatch)
    monkeypatch.setattr(sys, "argv", ["gpu_facts.py", "--json", str(tmp_path / "facts.json")])
    facts.main()
    found = json.loads((tmp_path / "facts.json").read_text())
    assert found["a captured step"] == {"times": 1000, "captured": True, "same bits": True}
    assert found["exactness"]["cuBLASLt float32"] < 2 < 100 < found["exactness"]["cuBLASLt tf32"]
    assert [row["mapping"] for row in found["products, us"]] == ["Y = X W + b", "dX = dY W'", "dW = X' dY"]
    assert [row["nodes"] for row in found["nodes"]] == [10, 100, 1000, 10_000]
    assert "Imaginary GPU" in capsys.readouterr().out


def test_without_a_device_the_facts_say_why(facts, monkeypatch):
    fake_cupy.install(monkeypatch, devices=0)
    monkeypatch.setattr(sys, "argv", ["gpu_facts.py"])
    with pytest.raises(SystemExit, match=r"no figures: cuda: .* shows no device"):
        facts.main()


@pytest.mark.skipif(not shutil.which("bash"), reason="there is no bash")
def test_the_suite_says_of_each_stage_why_it_was_skipped(tmp_path):
    environment = os.environ | {"OUT": str(tmp_path), "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""}
    command = ["bash", str(ROOT / "scripts/gpu_suite.sh")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    stages = json.loads((tmp_path / "suite.json").read_text())["stages"]
    assert [row["stage"] for row in stages] == ["facts", "graphs", "battery", "sanitizer", "bench"]
    assert all(row["outcome"].startswith("skipped: cuda: ") for row in stages)
    assert done.stdout.count("skipped: cuda: ") == 2 * len(stages)
