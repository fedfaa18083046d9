"""A tape replayed on the CPU: each call as NumPy takes it fastest, with the same bits.

A call of a small network takes well under a microsecond, so that what is done around it counts: keyword arguments, axes
of one element, numbers that are turned into arrays, and the wrappers that NumPy puts around reductions. Here all of
that is settled once; what remains is a list of functions of positional arguments.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import numpy as np

from gpbackprop.backend.tape import Call

BLOCK = 2**14  # elements of a row of one number, which is compared with block after block of an array

Step = Callable[[], Any]


def compile(*tapes: Sequence[Call]) -> Step:
    """One call that makes all calls of the tapes in order."""
    return in_order([step for calls in tapes for call in calls for step in lowered(call)])


def in_order(steps: Sequence[Step]) -> Step:
    """One call of all `steps`."""
    steps = tuple(steps)

    def run() -> None:
        for step in steps:
            step()

    return run


def as_it_is(call: Call) -> list[Step]:
    """The call as it was made."""
    if call.name == "copyto":
        return [partial(call.function, call.out, *call.inputs, **call.options)]
    if call.name == "python":
        return [partial(call.function, *call.inputs)]
    if call.verb:
        return [partial(call.function, *call.inputs, call.out)]
    return [partial(call.function, *call.inputs, out=call.out, **call.options)]


def lowered(call: Call) -> list[Step]:
    if call.name in _LOWERED:
        return _LOWERED[call.name](call)
    return _elementwise(call) if isinstance(call.function, np.ufunc) else as_it_is(call)


def _elementwise(call: Call) -> list[Step]:
    inputs, out = squeezed(arrays(call.inputs), call.out)
    if call.function in (np.maximum, np.minimum):
        return _bound(call, inputs, out)
    return [partial(call.function, *inputs, out, **call.options)]


def _bound(call: Call, inputs: list[np.ndarray], out: np.ndarray) -> list[Step]:
    """The larger or the smaller of two: NumPy finds it five times as fast between two rows as beside one number."""
    number = next((i for i, x in enumerate(call.inputs) if isinstance(x, int | float)), None)
    if number is None or out.ndim != 1 or inputs[1 - number].shape != out.shape or call.options:
        # from NumPy 2.4 these two want the keyword
        return [partial(call.function, *inputs, out=out, **call.options)]
    row = _row(str(inputs[number].item()), inputs[number].dtype)
    steps: list[Step] = []
    for start in range(0, len(out), BLOCK):
        part = slice(start, start + BLOCK)
        pair = [row[: len(out[part])] if i == number else x[part] for i, x in enumerate(inputs)]
        steps.append(partial(call.function, *pair, out=out[part]))
    return steps


@cache
def _row(number: str, dtype: np.dtype) -> np.ndarray:
    """By its spelling: 0.0 and -0.0 are one key of a cache, and not one number."""
    return np.full(BLOCK, float(number) if dtype.kind == "f" else int(number), dtype)


def arrays(inputs: Sequence[Any]) -> list[np.ndarray]:
    """The operands, with Python's numbers as arrays of the dtype that they take beside the others."""
    plain = (bool, int, float)
    if not any(isinstance(x, plain) for x in inputs):
        return list(inputs)
    dtype = np.result_type(*inputs)
    return [np.array(x, dtype) if isinstance(x, plain) else x for x in inputs]


def squeezed(inputs: Sequence[np.ndarray], out: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """Views of the operands without the axes that have one element in `out`, flat where all have one shape."""
    views: list[np.ndarray] = []
    for x in (*inputs, out):
        if x.size == 1 and x is not out:
            views.append(x.reshape(()))
        else:
            shape = (1,) * (out.ndim - x.ndim) + x.shape
            views.append(x.reshape([n for n, wide in zip(shape, out.shape, strict=True) if wide != 1]))
    full = [x for x in views if x.ndim]
    if all(x.shape == views[-1].shape and x.flags.c_contiguous for x in full):
        views = [x.reshape(-1) if x.ndim else x for x in views]
    return views[:-1], views[-1]


def _product(call: Call) -> list[Step]:
    (a, b), out = call.inputs, call.out
    if len(out) > 1:
        return [partial(np.matmul, a, b, out)]
    a, b, out = a[0], b[0], out[0]
    # `dot` reaches BLAS sooner, with the same call of it; it would copy a matrix that is not in one piece.
    whole = all(x.flags.forc and x.dtype == out.dtype for x in (a, b)) and out.flags.c_contiguous
    return [partial(np.dot if whole and min(out.shape[1], a.shape[1]) > 1 else np.matmul, a, b, out)]


def _gather(call: Call) -> list[Step]:
    (table, index), out = call.inputs, call.out
    if index.ndim < 2 or len(index) > 1:
        return [partial(table.take, index, 0, out, "clip")]
    return [partial(table.take, index[0], 0, out[0], "clip")]


def _copy(call: Call) -> list[Step]:
    if call.options or not call.out.size:
        return as_it_is(call)
    value = np.asarray(call.inputs[0])
    if value.ndim == 0 and call.out.flags.c_contiguous and not isinstance(call.inputs[0], np.ndarray):
        return [partial(call.out.fill, call.inputs[0])]
    (value,), out = squeezed([value], call.out)
    return [partial(np.copyto, out, value)]


def _reduction(ufunc: np.ufunc, call: Call) -> list[Step]:
    (x,), options = call.inputs, dict(call.options)
    axis, keepdims, dtype = options.pop("axis", None), options.pop("keepdims", False), options.pop("dtype", None)
    if options:
        return as_it_is(call)
    reduce: Callable[..., Any] = ufunc.reduce  # its stub knows keywords alone
    return [partial(reduce, x, axis, dtype, call.out, keepdims)]


def _mean(call: Call) -> list[Step]:
    axis = call.options.get("axis")
    axes = range(call.inputs[0].ndim) if axis is None else np.atleast_1d(axis)
    count = math.prod(call.inputs[0].shape[a] for a in axes)
    out = call.out.reshape(-1) if call.out.flags.c_contiguous else call.out
    return [*_reduction(np.add, call), partial(np.true_divide, out, np.array(count, out.dtype), out)]


_LOWERED: dict[str, Callable[[Call], list[Step]]] = {
    "gemm": _product,
    "gather": _gather,
    "copyto": _copy,
    "sum": partial(_reduction, np.add),
    "max": partial(_reduction, np.maximum),
    "min": partial(_reduction, np.minimum),
    "mean": _mean,
}
