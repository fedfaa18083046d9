"""NVIDIA's runtime compiler, which needs no GPU: `pip install nvidia-cuda-nvrtc` brings it."""

import ctypes
import importlib.util
import re
from functools import cache
from pathlib import Path
from typing import Any

ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "sm_120")


@cache
def load() -> Any:
    """The library; raises OSError where there is none."""
    found = importlib.util.find_spec("nvidia")
    folders = [Path(folder) for folder in (found.submodule_search_locations or [])] if found else []
    paths = [path for folder in folders for path in sorted(folder.glob("**/libnvrtc.so.*[0-9]"))]
    for path in [*paths, Path("libnvrtc.so.13"), Path("libnvrtc.so.12"), Path("libnvrtc.so")]:
        try:
            for part in path.parent.glob("libnvrtc-builtins.so.*[0-9]"):  # it looks for this one by its bare name
                ctypes.CDLL(str(part), mode=ctypes.RTLD_GLOBAL)
            return ctypes.CDLL(str(path))
        except OSError:
            continue
    raise OSError("there is no NVRTC, which compiles for GPUs: pip install nvidia-cuda-nvrtc")


def compile(source: str, architecture: str) -> tuple[bytes, str]:
    """The machine code of `source` and what the compiler says; raises ValueError with that where it fails."""
    nvrtc, program = load(), ctypes.c_void_p()
    options = [f"--gpu-architecture={architecture}", "--std=c++17", "--fmad=false", "--ptxas-options=-v"]
    values = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernel.cu", 0, None, None)
    try:
        failed = nvrtc.nvrtcCompileProgram(program, len(options), values)
        log = _text(program, "ProgramLog").decode().rstrip("\0")
        if failed:
            raise ValueError(f"{log}\n{source}")
        return _text(program, "CUBIN"), log
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _text(program: ctypes.c_void_p, what: str) -> bytes:
    size = ctypes.c_size_t()
    getattr(load(), f"nvrtcGet{what}Size")(program, ctypes.byref(size))
    text = ctypes.create_string_buffer(size.value)
    getattr(load(), f"nvrtcGet{what}")(program, text)
    return text.raw


def use(log: str) -> dict[str, tuple[int, int]]:
    """For each kernel of a log, its registers and the bytes that it spills."""
    found = {}
    for part in log.split("Compiling entry function ")[1:]:
        registers = re.search(r"Used (\d+) registers", part)
        spilled = re.search(r"(\d+) bytes spill stores", part)
        found[part.split("'")[1]] = int(registers[1]) if registers else 0, int(spilled[1]) if spilled else 0
    return found
