"""Floor 5: what decides the last bit of a sum: the device, and the libraries that compute on it.

Two machines that agree in all of this give the same bits. Where they do not, they may; nobody promises it.
"""

import ctypes
import os
import platform
import re
from pathlib import Path
from typing import Any

import numpy as np

import gpbackprop
from gpbackprop.backend import Backend

THREADS = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "BLIS_NUM_THREADS", "OMP_NUM_THREADS")


def numerics(backend: Backend) -> dict[str, str | int]:
    """What results on `backend` depend on beside config and data, for run.json."""
    facts: dict[str, str | int] = {"gpbackprop": gpbackprop.__version__, "numpy": np.__version__}
    facts["device"] = backend.description
    if backend.name != "cpu":
        return facts | backend.libraries()
    build: dict[str, Any] = np.show_config(mode="dicts")  # type: ignore[assignment]
    blas = build.get("Build Dependencies", {}).get("blas", {})
    kernels, threads = _openblas()
    return facts | {
        "machine": platform.machine(),
        "instructions": " ".join(build.get("SIMD Extensions", {}).get("found", [])),
        "C library": " ".join(platform.libc_ver()),
        "BLAS": f"{blas.get('name', 'unknown')} {blas.get('version', '')}".strip(),
        "BLAS kernels": kernels,
        "BLAS threads": threads,
    }


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What differs, one line each: "numpy: 2.4.1 here, 2.3.5 before"."""
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return [f"{name}: {now.get(name, 'nothing')} here, {before.get(name, 'nothing')} before" for name in names]


def _openblas() -> tuple[str, int]:
    """The kernels that OpenBLAS chose for this processor, "" with another BLAS, and the threads of a product."""
    for path in _loaded():
        try:
            library = ctypes.CDLL(path)
        except OSError:
            continue
        for lead in ("scipy_openblas", "openblas"):
            for end in ("64_", "_64", ""):
                if hasattr(library, f"{lead}_get_corename{end}"):
                    kernels = getattr(library, f"{lead}_get_corename{end}")
                    kernels.restype = ctypes.c_char_p
                    return kernels().decode(), int(getattr(library, f"{lead}_get_num_threads{end}")())
    given = next((text for name in THREADS if (text := os.environ.get(name, "")).isdigit()), None)
    return "", int(given) if given else os.cpu_count() or 1


def _loaded() -> list[str]:
    """The files of OpenBLAS in this process; where the system does not tell, those that came with NumPy."""
    try:
        maps = Path("/proc/self/maps").read_text()
        return sorted(set(re.findall(r"/\S*openblas\S*", maps)))
    except OSError:
        package = Path(np.__file__).parent
        folders = (package / ".dylibs", package.parent / "numpy.libs")
        return [str(path) for folder in folders for path in sorted(folder.glob("*openblas*"))]
