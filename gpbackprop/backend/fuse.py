"""A tape cut into kernels: runs of calls over one space become one pass over memory.

A group has an outer and an inner space. Each point of the outer space is a row, which one team of threads works on; a
statement stands either for the row (its value is the same for all threads of the team) or for every element of it. A
reduction over the inner space is computed by the team; without an inner space a team is one thread. That is all there
is: bias and activation, an optimizer over flat arrays, and a softmax with its loss differ only in their statements.

A call joins a group when, for each place in memory that one of the group writes and another one touches, both touch the
same element at the same point: then each thread finds there what it has written itself. A call may move before other
items that touch nothing of what it writes, and write nothing of what it touches.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from gpbackprop.backend.expressions import Operand
from gpbackprop.backend.source import Kernel, write
from gpbackprop.backend.statements import Row, Statement, statement
from gpbackprop.backend.tape import Call
from gpbackprop.backend.views import Shape, View, address, common, levels, pieces, view

MOST = 4096  # elements of a row that are worked on together with others
FEW = 8  # rows: with fewer, elements are worked on one by one
PART = 1024  # elements, about, of a part of a longer row
LONG = 64  # statements of a group: more would not find registers
GATES = 4  # blocks of a larger space that a smaller one may be worked on with
BACK = 12  # items that a call may move before

Empty = Callable[[Shape, Any], Any]
Key = tuple[int, str, Shape, Shape]
Access = tuple[View, bool, Key]


def fuse(calls: Sequence[Call], empty: Empty) -> list[Kernel | Call]:
    """`calls` as kernels, and as the calls that stay as they are; `empty(shape, dtype)` makes an array of the device.

    The results are those of the calls made one by one, bit for bit but for sums, which are added in another order that
    depends on nothing but the tape: thread i of n adds elements i, i + n, ..., then the threads' sums are added in a
    binary tree.
    """
    return [write(item) if isinstance(item, Group) else item for item in groups(calls, empty)]


def groups(calls: Sequence[Call], empty: Empty) -> list["Group | Call"]:
    """`calls` as groups, and as those that join none, in an order that gives the same."""
    items: list[Group | Fixed] = []
    for call in calls:
        found = statement(call)
        for part in [None] if found is None else split(found, empty):
            if part is None or not Group().admit(part):
                items.append(Fixed(call))
            elif not any(group.admit(part) for group in _earlier(items, part)) and not _later(items, part):
                items.append(Group([part]))
    return [item.call if isinstance(item, Fixed) else item for item in _joined(items)]


def _joined(items: Sequence[Any]) -> list[Any]:
    """Neighbours that have come to work over one space become one group."""
    found: list[Any] = []
    for item in items:
        last = found[-1] if found else None
        if isinstance(item, Group) and isinstance(last, Group):
            both = Group([member for member, _ in (*last.members, *item.members)])
            if both.whole:
                found[-1] = both
                continue
        found.append(item)
    return found


def _earlier(items: Sequence[Any], part: Statement):
    """The groups that `part` may join where they are, the last first, as far back as nothing stands in its way."""
    touched = touches(part)
    for item in items[: -BACK - 1 : -1]:
        if isinstance(item, Group):
            yield item
        if item.bars(touched):
            return


def _later(items: list[Any], part: Statement) -> bool:
    """Whether a group that nothing keeps where it is takes `part` in; it then moves to the end."""
    for i in range(len(items) - 1, max(-1, len(items) - 1 - BACK), -1):
        group = items[i]
        if (
            isinstance(group, Group)
            and not any(item.bars(group.touched) for item in items[i + 1 :])
            and group.admit(part)
        ):
            items.append(items.pop(i))
            return True
    return False


class Fixed:
    """A call that stays as it is."""

    def __init__(self, call: Call):
        self.call = call
        known = call.name != "python" and call.out is not None
        self.places = [(view(x, x.shape), False) for x in call.inputs if hasattr(x, "strides")] if known else None
        if self.places is not None:
            self.places.append((view(call.out, call.out.shape), True))

    def bars(self, touched: Sequence[tuple[View, bool]]) -> bool:
        """Whether what touches these places has to stay behind this call."""
        return self.places is None or _meet(self.places, touched)


def touches(part: Statement) -> list[tuple[View, bool]]:
    """The places that a statement reads (False) and writes (True)."""
    places = [(part.out, True)]
    for read in part.reads:
        places += [(read.whole, False), (read.index, False)] if isinstance(read, Row) else [(read, False)]
    return places


def _meet(one: Sequence[tuple[View, bool]], other: Sequence[tuple[View, bool]]) -> bool:
    return any((a_writes or b_writes) and a.overlaps(b) for a, a_writes in one for b, b_writes in other)


class Group:
    """Statements over one space: `shape`, of which the axes flagged in `inner` make up a row.

    `members` holds each with whether it stands for every element of a row, `forgotten` the places that it writes and
    nobody reads.
    """

    def __init__(self, parts: Sequence[Statement] = ()) -> None:
        self.shape: Shape = ()
        self.inner: tuple[bool, ...] = ()
        self.members: list[tuple[Statement, bool]] = []
        self.accesses: list[Access] = []
        self.forgotten: list[View] = []
        self.whole = all(self._take(part) for part in parts)

    @property
    def calls(self) -> tuple[Call, ...]:
        """Those that it stands for."""
        return tuple({id(part.call): part.call for part, _ in self.members}.values())

    @property
    def touched(self) -> list[tuple[View, bool]]:
        """The places that its members read (False) and write (True)."""
        return [(place, writes) for place, writes, _ in self.accesses]

    def bars(self, touched: Sequence[tuple[View, bool]]) -> bool:
        """Whether what touches these places has to stay behind this group."""
        return _meet(self.touched, touched)

    def admit(self, part: Statement) -> bool:
        """Take a statement in where it fits; says whether it did.

        Where there are few blocks (the gates of a cell) in a space that is else the same, they become statements each.
        """
        return self._take(part) or any(map(self._become, self._in_blocks(part)))

    def _become(self, parts: Sequence[Statement]) -> bool:
        other = Group(parts)
        if other.whole:
            vars(self).update(vars(other))
        return other.whole

    def _in_blocks(self, part: Statement):
        """All statements, so that those of the larger space are in blocks of the smaller one."""
        if any(self.inner) or part.join or not (self.members and self.bars(touches(part))):
            return
        members = [member for member, _ in self.members]
        for shape, axis in _blocks(part.shape, self.shape):
            yield [*members, *part.laid(shape).blocks(axis)]
        for shape, axis in _blocks(self.shape, part.shape):
            yield [*(block for member in members for block in member.laid(self.shape).laid(shape).blocks(axis)), part]

    def _take(self, part: Statement) -> bool:
        if len(self.members) == LONG or (not part.join and 0 in part.out.strides):
            return False
        for shape, inner, all_full, full in self._places(part):
            members = [(member, all_full or every) for member, every in self.members]
            accesses = self.accesses
            if shape != self.shape or inner != self.inner:
                accesses = [access for member, every in members for access in _accesses(member, every, shape, inner)]
            own = _accesses(part, full, shape, inner)
            if all(_alike(a, b) for i, a in enumerate(own) for b in (*accesses, *own[:i])):
                self.shape, self.inner = shape, inner
                self.members, self.accesses = [*members, (part, full)], [*accesses, *own]
                return True
        return False

    def _places(self, part: Statement):
        """The ways to lay `part` over the group: (shape, inner, whether all others and whether it are for elements)."""
        rows = any(self.inner)
        if not self.members:
            yield part.shape, part.inner, False, bool(part.join)
            return
        outer = tuple(n for n, flag in zip(self.shape, self.inner, strict=True) if not flag)
        if not part.join and (finer := common(outer, part.shape)) is not None:
            parts = iter(pieces(outer, finer))
            axes = [((n,) if flag else next(parts), flag) for n, flag in zip(self.shape, self.inner, strict=True)]
            yield *_flagged(axes), False, False
        if rows or part.join:
            if math.prod(self.shape) // math.prod(outer) > MOST or _width(part) > MOST:
                return
            if (finer := common(self.shape, part.shape)) is not None:
                own = _flagged(zip(pieces(part.shape, finer), part.inner, strict=True))
                theirs = _flagged(zip(pieces(self.shape, finer), self.inner, strict=True))
                if not part.join or not rows or own == theirs:
                    yield *(theirs if rows else own), not rows, True
        if not rows:
            yield from self._widened(outer, part)

    def _widened(self, outer: Shape, part: Statement):
        """The group's elements become the rows of `part`."""
        if part.join:
            own = tuple(n for n, flag in zip(part.shape, part.inner, strict=True) if not flag)
            if own == outer:
                yield part.shape, part.inner, False, True
            return
        lead = next((i for i in range(len(part.shape)) if math.prod(part.shape[:i]) == math.prod(outer)), 0)
        finer = common(outer, part.shape[:lead])
        width = math.prod(part.shape[lead:])
        if finer is not None and 1 < width <= MOST and math.prod(outer) >= FEW:
            yield (*finer, *part.shape[lead:]), (*(False,) * len(finer), *(True,) * len(part.shape[lead:])), False, True


def _blocks(large: Shape, small: Shape):
    """The ways to see the larger space as few blocks of the smaller: a finer shape, and the axis that counts them."""
    n = math.prod(large) // math.prod(small)
    if not 2 <= n <= GATES:
        return
    for a, m in enumerate(large):
        for pair in ((n, m // n), (m // n, n)) if m > n else ((n,),):
            shape, axis = (*large[:a], *pair, *large[a + 1 :]), a + pair.index(n)
            if m % n == 0 and common((*shape[:axis], *shape[axis + 1 :]), small) is not None:
                yield shape, axis


def _width(part: Statement) -> int:
    return math.prod(n for n, flag in zip(part.shape, part.inner, strict=True) if flag)


def _flagged(axes) -> tuple[Shape, tuple[bool, ...]]:
    pairs = [(n, flag) for parts, flag in axes for n in parts]
    return tuple(n for n, _ in pairs), tuple(flag for _, flag in pairs)


def _accesses(part: Statement, full: bool, shape: Shape, inner: Sequence[bool]) -> list[Access]:
    """Each place that a statement touches, with a key that is the same where the same element is touched at a point."""
    found: list[Access] = []
    for read in part.reads:
        if isinstance(read, Row):
            found.append((read.whole, False, (-1, "", (), ())))
        place = read.index if isinstance(read, Row) else read
        found.append((place, False, (place.address, place.dtype.char, *levels(place, shape, inner, full))))
    place = part.out
    found.append((place, True, (place.address, place.dtype.char, *levels(place, shape, inner, full))))
    return found


def _alike(a: Access, b: Access) -> bool:
    """Whether two accesses of one group do not disturb each other."""
    return not (a[1] or b[1]) or a[2] == b[2] or not a[0].overlaps(b[0])


def split(part: Statement, empty: Empty) -> list[Statement]:
    """A reduction of long rows as two: of parts of the rows, then of what they gave."""
    width = _width(part)
    if not part.join or part.join == "argmax" or width <= MOST:
        return [part]
    axis = max((n, i) for i, (n, flag) in enumerate(zip(part.shape, part.inner, strict=True)) if flag)[1]
    n = part.shape[axis]
    divisors = [d for d in range(1, min(n, MOST) + 1) if n % d == 0]
    parts = min(divisors, key=lambda d: abs(math.log(width / d / PART)))
    if parts in (1, n):
        return [part]
    shape = (*part.shape[:axis], parts, n // parts, *part.shape[axis + 1 :])
    inner = (*part.inner[:axis], False, True, *part.inner[axis + 1 :])
    rows = tuple(m for m, flag in zip(shape, inner, strict=True) if not flag)
    sums = empty(rows, part.value.dtype)
    strides = iter(sums.strides)
    over = tuple(0 if flag else next(strides) for flag in inner)
    out, sum_ = View(sums, address(sums), np.dtype(sums.dtype), shape, over), Operand(0, part.value.dtype)
    reads = tuple(read.laid(shape) for read in part.reads)
    first = replace(part, shape=shape, inner=inner, reads=reads, out=out, tail=sum_)
    at = sum(not flag for flag in inner[:axis])
    end = View(
        part.out.array, part.out.address, part.out.dtype, rows,
        tuple(s for s, flag in zip(part.out.over(shape), inner, strict=True) if not flag),
    )  # fmt: skip
    flags = tuple(i == at for i in range(len(rows)))
    return [first, replace(part, shape=rows, inner=flags, reads=(view(sums, sums.shape),), out=end, value=sum_)]
