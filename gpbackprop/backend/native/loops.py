"""A group of statements as loops over its elements, in LLVM's language: several lanes at a time.

    void kernel(pointers, begin, end)       of the outermost axis

Lanes lie along the axis on which neighbours in memory are neighbours: along an axis of the outer space, where each lane
is a row of its own, or along the last one of the inner space, where all lanes are of one row. What does not fill all
lanes is done by fewer.

A reduction along the lanes adds elements i, i + 16, i + 32, ... of a row, then what the lanes have, then the rest: an
order that depends on nothing but the sizes, and is the same on every processor.
"""

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gpbackprop.backend.layout import Layout, views_of
from gpbackprop.backend.native import engine, expression
from gpbackprop.backend.native.writer import Writer
from gpbackprop.backend.statements import Row
from gpbackprop.backend.views import View

if TYPE_CHECKING:
    from gpbackprop.backend.fuse import Group


@dataclass(frozen=True, eq=False)
class Loops:
    """The function `name`, which takes `addresses` in `arrays`.

    `work` is what all of it costs, in additions; it can be done in pieces, of `grain` of its `places`.
    """

    name: str
    addresses: tuple[int, ...]
    arrays: tuple[Any, ...]
    work: int
    places: int
    grain: int


LONG = 2**17  # additions of loops that several cores may share
GRAIN = 64  # rows that are lanes, of a piece: some lines of the cache

_names: dict[str, str] = {}  # of loops by what they do: equal ones are written once


def write(group: "Group", texts: dict[str, str]) -> Loops:
    """The loops of a group; their text joins `texts`, by its name, unless it is there or compiled already."""
    places = Places(group)
    key = places.signature()
    name = _names.get(key, "")
    if name not in texts and not engine.has(name):
        name, text = Writer(places).function()
        texts[name], _names[key] = text, name
    views = [place for _, place in places.pointers.values()]
    addresses, arrays = tuple(place.address for place in views), tuple(place.array for place in views)
    return Loops(name, addresses, arrays, places.work, *(places.outermost if places.cut else (1, 1)))


class Places:
    """Where the statements of a group find their elements: `pointers` into memory, and the order of the loops.

    `axes` are those of the rows, the outermost first; the last one is `lanes` where lanes are rows.
    """

    def __init__(self, group: "Group"):
        self.members, self.at = group.members, Layout(group)
        self.forgotten = {id(place) for place in group.forgotten}
        self.pointers: dict[tuple[int, str], tuple[int, View]] = {}
        for part, _ in self.members:
            for place in views_of(part):
                self.pointers.setdefault((place.address, place.dtype.name), (len(self.pointers), place))
        self.lanes = self._lane_axis() if self.at.columns else None
        each = sum((self.at.width if full else 1) * (1 + expression.cost(part.value)) for part, full in self.members)
        self.work = self.at.many * each
        axes = [a for a in range(len(self.at.outer)) if a != self.lanes]
        self.axes = axes if self.lanes is None else [*axes, self.lanes]

    @property
    def cut(self) -> bool:
        """Whether it is worked on in pieces."""
        return self.work >= LONG

    @property
    def outermost(self) -> tuple[int, int]:
        """Places of the outermost axis, and of how many a piece has a multiple."""
        if not self.axes:
            return 1, 1
        return self.at.outer[self.axes[0]], GRAIN if self.axes[0] == self.lanes else 1

    def number(self, place: View) -> int:
        return self.pointers[place.address, place.dtype.name][0]

    def signature(self) -> str:
        """The same digest for groups that do the same, wherever in memory."""
        facts: list[Any] = [self.at.outer, self.at.inner, self.axes, self.lanes, self.cut]
        for part, full in self.members:
            views = [(self.number(p), p.dtype.name, self.at.strides[id(p), full]) for p in views_of(part)]
            steps = [(read.step, read.rows) if isinstance(read, Row) else 0 for read in part.reads]
            facts += [full, part.join, part.value, part.tail, views, steps, id(part.out) in self.forgotten]
        return hashlib.blake2b(repr(facts).encode(), digest_size=16).hexdigest()

    def _lane_axis(self) -> int | None:
        """The outer axis along which most views have their elements side by side; the last of them."""
        axes = range(len(self.at.outer))
        beside = [sum(abs(row[a]) == 1 for row, _ in self.at.strides.values()) for a in axes]
        return max(axes, key=lambda a: (beside[a], a), default=None)
