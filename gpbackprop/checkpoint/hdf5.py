"""The part of HDF5 that a checkpoint uses, read in plain Python.

libhdf5 is given nothing to read. A crafted file, with every checksum in it right, crashes it: of files that were
changed at random places of their metadata, about one in 300 (h5py 3.16, HDF5 2.0.0). Here each number is held to the
bytes that there are, so that the worst a file can do is to be refused.

The names are those of the HDF5 File Format Specification, version 3.0: superblock 3, object headers 2, links in the
header of a group, or, where there are many, in a fractal heap with a B-tree of the names. Checksums inside HDF5 are for
other tools: the digest of the file has held already, and covers every byte.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from struct import Struct
from typing import Any

from gpbackprop.checkpoint import format, pages

UNDEFINED = (1 << 64) - 1
HARD = 0

DATASPACE, LINK_INFO, DATATYPE, LINK, EXTERNAL, LAYOUT = 0x01, 0x02, 0x03, 0x06, 0x07, 0x08
GROUP_INFO, FILTERS, ATTRIBUTE, CONTINUATION, ATTRIBUTE_INFO = 0x0A, 0x0B, 0x0C, 0x10, 0x15

HEAD = Struct("<BHB")
"""Type, size and flags of a message."""
MESSAGES = 64
"""The most that an object has: libhdf5 keeps up to eight links in a header, and an array has about six messages."""

PART = 16
"""A file has at most one message, link or block for so many bytes, and some: what loops ends there."""

# The heap and tree that libhdf5 makes of the links of a group; no other is written.
WIDTH, START, DIRECT = 4, 512, 64 << 10
NODE, RECORD = 512, 11


class BrokenError(Exception):
    """The bytes are not the part of HDF5 that a checkpoint uses."""


@dataclass(frozen=True)
class Message:
    """A message of an object header: what an object has, and whether it is kept elsewhere and shared."""

    body: "Fields"
    shared: bool


Messages = dict[int, list[Message]]


class Fields:
    """Little-endian numbers and bytes, one after the other."""

    def __init__(self, data: Any, what: str):
        self.data, self.what, self.at = data, what, 0

    @property
    def left(self) -> int:
        return len(self.data) - self.at

    def bytes(self, size: int) -> Any:
        if size > self.left:
            raise BrokenError(f"{self.what} ends after {len(self.data)} bytes, too early")
        self.at += size
        found = self.data[self.at - size : self.at]
        return bytes(found) if isinstance(found, pages.Bytes) else found

    def number(self, size: int) -> int:
        return int.from_bytes(self.bytes(size), "little")

    def expect(self, wanted: bytes) -> None:
        if (found := bytes(self.bytes(len(wanted)))) != wanted:
            raise BrokenError(f"{self.what} has {found!r} where {wanted!r} is expected")


class Image:
    """The bytes of an HDF5 file, all of them unless it is known to be `damaged`."""

    def __init__(self, data: Any, damaged: bool = False):
        self.damaged = damaged
        self.data, self.parts = data, 1000 + min(len(data) // PART, 12 * format.OBJECTS)

    def fields(self, address: int, what: str, size: int | None = None) -> Fields:
        """The bytes from `address` on, to the end of the file unless `size` is given."""
        self._count()
        end = len(self.data) if size is None else address + size
        if address >= len(self.data) or end > len(self.data):
            raise BrokenError(f"{what} lies at byte {address}, outside the file")
        return Fields(self.data[address:end], what)

    def _count(self) -> None:
        self.parts -= 1
        if not self.parts:
            raise BrokenError("too many parts for its size, or parts that contain themselves")

    def root(self) -> int:
        """The address of the root group."""
        block = self.fields(0, "the superblock")
        block.expect(format.SIGNATURE + b"\3\x08\x08\0" + bytes(8) + b"\xff" * 8)  # no extension, addresses from 0
        if (end := block.number(8)) != len(self.data) and not self.damaged:
            raise BrokenError(f"the superblock speaks of {end} bytes, and there are {len(self.data)}")
        return block.number(8)

    def messages(self, address: int) -> Messages:
        """The messages of the object at `address`, by type."""
        head = self.fields(address, "an object header")
        head.expect(b"OHDR\2")
        flags = head.number(1)
        head.bytes((16 if flags & 0x20 else 0) + (4 if flags & 0x10 else 0))
        blocks = [Fields(head.bytes(head.number(1 << (flags & 3))), head.what)]
        order, count = 2 if flags & 4 else 0, 0
        found: Messages = defaultdict(list)
        for block in blocks:
            while block.left >= HEAD.size + order:
                count += 1
                if count > MESSAGES:
                    raise BrokenError(f"an object header has more than {MESSAGES} messages")
                kind, size, marks = HEAD.unpack(block.bytes(HEAD.size))
                block.bytes(order)
                body = Fields(block.bytes(size), f"a message of type {kind}")
                if kind == CONTINUATION:
                    more = self.fields(body.number(8), "an object header's continuation", body.number(8))
                    more.expect(b"OCHK")
                    blocks.append(Fields(more.bytes(max(more.left - 4, 0)), more.what))
                else:
                    found[kind].append(Message(body, bool(marks & 2)))
        return found

    def links(self, messages: Messages) -> Iterator[tuple[bytes, int, int]]:
        """Name, type and address of each link of a group; the address is that of an object where the type is HARD."""
        for message in messages[LINK]:
            yield self._link(message.body)
        for message in messages[LINK_INFO]:
            info = message.body
            info.expect(b"\0")
            info.bytes(8 if info.number(1) & 1 else 0)
            heap, tree = info.number(8), info.number(8)
            if heap != UNDEFINED:
                yield from self._dense(heap, tree)

    def _link(self, body: Fields) -> tuple[bytes, int, int]:
        body.expect(b"\1")
        flags = body.number(1)
        kind = body.number(1) if flags & 8 else HARD
        body.bytes((8 if flags & 4 else 0) + (1 if flags & 16 else 0))
        name = bytes(body.bytes(body.number(1 << (flags & 3))))
        return name, kind, body.number(8) if kind == HARD else UNDEFINED

    def _dense(self, heap: int, tree: int) -> Iterator[tuple[bytes, int, int]]:
        """The links that a fractal heap holds, as the B-tree of their names finds them."""
        head = self.fields(heap, "a heap of links")
        head.expect(b"FRHP\0\7\0\0\0")  # identifiers of 7 bytes, no filters
        if head.number(1) & 2 == 0:
            raise BrokenError("a heap of links has no checksums")
        head.bytes(4 + 12 * 8)  # sizes and counts that nothing here depends on
        head.expect(
            WIDTH.to_bytes(2, "little") + START.to_bytes(8, "little") + DIRECT.to_bytes(8, "little") + b"\x20\0"
        )
        head.bytes(2)
        root, rows = head.number(8), head.number(2)
        blocks = sorted(self._blocks(root, 0, rows) if rows else [(0, START, root)])
        starts = [start for start, _, _ in blocks]
        for record in self._records(tree):
            record.bytes(4)  # the hash of the name
            if record.number(1):
                raise BrokenError("a link is not among those of its heap")
            offset, size = record.number(4), record.number(2)
            block = bisect_right(starts, offset) - 1
            start, length, address = blocks[block] if block >= 0 else (0, 0, 0)
            if offset + size > start + length:
                raise BrokenError("a link lies outside its heap")
            yield self._link(self.fields(address + offset - start, "a link", size))

    def _blocks(self, address: int, offset: int, rows: int) -> Iterator[tuple[int, int, int]]:
        """Offset in the heap, size and address of each direct block below an indirect block of so many rows."""
        if rows > 32:
            raise BrokenError(f"an indirect block has {rows} rows")
        block = self.fields(address, "an indirect block")
        block.expect(b"FHIB\0")
        block.bytes(8 + 4)
        for row in range(rows):
            size = START << max(row - 1, 0)
            for _ in range(WIDTH):
                child = block.number(8)
                if child != UNDEFINED and size <= DIRECT:
                    self._count()
                    yield offset, size, child
                elif child != UNDEFINED:
                    yield from self._blocks(child, offset, (size // (START * WIDTH)).bit_length())
                offset += size

    def _records(self, address: int) -> Iterator[Fields]:
        """The records of a B-tree, version 2."""
        head = self.fields(address, "a B-tree")
        head.expect(b"BTHD\0\5" + NODE.to_bytes(4, "little") + RECORD.to_bytes(2, "little"))
        depth, _, root, count = head.number(2), head.bytes(2), head.number(8), head.number(2)
        if (total := head.number(8)) > format.OBJECTS:  # the walk would end there, too, but later
            raise BrokenError(f"a group of {total}, more than {format.OBJECTS} objects")
        most, below = [(NODE - 10) // RECORD], [(NODE - 10) // RECORD]  # in one node of each depth; in all below it
        while len(most) <= min(depth, 8):
            pointer = 9 + (_bytes_for(below[-1]) if len(most) > 1 else 0)
            most.append((NODE - 10 - pointer) // (RECORD + pointer))
            below.append((most[-1] + 1) * below[-1] + most[-1])
        if depth >= len(most):
            raise BrokenError(f"a B-tree is {depth} deep")
        waiting = [(root, count, depth)] if count else []
        while waiting:
            address, count, depth = waiting.pop()
            node = self.fields(address, "a node of a B-tree", NODE)
            node.expect(b"BTIN\0\5" if depth else b"BTLF\0\5")
            for _ in range(count):
                yield Fields(node.bytes(RECORD), "a record of a B-tree")
            for _ in range(count + 1 if depth else 0):
                waiting.append((node.number(8), node.number(1), depth - 1))
                node.bytes(_bytes_for(below[depth - 1]) if depth > 1 else 0)

    def chunks(self, layout: Fields, count: int, size: int) -> list[Any]:
        """The bytes of `count` chunks of `size` bytes, in row-major order; `layout` is read up to its type of index."""
        kind = layout.number(1)
        if kind == 1 and count == 1:
            found = [(layout.number(8), layout.number(4), layout.number(8))]
        elif kind == 3:
            layout.bytes(1)
            if (array := layout.number(8)) == UNDEFINED:
                raise BrokenError("its chunks were never written")
            found = [(f.number(width), f.number(4), at) for f, at, width in self._elements(array, count)]
        else:
            raise BrokenError(f"{count} chunks have an index of type {kind}, which a checkpoint never has")
        for stored, mask, address in found:
            if address == UNDEFINED:
                raise BrokenError("its chunks were never written")
            if stored != size + 4 or mask or address + stored > len(self.data):  # 4: of the checksum behind it
                raise BrokenError(f"a chunk of {size} bytes is stored as {stored} at byte {address}, mask {mask}")
        return [self.data[address : address + size] for _, _, address in found]

    def _elements(self, address: int, count: int) -> Iterator[tuple[Fields, int, int]]:
        """Each element of a fixed array: the rest of it, the address that it begins with, the width of its size."""
        head = self.fields(address, "a fixed array")
        head.expect(b"FAHD\0\1")
        length, page = head.number(1), 1 << head.number(1)
        if head.number(8) != count or not 13 <= length <= 20:
            raise BrokenError(f"a fixed array is not one of {count} chunks")
        block = self.fields(head.number(8), "a fixed array's block")
        block.expect(b"FADB\0\1")
        block.bytes(8)
        if paged := count > page:
            block.bytes((-(-count // page) + 7) // 8 + 4)  # which pages there are: all, or the first chunk tells
        for at in range(count):
            if paged and at and at % page == 0:
                block.bytes(4)
            element = Fields(block.bytes(length), "an element of a fixed array")
            yield element, element.number(8), length - 12


def _bytes_for(most: int) -> int:
    """The bytes that hold a number up to `most`."""
    return (most.bit_length() + 7) // 8
