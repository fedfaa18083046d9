"""LLVM on this machine: sources of functions in, addresses of machine code out."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import llvmlite.binding as llvm

_compiled: dict[str, int] = {}  # addresses of functions by their source: equal ones are compiled once


def build(functions: Sequence[tuple[str, str]]) -> None:
    """Compile those functions (name, source) that are new."""
    new = {source: name for name, source in functions if source not in _compiled}
    if not new:
        return
    engine, machine = _engine()
    whole = llvm.parse_assembly("")
    for source in new:
        whole.link_in(llvm.parse_assembly(source))
    whole.verify()
    options = llvm.create_pipeline_tuning_options(speed_level=2)
    options.loop_vectorization = options.slp_vectorization = False  # lanes are written down
    builder = llvm.create_pass_builder(machine, options)
    builder.getModulePassManager().run(whole, builder)
    engine.add_module(whole)
    engine.finalize_object()
    _compiled.update({source: engine.get_function_address(name) for source, name in new.items()})


def built(name: str, source: str) -> int:
    """The address of one function."""
    build([(name, source)])
    return _compiled[source]


def address(source: str) -> int:
    """Where a function is that was built."""
    return _compiled[source]


@cache
def features() -> frozenset[str]:
    """What this processor can do, in LLVM's words: avx2, fma, ..."""
    return frozenset(name for name, has in llvm.get_host_cpu_features().items() if has)


@cache
def _engine() -> tuple[Any, Any]:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = llvm.Target.from_default_triple()
    machine = target.create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=2, jit=True
    )
    return llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine), machine
