"""Compile and run, without a GPU, the CUDA kernels that training steps are made of.

    python scripts/kernels.py [--all] [--show WORD] [--sm 90 120]

For each network: how many calls a recorded step has, and of how many kernels, products and other calls it consists.
For each kernel: the calls that it does, its blocks and threads, and, where NVIDIA's compiler NVRTC is installed
(pip install nvidia-cuda-nvrtc), its registers and spilled bytes on each architecture. With --all also the kernels of
every layer, loss, optimizer and metric; they are then run on the host by g++ and compared with the calls that they do.
--show prints the source of the kernels whose name or calls contain a word. Ends with 1 where something fails.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import nvrtc  # noqa: E402
import tapes  # noqa: E402
from emulation import COMPILER, Library, prove  # noqa: E402

from gpbackprop.backend.fuse import fuse  # noqa: E402
from gpbackprop.backend.source import Kernel  # noqa: E402


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="every class, run on the host too")
    parser.add_argument("--show", metavar="WORD", help="print the source of some kernels")
    parser.add_argument("--sm", nargs="+", default=[name[3:] for name in nvrtc.ARCHITECTURES], help="architectures")
    return parser.parse_args()


def main() -> int:
    arguments, failed = parse(), 0
    fused = {}
    print(f"{'step':40} {'calls':>6} {'kernels':>8} {'products':>9} {'other':>6}")
    for name, make in {**tapes.networks(), **(tapes.battery() if arguments.all else {})}.items():
        calls = make()
        items = fuse(calls, np.empty)
        fused[name] = calls, items
        left = [item.name for item in items if not isinstance(item, Kernel)]
        products = left.count("gemm")
        counts = f"{len(items) - len(left):8} {products:9} {len(left) - products:6}"
        print(f"{name:40} {len(calls):6} {counts}")
    kernels = {item.source: item for _, items in fused.values() for item in items if isinstance(item, Kernel)}
    failed += compile_all(list(kernels.values()), arguments.sm)
    for kernel in kernels.values():
        if arguments.show and any(arguments.show in text for text in (kernel.name, *(c.name for c in kernel.calls))):
            print(f"\n{kernel.source.partition('#endif')[2].strip()}")
    if arguments.all:
        failed += run_all({name: fused[name] for name in tapes.battery()})
    return int(failed > 0)


def compile_all(kernels: list[Kernel], architectures: list[str]) -> int:
    """A line for each kernel; returns how many groups of them do not compile."""
    try:
        nvrtc.load()
    except OSError as error:
        print(error)
        architectures = []
    failed, spilling, use = 0, 0, {}
    for sm in architectures:
        for start in range(0, len(kernels), 50):
            part = kernels[start : start + 50]
            try:
                _, log = nvrtc.compile("\n".join(kernel.source for kernel in part), f"sm_{sm}")
            except ValueError as error:
                failed += 1
                print(f"sm_{sm}: {error}")
                continue
            for name, (registers, spilled) in nvrtc.use(log).items():
                use[name, sm] = f"{registers}" + (f" + {spilled} B" if spilled else "")
                spilling += bool(spilled)
    heads = "".join(f"{'sm_' + sm:>12}" for sm in architectures)
    print(f"\n{'kernel':56} {'calls':>5} {'blocks':>7} {'threads':>8}{heads}  registers")
    for kernel in kernels:
        registers = "".join(f"{use.get((kernel.name, sm), '?'):>12}" for sm in architectures)
        print(f"{kernel.name:56} {len(kernel.calls):5} {kernel.grid:7} {kernel.block:8}{registers}")
    print(f"{len(kernels)} kernels; {failed} errors; {spilling} times registers are spilled to memory\n")
    return failed


def run_all(fused: dict) -> int:
    """Run the kernels of the battery on the host; returns how many tapes they do not do as NumPy does."""
    if COMPILER is None:
        print("there is no g++, which runs kernels on the host")
        return 0
    library = Library(item for _, items in fused.values() for item in items if isinstance(item, Kernel))
    wrong = []
    for name, (calls, items) in fused.items():
        try:
            prove(calls, items, library.run)
        except AssertionError as error:
            wrong.append(f"{name}: {error}")
    print("\n".join(wrong))
    print(f"{len(fused)} tapes run on the host, {len(wrong)} that differ from NumPy")
    return len(wrong)


if __name__ == "__main__":
    sys.exit(main())
