"""The machine under scripts/bench.py: threads, memory, what it is, and how busy others keep it.

Imports no array library: the number of threads is set before one is loaded.
"""

import os
import platform
import subprocess
import sys
import time
from pathlib import Path


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def settings(threads: int, device: str) -> dict[str, str]:
    """The environment in which OpenBLAS, MKL, OpenMP (PyTorch), Numba and XLA have `threads` threads each.

    They read it once, when they are loaded.
    """
    names = ("OPENBLAS", "OMP", "MKL", "NUMBA", "VECLIB_MAXIMUM")
    wanted = {f"{name}{'' if '_' in name else '_NUM'}_THREADS": str(threads) for name in names}
    wanted |= {"PJRT_NPROC": str(threads), "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    flag = f"--xla_cpu_multi_thread_eigen={str(threads > 1).lower()}"
    flags = os.environ.get("XLA_FLAGS", "")
    wanted["XLA_FLAGS"] = flags if flag in flags.split() else f"{flags} {flag}".strip()
    return wanted | ({"JAX_PLATFORMS": "cpu"} if device == "cpu" else {})


def with_settings(wanted: dict[str, str]) -> None:
    """Go on if the environment is as wanted, else start again in one that is."""
    if all(os.environ.get(name) == value for name, value in wanted.items()):
        return
    command, environment = [sys.executable, *sys.argv], os.environ | wanted
    if os.name == "nt":
        sys.exit(subprocess.call(command, env=environment))
    os.execve(sys.executable, command, environment)


def settle() -> None:
    """Wait until no thread of the last turn still spins: BLAS and OpenMP do so for a while, at the next one's cost."""
    for _ in range(100):
        before = time.process_time()
        time.sleep(0.005)
        if time.process_time() - before < 0.001:
            return


def others() -> float | None:
    """The CPU seconds that all other processes have used since the machine started; None where Linux does not say."""
    try:
        user, nice, system, _, _, interrupts, soft, steal = Path("/proc/stat").read_text().split()[1:9]
    except OSError:
        return None
    ticks = sum(map(int, (user, nice, system, interrupts, soft, steal)))
    return ticks / os.sysconf("SC_CLK_TCK") - time.process_time()


def resident(each, order) -> float | None:
    """KiB by which the memory of the process rises, at most, in one more turn; None where Linux does not say."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the highest mark starts from here
        before = status("VmRSS")
        each.epoch(order)
        return max(0.0, status("VmHWM") - before)
    except OSError:
        return None


def status(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(name)))


def facts(threads: int, device: str, chosen: list[type]) -> dict:
    """Where and with what the figures were measured."""
    import numpy as np

    import gpbackprop as gp

    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        cpu = platform.processor() or platform.machine()
    try:  # which processor OpenBLAS takes this one for can halve its speed
        from threadpoolctl import threadpool_info

        found = [each for each in threadpool_info() if each["user_api"] == "blas"]
        first = max(found, key=lambda each: "numpy" in each["filepath"])  # SciPy brings another one
        blas = f"{first['internal_api']} {first['version']} for {first.get('architecture')}"
    except (ModuleNotFoundError, ValueError):
        blas = f"for {os.environ.get('OPENBLAS_CORETYPE', 'the processor that it finds')}"
    versions = {"gpbackprop": gp.__version__, "Python": platform.python_version(), "NumPy": np.__version__}
    for cls in chosen:
        module = sys.modules[cls.__module__]
        if hasattr(module, "LIBRARY"):
            versions[module.LIBRARY] = module.VERSION
    return {
        "cpu": cpu, "blas": blas, "cores": cores(), "threads": threads, "versions": versions,
        "device": gp.backend.select(device).description,
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }  # fmt: skip
