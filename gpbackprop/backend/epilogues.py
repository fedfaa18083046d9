"""The products on a tape, bound to cuBLASLt, and what they can do besides: add a bias, add up the rows of a factor.

    z = x W,    z = z + b      of a forward pass becomes one product
    dW = x' dz, db = 1' dz     of a backward pass, too

Each saves a node of a graph, or a second pass over memory. Only what is written to the same places is taken together,
so that every array holds after the step what it would have held without. (An activation writes an array of its own,
and the backward pass reads its input: it stays a kernel.)
"""

import dataclasses
from collections.abc import Callable, Sequence

from gpbackprop.backend.lt import ADD_BIAS, ADD_ROWS
from gpbackprop.backend.numpy import Array
from gpbackprop.backend.tape import Call

Bind = Callable[..., Callable[..., None] | None]


def bound(calls: Sequence[Call], bind: Bind, are_ones: Callable[[Array], bool]) -> list[Call]:
    """`calls` with their products as `bind(a, b, out, epilogue, row)` gives them; those that it gives None for stay.

    `are_ones(x)` says whether x is a constant of ones.
    """
    result: list[Call] = []
    at = 0
    while at < len(calls):
        call, at = calls[at], at + 1
        if is_product(call):
            after = calls[at] if at < len(calls) else None
            epilogue, row = together(call, after, are_ones) if after else (0, None)
            if epilogue and (product := bind(*call.inputs, call.out, epilogue, row)):
                call = dataclasses.replace(call, function=product, inputs=(*call.inputs, row))
                at += 1
                if epilogue == ADD_ROWS:  # who reads the tape after this sees that the row is written, too
                    result.append(call)
                    call = dataclasses.replace(call, function=nothing, out=row)
            elif product := bind(*call.inputs, call.out):
                call = dataclasses.replace(call, function=product)
        result.append(call)
    return result


def is_product(call: Call) -> bool:
    return call.name == "gemm" and call.verb


def nothing(*_: Array) -> None:
    """What is done already."""


def together(product: Call, call: Call, are_ones: Callable[[Array], bool]) -> tuple[int, Array]:
    """The epilogue by which `product` does the work of the `call` after it, and the row in question; 0 if none does."""
    out = product.out
    if call.name == "add" and not call.options and len(call.inputs) == 2 and same(call.out, out):
        for x, row in (call.inputs, call.inputs[::-1]):
            if same(x, out) and is_row(row, out):
                return ADD_BIAS, row
    row, adds_up = call.out, is_product(call) and are_ones(call.inputs[0]) and same(call.inputs[1], product.inputs[1])
    if adds_up and is_row(row, out) and len(row) == len(out):
        return ADD_ROWS, row
    return 0, None


def is_row(x: Array, out: Array) -> bool:
    """Whether x is (k or 1, 1, n) for an `out` (k, m, n), with the n elements of a row side by side."""
    if getattr(x, "ndim", 0) != 3 or x.dtype != out.dtype:  # a number has no axes
        return False
    k, rows, columns = x.shape
    in_a_row = columns == 1 or x.strides[2] == x.itemsize
    return rows == 1 and columns == out.shape[2] and k in (1, len(out)) and in_a_row


def same(x: Array, y: Array) -> bool:
    """Whether both are the same view of the same memory."""
    if x is y:
        return True
    if getattr(x, "ndim", None) is None or getattr(y, "ndim", None) is None:
        return False
    return (x.data.ptr, x.shape, x.strides, x.dtype) == (y.data.ptr, y.shape, y.strides, y.dtype)
