"""Floor 0: the verbs of every backend against plain NumPy, randomness, and why a device cannot be used."""

import itertools
import sys
import tracemalloc

import fake_cupy
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gpbackprop as gp
from gpbackprop import backend as room
from gpbackprop.backend import cuda, devices, random, select
from gpbackprop.errors import DeviceError, UsageError


@pytest.fixture(params=["cpu", "fake", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request, monkeypatch):
    """Every backend: NumPy, CUDA over the fake cupy, and a real GPU where there is one."""
    if request.param == "fake":
        fake_cupy.install(monkeypatch)
    try:
        return select("cpu" if request.param == "cpu" else "cuda")
    except DeviceError as error:
        pytest.skip(str(error))


@pytest.fixture
def fake(monkeypatch):
    fake_cupy.install(monkeypatch)
    return select("cuda")


def numbers(*shape, dtype=np.float32, seed=0):
    """Whole numbers, so that every order of summation gives the same bits."""
    return np.random.default_rng(seed).integers(-8, 8, shape).astype(dtype)


# Verbs


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8, np.int64, bool])
def test_array_and_host_are_a_round_trip(device, dtype):
    host = numbers(2, 3, 4, dtype=dtype)
    back = device.host(device.array(host))
    assert type(back) is np.ndarray
    assert back.dtype == dtype
    assert np.array_equal(back, host)


@pytest.mark.parametrize("part", [(), (slice(None), slice(1, 3)), (slice(None), slice(None), 0)])
def test_stage_fills_an_array_or_a_view_of_one(device, part):
    expected = numbers(2, 4, 3)
    a = device.array(expected.copy())
    host = numbers(*expected[part].shape, dtype=np.float64, seed=1)
    device.stage(host, a[part] if part else a)
    expected[part] = host
    assert np.array_equal(device.host(a), expected)


def operand(device, host, how, dtype):
    """`host` on the device: as it is, transposed, in rows of a wider array, or amid a flat array of each k."""
    k, m, n = host.shape
    if how == "transposed":
        return device.array(np.ascontiguousarray(host.swapaxes(1, 2))).swapaxes(-1, -2)
    if how == "wide":
        whole = device.array(np.zeros((k, m, n + 2), dtype))
        whole[:, :, 1 : n + 1] = device.array(host)
        return whole[:, :, 1 : n + 1]
    if how == "flat":  # a parameter of a population: a slice of a flat array (K, P)
        flat = device.array(np.zeros((k, m * n + 5), dtype))
        flat[:, 3 : 3 + m * n] = device.array(host.reshape(k, m * n))
        return flat[:, 3 : 3 + m * n].reshape(k, m, n)
    return device.array(host)


LAYOUTS = ("plain", "transposed", "wide", "flat")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(1, 2, 3, 4), (3, 4, 5, 2), (2, 1, 3, 4), (2, 3, 1, 4), (2, 3, 4, 1), (3, 1, 1, 1)])
def test_gemm_is_the_matrix_product_of_each_member_in_any_layout(device, shape, dtype):
    k, m, j, n = shape
    a, b = numbers(k, m, j, dtype=dtype), numbers(k, j, n, dtype=dtype, seed=1)
    for left, right, result in itertools.product(LAYOUTS, LAYOUTS, ("plain", "flat", "wide")):
        out = operand(device, np.full((k, m, n), np.nan, dtype), result, dtype)
        device.gemm(operand(device, a, left, dtype), operand(device, b, right, dtype), out)
        assert np.array_equal(device.host(out), np.einsum("kmj,kjn->kmn", a, b)), (left, right, result)


def test_gemm_of_one_matrix_for_all_members(device):
    a, b = numbers(1, 2, 5), numbers(3, 5, 4, seed=1)
    out = device.xp.zeros((3, 2, 4), np.float32)
    device.gemm(device.array(a), device.array(b), out)
    assert np.array_equal(device.host(out), a @ b)


def test_gemm_of_views_that_cublas_cannot_read_is_still_the_product(device):
    a, b = numbers(2, 6, 8), numbers(2, 4, 6, seed=1)
    out = device.xp.zeros((2, 3, 6), np.float32)
    device.gemm(device.array(a)[:, ::2, ::2], device.array(b), out)
    assert np.array_equal(device.host(out), a[:, ::2, ::2] @ b)
    turned = device.xp.zeros((2, 8, 4), np.float32)
    device.gemm(device.array(b), device.array(a), turned.swapaxes(-1, -2))
    assert np.array_equal(device.host(turned), (b @ a).swapaxes(-1, -2))
    empty = device.array(np.full((2, 3, 4), np.nan, np.float32))
    device.gemm(device.xp.zeros((2, 3, 0), np.float32), device.xp.zeros((2, 0, 4), np.float32), empty)
    assert np.array_equal(device.host(empty), np.zeros((2, 3, 4)))


def test_gemm_does_not_round_float32(device):
    a = 1 + np.arange(64, dtype=np.float32).reshape(1, 8, 8) * np.float32(2**-20)
    out = device.xp.zeros((1, 8, 8), np.float32)
    device.gemm(device.array(a), device.array(np.eye(8, dtype=np.float32)[None]), out)
    assert np.array_equal(device.host(out), a)


def test_the_fake_device_multiplies_with_the_bits_of_numpy(fake):
    rng = np.random.default_rng(0)
    for k, m, j, n in [(1, 64, 784, 30), (2, 10, 30, 10), (1, 1, 17, 5), (1, 5, 17, 1)]:
        a, b = (rng.standard_normal(s).astype(np.float32) for s in ((k, m, j), (k, n, j)))
        here, there = np.empty((k, m, n), np.float32), fake.xp.zeros((k, m, n), np.float32)
        select("cpu").gemm(a, b.swapaxes(-1, -2), here)
        fake.gemm(fake.array(a), fake.array(b).swapaxes(-1, -2), there)
        assert fake.host(there).tobytes() == here.tobytes()


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_gather_reads_rows_of_the_table(device, dtype):
    table, index = numbers(7, 3, dtype=dtype), np.array([[6, 0, 6], [1, 2, 3]])
    out = device.array(np.zeros((2, 3, 3), dtype))
    device.gather(device.array(table), device.array(index), out)
    assert np.array_equal(device.host(out), table[index])


def test_scatter_add_adds_up_repeated_rows(device):
    table, index, rows = numbers(5, 2, dtype=np.float64), np.array([[1, 4], [1, 1]]), numbers(2, 2, 2, dtype=np.float64)
    expected = table.copy()
    np.add.at(expected, index, rows)
    a = device.array(table)
    device.scatter_add(device.array(rows), device.array(index), a)
    assert np.array_equal(device.host(a), expected)


def test_capture_is_one_call_that_runs_the_steps_in_order(device):
    xp, a = device.xp, device.array(np.array([1.0, 2.0]))
    run = device.capture([lambda: xp.add(a, 1, out=a), lambda: xp.multiply(a, 2, out=a)])
    assert device.host(a).tolist() == [1, 2]
    for _ in range(3):
        run()
    assert device.host(a).tolist() == [(((1 + 1) * 2 + 1) * 2 + 1) * 2, (((2 + 1) * 2 + 1) * 2 + 1) * 2]


def test_a_step_that_allocates_runs_as_it_is_and_the_log_says_so(device, caplog):
    xp, a, b = device.xp, device.array(np.array([1.0, 2.0])), device.array(np.zeros(2))
    run = device.capture([lambda: xp.add(a, 1, out=a), lambda: xp.copyto(b, xp.sqrt(a))])
    with caplog.at_level("INFO", "gpbackprop"):
        for _ in range(3):
            run()
    assert device.host(b).tolist() == [2.0, 5**0.5]
    assert "xp.sqrt" in caplog.text


def test_a_captured_step_inside_another_one_is_a_part_of_it(device):
    xp, a = device.xp, device.array(np.array([1.0]))
    inner = device.capture([lambda: xp.add(a, 1, out=a)])
    outer = device.capture([inner, lambda: xp.multiply(a, 2, out=a)])
    for _ in range(3):
        outer()
    inner()
    assert device.host(a).tolist() == [(((1 + 1) * 2 + 1) * 2 + 1) * 2 + 1]


def test_sync_returns_nothing(device):
    assert device.sync() is None


def test_verbs_neither_wait_nor_copy_from_the_host(fake):
    a, index = fake.array(numbers(2, 3, 3)), fake.array(np.array([0, 1]))
    out, rows = fake.xp.zeros((2, 3, 3), np.float32), fake.xp.zeros((2, 3, 3), np.float32)
    with fake_cupy.forbid_sync():
        fake.gemm(a, a.swapaxes(-1, -2), out)
        fake.gather(a, index, rows)
        fake.scatter_add(rows, index, a)


# Randomness


# Pinned: another release must not silently change the order and the masks of a user's run.
PERMUTATION_10 = [1, 9, 0, 5, 2, 7, 6, 8, 4, 3]
PERMUTATION_10_NEXT = [6, 3, 4, 9, 0, 1, 2, 7, 8, 5]
PERMUTATION_60000 = [34690, 7704, 27929, 52715, 15788]
KEY = [4112021138, 2218736364]
GENERATOR = [289, 611, 294, 555]
UNIFORM = [7013882, 13469834, 14950793, 15063180, 13322197, 6122188, 3882480, 10952107]


@given(n=st.integers(0, 3000), seed=st.integers(0, 2**63), epoch=st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_permutation_is_a_permutation(n, seed, epoch):
    order = random.permutation(n, seed, epoch)
    assert order.dtype == np.int64
    assert np.array_equal(np.sort(order), np.arange(n))


def test_permutation_differs_by_epoch_and_by_seed():
    base = random.permutation(1000, 1, 0)
    for other in (random.permutation(1000, 1, 1), random.permutation(1000, 2, 0)):
        assert np.mean(base == other) < 0.01


def test_permutation_has_no_trend():
    """Each place holds each row equally often: the mean over epochs of every place is near the middle."""
    mean = np.mean([random.permutation(50, 0, epoch) for epoch in range(400)], axis=0)
    assert np.abs(mean - 24.5).max() < 5 * np.sqrt(50**2 / 12 / 400)


def test_permutation_of_a_release_is_that_of_every_release():
    assert random.permutation(10, 1, 0).tolist() == PERMUTATION_10
    assert random.permutation(10, 1, 1).tolist() == PERMUTATION_10_NEXT
    assert random.permutation(60000, 7, 3)[:5].tolist() == PERMUTATION_60000


@pytest.mark.parametrize("at_once", [1, 100, 10**6])
def test_permutations_of_several_seeds_are_those_of_each(at_once, monkeypatch):
    monkeypatch.setattr(random, "ELEMENTS", at_once)
    together = random.permutations(37, (3, 1, 4, 1), 2)
    assert np.array_equal(together, [random.permutation(37, seed, 2) for seed in (3, 1, 4, 1)])


def test_keys_and_generators_of_a_release_are_those_of_every_release():
    assert random.key(1, "order").tolist() == KEY
    assert random.generator(1, "0-dense/W").integers(0, 1000, 4).tolist() == GENERATOR


def draw(device, shape, seeds=(0,), step=0, purpose="0-dropout/uniform"):
    out = device.array(np.zeros((len(seeds), *shape), np.float32))
    bits = device.array(np.zeros((2, *out.shape), np.uint32))
    index = device.xp.arange(int(np.prod(shape)), dtype=np.uint32).reshape(shape)
    key = device.array(np.stack([random.key(seed, purpose) for seed in seeds]))
    clock = device.array(np.array([step], np.uint32))
    random.uniform(device.xp, out, bits, index, key, clock)
    return device.host(out)


def test_uniform_of_a_release_is_that_of_every_release_on_every_device(device):
    drawn = draw(device, (2, 2), seeds=(1, 2), step=3)
    assert (drawn * 2**24).astype(int).ravel().tolist() == UNIFORM


def test_uniform_has_the_same_bits_on_every_device(device):
    shape, seeds = (33, 17), (5, 6, 7)
    assert draw(device, shape, seeds, 12345).tobytes() == draw(select("cpu"), shape, seeds, 12345).tobytes()


def test_uniform_is_uniform():
    x = draw(select("cpu"), (500, 400)).astype(np.float64)
    assert x.min() >= 0
    assert x.max() < 1
    assert abs(x.mean() - 1 / 2) < 5 * np.sqrt(1 / 12 / x.size)
    assert abs(x.var() - 1 / 12) < 5 * np.sqrt(1 / 180 / x.size)
    counts = np.histogram(x, 64, (0, 1))[0]
    assert ((counts - x.size / 64) ** 2).sum() / (x.size / 64) < 64 + 5 * np.sqrt(2 * 64)


@pytest.mark.parametrize("other", [{"step": 1}, {"seeds": (1,)}, {"purpose": "1-dropout/uniform"}])
def test_uniform_of_another_step_seed_or_layer_is_unrelated(other):
    a, b = draw(select("cpu"), (100, 100)).ravel(), draw(select("cpu"), (100, 100), **other).ravel()
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.05


def test_uniform_of_a_member_is_that_of_the_member_alone():
    together = draw(select("cpu"), (20, 30), seeds=(3, 1, 4), step=9)
    for k, seed in enumerate((3, 1, 4)):
        assert np.array_equal(together[k : k + 1], draw(select("cpu"), (20, 30), seeds=(seed,), step=9))


def test_uniform_allocates_nothing_that_grows_with_the_array():
    def peak(rows):
        out = np.zeros((1, rows, 1000), np.float32)
        bits, index = np.zeros((2, *out.shape), np.uint32), np.arange(rows * 1000, dtype=np.uint32).reshape(rows, 1000)
        key, step = random.key(0, "mask")[None], np.zeros(1, np.uint32)
        random.uniform(np, out, bits, index, key, step)
        tracemalloc.start()
        random.uniform(np, out, bits, index, key, step)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    # NumPy converts between dtypes through a buffer of a fixed size
    assert peak(100) < peak(10) + 20_000


def test_uniform_stays_on_the_device(fake):
    out, bits = fake.xp.zeros((1, 4, 4), np.float32), fake.xp.zeros((2, 1, 4, 4), np.uint32)
    index, step = fake.xp.arange(16, dtype=np.uint32).reshape(4, 4), fake.xp.zeros(1, np.uint32)
    key = fake.array(random.key(0, "mask")[None])
    with fake_cupy.forbid_sync():
        random.uniform(fake.xp, out, bits, index, key, step)


# Which device, and why not


def test_cpu_is_always_there():
    assert select("cpu").name == "cpu"
    assert devices()[0] == ("cpu", True, "NumPy on the CPU")


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cuda:-1", "CPU", ""])
def test_a_name_that_is_no_device_is_a_usage_error(name):
    with pytest.raises(UsageError, match="expected auto, cpu, cuda or cuda:N"):
        select(name)


def test_auto_takes_the_gpu_where_it_works_and_else_the_cpu(monkeypatch):
    machine = fake_cupy.install(monkeypatch)
    assert select("auto").name == "cuda:0"
    machine.devices = 0
    assert select("auto").name == "cpu"


def test_a_cuda_device_describes_itself(monkeypatch):
    machine = fake_cupy.install(monkeypatch, devices=2)
    assert [row[:2] for row in devices()] == [("cpu", True), ("cuda:0", True), ("cuda:1", True)]
    assert machine.current == 0, "listing the devices moved the current one"
    chosen = select("cuda:1")
    assert chosen.name == "cuda:1"
    assert machine.current == 1
    for fact in ("Imaginary GPU", "80.0 GiB", "compute capability 9.0", "CUDA 13.0", "CUDA 13.2", "CuPy 14"):
        assert fact in chosen.description


CUDART = fake_cupy.CUDARuntimeError
NO_LIBRARY = 'Failure finding "libcublasLt.so.13 or libcublasLt.so.12": No such file: libcublasLt.so.13'
OLD = CUDART("cudaErrorInsufficientDriver", "CUDA driver version is insufficient for CUDA runtime version")

FAULTS = {
    "no driver": ({"count_error": OLD, "driver": 0}, ["no NVIDIA driver was found", "CUDA 13.2", "install a driver"]),
    "old driver": (
        {"count_error": OLD, "driver": 12040},
        ["driver is for CUDA 12.4", "built for CUDA 13.2", "update the driver", "gpbackprop[cuda12]"],
    ),
    "older driver": ({"count_error": OLD, "driver": 11080}, ["CUDA 11.8", "update the driver to one for CUDA 13"]),
    "old driver, cuda12": (
        {"count_error": OLD, "driver": 11080, "runtime": 12090},
        ["CUDA 11.8", "CUDA 12.9", "update the driver to one for CUDA 12"],
    ),
    "no device": (
        {"count_error": CUDART("cudaErrorNoDevice", "no CUDA-capable device is detected")},
        ["shows no device", "nvidia-smi"],
    ),
    "zero devices": ({"devices": 0}, ["shows no device", "nvidia-smi"]),
    "mismatch": ({"count_error": CUDART("cudaErrorSystemDriverMismatch")}, ["restart the machine"]),
    "unknown": ({"count_error": CUDART("cudaErrorUnknown")}, ["nvidia-smi"]),
    "unnamed": ({"count_error": CUDART("cudaErrorBrandNew", "a new way to fail")}, ["a new way to fail", "nvidia-smi"]),
    "busy": ({"use_error": CUDART("cudaErrorDevicesUnavailable")}, ["cuda:0", "busy", "nvidia-smi"]),
    "no cublas": (
        {"library_error": ImportError(NO_LIBRARY)},
        ["libcublasLt.so.13", 'pip install "gpbackprop[cuda13]"'],
    ),
    "no nvrtc": (
        {"kernel_error": fake_cupy.DynamicLibNotFoundError('Failure finding "libnvrtc.so.13"')},
        ["libnvrtc.so.13", 'pip install "gpbackprop[cuda13]"'],
    ),
    "no headers": (
        {"kernel_error": RuntimeError('catastrophic error: cannot open source file "cuda_fp16.h"')},
        ["cuda_fp16.h", 'pip install "gpbackprop[cuda13]"'],
    ),
    "old device": ({"kernel_error": CUDART("cudaErrorNoKernelImageForDevice")}, ["generation", "cuda12"]),
    "out of memory": (
        {"memory_error": fake_cupy.OutOfMemoryError("Out of memory allocating 512 bytes")},
        ["out of memory", "nvidia-smi"],
    ),
    "out of memory at start": ({"use_error": CUDART("cudaErrorMemoryAllocation", "out of memory")}, ["out of memory"]),
    "rounding": ({"tf32": True}, ["float32 product", "expected", "NVIDIA_TF32_OVERRIDE"]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_device_that_cannot_be_used_says_why_and_what_to_do(monkeypatch, fault):
    machine, words = FAULTS[fault]
    fake_cupy.install(monkeypatch, **machine)
    with pytest.raises(DeviceError) as caught:
        select("cuda")
    name, usable, text = devices()[-1]
    assert name in ("cuda", "cuda:0")
    assert not usable
    for message in (str(caught.value), text):
        assert message.startswith("cuda")
        for word in words:
            assert word in message
    assert select("auto").name == "cpu"


def test_cupy_that_is_not_installed_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(DeviceError, match=r'cupy is not installed.*pip install "gpbackprop\[cuda13\]".*cuda12'):
        select("cuda")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ImportError("libcudart.so.12: cannot open shared object file"), ["libcudart.so.12", "cannot be imported"]),
        (ImportError("====\nCuPy is broken\n===="), ["CuPy is broken"]),
        (ModuleNotFoundError("No module named 'fastrlock'", name="fastrlock"), ["fastrlock"]),
    ],
)
def test_cupy_that_cannot_be_imported_names_what_is_broken(monkeypatch, error, words):
    class Broken:
        def find_spec(self, name, path=None, target=None):
            if name == "cupy":
                raise error

    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    with pytest.raises(DeviceError) as caught:
        select("cuda")
    for word in (*words, 'pip install "gpbackprop[cuda13]"'):
        assert word in str(caught.value)


def test_a_device_number_that_does_not_exist_names_those_that_do(monkeypatch):
    fake_cupy.install(monkeypatch, devices=2)
    with pytest.raises(DeviceError, match=r"cuda:2: there is no such device; found 2: use cuda:0 to cuda:1$"):
        select("cuda:2")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    with pytest.raises(DeviceError, match=r"CUDA_VISIBLE_DEVICES is '4,5'"):
        select("cuda:7")


def test_an_error_that_is_not_of_cuda_is_not_hidden(monkeypatch):
    fake_cupy.install(monkeypatch, kernel_error=KeyError("a mistake of ours"))
    with pytest.raises(KeyError):
        select("cuda")
    assert cuda.reason(ValueError("shapes")) is None


def test_the_backend_package_does_not_import_cupy(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert select("cpu").module is np
    assert room.Backend().name == "cpu"


# The fake refuses what the real one refuses


@pytest.fixture
def xp(fake):
    return fake.xp


@pytest.mark.parametrize(
    "misuse",
    [
        lambda xp, a: np.asarray(a),
        lambda xp, a: np.add(a, 1),
        lambda xp, a: np.sum(a),
        lambda xp, a: a + np.ones(3),
        lambda xp, a: np.ones(3) + a,
        lambda xp, a: xp.add(a, np.ones(3), out=a),
        lambda xp, a: xp.add(a, 1, out=a, where=a > 0),
        lambda xp, a: xp.sum(a, initial=0.0),
        lambda xp, a: xp.take(a, xp.arange(2), mode="clip"),
        lambda xp, a: xp.take(a, xp.arange(2), out=xp.zeros(2, np.float64)),
        lambda xp, a: range(a[0]),
    ],
)
def test_the_fake_refuses_what_cupy_does_not_do(xp, misuse):
    with pytest.raises(TypeError):
        misuse(xp, xp.zeros(3, np.float32))


def test_the_fake_refuses_to_write_a_host_array_into_a_device_array(xp):
    with pytest.raises(ValueError, match="cannot be written"):
        xp.zeros(3)[...] = np.ones(3)


def test_the_fake_lacks_what_cupy_lacks(xp):
    assert not hasattr(xp, "put_along_axis_of_nothing")
    assert not hasattr(xp, "nditer")
    assert not hasattr(xp.zeros(3), "setflags")


@pytest.mark.parametrize(
    "wait",
    [float, int, bool, list, lambda a: a.item(), lambda a: a.get(), lambda a: a[a > 0], lambda a: a.set(np.zeros(1))],
)
def test_the_fake_notices_a_step_that_waits(xp, wait):
    a = xp.zeros(() if wait in (float, int) else 1)
    wait(a)
    with fake_cupy.forbid_sync(), pytest.raises(fake_cupy.Synchronised):
        wait(a)


def test_the_fake_adds_up_in_the_dtype_of_the_input_as_cupy_does(xp):
    a, out = xp.array(np.array([2**24, 1, 1], np.float32)), xp.zeros((), np.float64)
    assert float(xp.sum(a, out=out)) == 2**24
    assert float(xp.sum(a, dtype=np.float64, out=out)) == 2**24 + 2


def test_views_of_the_fake_share_memory(xp):
    buffer = xp.zeros(64, np.uint8)
    view = buffer[16:32].view(np.float32).reshape(2, 2)
    view[...] = 1
    view.swapaxes(0, 1)[0] += 1
    assert buffer.view(np.float32)[4:8].get().tolist() == [2, 1, 2, 1]


def test_the_names_of_the_fake_are_those_of_the_real_cupy():
    real = pytest.importorskip("cupy", reason="cupy is not installed: nothing to compare the recorded names with")
    recorded, now = fake_cupy.known_names(), fake_cupy.record()
    if recorded["cupy"] != real.__version__:
        pytest.skip(f"recorded from cupy {recorded['cupy']}, installed is {real.__version__}")
    if np.__version__.split(".")[:2] == ["2", "4"]:  # the names that NumPy has too
        assert recorded == now
    else:
        assert set(now["functions"]) & set(recorded["functions"])


def test_a_training_run_through_the_cuda_path_has_the_bits_of_numpy_and_its_steps_never_wait(fake):
    def train(device):
        model = gp.Chain(gp.Dense(16, activation="relu"), gp.Dropout(0.2), gp.Dense(10))
        optimizer = gp.SGD(lr=0.05, momentum=0.9, weight_decay=1e-3)
        digits = gp.data.load("digits")
        trainer = gp.Trainer(
            model, gp.SoftmaxCrossEntropy(), optimizer, digits, seed=(1, 5), population=2, device=device
        )
        trainer.fit(epochs=1)
        return trainer

    here, there = train("cpu"), train("cuda")
    assert here.history == there.history
    assert here.network.w.tobytes() == fake.host(there.network.w).tobytes()
    batch = there.training.batch(there.batch_size)
    plan, load = batch.plan, batch.load
    index = fake.array(np.zeros((2, there.batch_size), np.int64))
    with fake_cupy.forbid_sync():
        load(index)
        plan.forward()
        plan.backward()
        there.update.step()
