"""scripts/bench.py runs with whatever is installed, and times nobody who does other work."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

SCRIPTS = Path(__file__).parent.parent / "scripts"


@pytest.fixture(autouse=True)
def _beside_the_script(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    monkeypatch.setattr(load("bench_machine"), "others", lambda: None)  # or a busy machine has rounds repeated


def load(name):
    return importlib.import_module(name)


class Fixed:
    """A contestant whose losses are known."""

    def __init__(self, name, *losses):
        self.name, self.losses = name, iter(losses)

    def order(self):
        return np.zeros((1, 1, 1), int)

    def epoch(self, order):
        loss = next(self.losses)
        return None if loss is None else np.array([loss])


def contestants(module, cls, name, steps=2):
    """Ours and another at a network, on a few batches."""
    work, ours = load("bench_work"), load("bench_ours")
    network = work.NETWORKS[name]
    rows = work.draw(steps * network.batch, network.shape, np.uint8)
    first = ours.Ours(network, rows, "cpu")
    return [first, getattr(load(module), cls)(network, rows, first.parameters(), "cpu")]


def test_the_short_form_runs_without_any_other_library(tmp_path):
    environment = os.environ | {
        "OPENBLAS_NUM_THREADS": "7",
        "PYTHONPATH": str(SCRIPTS.parent),
    }  # set anew by the script
    out = subprocess.run(
        [sys.executable, SCRIPTS / "bench.py", "--quick", "--threads", "1", "--rivals", "products",
         "--only", "784-128-64", "--json", tmp_path / "all.json"],
        capture_output=True, text=True, encoding="utf-8", env=environment, timeout=60,
    )  # fmt: skip
    assert out.returncode == 0, out.stderr
    found = json.loads((tmp_path / "all.json").read_text())
    assert found["machine"]["threads"] == 1
    step, epoch = found["results"]
    assert (step["measure"], epoch["measure"]) == ("step", "epoch")
    assert list(step["contestants"]) == ["gpbackprop", "products alone"]
    assert list(epoch["contestants"]) == ["gpbackprop"]
    assert "| 784-128-64-10, batch 64 |" in out.stdout


def test_what_is_not_installed_is_left_out_and_named(monkeypatch, capsys):
    for name in ("torch", "jax"):
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not there
        monkeypatch.delitem(sys.modules, f"bench_{name}", raising=False)
    assert list(load("bench").rivals(["torch", "jax", "products"])) == ["products"]
    assert capsys.readouterr().out.splitlines() == [
        "torch: left out, torch is not installed",
        "jax: left out, jax is not installed",
    ]


@pytest.mark.parametrize(("turn", "losses"), [(0, [0.6 + 1e-5]), (1, [0.6, 0.5 + 1e-3]), (1, [0.6, float("nan")])])
def test_a_contestant_with_another_loss_is_not_timed(turn, losses):
    sides = [Fixed("gpbackprop", 0.6, 0.5), Fixed("other", *losses)]
    with pytest.raises(ValueError, match=f"after {turn} rounds the losses of other"):
        load("bench").take_turns(sides, 1)


def test_rounds_in_which_others_work_are_repeated(monkeypatch):
    bench, machine = load("bench"), load("bench_machine")
    seconds = iter([0, 0, 0, 0, 0, 100, 0, 0, 0, 0])  # before and after each round: the third one is disturbed
    monkeypatch.setattr(machine, "others", lambda: next(seconds))
    sides = [Fixed("gpbackprop", *range(1, 6)), Fixed("other", *range(1, 6))]
    results = bench.take_turns(sides, 3)
    assert [len(each["seconds"]) for each in results.values()] == [3, 3]
    assert next(seconds, None) is None  # the first, which is not timed, and four more
    assert results["gpbackprop"]["others"] == 0


def test_where_others_never_rest_all_rounds_count_and_it_is_known(monkeypatch):
    bench, machine = load("bench"), load("bench_machine")
    seconds = iter(range(0, 10**9, 10**6))
    monkeypatch.setattr(machine, "others", lambda: next(seconds))
    results = bench.take_turns([Fixed("gpbackprop", *[1.0] * 10)], 3)
    assert len(results["gpbackprop"]["seconds"]) == 9
    assert results["gpbackprop"]["others"] > bench.BUSY


def test_the_first_turn_is_not_timed_and_who_does_not_train_is_not_compared():
    sides = [Fixed("gpbackprop", *[0.5] * 4), Fixed("other", 0.5, *[0.5 + 1e-5] * 3), Fixed("products", *[None] * 4)]
    results = load("bench").take_turns(sides, 3)
    assert [len(each["seconds"]) for each in results.values()] == [3, 3, 3]
    assert results["other"]["difference"] == pytest.approx(2e-5)


def test_everybody_gets_the_same_number_of_threads(monkeypatch):
    bench = load("bench_machine")
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=/here")
    wanted = bench.settings(1, "cpu")
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "PJRT_NPROC"):
        assert wanted[name] == "1"
    assert wanted["XLA_FLAGS"] == "--xla_dump_to=/here --xla_cpu_multi_thread_eigen=false"
    for name, value in wanted.items():
        monkeypatch.setenv(name, value)
    assert bench.settings(1, "cpu") == wanted  # it does not start again and again
    bench.with_settings(wanted)


def test_the_products_of_a_step_are_those_of_forward_and_backward():
    _, products = contestants("bench_ours", "Products", "784-128-64-10, batch 64")
    shapes = sorted(call[2].shape for call in products.calls)
    # x W of three layers, dy W^T of two, x^T dy of three; the biases are sums
    assert shapes == sorted(
        [(1, 64, 128), (1, 64, 64), (1, 64, 10), (1, 64, 128), (1, 64, 64), (1, 784, 128), (1, 128, 64), (1, 64, 10)]
    )
    assert products.epoch(np.zeros((2, 1, 64), int)) is None


SAME_WORK = [
    ("torch", "Eager", "784-30-10, batch 10"),
    ("torch", "Eager", "784-512-512-10, batch 128, Adam"),
    ("torch", "Eager", "CNN 5x5x32-5x5x64-128, batch 128"),
    ("torch", "Loader", "LSTM 128, 28 steps, batch 128"),
    ("torch", "Stacked", "64 x 784-30-10, batch 10"),
    ("jax", "Scan", "784-512-512-10, batch 128, Adam"),
    ("jax", "Scan", "CNN 5x5x32-5x5x64-128, batch 128"),
    ("jax", "Scan", "LSTM 128, 28 steps, batch 128"),
    ("jax", "Scan", "64 x 784-30-10, batch 10"),
    ("sklearn", "PartialFit", "784-128-64-10, batch 64"),
]


@pytest.mark.parametrize(("library", "cls", "name"), SAME_WORK)
def test_others_do_the_same_work(library, cls, name):
    pytest.importorskip(library)
    results = load("bench").take_turns(contestants(f"bench_{library}", cls, name), 1)
    assert len(results) == 2


def test_the_picture_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    each = {"us": [9.0, 10.0, 11.0], "ms": [9.0, 10.0, 11.0]}
    sides = {"gpbackprop": each | {"ratio": [1.0] * 3}, "JAX": each | {"ratio": [1.1, 1.2, 1.4]}}
    machine = {"cpu": "CPU", "device": "NumPy on the CPU", "threads": 1, "cores": 2, "versions": {"JAX": "1"}}
    results = [{"network": "a, batch 1", "measure": which, "contestants": sides} for which in ("step", "epoch")]
    load("bench_picture").draw({"machine": machine, "results": results}, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 10_000


def test_everybody_who_may_take_part_has_a_colour_in_the_picture():
    colours = load("bench_picture").COLOURS
    for module, cls in load("bench").RIVALS.values():
        try:
            assert getattr(load(module), cls).name in colours
        except ModuleNotFoundError:  # a library that is not installed
            continue


def test_a_population_does_the_work_of_its_members_one_by_one():
    results = load("bench").take_turns(contestants("bench_ours", "OneByOne", "64 x 784-30-10, batch 10"), 1)
    assert results["gpbackprop, one by one"]["difference"] == 0  # to the bit


def test_a_population_is_refused_by_those_who_have_none():
    one, many = SimpleNamespace(population=1), SimpleNamespace(population=2)
    refuses = load("bench_ours").OneByOne.refuses
    assert refuses(one, False, "cpu") == "for a population"
    assert refuses(many, False, "cpu") == ""
