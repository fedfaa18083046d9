"""Floor 5: what decides the last bit of a sum: the device, and the libraries that compute on it.

Two machines that agree in all of this give the same bits. Where they do not, they may; nobody promises it.
"""

import os
import platform
from typing import Any

import numpy as np

import gpbackprop
from gpbackprop.backend import Backend
from gpbackprop.backend.blas import openblas

THREADS = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "BLIS_NUM_THREADS", "OMP_NUM_THREADS")


def numerics(backend: Backend) -> dict[str, str | int]:
    """What results on `backend` depend on beside config and data, for run.json."""
    facts: dict[str, str | int] = {"gpbackprop": gpbackprop.__version__, "numpy": np.__version__}
    facts["device"] = backend.description
    if backend.name != "cpu":
        return facts | backend.libraries()
    build: dict[str, Any] = np.show_config(mode="dicts")  # type: ignore[assignment]
    blas = build.get("Build Dependencies", {}).get("blas", {})
    kernels, threads = _kernels_and_threads()
    return facts | {
        "machine": platform.machine(),
        "instructions": " ".join(build.get("SIMD Extensions", {}).get("found", [])),
        "C library": " ".join(platform.libc_ver()),
        "BLAS": f"{blas.get('name', 'unknown')} {blas.get('version', '')}".strip(),
        "BLAS kernels": kernels,
        "BLAS threads": threads,
        **backend.libraries(),
    }


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What differs, one line each: "numpy: 2.4.1 here, 2.3.5 before"."""
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return [f"{name}: {now.get(name, 'nothing')} here, {before.get(name, 'nothing')} before" for name in names]


def _kernels_and_threads() -> tuple[str, int]:
    """The kernels that OpenBLAS chose for this processor, "" with another BLAS, and the threads of a product."""
    if found := openblas():
        return found.kernels, found.threads
    given = next((text for name in THREADS if (text := os.environ.get(name, "")).isdigit()), None)
    return "", int(given) if given else os.cpu_count() or 1
