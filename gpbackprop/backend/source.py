"""A group of statements as the text of a CUDA kernel, which NVRTC and g++ compile.

Each value is a variable that is assigned once. What a row has in common is kept in a register; elements are kept while
a loop over the row lasts, or throughout where a thread has at most one of them. An array is written once a loop.
"""

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gpbackprop.backend import cpp
from gpbackprop.backend.cpp import PRELUDE, TYPES
from gpbackprop.backend.layout import Layout
from gpbackprop.backend.statements import Row, Statement
from gpbackprop.backend.tape import Call
from gpbackprop.backend.views import View

if TYPE_CHECKING:
    from gpbackprop.backend.fuse import Group


@dataclass(frozen=True, eq=False)
class Kernel:
    """`source` defines the function `name`, which runs on `grid` blocks of `block` threads and takes `addresses`.

    They point into `arrays`, which somebody has to keep. `calls` are those that it stands for.
    """

    name: str
    source: str
    addresses: tuple[int, ...]
    arrays: tuple[Any, ...]
    grid: int
    block: int
    calls: tuple[Call, ...]


def write(group: "Group") -> Kernel:
    return Writer(group).kernel()


class Writer:
    def __init__(self, group: "Group"):
        self.members, self.calls, self.at = group.members, group.calls, Layout(group)
        self.pointers: dict[tuple[int, str], tuple[str, View]] = {}
        self.written: set[tuple[int, str]] = set()
        self.lines: list[str] = []  # of the kernel, for each thread of a row
        self.body: list[str] | None = None  # of the loop over a row that is open
        self.ends: list[str] = []  # behind that loop
        self.waiting: set[Any] = set()  # values of rows that are known only then
        self.rows: dict[Any, str] = {}  # the variables that hold elements of memory
        self.cells: dict[Any, str] = {}
        self.row_stores: dict[Any, View] = {}
        self.cell_stores: dict[Any, View] = {}
        self.shared: set[str] = set()
        self.count = 0

    def kernel(self) -> Kernel:
        for part, full in self.members:
            if full:
                self._element(part)
            else:
                self._row(part)
        self._close()
        if self.at.once:
            self._store_cells(self.lines, "inside")
        if self.row_stores:
            self._store_rows()
        arguments = ", ".join(
            f"{'' if key in self.written else 'const '}{TYPES[place.dtype.name]}* __restrict__ {name}"
            for key, (name, place) in self.pointers.items()
        )
        body = "".join(f"  {line}\n" for line in (*self.at.places(), *self._team(), *self.lines))
        text = f"__launch_bounds__({self.at.block})\nNAME({arguments}) {{\n{body}}}\n"
        kinds = list(dict.fromkeys(part.name for part, _ in self.members))
        name = f"gpb_{'_'.join(kinds[:3])}_{hashlib.blake2b(text.encode(), digest_size=5).hexdigest()}"
        source = f'{PRELUDE}\nextern "C" __global__ void {text.replace("NAME", name, 1)}'
        places = [place for _, place in self.pointers.values()]
        addresses, arrays = tuple(place.address for place in places), tuple(place.array for place in places)
        return Kernel(name, source, addresses, arrays, self.at.grid, self.at.block, self.calls)

    def _team(self) -> list[str]:
        """What the threads of a row share, where they do."""
        shared = [f"__shared__ {kind} {self._steps(kind)}[{self.at.block}];" for kind in sorted(self.shared)]
        return [f"const int first = {self.at.first};", *shared] if shared else []

    def _name(self) -> str:
        self.count += 1
        return f"v{self.count}"

    def _pointer(self, place: View) -> str:
        key = place.address, place.dtype.name
        return self.pointers.setdefault(key, (f"p{len(self.pointers)}", place))[0]

    def _at(self, place: View, full: bool) -> str:
        """An element of memory, as C++ writes it."""
        return f"{self._pointer(place)}[{self.at.offset(place, full)}]"

    def _open(self) -> list[str]:
        """Where statements on elements are written."""
        if self.at.once:
            return self.lines
        if self.body is None:
            self.body = self.at.elements()
        return self.body

    def _value(self, read: View | Row, full: bool) -> str:
        """A variable with the value of an operand."""
        if isinstance(read, Row):
            index = self._value(read.index, full)
            start = f"{index} * {read.step}ll" if read.step > 1 else index
            text = f"{self._pointer(read.table)}[{start} + {self.at.offset(read.table, full)}]"
            return self._read(text, read.table, full)
        within, key = self.at.within(read, full), self.at.key(read, full)
        known = self.cells if within else self.rows
        if key not in known:
            known[key] = self._read(self._at(read, full), read, within)
        return known[key]

    def _read(self, text: str, place: View, within: bool) -> str:
        kind = TYPES[place.dtype.name]
        guard = "" if not self.at.inner or (within and not self.at.once) else "inside" if within else "live"
        name = self._name()
        text = f"{guard} ? {text} : ({kind})0" if guard else text
        (self._open() if within else self.lines).append(f"const {kind} {name} = {text};")
        return name

    def _wait(self, part: Statement, full: bool) -> None:
        """End the loop where a statement needs, or changes, what only its end will give."""
        places = [read.index if isinstance(read, Row) else read for read in part.reads]
        keys = {self.at.key(place, full) for place in places if not self.at.within(place, full)}
        if not full or part.join:
            keys.add(self.at.key(part.out, full))
        if keys & self.waiting:
            self._close()

    def _row(self, part: Statement) -> None:
        self._wait(part, False)
        values = [self._value(read, False) for read in part.reads]
        self._keep(part.out, False, cpp.text(part.value, values), self.lines)

    def _element(self, part: Statement) -> None:
        self._wait(part, True)
        values = [self._value(read, True) for read in part.reads]
        text = cpp.text(part.value, values)
        if part.join:
            self._join(part, text)
        else:
            self._keep(part.out, True, text, self._open())

    def _keep(self, place: View, full: bool, text: str, lines: list[str]) -> None:
        """The new value of an element; memory gets it later."""
        name, within, key = self._name(), self.at.within(place, full), self.at.key(place, full)
        lines.append(f"const {TYPES[place.dtype.name]} {name} = {text};")
        self._pointer(place)
        self.written.add((place.address, place.dtype.name))
        (self.cells if within else self.rows)[key] = name
        (self.cell_stores if within else self.row_stores)[key] = place

    def _join(self, part: Statement, text: str) -> None:
        """A reduction: each thread over its own elements, then all threads of the row, in a binary tree."""
        kind, best = TYPES[part.value.dtype.name], self._name()
        start = {"sum": "0", "min": "GPB_INFINITY"}.get(part.join, "-GPB_INFINITY")
        ends = self.lines if self.at.once else self.ends
        place, steps = "lane" if self.at.once else "i", self._steps(kind)
        if part.join == "argmax":
            found, at = self._name(), self._steps("long long")
            if self.at.once:
                self.lines.append(f"const {kind} {best} = inside ? {text} : ({kind})({start});")
                self.lines.append(f"const long long {found} = inside ? lane : {self.at.width};")
            else:
                self.lines.append(f"{kind} {best} = {start}; long long {found} = {self.at.width};")
                value = self._name()
                self._open().append(f"const {kind} {value} = {text};")
                self._open().append(
                    f"if (gpb_first({value}, {place}, {best}, {found})) {{ {best} = {value}; {found} = {place}; }}"
                )
            a, b, i, j = f"{steps}[threadIdx.x]", f"{steps}[other]", f"{at}[threadIdx.x]", f"{at}[other]"
            ends += self._tree(
                f"{a} = {best}; {i} = {found};", f"if (gpb_first({b}, {j}, {a}, {i})) {{ {a} = {b}; {i} = {j}; }}"
            )
            result = f"{at}[first]"
        else:
            join = {"sum": "{} + {}", "max": "gpb_maximum({}, {})", "min": "gpb_minimum({}, {})"}[part.join]
            if self.at.once:
                self.lines.append(f"const {kind} {best} = inside ? {text} : ({kind})({start});")
            else:
                self.lines.append(f"{kind} {best} = {start};")
                self._open().append(f"{best} = {join.format(best, text)};")
            a, b = f"{steps}[threadIdx.x]", f"{steps}[other]"
            ends += self._tree(f"{a} = {best};", f"{a} = {join.format(a, b)};")
            result = f"{steps}[first]"
        self._keep(part.out, True, cpp.text(part.tail, [result]), ends)
        ends.append(self.at.sync)
        if not self.at.once:
            self.waiting.add(self.at.key(part.out, True))

    def _steps(self, kind: str) -> str:
        self.shared.add(kind)
        return f"shared_{kind.replace(' ', '_')}"

    def _tree(self, begin: str, join: str) -> list[str]:
        step = self.at.side if self.at.columns else 1
        return [
            begin,
            self.at.sync,
            f"for (int half = {self.at.team // 2}; half; half /= 2) {{",
            f"  const int other = threadIdx.x + half * {step};",
            f"  if (lane < half) {{ {join} }}",
            f"  {self.at.sync}",
            "}",
        ]

    def _close(self) -> None:
        """Write the open loop, and what comes behind it."""
        if self.body is not None:
            self._store_cells(self.body, "")
            start = f"{self.at.integer} i = live ? lane : {self.at.width}"
            self.lines.append(f"for ({start}; i < {self.at.width}; i += {self.at.team}) {{")
            self.lines += [*(f"  {line}" for line in self.body), "}"]
            self.cells.clear()
        self.lines += self.ends
        self.body, self.ends = None, []
        self.waiting.clear()

    def _store_cells(self, lines: list[str], guard: str) -> None:
        guard = f"if ({guard}) " if guard else ""
        lines += (f"{guard}{self._at(place, True)} = {self.cells[key]};" for key, place in self.cell_stores.items())
        self.cell_stores.clear()

    def _store_rows(self) -> None:
        """After all threads of the row have read what it changes, one of them writes it."""
        guard = ""
        if self.at.inner:
            self.lines.append(self.at.sync)
            guard = "if (live && lane == 0) "
        for key, place in self.row_stores.items():
            full = (id(place), True) in self.at.strides
            self.lines.append(f"{guard}{self._at(place, full)} = {self.rows[key]};")
