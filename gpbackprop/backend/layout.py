"""How the points of a group are laid over the threads of a kernel, and where in memory each of them looks.

A row is worked on by a team of threads, thread i of n on the elements i, i + n, ...; a block has several rows. Where
neighbours in memory are neighbouring rows, the threads of a team lie a stride apart, so that what a warp reads at a
time is in one piece.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gpbackprop.backend.statements import Row, Statement
from gpbackprop.backend.views import Shape, View, levels

if TYPE_CHECKING:
    from gpbackprop.backend.fuse import Group


class Layout:
    """The row `row` and, inside it, the element `i` or `lane` of a thread; `o0, o1, ...` and `i0, i1, ...` along axes.

    `outer` and `inner` are the axes of rows and elements, `many` and `width` how many of these there are. A row gets
    `team` threads, a block `side` rows. `once` says that a thread has at most one element of a row.
    """

    def __init__(self, group: "Group"):
        self._lay_out(group)
        self._share_out(group)

    def _lay_out(self, group: "Group") -> None:
        """The strides of all views over as few axes as will do."""
        self.strides: dict[tuple[int, bool], tuple[Shape, Shape]] = {}
        views = [(place, full) for part, full in group.members for place in views_of(part)]
        found = [levels(place, group.shape, group.inner, full) for place, full in views]
        outer = [n for n, flag in zip(group.shape, group.inner, strict=True) if not flag]
        inner = [n for n, flag in zip(group.shape, group.inner, strict=True) if flag]
        sizes = [place.dtype.itemsize for place, _ in views]
        rows = [tuple(s // size for s in o) for (o, _), size in zip(found, sizes, strict=True)]
        cells = [tuple(s // size for s in i) or (0,) * len(inner) for (_, i), size in zip(found, sizes, strict=True)]
        self.outer, rows = _merged(outer, rows)
        self.inner, cells = _merged(inner, cells)
        for (place, full), row, cell in zip(views, rows, cells, strict=True):
            self.strides[id(place), full] = row, cell if any(cell) else ()
        ends = [sum((n - 1) * abs(s) for n, s in zip((*self.outer, *self.inner), (*r, *c), strict=True))
                for r, c in zip(rows, cells, strict=True)]  # fmt: skip
        self.many, self.width = math.prod(self.outer), math.prod(self.inner)
        wide = max([self.many * self.width + 2048, *ends]) >= 2**31
        self.integer = "long long" if wide else "int"

    def _share_out(self, group: "Group") -> None:
        """How many threads a row gets (`team`), how many rows a block (`side`), and which are neighbours."""
        if not self.inner:
            self.team, self.block = 1, 256 if self.many >= 2**16 else 128
            self.side, self.columns = self.block, True
            return
        full = [self.strides[id(place), full] for part, full in group.members if full for place in views_of(part)]
        across = sum(bool(row) and abs(row[-1]) == 1 for row, cell in full if cell)
        along = sum(abs(cell[-1]) == 1 for _, cell in full if cell)
        self.columns = across > along and self.many > 1
        if self.columns:  # neighbouring threads read neighbouring rows
            self.side = min(32, _power(self.many))
            self.team = min(_power(self.width), (256 if self.width <= 256 else 1024) // self.side)
        else:
            self.team = min(_power(self.width), 256)
            self.side = max(1, min(128 // self.team, max(32 // self.team, _power(self.many))))
        self.block = self.team * self.side

    @property
    def grid(self) -> int:
        return -(-self.many // self.side)

    @property
    def once(self) -> bool:
        """A thread has at most one element of a row."""
        return self.width <= self.team

    def places(self) -> list[str]:
        """The lines that say which row and which element of it a thread is at."""
        whole, lines = self.integer, []
        if not self.inner:
            lines.append(f"const {whole} row = ({whole})blockIdx.x * {self.block} + threadIdx.x;")
            lines.append(f"if (row >= {self.many}) return;")
            return lines + _indices("o", "row", self.outer, whole)
        at, lane = f"threadIdx.x % {self.side}", f"threadIdx.x / {self.side}"
        if not self.columns:
            at, lane = f"threadIdx.x / {self.team}", f"threadIdx.x % {self.team}"
        lines.append(f"const int lane = {lane};")
        lines.append(f"const {whole} row = ({whole})blockIdx.x * {self.side} + {at};")
        lines.append(f"const bool live = row < {self.many};")
        lines += _indices("o", "row", self.outer, whole)
        if self.once:
            lines.append(f"const bool inside = live && lane < {self.width};")
            lines += _indices("i", "lane", self.inner, whole)
        return lines

    @property
    def first(self) -> str:
        """The thread of the block that is the first of a row's team."""
        return f"threadIdx.x % {self.side}" if self.columns else "threadIdx.x - lane"

    @property
    def sync(self) -> str:
        """What the threads of a team wait at."""
        return "__syncwarp();" if not self.columns and self.team <= 32 else "__syncthreads();"

    def elements(self) -> list[str]:
        """The lines that say where element i of a row is."""
        return _indices("i", "i", self.inner, self.integer)

    def offset(self, place: View, full: bool) -> str:
        """Where a view has the element of a point, counted from its first one."""
        row, cell = self.strides[id(place), full]
        terms = [_term(f"o{a}", s) for a, s in enumerate(row) if s] + [
            _term(f"i{a}", s) for a, s in enumerate(cell) if s
        ]
        return " + ".join(terms) or "0"

    def key(self, place: View, full: bool) -> Any:
        """The same for views that have the same element at each point."""
        return place.address, place.dtype.name, *self.strides[id(place), full]

    def within(self, place: View, full: bool) -> bool:
        """Whether a view has more than one element a row."""
        return full and bool(self.strides[id(place), full][1])


def views_of(part: Statement) -> list[View]:
    """What a statement touches."""
    places = [part.out]
    for read in part.reads:
        places += [read.table, read.index] if isinstance(read, Row) else [read]
    return places


def _power(n: int) -> int:
    """The next power of two."""
    return 1 << (n - 1).bit_length()


def _term(index: str, stride: int) -> str:
    return index if stride == 1 else f"{index} * {stride}"


def _indices(letter: str, linear: str, shape: Sequence[int], whole: str) -> list[str]:
    """The index along each axis from that into all elements."""
    lines, below = [], 1
    for a in range(len(shape) - 1, -1, -1):
        text = f"{linear} / {below}" if below > 1 else linear
        text += f" % {shape[a]}" if a else ""
        lines.append(f"const {whole} {letter}{a} = {text};")
        below *= shape[a]
    return lines


def _merged(shape: Sequence[int], strides: Sequence[Shape]) -> tuple[Shape, list[Shape]]:
    """The same points with fewer axes: neighbours are one where all strides go on from one to the other."""
    keep = list(range(len(shape)))
    sizes = list(shape)
    for a in range(len(shape) - 2, -1, -1):
        b = next(k for k in keep if k > a)
        if all(s[a] == s[b] * sizes[b] for s in strides):
            sizes[b] *= sizes[a]
            keep.remove(a)
    return tuple(sizes[a] for a in keep), [tuple(s[a] for a in keep) for s in strides]
