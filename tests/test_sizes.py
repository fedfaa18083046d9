"""The memory of a run is known before it is asked for, and refused with what would fit."""

import json
import resource
import tracemalloc

import fake_cupy
import numpy as np
import pytest
from test_cli import CONFIG, gpbackprop

import gpbackprop as gp
from gpbackprop import sizes
from gpbackprop.backend import Backend, memory
from gpbackprop.backend.numpy import Backend as OnHost
from gpbackprop.errors import OutOfMemoryError
from gpbackprop.optim.base import Optimizer
from gpbackprop.run import Run
from gpbackprop.spec import family

IRIS = {"validation": 0.2, "test": 0.2}


def trainer(optimizer=None, model=None, **settings):
    model = model or gp.Chain(gp.Dense(64), gp.BatchNorm(), gp.Tanh(), gp.Dropout(0.2), gp.Dense(3))
    settings = {"batch_size": 16, "device": "cpu"} | settings
    return gp.Trainer(
        model, gp.SoftmaxCrossEntropy(), optimizer or gp.SGD(0.1), gp.data.load("iris", **IRIS), **settings
    )


@pytest.mark.parametrize("population", [1, 3])
def test_the_sizes_are_those_of_the_plans_that_are_made_then(population):
    run = trainer(population=population)
    found = run.sizes
    for size in (16, 90 % 16):
        run.training.batch(size)
    plans = [batch.plan for batch in run.training.batches.values()]
    assert sum(found.layers.values()) == sum(sum(plan.sizes.values()) for plan in plans)
    assert 0 < sum(plan.arena.buffer.nbytes for plan in plans) <= sum(found.layers.values())
    assert list(found.layers) == [sizes.REST, "0-dense", "1-batch_norm", "2-tanh", "3-dropout", "4-dense"]
    assert found.parameters == sum(array.nbytes for array in (run.network.w, run.network.g, run.network.state))


def test_what_is_said_is_what_is_taken():
    def train():
        wide = gp.Chain(gp.Dense(400), gp.Tanh(), gp.Dense(3))
        run = trainer(gp.Adam(0.01), wide, batch_size=64, population=20, epochs=1)
        run.fit()
        run.evaluate("test")
        return run

    train()  # whatever is made once
    tracemalloc.start()
    run = train()
    taken = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert run.sizes.total == pytest.approx(taken, rel=0.15)


@pytest.mark.parametrize("name", sorted(set(family(Optimizer)) - {"levenberg_marquardt"}))
def test_the_arrays_of_an_optimizer_are_counted(name):
    cls = family(Optimizer)[name]
    run = trainer(cls.example(), batch_size="full", population=3)
    at_least = sum(array.nbytes for array in run.update.state.values()) + run.network.w.nbytes
    assert at_least <= run.sizes.optimizer <= at_least + 8 * run.network.w.nbytes


def test_an_optimizer_with_patterns_of_paths_is_measured_too():
    run = trainer(gp.SGD(0.1, momentum=0.9, freeze=("0-dense/W",), lr_factors={"4-dense/*": 2.0}, average=0.9))
    assert run.sizes.optimizer == run.network.w.nbytes * 3


def test_what_does_not_fit_is_refused_with_each_part_and_the_largest_batch_that_would(monkeypatch):
    fits = trainer(batch_size=11).sizes.total
    monkeypatch.setattr(OnHost, "available", lambda self: fits)
    with pytest.raises(OutOfMemoryError) as told:
        trainer(batch_size=80)
    assert told.value.exit_code == 7
    for said in ("0-dense", "optimizer", "evaluation", "are free on cpu"):
        assert said in str(told.value)
    batch = int(str(told.value).rpartition("batch_size=")[2])
    assert batch >= 11
    assert trainer(batch_size=batch).sizes.total <= fits
    with pytest.raises(OutOfMemoryError):
        trainer(batch_size=batch + 1)


def test_where_not_even_one_row_fits_that_is_said_and_where_nothing_is_known_nothing_is_refused(monkeypatch):
    monkeypatch.setattr(OnHost, "available", lambda self: 1000)
    with pytest.raises(OutOfMemoryError, match="not even a batch of one row fits"):
        trainer()
    monkeypatch.setattr(OnHost, "available", lambda self: None)
    trainer()


def test_a_device_is_asked_for_its_own_memory_and_gets_the_data(monkeypatch):
    machine = fake_cupy.install(monkeypatch)
    run = trainer(device="cuda")
    assert run.sizes.total > trainer().sizes.total
    machine.free = 5000
    with pytest.raises(OutOfMemoryError, match="free on cuda:0"):
        trainer(device="cuda")


def test_an_array_that_no_machine_holds_is_out_of_memory():
    with pytest.raises(OutOfMemoryError, match="no machine holds an array"):
        trainer(model=gp.Chain(gp.Dense(10**18), gp.Dense(3)))


def test_memory_that_ends_in_the_middle_of_training_is_told_with_the_sizes(tmp_path, monkeypatch):
    def full(self, *_):
        raise MemoryError("Unable to allocate 1 GiB")

    config = gp.config.parse(CONFIG, "small.toml")
    run = Run.start(tmp_path / "r", config, CONFIG, "cpu")
    monkeypatch.setattr(gp.Trainer, "_run_epoch", full)
    with pytest.raises(OutOfMemoryError, match=r"Unable to allocate 1 GiB(.|\n)*0-dense"):
        run.train()
    assert json.loads((tmp_path / "r" / "run.json").read_text())["sessions"][0]["exit_code"] == 7


def test_inspect_tells_the_sizes_of_a_config(tmp_path):
    (tmp_path / "small.toml").write_text(CONFIG)
    said = gpbackprop("inspect", "small.toml", cwd=tmp_path).stdout
    for part in ("67 parameters", "0-dense", "optimizer", "training takes"):
        assert part in said
    facts = json.loads(gpbackprop("inspect", "small.toml", "--json", cwd=tmp_path).stdout)
    assert facts["bytes"]["layers"].keys() == {sizes.REST, "0-dense", "1-dense"}
    assert facts["total_bytes"] > 0
    assert [*tmp_path.iterdir()] == [tmp_path / "small.toml"]
    (tmp_path / "large.toml").write_text(CONFIG.replace("units = 8", "units = 1000000000000"))
    assert "TiB" in gpbackprop("inspect", "large.toml", cwd=tmp_path, code=7).stdout


# What is available.


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A /proc and a tree of groups of our own: 1000 KiB on the machine, no group, no limit."""
    monkeypatch.setattr(memory, "PROC", tmp_path / "proc")
    monkeypatch.setattr(memory, "CGROUPS", tmp_path / "groups")
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable: 800 kB\nSwapFree: 200 kB\n")
    (tmp_path / "proc" / "self" / "status").write_text("Name: python\nVmSize: 300 kB\n")
    monkeypatch.setattr(resource, "getrlimit", lambda which: (resource.RLIM_INFINITY,) * 2)
    return tmp_path


def test_memory_is_what_the_machine_has_with_its_swap(machine):
    assert memory.available() == 1000 * 1024


def test_memory_is_what_the_groups_leave(machine):
    (machine / "proc" / "self" / "cgroup").write_text("1:cpu:/x\n0::/job/step\n")
    for path, limit, used, cached in (("job", "500000", 100000, 40000), ("job/step", "max", 5, 5)):
        group = machine / "groups" / path
        group.mkdir(parents=True)
        (group / "memory.max").write_text(limit + "\n")
        (group / "memory.current").write_text(f"{used}\n")
        (group / "memory.stat").write_text(f"anon 3\nfile {cached}\n")
    assert memory.available() == 440000


def test_memory_is_what_the_limit_of_the_process_leaves(machine, monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda which: (700 * 1024,) * 2)
    assert memory.available() == 400 * 1024


def test_memory_is_not_known_where_the_system_does_not_say(machine):
    (machine / "proc" / "meminfo").unlink()
    assert memory.available() is None


def test_this_machine_has_some():
    assert Backend().available() is None or Backend().available() > 2**20
    assert np.isfinite(trainer().sizes.total)
