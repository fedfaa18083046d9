"""A step as a CUDA graph: what is captured, what is not and why, and that every way gives the same bits."""

import itertools
import logging

import emulation
import fake_cupy
import numpy as np
import pytest
from battery import Training, assert_same_bits, every, example, layers

import gpbackprop as gp
from gpbackprop.backend import Backend, kernels, select
from gpbackprop.errors import ConfigError, DeviceError
from gpbackprop.losses import Loss
from gpbackprop.optim.base import Optimizer
from gpbackprop.optim.schedules import Cosine, Exponential


@pytest.fixture
def fake(monkeypatch):
    machine = fake_cupy.install(monkeypatch)
    monkeypatch.setattr(fake_cupy.Graph, "launched", 0)
    backend = select("cuda")
    backend.machine = machine
    return backend


@pytest.fixture(params=["fake", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request, monkeypatch):
    if request.param == "fake":
        fake_cupy.install(monkeypatch)
    return select("cuda")


def launched() -> int:
    return fake_cupy.Graph.launched


# What a captured call is.


def test_a_step_is_run_once_captured_at_the_second_call_and_launched_from_then_on(fake):
    xp, a, ran = fake.xp, fake.array(np.array([1.0])), []

    def step():
        ran.append(True)
        xp.multiply(a, 2, out=a)

    run = fake.capture([step])
    graphs = []
    for times in range(1, 5):
        run()
        graphs.append(launched())
        assert fake.host(a).tolist() == [2**times]
    assert graphs == [0, 1, 2, 3]
    assert ran == [True], "the code of a step runs again"


def test_what_a_step_reads_and_writes_is_kept_alive_by_its_graph(fake):
    def make():
        xp, a = fake.xp, fake.array(np.array([1.0]))
        temporary = fake.array(np.array([3.0]))
        return fake.capture([lambda: xp.add(a, temporary, out=a)]), fake.array(np.array([0.0])), a

    run, _, a = make()
    run()
    run()
    operands = [x for launch in run.launches for x in (*launch.args, *launch.keywords.values())]
    assert any(x is a for x in operands)
    assert len(operands) == 3


def test_while_a_step_is_listened_to_nothing_is_computed(fake):
    xp, a = fake.xp, fake.array(np.array([1.0]))
    b = fake.array(np.array([[[1.0]]]))

    def step():
        xp.add(a, 1, out=a)
        xp.copyto(a, 5)
        fake.gemm(b, b, b)

    calls = fake.tape.record([step], listens=True)
    assert [call.name for call in calls] == ["add", "copyto", "gemm"]
    assert fake.host(a).tolist() == [1]
    assert not fake.tape.listens


def test_a_step_whose_result_has_no_place_is_neither_half_run_nor_captured(fake, caplog):
    xp, a, b = fake.xp, fake.array(np.array([1.0])), fake.array(np.array([0.0]))

    def step():
        xp.add(a, 1, out=a)
        xp.copyto(b, xp.sqrt(a))

    run = fake.capture([step])
    with caplog.at_level("INFO", "gpbackprop"):
        for _ in range(3):
            run()
    assert fake.host(a).tolist() == [4]
    assert fake.host(b).tolist() == [2]
    assert launched() == 0
    assert caplog.text.count("this step runs without a CUDA graph: xp.sqrt is called without out=") == 1


def test_python_code_of_others_runs_every_time_and_the_log_names_it(fake, caplog):
    xp, a, seen = fake.xp, fake.array(np.array([0.0])), []

    def counts():
        seen.append(len(seen))
        a[...] = float(len(seen))

    run = fake.capture([fake.tape.guard(counts), lambda: xp.multiply(a, 2, out=a)])
    with caplog.at_level("INFO", "gpbackprop"):
        for times in range(1, 4):
            run()
            assert fake.host(a).tolist() == [2 * times]
    assert launched() == 0
    assert "counts is Python code" in caplog.text


@pytest.mark.parametrize(
    ("misuse", "reason"),
    [
        (lambda backend, a: a.get(), "get()"),
        (lambda backend, a: a.set(np.zeros(1)), "set()"),
        (lambda backend, a: backend.module.zeros(3), "allocates"),
        (lambda backend, a: backend.module.add(a, 1), "allocates"),
        (lambda backend, a: float(a[0]), "float()"),
        (lambda backend, a: backend.module.matmul(a[None], a[:, None], out=a[None]), "cuBLAS"),
        (lambda backend, a: backend.sync(), "synchronize()"),
        (lambda backend, a: backend.array(np.zeros(1)), "copy from the host"),
    ],
)
def test_what_a_capture_refuses_ends_it_and_the_step_goes_on_without_a_graph(fake, caplog, misuse, reason):
    xp, a, times = fake.xp, fake.array(np.array([1.0])), []

    def foreign():
        times.append(True)
        misuse(fake, a)

    run = fake.capture([lambda: xp.add(a, 1, out=a)])
    run()
    run.launches.append(foreign)
    with caplog.at_level("INFO", "gpbackprop"):
        before = fake.host(a)[0]
        run()
        run()
    assert "this step runs without a CUDA graph" in caplog.text
    assert reason in caplog.text
    assert launched() == 0
    assert len(times) == 3, "once in the capture that failed, then in each call"
    assert not fake.stream.capturing
    assert fake_cupy._recording is None
    assert before == 2


def test_a_launch_on_another_stream_than_the_one_that_captures_is_noticed(fake):
    a = fake.array(np.array([1.0]))
    fake.stream.begin_capture(mode=fake_cupy.THREAD_LOCAL)
    try:
        with fake_cupy.Stream.null, pytest.raises(AssertionError, match="another stream"):
            fake.module.add(a, 1, out=a)
    finally:
        fake.stream.end_capture()


def test_a_step_goes_to_the_stream_of_its_backend_wherever_it_is_called_from(fake):
    xp, a = fake.xp, fake.array(np.array([1.0]))
    run = fake.capture([lambda: xp.add(a, 1, out=a)])
    with fake_cupy.Stream.null:
        for _ in range(3):
            run()
        assert fake_cupy.Stream.current is fake_cupy.Stream.null
    assert fake.host(a).tolist() == [4]
    assert launched() == 2


def test_all_backends_of_a_device_share_its_stream(fake):
    assert select("cuda").stream is fake.stream
    assert fake.rounding("tf32").stream is fake.stream
    assert fake.rounding("float32") is fake


def test_without_cublaslt_steps_run_without_a_graph_and_the_log_says_why(monkeypatch, caplog):
    fake_cupy.install(monkeypatch, lt_error=RuntimeError("no such library"))
    monkeypatch.setattr(fake_cupy.Graph, "launched", 0)
    with caplog.at_level("INFO", "gpbackprop"):
        there = trained("cuda")
    assert "cuBLASLt cannot be used, RuntimeError: no such library" in caplog.text
    assert there.history == trained("cpu").history


def test_a_repeated_step_is_one_graph_of_all_its_launches(fake):
    xp, a = fake.xp, fake.array(np.array([0.0]))
    there, back = (fake.capture([step]) for step in (lambda: xp.add(a, 1, out=a), lambda: xp.multiply(a, 2, out=a)))
    run = fake.repeat([there, back], 3, None)
    run()  # the parts are not known yet
    expected = 0.0
    for _ in range(3):
        expected = (expected + 1) * 2
    assert fake.host(a).tolist() == [expected]
    before = launched()
    run()
    assert launched() == before + 1
    for _ in range(3):
        expected = (expected + 1) * 2
    assert fake.host(a).tolist() == [expected]


# The battery: eager, captured and the CPU have the same bits.


@pytest.mark.parametrize("case", layers())
def test_every_layer_trains_from_graphs_with_the_bits_of_the_cpu(fake, caplog, case):
    layer, row = case()
    with caplog.at_level("INFO", "gpbackprop"):
        graphs = Training(layer, row, seeds=(3, 8), backend=fake).run(4)
    assert launched() == 2 * 3 + 3  # forward, backward and update, from the second step on
    assert "without a CUDA graph" not in caplog.text
    assert_same_bits(graphs, Training(layer, row, seeds=(3, 8)).run(4))


@pytest.mark.parametrize("cls", every(Loss))
def test_every_loss_trains_from_graphs_with_the_bits_of_the_cpu(fake, caplog, cls):
    loss = example(cls)
    classes = 3 if "classes" in getattr(cls, "targets", "") or "crossentropy" in cls.__name__.lower() else 0
    settings = {"loss": loss, "classes": classes if cls.__name__ != "BinaryCrossEntropy" else 0}
    with caplog.at_level("INFO", "gpbackprop"):
        graphs = Training(gp.Dense(3), (4,), backend=fake, **settings).run(4)
    assert launched()
    assert "without a CUDA graph" not in caplog.text
    assert_same_bits(graphs, Training(gp.Dense(3), (4,), **settings).run(4))


@pytest.mark.parametrize("cls", [case for case in every(Optimizer) if not case.values[0].whole])
def test_every_rule_trains_from_graphs_with_the_bits_of_the_cpu(fake, caplog, cls):
    with caplog.at_level("INFO", "gpbackprop"):
        graphs = Training(gp.Dense(3), (4,), backend=fake, optimizer=example(cls)).run(4)
    assert launched()
    assert "without a CUDA graph" not in caplog.text
    assert_same_bits(graphs, Training(gp.Dense(3), (4,), optimizer=example(cls)).run(4))


@pytest.mark.cuda
@pytest.mark.parametrize("case", layers())
def test_on_a_device_graphs_have_the_bits_of_the_launches_that_they_are_made_of(cuda, monkeypatch, case):
    layer, row = case()
    graphs = Training(layer, row, seeds=(3, 8), backend=cuda).run(4)
    monkeypatch.setattr(type(cuda.lane), "captured", lambda *_: None)
    assert_same_bits(graphs, Training(layer, row, seeds=(3, 8), backend=cuda).run(4))


# Several steps a launch.


def trained(device="cuda", stop=None, epochs=2, restored=None, hooks=(), unroll=None, **settings):
    model = gp.Chain(gp.Dense(8, activation="relu"), gp.Dropout(0.2), gp.Dense(10))
    optimizer = settings.pop("optimizer", None) or gp.SGD(lr=0.05, momentum=0.9, weight_decay=1e-3)
    run = gp.Trainer(
        model, gp.SoftmaxCrossEntropy(), optimizer, gp.data.load("digits"), device=device,
        **{"batch_size": 48} | settings,
    )  # fmt: skip
    if unroll is not None:
        run.backend.unroll, run.backend.probe_every = unroll, 1 + 2 * unroll
    if restored is not None:
        run.restore(restored)
    run.fit(epochs, hooks=[*hooks, *([StopFrom(stop)] if stop else [])])
    return run


class StopFrom(gp.Hook):
    """Stops at the first chance from a step on."""

    def __init__(self, step):
        self.step = step

    def on_step(self, trainer):
        trainer.stop_requested = trainer.step >= self.step


class Steps(gp.Hook):
    def __init__(self):
        self.seen = []

    def on_step(self, trainer):
        self.seen.append(trainer.step)


def state(run) -> list[np.ndarray]:
    return [np.array(array) for array in run.content().values() if not isinstance(array, bytes)]


SETTINGS = {
    "population": {"population": 2},
    "schedule that changes every step": {"optimizer": gp.SGD(0.05, schedule=Cosine())},
    "schedule that changes every epoch": {"optimizer": gp.Adam(0.01, schedule=Exponential(gamma=0.5))},
    "accumulation": {"optimizer": gp.SGD(0.05, accumulate=3)},
    "float64": {"dtype": "float64"},
    "full batch": {"optimizer": gp.SGD(0.05), "seed": 4},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_run_from_graphs_of_many_steps_has_the_bits_of_the_cpu(fake, caplog, name):
    with caplog.at_level("INFO", "gpbackprop"):
        there = trained(fake, **SETTINGS[name])
    assert "without a CUDA graph" not in caplog.text
    here = trained("cpu", **SETTINGS[name])
    assert there.history == here.history
    assert_same_bits(state(there), state(here))


def test_steps_that_are_alike_go_to_the_device_together(fake):
    steps = Steps()
    run = trained(fake, epochs=1, hooks=[steps])
    gaps = [after - before for before, after in itertools.pairwise([0, *steps.seen])]
    full = run.training.full
    assert full > 33
    assert gaps == [1, 16, 16, *[1] * (full - 33), 1]  # the first is looked at, the last is a short batch


def test_between_two_looks_at_the_loss_there_are_only_whole_launches(fake):
    steps = Steps()
    data = gp.data.load("digits")
    run = gp.Trainer(gp.Dense(10), gp.SoftmaxCrossEntropy(), gp.SGD(0.1), data, device=fake, batch_size=8)
    run.fit(1, hooks=[steps])
    gaps = [after - before for before, after in itertools.pairwise([0, *steps.seen])]
    assert gaps[:10] == [1, *[16] * 8, 1]
    assert fake.probe_every == 129


def test_a_rate_that_changes_every_step_goes_one_by_one_and_never_waits(fake):
    steps = Steps()
    trained(fake, epochs=1, hooks=[steps], optimizer=gp.SGD(0.05, schedule=Cosine()))
    assert steps.seen == list(range(1, len(steps.seen) + 1))


def test_nothing_waits_for_the_device_between_two_looks(fake):
    run = trained(fake, epochs=1)
    run.training.begin(1, 0, True)
    with fake_cupy.forbid_sync():
        for _ in range(2):
            assert run._steps.run(run.step, 0, run._probe, 16) == 16
        assert run._steps.run(run.step, 0, run._probe, 5) == 1


@pytest.mark.parametrize(
    ("every", "ends"), [(20, [1, 17, 18, 19, 20, 36, 37, 38, 39, 40, 56]), (5, range(1, 77)), (38, [1, 17, 33])]
)
def test_a_group_ends_where_a_save_is_due(fake, every, ends):
    steps = Steps()
    trained(fake, hooks=[steps], checkpoint_every=f"{every} steps")
    assert steps.seen[: len(ends)] == [*ends]
    assert {*range(every, 76, every)} <= {*steps.seen}


def test_groups_begin_at_the_same_steps_wherever_a_run_went_on(fake):
    whole = Steps()
    trained(fake, hooks=[whole], checkpoint_every="20 steps")
    for begun in (1, 2, 16, 18, 19, 21, 30, 37):  # on the CPU a run stops at any step
        part, there = trained("cpu", stop=begun, checkpoint_every="20 steps").content(), Steps()
        trained(fake, hooks=[there], restored=part, checkpoint_every="20 steps")
        met = next(step for step in there.seen if step in whole.seen)
        assert met <= begun + 16
        assert there.seen[there.seen.index(met) :] == whole.seen[whole.seen.index(met) :]


@pytest.mark.parametrize("unroll", [1, 4, 16])
def test_several_steps_at_a_time_have_the_bits_of_one_at_a_time_on_the_cpu_too(unroll):
    backend = Backend()
    steps = Steps()
    together = trained(backend, hooks=[steps], unroll=unroll)
    assert len(steps.seen) < together.step or unroll == 1
    alone = trained("cpu")
    assert together.history == alone.history
    assert_same_bits(state(together), state(alone))


@pytest.mark.parametrize("stop", [1, 2, 5, 17, 18, 19, 33, 40])
def test_a_run_stopped_at_any_step_goes_on_to_the_same_bits(device, stop):
    whole = trained(device)
    part = trained(device, stop=stop)
    assert stop <= part.step < stop + 16
    assert_same_bits(state(trained(device, restored=part.content())), state(whole))


# Precision.


def test_the_cpu_refuses_to_round_and_says_what_to_do():
    with pytest.raises(ConfigError, match=r'^train\.precision: found \'tf32\'.* set precision = "float32", or'):
        trained("cpu", precision="tf32")


def test_float64_and_a_precision_of_float32_exclude_each_other():
    with pytest.raises(ConfigError, match="precision"):
        trained("cpu", precision="tf32", dtype="float64")


# What goes wrong in the middle of a run.


class Break(gp.Hook):
    def __init__(self, backend, error):
        self.backend, self.error = backend, error

    def on_step(self, trainer):
        raise self.error


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (fake_cupy.CUDARuntimeError("cudaErrorIllegalAddress", "an illegal memory access"), DeviceError, "illegal"),
        (fake_cupy.CUDARuntimeError("cudaErrorECCUncorrectable"), DeviceError, "memory of the device has failed"),
        (fake_cupy.CUDARuntimeError("cudaErrorMemoryAllocation"), MemoryError, "smaller batch"),
        (fake_cupy.OutOfMemoryError("Out of memory allocating 512 bytes"), MemoryError, "smaller batch"),
        (RuntimeError("cuBLASLt: CUBLAS_STATUS_EXECUTION_FAILED"), DeviceError, "CUBLAS_STATUS_EXECUTION_FAILED"),
        (KeyError("a mistake of ours"), KeyError, "a mistake of ours"),
    ],
)
def test_an_error_of_cuda_in_the_middle_of_a_run_is_told_with_its_reason(fake, error, kind, words):
    with pytest.raises(kind, match=words) as caught:
        trained(fake, hooks=[Break(fake, error)])
    assert kind is KeyError or str(caught.value).startswith("cuda:0: ")


def test_the_log_of_a_run_is_silent_where_every_step_has_its_graph(fake, caplog):
    with caplog.at_level(logging.INFO, "gpbackprop"):
        trained(fake)
    assert "graph" not in caplog.text
    assert launched()


# With the kernels themselves, run on the host.


@pytest.fixture
def emulated(fake, monkeypatch):
    """The fake device with kernels: their source, compiled for the host, launched like all the rest."""

    class RawModule(emulation.Module):
        def get_function(self, name):
            function = super().get_function(name)
            return lambda *arguments: fake_cupy.launch(lambda: function(*arguments), name)

    monkeypatch.setattr(fake.module, "RawModule", RawModule, raising=False)
    monkeypatch.setattr(kernels, "_compiled", {})
    return fake


def test_kernels_that_do_not_compile_are_replaced_by_their_calls(fake, monkeypatch, caplog):
    class CompileException(Exception):  # noqa: N818 (CuPy's name)
        pass

    def refuse(*arguments, **options):
        raise CompileException("nvrtc: error: invalid value for --gpu-architecture\n...")

    monkeypatch.setattr(fake.module, "RawModule", refuse, raising=False)
    with caplog.at_level("INFO", "gpbackprop"):
        there = trained(fake, epochs=1)
    assert "kernels cannot be compiled, each call is one of its own: nvrtc: error" in caplog.text
    assert there.history == trained("cpu", epochs=1).history
    assert launched()


@pytest.mark.slow
@pytest.mark.skipif(emulation.COMPILER is None, reason="there is no g++, which runs kernels on the host")
def test_graphs_of_fused_kernels_have_the_bits_of_their_launches_wherever_a_run_stops(emulated, monkeypatch, caplog):
    with caplog.at_level("INFO", "gpbackprop"):
        whole = trained(emulated, epochs=1, batch_size=64, population=2)
    assert "without a CUDA graph" not in caplog.text
    assert launched()
    here = trained("cpu", epochs=1, batch_size=64, population=2)
    assert np.allclose(emulated.host(whole.network.w), here.network.w, atol=1e-5)
    for stop in (1, 18):
        part = trained(emulated, epochs=1, stop=stop, batch_size=64, population=2)
        assert_same_bits(
            state(trained(emulated, epochs=1, restored=part.content(), batch_size=64, population=2)), state(whole)
        )
    monkeypatch.setattr(type(emulated.lane), "captured", lambda *_: None)
    assert_same_bits(state(trained(emulated, epochs=1, batch_size=64, population=2)), state(whole))
