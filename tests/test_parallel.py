"""Members of a population on several threads have the bits of one thread."""

import os

import numpy as np
import pytest

import gpbackprop as gp
from gpbackprop.backend import memory, parallel
from gpbackprop.backend.tape import Call


@pytest.fixture
def many(monkeypatch):
    """Two threads, whatever the machine has, and for small work too."""
    used = []
    together = parallel.together
    monkeypatch.setattr(parallel, "threads", lambda: 2)
    monkeypatch.setattr(parallel, "LEAST", 1)
    monkeypatch.setattr(parallel, "LARGEST", 10**9)
    monkeypatch.setattr(parallel, "together", lambda works: used.append(len(works)) or together(works))
    return used


def trained(population: int, *layers, data="digits", optimizer=None) -> gp.Trainer:
    loss = gp.SoftmaxCrossEntropy()
    rows = gp.data.load(data, shape=(8, 8, 1)) if data == "digits" else gp.data.load(data)
    trainer = gp.Trainer(
        gp.Chain(*layers), loss, optimizer or gp.SGD(0.05, momentum=0.9), rows, batch_size=300, population=population
    )
    trainer.fit(2)
    return trainer


MODELS = {
    "dense": (gp.Flatten(), gp.Dense(8, activation="relu"), gp.Dropout(0.2), gp.Dense(10)),
    "conv": (gp.Conv2d(3, 3, activation="relu"), gp.MaxPool2d(), gp.BatchNorm(), gp.Flatten(), gp.Dense(10)),
    "lstm": (gp.Reshape((8, 8)), gp.LSTM(3), gp.Dense(10)),
}


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("optimizer", [gp.SGD(0.05, momentum=0.9), gp.Adam(0.01)], ids=["sgd", "adam"])
@pytest.mark.parametrize("population", [2, 3])
def test_two_threads_give_the_bits_of_one(population, optimizer, model, many, monkeypatch):
    two = trained(population, *model, optimizer=optimizer)
    assert many
    monkeypatch.setattr(parallel, "threads", lambda: 1)
    del many[:]
    one = trained(population, *model, optimizer=optimizer)
    assert not many
    assert two.network.w.tobytes() == one.network.w.tobytes()
    assert two.network.state.tobytes() == one.network.state.tobytes()
    assert two.history == one.history


def test_a_network_alone_takes_one_thread(many):
    trained(1, *MODELS["dense"])
    assert not many


def test_small_networks_take_one_thread(many, monkeypatch):
    monkeypatch.setattr(parallel, "LEAST", 2**17)
    trained(3, gp.Dense(8, activation="relu"), gp.Dense(3), data="iris")
    assert not many


def test_a_run_ends_where_a_thread_would_write_what_another_one_reads():
    a, b = np.zeros((2, 4)), np.zeros((2, 4))
    record = [
        Call("add", np.add, (a, 1.0), a),
        Call("copyto", np.copyto, (a[::-1],), b),  # each member reads the other one
        Call("add", np.add, (b, 1.0), b),
    ]
    runs = list(parallel._runs(record, 2, 2))
    assert [(len(run), cut) for run, cut in runs] == [(1, True), (2, True)]


def test_what_goes_wrong_in_a_thread_is_raised(many):
    def fail():
        raise ZeroDivisionError("here")

    run = parallel.together([lambda: None, fail])
    with pytest.raises(ZeroDivisionError, match="here"):
        run()
    parallel.together([lambda: None, lambda: None])()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_has_threads_of_its_own(many):
    run = parallel.together([lambda: None, lambda: None])
    run()
    child = os.fork()
    if child == 0:
        run()
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


@pytest.mark.parametrize(("text", "most"), [("1", 1), ("0", 64), ("", 64), ("two", 64)])
def test_blas_with_one_thread_means_one_thread(text, most, monkeypatch):
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", text)
    monkeypatch.setattr(memory, "groups", list)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert parallel.threads() == most


@pytest.mark.parametrize(("quota", "most"), [("max 100000", 64), ("150000 100000", 2), ("20000 100000", 1), ("", 64)])
def test_a_quota_of_a_container_limits_the_cores(quota, most, tmp_path, monkeypatch):
    for name in ("OPENBLAS", "OMP", "MKL"):
        monkeypatch.delenv(f"{name}_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    monkeypatch.setattr(memory, "PROC", tmp_path / "proc")
    monkeypatch.setattr(memory, "CGROUPS", tmp_path / "groups")
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "self" / "cgroup").write_text("0::/outer/inner\n")
    (tmp_path / "groups" / "outer" / "inner").mkdir(parents=True)
    (tmp_path / "groups" / "outer" / "cpu.max").write_text(quota + "\n")
    assert parallel.threads() == most
