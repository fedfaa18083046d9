"""Instructions of LLVM for one element or for several lanes at a time: `b`, the builder, appends them to a function."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from llvmlite import ir

TYPES: dict[str, Any] = {
    "float32": ir.FloatType(), "float64": ir.DoubleType(), "uint8": ir.IntType(8), "bool": ir.IntType(1),
    "int32": ir.IntType(32), "uint32": ir.IntType(32), "int64": ir.IntType(64),
}  # fmt: skip
I1, I8, I32, I64, POINTER = ir.IntType(1), ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.PointerType()
FLOAT32 = np.dtype(np.float32)
# A function that a program runs: of its arguments, of the places from one to the other that it is to do, and of memory
# that is its own for so long.
KERNEL = ir.FunctionType(ir.VoidType(), [POINTER, I64, I64, POINTER])


def of(dtype: np.dtype, lanes: int) -> Any:
    """The type of `lanes` elements; of one they are a plain number."""
    return TYPES[dtype.name] if lanes == 1 else ir.VectorType(TYPES[dtype.name], lanes)


def constant(value: Any, dtype: np.dtype, lanes: int) -> Any:
    kind = of(dtype, lanes)
    number = float(dtype.type(value)) if dtype.kind == "f" else int(value)
    return ir.Constant(kind, number if lanes == 1 else [number] * lanes)


def converted(b: ir.IRBuilder, x: Any, dtype: np.dtype, to: np.dtype, lanes: int) -> Any:
    """x, of `dtype`, as a value of the dtype `to`."""
    kind = of(to, lanes)
    if to.kind == "b":
        zero = constant(0, dtype, lanes)
        return b.fcmp_unordered("!=", x, zero) if dtype.kind == "f" else b.icmp_signed("!=", x, zero)
    if dtype.kind == "f" and to.kind == "f":
        return x if dtype == to else b.fpext(x, kind) if to.itemsize > dtype.itemsize else b.fptrunc(x, kind)
    if dtype.kind == "f":
        if to.kind == "i":
            return b.fptosi(x, kind)
        return b.trunc(b.fptosi(x, of(np.dtype(np.int64), lanes)), kind)  # of negative numbers, too, what C gives
    if to.kind == "f":
        return b.sitofp(x, kind) if dtype.kind == "i" else b.uitofp(x, kind)
    here, there = TYPES[dtype.name].width, TYPES[to.name].width
    if here == there:
        return x
    return b.trunc(x, kind) if here > there else b.sext(x, kind) if dtype.kind == "i" else b.zext(x, kind)


def bound(b: ir.IRBuilder, sign: str, x: Any, y: Any, dtype: np.dtype) -> Any:
    """The larger (sign ">") or the smaller ("<") of x and y; NaN where one of them is."""
    if dtype.kind == "f":
        return b.select(b.or_(b.fcmp_ordered(sign, x, y), b.fcmp_unordered("uno", x, x)), x, y)
    return b.select((b.icmp_signed if dtype.kind == "i" else b.icmp_unsigned)(sign, x, y), x, y)


def called(b: ir.IRBuilder, where: int, gives: Any, values: Sequence[Any]) -> Any:
    """What the function at an address returns, of the type `gives`."""
    signature = ir.FunctionType(gives, [each.type for each in values])
    return b.call(b.inttoptr(I64(where), ir.PointerType(signature)), values)


@contextmanager
def loop(b: ir.IRBuilder, start: Any, stop: Any, step: int = 1) -> Iterator[Any]:
    """What is appended inside is done for i = start, start + step, ... below stop."""
    before, body, behind = b.block, b.append_basic_block("loop"), b.append_basic_block("behind")
    b.cbranch(b.icmp_signed("<", start, stop), body, behind)
    b.position_at_end(body)
    i = b.phi(I64)
    i.add_incoming(start, before)
    yield i
    following = b.add(i, I64(step))
    i.add_incoming(following, b.block)
    b.cbranch(b.icmp_signed("<", following, stop), body, behind)
    b.position_at_end(behind)


def variable(b: ir.IRBuilder, start: Any) -> Any:
    """A place on the stack that holds `start`; it becomes a register."""
    with b.goto_entry_block():
        place = b.alloca(start.type)
    b.store(start, place)
    return place


def intrinsic(b: ir.IRBuilder, name: str, *parts: Any) -> Any:
    """One of LLVM's own functions, of operands of one type, which it returns."""
    kind = parts[0].type
    element, lanes = (kind.element, f"v{kind.count}") if isinstance(kind, ir.VectorType) else (kind, "")
    whole = f"llvm.{name}.{lanes}{'f32' if element == TYPES['float32'] else 'f64'}"
    declared = b.module.globals.get(whole)
    return b.call(declared or ir.Function(b.module, ir.FunctionType(kind, [kind] * len(parts)), whole), parts)


def splat(b: ir.IRBuilder, x: Any, lanes: int) -> Any:
    """A vector of x everywhere."""
    if lanes == 1:
        return x
    first = b.insert_element(ir.Constant(ir.VectorType(x.type, lanes), ir.Undefined), x, I32(0))
    return b.shuffle_vector(first, first, ir.Constant(ir.VectorType(I32, lanes), [0] * lanes))


def elements(b: ir.IRBuilder, x: Any, lanes: int) -> list[Any]:
    return [x] if lanes == 1 else [b.extract_element(x, I32(i)) for i in range(lanes)]


def joined(b: ir.IRBuilder, parts: Sequence[Any]) -> Any:
    """A vector of numbers."""
    if len(parts) == 1:
        return parts[0]
    whole: Any = ir.Constant(ir.VectorType(parts[0].type, len(parts)), ir.Undefined)
    for i, part in enumerate(parts):
        whole = b.insert_element(whole, part, I32(i))
    return whole


def transposed(b: ir.IRBuilder, rows: Sequence[Any]) -> list[Any]:
    """As many vectors as each has lanes, turned: lane i of vector j is lane j of vector i."""
    lanes, found = len(rows), list(rows)
    half = lanes // 2
    for _ in range(lanes.bit_length() - 1):  # each time vectors i and i + half are shuffled into one another
        pairs = list(zip(found[:half], found[half:], strict=True))
        found = []
        for x, y in pairs:
            for start in (0, half):
                order = [i for n in range(start, start + half) for i in (n, lanes + n)]
                found.append(b.shuffle_vector(x, y, ir.Constant(ir.VectorType(I32, lanes), order)))
    return found


def prefetch(b: ir.IRBuilder, place: Any) -> None:
    """Ask for the line of the cache that a place is in."""
    name, kinds = "llvm.prefetch.p0", [POINTER, I32, I32, I32]
    declared = b.module.globals.get(name) or ir.Function(b.module, ir.FunctionType(ir.VoidType(), kinds), name)
    b.call(declared, [place, I32(0), I32(3), I32(1)])
