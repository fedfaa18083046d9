"""LLVM on this machine: sources of functions in, addresses of machine code out.

What has been compiled stays for as long as the process does.
"""

import hashlib
import threading
from collections.abc import Mapping
from functools import cache
from typing import Any

import llvmlite.binding as llvm

_alone = threading.Lock()  # the engine is one, and not for two threads at a time
_compiled: dict[str, int] = {}  # addresses of functions by their names: equal ones are compiled once


def named(text: str) -> tuple[str, str]:
    """A name for the function `kernel` of a module, a digest of the text, and the text with that name."""
    name = f"gpb_{hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}"
    return name, text.replace('@"kernel"', f'@"{name}"', 1)


def build(sources: Mapping[str, str]) -> None:
    """Compile those functions, by their names, that are new."""
    with _alone:
        new = {name: source for name, source in sources.items() if name not in _compiled}
        if new:
            _build(new)


def built(name: str, source: str) -> int:
    """The address of one function."""
    build({name: source})
    return _compiled[name]


def has(name: str) -> bool:
    """Whether that function is compiled already."""
    return name in _compiled


def address(name: str) -> int:
    """Where a function is that was built."""
    return _compiled[name]


@cache
def features() -> frozenset[str]:
    """What this processor can do, in LLVM's words: avx2, fma, ..."""
    return frozenset(name for name, has in llvm.get_host_cpu_features().items() if has)


def processor() -> str:
    """The kind of this processor, in LLVM's words: x86_64, aarch64, ..."""
    return llvm.get_process_triple().split("-")[0]


def _build(new: Mapping[str, str]) -> None:
    engine, machine = _engine()
    whole = llvm.parse_assembly("")
    for source in new.values():
        whole.link_in(llvm.parse_assembly(source))
    whole.verify()
    options = llvm.create_pipeline_tuning_options(speed_level=2)
    options.loop_vectorization = options.slp_vectorization = False  # lanes are written down
    builder = llvm.create_pass_builder(machine, options)
    builder.getModulePassManager().run(whole, builder)
    engine.add_module(whole)
    engine.finalize_object()
    _compiled.update({name: engine.get_function_address(name) for name in new})
    engine.remove_module(whole)  # the machine code stays


@cache
def _engine() -> tuple[Any, Any]:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = llvm.Target.from_default_triple()
    machine = target.create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=2, jit=True
    )
    return llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine), machine
