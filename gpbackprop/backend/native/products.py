"""Matrix products of a program: loops of our own, or the BLAS that NumPy has loaded."""

from functools import cache

from gpbackprop.backend.native import borrowed, engine, packed, tiles
from gpbackprop.backend.native.part import Part
from gpbackprop.backend.tape import Call
from gpbackprop.backend.views import view

SMALL = 2**20  # multiplications of a product for which nothing is copied


def part(call: Call, workers: int = 1) -> Part | None:
    """out[k] = a[k] b[k] for all members k, in pieces for `workers` where it is large.

    None where there is neither a loop nor a BLAS for these matrices.
    """
    (a, b), out = call.inputs, call.out
    if not (a.dtype == b.dtype == out.dtype and a.size and b.size and out.dtype.kind == "f"):
        return None
    if any(view(out, out.shape).overlaps(view(x, x.shape)) for x in (a, b)):
        return None
    if not fuses():
        return borrowed.part(a, b, out)
    small = out[0].size * a.shape[2] <= SMALL
    return (tiles.part(a, b, out) if small else None) or packed.part(a, b, out, workers)


@cache
def fuses() -> bool:
    """Whether this processor multiplies and adds in one instruction; only then loops are as fast as a BLAS."""
    return "fma" in engine.features()
