"""The text of the loops over a group's elements: see `loops`.

A softmax, p[r,c] = exp(x[r,c] - max_c x[r,c]) / sum_c ..., becomes

    for r:                          a row: what is assigned here are values of the row
        for c, 16 at a time:        the maximum is joined; the loop ends before the first statement that needs it
            best = max(best, x[r,c])
        m = max over the lanes of best
        for c, 16 at a time:        statements follow each other in a loop as long as none of them waits for a join
            p[r,c] = exp(x[r,c] - m)
            total = total + p[r,c]
        s = sum over the lanes of total
        for c, 16 at a time:
            p[r,c] = p[r,c] / s

So statements on elements are gathered (`open`) until one needs, or changes, a value of the row that is known behind the
loop (`waiting`); then the loop is written (`_close`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from llvmlite import ir

from gpbackprop.backend.native import emit, engine, expression
from gpbackprop.backend.native.emit import I8, I64, POINTER
from gpbackprop.backend.statements import Row, Statement
from gpbackprop.backend.views import View

if TYPE_CHECKING:
    from gpbackprop.backend.native.loops import Places

WIDTHS = (16, 4, 1)  # lanes: as many as possible, then what is left, which is less than four times the next width
INTEGER = np.dtype(np.int64)


@dataclass
class Join:
    """A reduction that is under way: a place for what each number of lanes has, and for argmax where it is."""

    part: Statement
    best: dict[int, Any]
    at: dict[int, Any]


class Writer:
    def __init__(self, places: "Places"):
        self.places, self.members, self.at = places, places.members, places.at
        self.lane_axis = places.lanes
        kernel = ir.Function(ir.Module(), emit.KERNEL, "kernel")
        self.b = ir.IRBuilder(kernel.append_basic_block("entry"))
        table, *self.part, _ = kernel.args
        self.bases = [
            self.b.load(self.b.gep(table, [I64(i)], source_etype=I64), typ=POINTER) for i in range(len(places.pointers))
        ]
        self.outer: list[Any] = [I64(0)] * len(self.at.outer)  # the place of a row along each axis
        self.inner: list[Any] = [I64(0)] * len(self.at.inner)
        self.rows: dict[Any, Any] = {}  # values of elements of memory
        self.cells: dict[Any, Any] = {}
        self.row_stores: dict[Any, View] = {}
        self.cell_stores: dict[Any, View] = {}
        self.open: list[Statement] = []  # statements on elements whose loop is still to be written
        self.waiting: set[Any] = set()  # values of rows that are known behind it

    def function(self) -> tuple[str, str]:
        """Its name, which is a digest of its source, and its source."""
        self._nest(self.places.axes, self.part if self.places.cut else None)
        self.b.ret_void()
        return engine.named(str(self.b.module))

    # Loops.

    def _lanes(self, size: int, part: tuple[Any, Any] | None = None) -> Iterator[tuple[int, Any]]:
        """Loops over `size` places, or over a part of them: of as many lanes as there may be, then of fewer."""
        begin, end = part or (I64(0), I64(size))
        for lanes in WIDTHS:
            if size >= lanes and (part or size % (4 * lanes) >= lanes or lanes == WIDTHS[0]):
                stop = self.b.add(begin, self.b.and_(self.b.sub(end, begin), I64(-lanes)))
                with emit.loop(self.b, begin, stop, lanes) as i:
                    yield lanes, i
                begin = stop

    def _nest(self, axes: Sequence[int], part: tuple[Any, Any] | None) -> None:
        """The rows along the axes; a part of the first of them, or all."""
        if not axes:
            self._row_body(1)
            return
        first, *rest = axes
        if first == self.lane_axis:
            for lanes, i in self._lanes(self.at.outer[first], part):
                self.outer[first] = i
                self._row_body(lanes)
        else:
            begin, end = part or (I64(0), I64(self.at.outer[first]))
            with emit.loop(self.b, begin, end) as i:
                self.outer[first] = i
                self._nest(rest, None)

    def _row_body(self, lanes: int) -> None:
        """All statements for `lanes` rows."""
        self.lanes = lanes
        self.rows, self.row_stores = {}, {}
        for part, full in self.members:
            self._wait(part, full)
            if full:
                self.open.append(part)
            else:
                values = [self._value(read, False, lanes) for read in part.reads]
                self._keep(part.out, False, expression.value(self.b, part.value, values, lanes), lanes)
        self._close()
        for key, place in self.row_stores.items():
            self._store(place, (id(place), True) in self.at.strides, self.rows[key], lanes)

    def _wait(self, part: Statement, full: bool) -> None:
        """Write the loop that is open where a statement needs, or changes, what only its end will give; and where it
        changes what the loop reads."""
        places = [read.index if isinstance(read, Row) else read for read in part.reads]
        keys = {self.at.key(place, full) for place in places if not self.at.within(place, full)}
        joins = not full or bool(part.join)
        if joins:
            keys.add(self.at.key(part.out, full))
        if keys & self.waiting or (not full and self.at.key(part.out, False) in self._read_by_open()):
            self._close()
        if full and part.join:
            self.waiting.add(self.at.key(part.out, True))

    def _read_by_open(self) -> set[Any]:
        return {
            self.at.key(place, True)
            for part in self.open
            for read in part.reads
            for place in ([read.index] if isinstance(read, Row) else [read])
        }

    def _close(self) -> None:
        """Write the loop over the elements of a row that is open, and what comes behind it."""
        parts, self.open, b = self.open, [], self.b
        self.waiting = set()
        if not parts:
            return
        for part in parts:  # what they read of the row stands before the loop
            for read in part.reads:
                place = read.index if isinstance(read, Row) else read
                if not self.at.within(place, True):
                    self._value(place, True, self.lanes)
        sizes, last = self.at.inner, len(self.at.inner) - 1
        along = self.lane_axis is None  # lanes are elements
        widths = [lanes for lanes in WIDTHS if lanes <= sizes[last]] if along else [self.lanes]
        joins = {id(part): self._begin(part, widths) for part in parts if part.join}

        def nest(axis: int) -> None:
            if axis < last:
                with emit.loop(self.b, I64(0), I64(sizes[axis])) as i:
                    self.inner[axis] = i
                    nest(axis + 1)
            elif along:
                for lanes, i in self._lanes(sizes[last]):
                    self.inner[last] = i
                    self._cell_body(parts, lanes, joins)
            else:
                with emit.loop(self.b, I64(0), I64(sizes[last])) as i:
                    self.inner[last] = i
                    self._cell_body(parts, self.lanes, joins)

        nest(0)
        for join in joins.values():
            result = self._finish(join)
            whole = expression.value(b, join.part.tail, [result], self.lanes)
            self._keep(join.part.out, True, whole, self.lanes)

    def _cell_body(self, parts: Sequence[Statement], lanes: int, joins: dict[int, Join]) -> None:
        self.cells, self.cell_stores = {}, {}
        for part in parts:
            values = [self._value(read, True, lanes) for read in part.reads]
            found = expression.value(self.b, part.value, values, lanes)
            if part.join:
                self._add(joins[id(part)], found, lanes)
            else:
                self._keep(part.out, True, found, lanes)
        for key, place in self.cell_stores.items():
            self._store(place, True, self.cells[key], lanes)
        self.cells = {}

    # Reductions.

    def _begin(self, part: Statement, widths: Sequence[int]) -> Join:
        """Places for what is joined, which hold what joins to nothing."""
        dtype = part.value.dtype
        start = {"sum": 0, "min": np.inf}.get(part.join, -np.inf)
        join = Join(part, {}, {})
        for lanes in widths:
            join.best[lanes] = emit.variable(self.b, emit.constant(start, dtype, lanes))
            if part.join == "argmax":
                join.at[lanes] = emit.variable(self.b, emit.constant(self.at.width, INTEGER, lanes))
        return join

    def _add(self, join: Join, found: Any, lanes: int) -> None:
        b, place = self.b, join.best[lanes]
        best = b.load(place, typ=found.type)
        if join.part.join != "argmax":
            b.store(self._joined(join.part, best, found), place)
            return
        at = b.load(join.at[lanes], typ=emit.of(INTEGER, lanes))
        here: Any = I64(0)
        for size, i in zip(self.at.inner, self.inner, strict=True):
            here = b.add(b.mul(here, I64(size)), i)
        here = emit.splat(b, here, lanes)
        if self.lane_axis is None and lanes > 1:
            here = b.add(here, ir.Constant(emit.of(INTEGER, lanes), list(range(lanes))))
        first = self._first(found, here, best, at)
        b.store(b.select(first, found, best), place)
        b.store(b.select(first, here, at), join.at[lanes])

    def _joined(self, part: Statement, a: Any, x: Any) -> Any:
        if part.join == "sum":
            return (self.b.fadd if part.value.dtype.kind == "f" else self.b.add)(a, x)
        return emit.bound(self.b, ">" if part.join == "max" else "<", a, x, part.value.dtype)

    def _first(self, x: Any, i: Any, y: Any, j: Any) -> Any:
        """Whether x, at place i, is the maximum rather than y, at place j: NaN before all, then the first."""
        b = self.b
        before, odd, other = b.icmp_signed("<", i, j), b.fcmp_unordered("uno", x, x), b.fcmp_unordered("uno", y, y)
        larger = b.or_(b.fcmp_ordered(">", x, y), b.and_(b.fcmp_ordered("==", x, y), before))
        return b.select(odd, b.or_(b.not_(other), before), b.and_(larger, b.not_(other)))

    def _finish(self, join: Join) -> Any:
        """What all lanes have together; lanes that are rows have one result each."""
        b, dtype = self.b, join.part.value.dtype
        if self.lane_axis is not None:
            place, kind = (join.at, INTEGER) if join.at else (join.best, dtype)
            return b.load(place[self.lanes], typ=emit.of(kind, self.lanes))
        parts: list[Any] = []
        places: list[Any] = []
        for lanes, place in join.best.items():
            parts += self._folded(join, emit.elements(b, b.load(place, typ=emit.of(dtype, lanes)), lanes))
            if join.at:
                places += emit.elements(b, b.load(join.at[lanes], typ=emit.of(INTEGER, lanes)), lanes)
        total, at = parts[0], places[0] if places else None
        for n, part in enumerate(parts[1:], 1):
            if join.at:
                first = self._first(part, places[n], total, at)
                total, at = b.select(first, part, total), b.select(first, places[n], at)
            else:
                total = self._joined(join.part, total, part)
        return at if join.at else total

    def _folded(self, join: Join, parts: list[Any]) -> list[Any]:
        """Sums, maxima and minima of lanes in a binary tree."""
        while not join.at and len(parts) > 1:
            half = len(parts) // 2
            parts = [self._joined(join.part, a, x) for a, x in zip(parts[:half], parts[half:], strict=True)]
        return parts

    # Memory.

    def _value(self, read: View | Row, full: bool, lanes: int) -> Any:
        """The value of an operand: of elements, or of the row, the same for all lanes that are elements."""
        if isinstance(read, Row):
            index = self._value(read.index, full, lanes)
            dtype = read.index.dtype
            index = emit.converted(self.b, index, dtype, INTEGER, lanes)
            index = emit.bound(self.b, ">", index, emit.constant(0, INTEGER, lanes), INTEGER)  # as NumPy clips it
            index = emit.bound(self.b, "<", index, emit.constant(read.rows - 1, INTEGER, lanes), INTEGER)
            starts = self.b.mul(index, emit.constant(read.step, INTEGER, lanes))
            return self._load(read.table, full, lanes, starts, self._varies(read.index, full))
        key = self.at.key(read, full)
        if self.at.within(read, full):
            if key not in self.cells:
                self.cells[key] = self._load(read, full, lanes)
            return self.cells[key]
        if key not in self.rows:
            self.rows[key] = self._load(read, full, self.lanes)
        return emit.splat(self.b, self.rows[key], lanes) if lanes != self.lanes else self.rows[key]

    def _keep(self, place: View, full: bool, found: Any, lanes: int) -> None:
        """The new value of an element; memory gets it later."""
        within, key = self.at.within(place, full), self.at.key(place, full)
        (self.cells if within else self.rows)[key] = found
        if id(place) not in self.places.forgotten:
            (self.cell_stores if within else self.row_stores)[key] = place

    def _stride(self, place: View, full: bool) -> int:
        """From lane to lane, in elements."""
        row, cell = self.at.strides[id(place), full]
        if self.lane_axis is not None:
            return row[self.lane_axis]
        return cell[-1] if cell else 0

    def _varies(self, place: View, full: bool) -> bool:
        return self._stride(place, full) != 0

    def _offset(self, place: View, full: bool) -> Any:
        b, (row, cell) = self.b, self.at.strides[id(place), full]
        total: Any = I64(0)
        for i, stride in [*zip(self.outer, row, strict=True), *zip(self.inner, cell, strict=False)]:
            if stride:
                total = b.add(total, b.mul(i, I64(stride)))
        return total

    def _element(self, place: View, offset: Any) -> Any:
        kind = self._kind(place)
        return self.b.gep(self.bases[self.places.number(place)], [offset], source_etype=kind)

    def _kind(self, place: View) -> Any:
        return I8 if place.dtype.kind == "b" else emit.TYPES[place.dtype.name]

    def _load(self, place: View, full: bool, lanes: int, starts: Any = None, scattered: bool = False) -> Any:
        """`lanes` elements; behind `starts` elements, which are other ones for each lane where they are `scattered`."""
        b, kind, stride, offset = self.b, self._kind(place), self._stride(place, full), self._offset(place, full)
        if starts is not None and not scattered:
            first = starts if lanes == 1 else b.extract_element(starts, emit.I32(0))
            offset, starts = b.add(offset, first), None
        if starts is None and (stride == 0 or lanes == 1):
            found = emit.splat(b, b.load(self._element(place, offset), typ=kind), lanes)
        elif starts is None and stride == 1:
            found = b.load(self._element(place, offset), typ=ir.VectorType(kind, lanes), align=place.dtype.itemsize)
        else:
            own = emit.elements(b, starts, lanes) if starts is not None else [I64(0)] * lanes
            offsets = [b.add(offset, b.add(start, I64(i * stride))) for i, start in enumerate(own)]
            found = emit.joined(b, [b.load(self._element(place, each), typ=kind) for each in offsets])
        if place.dtype.kind == "b":
            return b.icmp_unsigned("!=", found, emit.constant(0, np.dtype(np.uint8), lanes))
        return found

    def _store(self, place: View, full: bool, found: Any, lanes: int) -> None:
        b, stride, offset = self.b, self._stride(place, full), self._offset(place, full)
        if place.dtype.kind == "b":
            found = b.zext(found, emit.of(np.dtype(np.uint8), lanes))
        if lanes == 1 or stride == 1:
            b.store(found, self._element(place, offset), align=place.dtype.itemsize)
            return
        for i, each in enumerate(emit.elements(b, found, lanes)):
            b.store(each, self._element(place, b.add(offset, I64(i * stride))), align=place.dtype.itemsize)
