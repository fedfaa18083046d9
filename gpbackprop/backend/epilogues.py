"""The products on a tape, bound to cuBLASLt, and what they can do on the way out: add the bias.

A bias that is added to what a product has just written is a second pass over memory, and a second node of a graph. Only
what ends in the same array is taken together, so that every array holds after the step what it would have held without.
(An activation writes an array of its own, whose input the backward pass reads: it stays a kernel.)
"""

import dataclasses
from collections.abc import Callable, Sequence

from gpbackprop.backend.numpy import Array
from gpbackprop.backend.tape import Call

Bind = Callable[..., Callable[..., None] | None]


def bound(calls: Sequence[Call], bind: Bind) -> list[Call]:
    """`calls` with their products as `bind(a, b, out, bias)` gives them; those that it gives None for stay."""
    result: list[Call] = []
    at = 0
    while at < len(calls):
        call, at = calls[at], at + 1
        if call.name == "gemm" and call.verb:
            bias = bias_after(call, calls[at]) if at < len(calls) else None
            if bias is not None and (product := bind(*call.inputs, call.out, bias)):
                call = dataclasses.replace(call, function=product, inputs=(*call.inputs, bias))
                at += 1
            elif product := bind(*call.inputs, call.out, None):
                call = dataclasses.replace(call, function=product)
        result.append(call)
    return result


def bias_after(product: Call, call: Call) -> Array | None:
    """The bias (k or 1, 1, n) where `call` adds one to what `product` has written into (k, m, n), and nothing else."""
    out = product.out
    if call.name != "add" or call.options or len(call.inputs) != 2 or not same(call.out, out):
        return None
    for array, bias in (call.inputs, call.inputs[::-1]):
        if same(array, out) and getattr(bias, "ndim", 0) == 3 and bias.dtype == out.dtype:
            k, rows, columns = bias.shape
            in_a_row = columns == 1 or bias.strides[2] == bias.itemsize
            if rows == 1 and columns == out.shape[2] and k in (1, out.shape[0]) and in_a_row:
                return bias
    return None


def same(x: Array, y: Array) -> bool:
    """Whether both are the same view of the same memory."""
    if getattr(x, "ndim", None) is None:  # a number
        return False
    return x is y or (x.data.ptr, x.shape, x.strides, x.dtype) == (y.data.ptr, y.shape, y.strides, y.dtype)
