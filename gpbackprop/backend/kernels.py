"""The calls of a tape as launches on a CUDA device."""

from collections.abc import Callable, Sequence
from typing import Any

from gpbackprop.backend import replay
from gpbackprop.backend.fuse import fuse
from gpbackprop.backend.source import Kernel
from gpbackprop.backend.tape import Call

OPTIONS = ("-std=c++17", "--fmad=false")  # a product and a sum are rounded one by one, as the calls round them

_compiled: dict[str, Any] = {}  # functions of the device by their source: equal kernels are compiled once


def launchers(calls: Sequence[Call], cupy: Any) -> list[Callable[[], Any]]:
    """Functions without arguments that together do what `calls` do, kernels where calls fuse.

    They queue work on CuPy's current stream and neither wait nor allocate: what they need is compiled and allocated
    here. They own the arrays that they work on, also those that only they know: whoever captures them into a graph
    keeps them as long as the graph. A CuPy without a compiler gets the calls as they are.
    """
    if not hasattr(cupy, "RawModule"):
        return [step for call in calls for step in replay.as_it_is(call)]
    items = fuse(calls, cupy.empty)
    _compile([item for item in items if isinstance(item, Kernel)], cupy)
    steps: list[Callable[[], Any]] = []
    for item in items:
        if isinstance(item, Kernel):
            steps.append(_launch(_compiled[item.source], item))
        else:
            steps += replay.as_it_is(item)
    return steps


def _launch(function: Any, kernel: Kernel) -> Callable[[], Any]:
    def launch() -> None:
        function((kernel.grid,), (kernel.block,), kernel.addresses)

    return launch


def _compile(kernels: Sequence[Kernel], cupy: Any) -> None:
    """Compile all kernels that are new, in one go."""
    new = {kernel.source: kernel.name for kernel in kernels if kernel.source not in _compiled}
    if new:
        module = cupy.RawModule(code="\n".join(new), options=OPTIONS)
        _compiled.update({source: module.get_function(name) for source, name in new.items()})
