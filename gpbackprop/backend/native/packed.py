"""Large matrix products as loops of our own, in the order of K. Goto and R. van de Geijn (2008).

    out[m,n] = sum_j a[m,j] b[j,n]

A tile of the result stays in registers while j runs. It reads a strip of rows of `a` and one of columns of `b` from
copies in which what it wants next lies next: a block of `a`, which stays in the second level of the cache while all
columns pass, and a panel of `b`, which stays in the first while all rows of the block pass. The sums run from the first
j to the last, DEEP of them at a time, whatever the tile and the piece: a result has the same bits on any number of
cores.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir

from gpbackprop.backend.native import emit, engine
from gpbackprop.backend.native.emit import I64, POINTER
from gpbackprop.backend.native.part import Part, steps
from gpbackprop.backend.views import address

ROWS = 192  # of a block of `a`: a multiple of the rows of all tiles
DEEP = 1280  # bytes along j of a row of a block
FEW = 8  # panels: for as many or fewer a block of `a` is not copied
SHORT = 3  # strips: for as many or fewer a panel of `b` is not copied
APART = 2**20  # multiplications of a product that several cores share
SCRATCH = ROWS * DEEP + 2**16  # bytes of a block, and enough for a panel and a tile
TABLE = (  # pointers, sizes, steps in elements along the members k and rows and columns, sides and numbers of pieces
    "a", "b", "out", "m", "n", "j", "a.k", "a.m", "a.j", "b.k", "b.j", "b.n", "out.k", "out.m",
    "rows", "columns", "down", "across",
)  # fmt: skip


def part(a: np.ndarray, b: np.ndarray, out: np.ndarray, workers: int) -> Part | None:
    """The product, in as many pieces as there are `workers` where it is large.

    None where neighbouring columns of the result are not neighbours in memory.
    """
    (members, m, n), j = out.shape, a.shape[2]
    if n > 1 and out.strides[2] != out.itemsize:
        return None
    rows, columns = _piece(m, n, -(-workers // members) if out.size * j >= APART else 1, *sides(out.dtype))
    down, across = -(-m // rows), -(-n // columns)
    along = [step for x in (a, b, out) for step in steps(x, members)]
    numbers = [*map(address, (a, b, out)), m, n, j, *along[:-1], rows, columns, down, across]
    return Part(product(out.dtype.name), np.array(numbers, np.int64), out.size * j, members * down * across)


def _piece(m: int, n: int, count: int, tall: int, wide: int) -> tuple[int, int]:
    """The sides of a piece of a matrix (m, n), of about `count` pieces with short sides, each of whole tiles."""
    down = min((d for d in range(1, count + 1) if count % d == 0), key=lambda d: (m / d + n * d / count, -d))
    return -(-m // down // tall) * tall, -(-n * down // count // wide) * wide


def tile(dtype: np.dtype) -> tuple[int, int, int]:
    """Rows, vectors and lanes of a vector of a tile: as many as there are registers for."""
    register, rows = (64, 12) if "avx512f" in engine.features() else (32, 6)
    return rows, 2, register // dtype.itemsize


def sides(dtype: np.dtype) -> tuple[int, int]:
    """Rows and columns of a tile."""
    rows, vectors, lanes = tile(dtype)
    return rows, vectors * lanes


@cache
def product(name: str) -> int:
    """The address of the function of a program that multiplies matrices of that dtype."""
    return built(name, tile(np.dtype(name)))


@cache
def built(name: str, tile: tuple[int, int, int]) -> int:
    """The same by tiles of (rows, vectors, lanes)."""
    return engine.built(*engine.named(str(Packed(np.dtype(name), *tile).module)))


@dataclass(frozen=True)
class Block:
    """Rows of `a`, `height` of them and `deep` of their elements: where they begin, whether all strips are `packed`,
    and whether what they give `adds` to what there is."""

    source: Any
    height: Any
    deep: Any
    packed: Any
    adds: Any


class Packed:
    """The text of the function `kernel`."""

    def __init__(self, dtype: np.dtype, rows: int, vectors: int, lanes: int):
        self.dtype, self.module = dtype, ir.Module()
        self.kind = emit.TYPES[dtype.name]
        self.rows, self.vectors, self.lanes = rows, vectors, lanes
        self.columns, self.deep = self.vectors * self.lanes, DEEP // dtype.itemsize
        room = DEEP * (ROWS + self.columns) + self.rows * self.columns * dtype.itemsize
        assert ROWS % self.rows == 0
        assert room <= SCRATCH
        self.tiles = {packed: self._tile(packed) for packed in (True, False)}
        function = ir.Function(self.module, emit.KERNEL, "kernel")
        self.b = ir.IRBuilder(function.append_basic_block("entry"))
        table, begin, end, scratch = function.args
        self.at = {
            field: self.b.load(self.b.gep(table, [I64(i)], source_etype=I64), typ=POINTER if i < 3 else I64)
            for i, field in enumerate(TABLE)
        }
        self.block = scratch  # of a
        self.panel = self._place(scratch, I64(ROWS * self.deep))  # of b
        self.edge = self._place(self.panel, I64(self.columns * self.deep))  # a tile that is not whole
        with emit.loop(self.b, begin, end) as piece:
            self._piece(piece)
        self.b.ret_void()

    # Places.

    def _place(self, base: Any, *offsets: Any) -> Any:
        for offset in offsets:
            base = self.b.gep(base, [offset], source_etype=self.kind)
        return base

    def _times(self, index: Any, step: str) -> Any:
        return self.b.mul(index, self.at[step])

    def _least(self, x: Any, y: Any) -> Any:
        return self.b.select(self.b.icmp_signed("<", x, y), x, y)

    def _load(self, place: Any, lanes: int) -> Any:
        return self.b.load(place, typ=emit.of(self.dtype, lanes), align=self.dtype.itemsize)

    def _store(self, x: Any, place: Any) -> None:
        self.b.store(x, place, align=self.dtype.itemsize)

    # A tile.

    def _tile(self, packed: bool) -> Any:
        """The function out[r,c] = sum_j a[r,j] b[j,c], added to what there is where it `adds`.

        Its arguments are a, the steps along r and j (other ones if a is `packed`), b and the step along j, the number
        of all j, out and the step along r, and whether it adds. It stands alone so that nothing else wants registers.
        """
        signature = ir.FunctionType(ir.VoidType(), [POINTER, I64, I64, POINTER, I64, I64, POINTER, I64, emit.I1])
        function = ir.Function(
            self.module, signature, f"gpb_{self.dtype.name}_tile_{'packed' if packed else 'strided'}"
        )
        function.linkage = "internal"
        function.attributes.add("noinline")
        b = self.b = ir.IRBuilder(function.append_basic_block("entry"))
        a, down, along, other, step, count, out, beside, adds = function.args
        if packed:
            down, along = I64(1), I64(self.rows)
        kind = emit.of(self.dtype, self.lanes)
        sums = [[emit.variable(b, emit.constant(0, self.dtype, self.lanes)) for _ in range(self.vectors)]
                for _ in range(self.rows)]  # fmt: skip
        left, right = emit.variable(b, a), emit.variable(b, other)
        offsets = [b.mul(down, I64(r)) for r in range(self.rows)]
        for r in range(self.rows):
            emit.prefetch(b, self._place(out, b.mul(beside, I64(r))))
        with emit.loop(b, I64(0), count):
            first, second = b.load(left, typ=POINTER), b.load(right, typ=POINTER)
            across = [self._load(self._place(second, I64(v * self.lanes)), self.lanes) for v in range(self.vectors)]
            for offset, row in zip(offsets, sums, strict=True):
                value = emit.splat(b, self._load(self._place(first, offset), 1), self.lanes)
                for x, total in zip(across, row, strict=True):
                    b.store(emit.intrinsic(b, "fma", value, x, b.load(total, typ=kind)), total)
            b.store(self._place(first, along), left)
            b.store(self._place(second, step), right)
        with b.if_else(adds) as (add, store):
            for more, branch in ((True, add), (False, store)):
                with branch:
                    for r, row in enumerate(sums):
                        for v, total in enumerate(row):
                            where = self._place(out, b.mul(beside, I64(r)), I64(v * self.lanes))
                            found = b.load(total, typ=kind)
                            self._store(b.fadd(self._load(where, self.lanes), found) if more else found, where)
        b.ret_void()
        return function

    # Loops.

    def _piece(self, piece: Any) -> None:
        """One of the pieces of the result: block after block of `a`, and in each panel after panel of `b`."""
        b, at = self.b, self.at
        pieces = b.mul(at["down"], at["across"])
        k, place = b.sdiv(piece, pieces), b.srem(piece, pieces)
        top = self._times(b.sdiv(place, at["across"]), "rows")
        left = self._times(b.srem(place, at["across"]), "columns")
        bottom = self._least(b.add(top, at["rows"]), at["m"])
        right = self._least(b.add(left, at["columns"]), at["n"])
        first, second, out = (self._place(at[x], self._times(k, f"{x}.k")) for x in ("a", "b", "out"))
        packed = b.icmp_signed(">", b.sub(right, left), I64(FEW * self.columns))
        with emit.loop(b, top, bottom, ROWS) as row, emit.loop(b, I64(0), at["j"], self.deep) as j:
            source = self._place(first, self._times(row, "a.m"), self._times(j, "a.j"))
            height = self._least(I64(ROWS), b.sub(bottom, row))
            deep = self._least(I64(self.deep), b.sub(at["j"], j))
            block = Block(source, height, deep, packed, b.icmp_signed(">", j, I64(0)))
            self._pack_block(block)
            with emit.loop(b, left, right, self.columns) as column:
                panel = self._place(second, self._times(j, "b.j"), self._times(column, "b.n"))
                width = self._least(I64(self.columns), b.sub(right, column))
                self._panel(block, panel, width, self._place(out, self._times(row, "out.m"), column))

    def _panel(self, block: Block, panel: Any, width: Any, out: Any) -> None:
        """All tiles of a block and a panel."""
        b, at = self.b, self.at
        beside, wide = b.icmp_signed("==", at["b.n"], I64(1)), b.icmp_signed("==", width, I64(self.columns))
        vectors = b.and_(beside, wide)
        copied = b.not_(b.and_(vectors, b.icmp_signed("<=", block.height, I64(SHORT * self.rows))))
        with b.if_then(copied):
            self._pack_panel(panel, width, block.deep, vectors)
        here, step = b.select(copied, self.panel, panel), b.select(copied, I64(self.columns), at["b.j"])
        following = self._place(panel, self._times(I64(self.columns), "b.n"))
        with emit.loop(b, I64(0), block.height, self.rows) as strip:
            height = self._least(b.sub(block.height, strip), I64(self.rows))
            with b.if_then(b.and_(copied, beside)):
                self._ask_for(following, block, strip, b.add(strip, height))
            tall, place = b.icmp_signed("==", height, I64(self.rows)), self._place(out, self._times(strip, "out.m"))
            whole = b.and_(tall, wide)
            target, down = b.select(whole, place, self.edge), b.select(whole, at["out.m"], I64(self.columns))
            rest = [here, step, block.deep, target, down, b.and_(block.adds, whole)]
            with b.if_else(b.or_(block.packed, b.not_(tall))) as (packed, strided):
                with packed:
                    rows = self._place(self.block, b.mul(strip, block.deep))
                    b.call(self.tiles[True], [rows, I64(0), I64(0), *rest])
                with strided:
                    rows = self._place(block.source, self._times(strip, "a.m"))
                    b.call(self.tiles[False], [rows, at["a.m"], at["a.j"], *rest])
            with b.if_then(b.not_(whole)):
                self._from_edge(place, height, width, block.adds)

    def _ask_for(self, panel: Any, block: Block, strip: Any, end: Any) -> None:
        """Have a strip's share of a panel brought near; the processor does not foresee such steps by itself."""
        b = self.b
        first, last = (b.sdiv(b.mul(x, block.deep), block.height) for x in (strip, end))
        with emit.loop(b, first, last) as j:
            emit.prefetch(b, self._place(panel, self._times(j, "b.j")))

    def _from_edge(self, place: Any, height: Any, width: Any, adds: Any) -> None:
        """The part of a tile that lies in the result."""
        b = self.b
        with emit.loop(b, I64(0), height) as r, emit.loop(b, I64(0), width) as c:
            to = self._place(place, self._times(r, "out.m"), c)
            found = self._load(self._place(self.edge, b.mul(r, I64(self.columns)), c), 1)
            self._store(b.select(adds, b.fadd(self._load(to, 1), found), found), to)

    # Copies.

    def _pack_block(self, block: Block) -> None:
        """block[strip,j,r] = source[strip + r, j] of all strips, or of the one that is not whole.

        Rows behind the last are the last. What a vector writes behind the rows of a strip is overwritten: by the next
        j, by the next strip, or by the panel, which is copied later.
        """
        b, height = self.b, block.height
        first = b.select(block.packed, I64(0), b.sub(height, b.srem(height, I64(self.rows))))
        last, vectors = b.sub(height, I64(1)), -(-self.rows // self.lanes)
        with emit.loop(b, first, height, self.rows) as strip:
            rows = [self._least(b.add(strip, I64(r)), last) for r in range(vectors * self.lanes)]
            lines = [self._place(block.source, self._times(row, "a.m")) for row in rows]
            self._turn(lines, "a.j", self._place(self.block, b.mul(strip, block.deep)), self.rows, block.deep)

    def _pack_panel(self, source: Any, width: Any, deep: Any, beside: Any) -> None:
        """panel[j,c] = source[j,c]; columns behind the last are the last."""
        b, lanes = self.b, self.lanes
        with b.if_else(beside) as (whole, other):
            with whole, emit.loop(b, I64(0), deep) as j:
                row, to = (
                    self._place(source, self._times(j, "b.j")),
                    self._place(self.panel, b.mul(j, I64(self.columns))),
                )
                for c in range(0, self.columns, lanes):
                    self._store(self._load(self._place(row, I64(c)), lanes), self._place(to, I64(c)))
            with other:
                last = b.sub(width, I64(1))
                columns = [self._least(I64(c), last) for c in range(self.columns)]
                lines = [self._place(source, self._times(column, "b.n")) for column in columns]
                self._turn(lines, "b.j", self.panel, self.columns, deep)

    def _turn(self, lines: Sequence[Any], step: str, to: Any, width: int, deep: Any) -> None:
        """to[j,c] = lines[c][j] for c < width: as many j as a vector has lanes at a time where they are neighbours.

        There may be more lines than `width`, as many as fill vectors.
        """
        b, lanes = self.b, self.lanes
        beside = b.icmp_signed("==", self.at[step], I64(1))
        done = b.select(beside, b.and_(deep, I64(-lanes)), I64(0))

        def place(j: Any, c: int) -> Any:
            return self._place(to, b.mul(j, I64(width)), I64(c))

        groups = [lines[start : start + lanes] for start in range(0, len(lines), lanes)]
        with emit.loop(b, I64(0), done, lanes) as j:
            turned = [emit.transposed(b, [self._load(self._place(x, j), lanes) for x in group]) for group in groups]
            for i, across in enumerate(zip(*turned, strict=True)):
                for n, x in enumerate(across):
                    self._store(x, place(b.add(j, I64(i)), n * lanes))
        with emit.loop(b, done, deep) as j:
            for c, line in enumerate(lines[:width]):
                self._store(self._load(self._place(line, self._times(j, step)), 1), place(j, c))
