"""What a CUDA device does, in figures: the facts that the design of the CUDA path rests on.

    python scripts/gpu_facts.py [--device cuda:N] [--json FILE]

versions; which products cuBLASLt has an algorithm for, alone and with a bias or its gradient; how exact products of
float32 are, beside float64; whether a captured step repeats itself bit for bit; what a node of a graph and a launch
cost. Times are medians of `REPEATS` turns by the clock of the host, each turn ended by waiting for the device.
"""

import argparse
import json
import logging
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

import gpbackprop as gp
from gpbackprop.backend import select
from gpbackprop.backend.cuda import CudaBackend
from gpbackprop.backend.graphs import Captured
from gpbackprop.backend.lt import ADD_BIAS, ADD_ROWS, COMPUTE
from gpbackprop.errors import DeviceError

REPEATS = 20
# (members, rows, inputs, outputs): the layers that scripts/bench.py trains
SHAPES = [
    (1, 10, 784, 30),
    (1, 64, 784, 128),
    (1, 64, 64, 10),
    (1, 128, 512, 512),
    (1, 512, 1024, 1024),
    (64, 10, 784, 30),
]


def seconds(backend: CudaBackend, call: Any) -> float:
    """The median time of a call, with what it has queued."""
    times = []
    for _ in range(REPEATS + 2):
        backend.sync()
        start = time.perf_counter()
        call()
        backend.sync()
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:])


def versions(backend: CudaBackend) -> dict[str, str]:
    found = {"gpbackprop": gp.__version__, "python": sys.version.split()[0], "numpy": np.__version__}
    for name in ("cupy", "torch", "jax"):
        try:
            found[name] = __import__(name).__version__
        except ImportError:
            found[name] = "not installed"
    lt = backend.lane.lt
    return found | {"device": backend.description, "cuBLASLt": "bound" if lt else "cannot be used: see the log"}


def products(backend: CudaBackend) -> list[dict[str, Any]]:
    """For each shape, mapping and precision: is there an algorithm, with a bias too, and how long a product takes."""
    rows, xp = [], backend.module
    for k, m, j, n in SHAPES:
        x, w, dy, b = (xp.ones(s, np.float32) for s in ((k, m, j), (k, j, n), (k, m, n), (k, 1, n)))
        for name, a, c, out in [
            ("Y = X W + b", x, w, xp.empty_like(dy)),
            ("dX = dY W'", dy, w.swapaxes(-1, -2), xp.empty_like(x)),
            ("dW = X' dY", x.swapaxes(-1, -2), dy, xp.empty_like(w)),
        ]:
            row: dict[str, Any] = {"shape": f"{k} x {m} x {j} x {n}", "mapping": name}
            for precision in COMPUTE:
                plain = backend.lane.lt.product(precision, a, c, out)
                row[precision] = round(1e6 * seconds(backend, lambda p=plain: repeat(p, 20)) / 20, 2) if plain else None
                if name != "dX = dY W'":
                    besides = ADD_ROWS if a is not x else ADD_BIAS
                    row[f"{precision} with bias"] = bool(backend.lane.lt.product(precision, a, c, out, besides, b))
            rows.append(row)
    return rows


def repeat(call: Any, times: int) -> None:
    for _ in range(times):
        call()


def exactness(backend: CudaBackend) -> dict[str, float]:
    """The largest error of a product of 256 x 1024 by 1024 x 256, over that of NumPy's float32, both beside float64."""
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((1, 256, 1024), (1, 1024, 256)))
    exact = a.astype(np.float64) @ b.astype(np.float64)
    host = np.abs(a @ b - exact).max()
    x, w, out = backend.array(a), backend.array(b), backend.module.empty((1, 256, 256), np.float32)
    found = {"NumPy, absolute": float(host)}
    backend.gemm(x, w, out)
    found["cuBLAS float32"] = float(np.abs(backend.host(out) - exact).max() / host)
    found["cupy.matmul"] = float(np.abs(backend.host(backend.module.matmul(x, w)) - exact).max() / host)
    for precision in COMPUTE:
        if product := backend.lane.lt.product(precision, x, w, out):
            product()
            found[f"cuBLASLt {precision}"] = float(np.abs(backend.host(out) - exact).max() / host)
    return found


def repeats(backend: CudaBackend, times: int = 1000) -> dict[str, Any]:
    """A captured step of a product, an addition and a reduction, made `times` times as launches and as a graph."""
    rng, xp = np.random.default_rng(0), backend.xp
    start, w = rng.standard_normal((1, 64, 64)).astype(np.float32), rng.standard_normal((1, 64, 64)).astype(np.float32)
    results, graph = [], None
    for captures in (False, True):
        a, b, c = backend.array(start), backend.array(w / 16), xp.zeros((1, 64, 64), np.float32)
        norm = xp.zeros((1, 1, 1), np.float32)

        def step(a=a, b=b, c=c, norm=norm):
            backend.gemm(a, b, c)
            xp.add(c, a, out=a)
            xp.max(a, axis=(1, 2), keepdims=True, out=norm)
            xp.divide(a, norm, out=a)

        run = backend.capture([step])
        for _ in range(times):
            run()
            if not captures:
                run.capturable = False  # launches again
        results.append(backend.host(a).tobytes())
        graph = run.graph
    return {"times": times, "captured": graph is not None, "same bits": results[0] == results[1]}


def nodes(backend: CudaBackend) -> list[dict[str, float]]:
    """The cost of a graph of so many small kernels, one after the other, for each of them, in microseconds."""
    rows, a = [], backend.module.zeros(1, np.float32)
    for count in (10, 100, 1000, 10_000):

        def step(count=count):
            for _ in range(count):
                backend.module.add(a, 1, out=a)

        run = Captured(backend.lane, backend.tape, [step], lambda steps: (list(steps), ""))
        launches = seconds(backend, run.steps[0])
        run()
        run()
        whole = seconds(backend, run)
        rows.append({"nodes": count, "us a node": 1e6 * whole / count, "us a launch without": 1e6 * launches / count})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")  # why something is not used
    try:
        backend = select(arguments.device)
    except DeviceError as error:
        sys.exit(f"no figures: {error}")
    found: dict[str, Any] = {"versions": versions(backend)}
    wanted = {"exactness": exactness, "a captured step": repeats, "nodes": nodes}
    if backend.lane.lt:
        wanted["products, us"] = products
    for name, measure in wanted.items():
        found[name] = measure(backend)
    for name, value in found.items():
        print(f"\n{name}")
        for row in value if isinstance(value, list) else value.items():
            print("  ", "  ".join(f"{k} {_text(v)}" for k, v in row.items()) if isinstance(row, dict) else _pair(*row))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


def _text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _pair(name: str, value: Any) -> str:
    return f"{name}: {_text(value)}"


if __name__ == "__main__":
    main()
