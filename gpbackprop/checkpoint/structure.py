"""What a checkpoint may hold, object by object: the allow-list.

A crafted HDF5 file can name other files, declare terabytes in a kilobyte, or hang whoever lists it. So every object is
found one component at a time through a hard link and described before anything of it is read, and what the writer
would not have written is refused.
"""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from gpbackprop.checkpoint import format, hdf5, pages
from gpbackprop.errors import CheckpointError

TYPES = {
    bytes.fromhex(code): np.dtype(name)
    for name, code in {
        "<f4": "11201f00 04000000 00002000 17080017 7f000000",
        "<f8": "11203f00 08000000 00004000 340b0034 ff030000",
        "<f2": "11200f00 02000000 00001000 0a05000a 0f000000",
        **{f"<i{n}": f"10080000 0{n}000000 0000{8 * n:02x}00" for n in (1, 2, 4, 8)},
        **{f"<u{n}": f"10000000 0{n}000000 0000{8 * n:02x}00" for n in (1, 2, 4, 8)},
    }.items()
}
"""The messages of the types in `format.DTYPES`, byte for byte: little-endian, without padding."""

CLASSES = (
    "integer", "float", "time", "text", "bit field", "opaque", "compound", "reference", "enumeration",
    "variable-length", "array", "complex",
)  # fmt: skip
FILTERS = {1: "gzip", 2: "shuffle", 3: "fletcher32", 4: "szip", 5: "nbit", 6: "scale-offset", 32000: "lzf"}
COMPACT, CHUNKED = 0, 2
LAYOUTS = {1: "contiguous, without checksums", 3: "virtual: its data lie in other files"}
LINKS = {1: "a soft link", 64: "an external link, to another file"}
CHECKSUM = bytes.fromhex("0201 0300 0000 0000")
VERSION = b"version\0" + bytes.fromhex("10080000 08000000 00004000 02000000")
"""Of the message of the root's attribute: its name, its type (int64) and its shape (a scalar)."""


class DamagedError(CheckpointError):
    """The bytes of the file are not those of a checkpoint, whoever asks."""


@dataclass(frozen=True)
class Entry:
    """An array as the file declares it."""

    shape: tuple[int, ...]
    dtype: np.dtype
    chunk: tuple[int, ...] = field(default=(), repr=False, compare=False)
    """The shape of a chunk, () of an array that lies in one piece."""
    pieces: tuple[Any, ...] = field(default=(), repr=False, compare=False)
    """The bytes of each chunk, in row-major order."""

    def array(self) -> np.ndarray:
        """A copy of the array."""
        out = np.empty(self.shape, self.dtype)
        if not self.chunk:
            out[...] = np.frombuffer(_read(self.pieces[0]), self.dtype).reshape(self.shape)
            return out
        grid = [math.ceil(n / c) for n, c in zip(self.shape, self.chunk, strict=True)]
        for at, piece in zip(np.ndindex(*grid), self.pieces, strict=True):
            window = tuple(slice(i * c, i * c + c) for i, c in zip(at, self.chunk, strict=True))
            part = out[window]  # less than a chunk at the end of an axis
            part[...] = np.frombuffer(_read(piece), self.dtype).reshape(self.chunk)[tuple(map(slice, part.shape))]
        return out


def _read(piece: Any) -> Any:
    return bytes(piece) if isinstance(piece, pages.Bytes) else piece


class Walk:
    """One pass over the objects of an HDF5 image, which reads no array but /format."""

    def __init__(self, path: Path, data: Any, damaged: bool = False):
        self.path, self.data, self.image = path, data, hdf5.Image(data, damaged)
        self.declared = 0
        self.seen: set[int] = set()
        self.found: dict[str, Entry] = {}

    def entries(self) -> dict[str, Entry]:
        """Every array by its path, in order. Raises DamagedError, or CheckpointError for a newer version."""
        here = ""
        try:
            address = self.image.root()
            self.seen.add(address)
            root = self.image.messages(address)
            links = self._links(root, "")
            self._version(root, links)
            waiting = [(name, at) for name, at in reversed(links.items())]
            while waiting:
                here, at = waiting.pop()
                waiting += [(f"{here}/{name}", child) for name, child in reversed(self._visit(at, here).items())]
        except hdf5.BrokenError as error:
            self._refuse(here, f"has a broken HDF5 structure: {error}")
        if "config" not in self.found:
            self._refuse("config", "is missing")
        return dict(sorted(self.found.items()))

    def _refuse(self, name: str, why: str) -> NoReturn:
        raise DamagedError(f"{self.path}: /{name[:200]} {why}. The file was not written by gpbackprop; do not trust it")

    def _links(self, group: hdf5.Messages, path: str) -> dict[str, int]:
        """The address of each object of a group by its name, in order."""
        links: dict[str, int] = {}
        for name, kind, address in self.image.links(group):
            at = f"{path}/{ascii(name)[2:-1]}".lstrip("/")
            if len(self.seen) + len(links) > format.OBJECTS:  # the root is seen, too
                self._refuse(at, f"is one of more than {format.OBJECTS} objects")
            if kind != hdf5.HARD:
                self._refuse(at, f"is {LINKS.get(kind, 'a link of its own type')}; a checkpoint has hard links alone")
            if not format.is_name(name.decode("latin-1")):
                self._refuse(at, "has a name that a checkpoint never uses")
            if name.decode() in links:
                self._refuse(at, "is there twice")
            links[name.decode()] = address
        return dict(sorted(links.items()))

    def _version(self, root: hdf5.Messages, links: dict[str, int]) -> None:
        """Read /format before anything else, so that a newer file is called newer, not broken."""
        if "format" not in links:
            self._refuse("format", "is missing")
        dataset = self.image.messages(links["format"])
        if not dataset[hdf5.LAYOUT]:
            self._refuse("format", "is not a dataset")
        if dataset[hdf5.ATTRIBUTE] or dataset[hdf5.ATTRIBUTE_INFO]:
            self._refuse("format", "has attributes, which a checkpoint never has")
        entry = self._describe(dataset, "format")
        if entry.dtype != np.uint8 or len(entry.shape) != 1 or entry.shape[0] > 4096:
            self._refuse("format", "is not a short text")
        self.declared = 0
        try:
            head = json.loads(entry.array().tobytes())
            named, version = head["format"], head["version"]
        except (ValueError, TypeError, KeyError, RecursionError):
            named = version = None
        if named != format.NAME or type(version) is not int or version < 1:
            self._refuse("format", f"is not that of {format.NAME}")
        if version > format.VERSION:
            raise CheckpointError(
                f"{self.path}: has checkpoint format version {version}, and this gpbackprop reads up to "
                f"{format.VERSION}; it was written by a newer gpbackprop: upgrade to that one"
            )
        wanted = b"\3\0\x08\0\x0c\0\4\0\0" + VERSION + version.to_bytes(8, "little")
        found = [bytes(message.body.data) for message in root[hdf5.ATTRIBUTE]]
        if found != [wanted] or self._more_attributes(root):
            self._refuse("", f"has other attributes than an integer `version` of {version}, as /format says")

    def _more_attributes(self, messages: hdf5.Messages) -> bool:
        """Whether an object has a heap of attributes beside those in its header."""
        return any(bytes(message.body.data) != b"\0\0" + b"\xff" * 16 for message in messages[hdf5.ATTRIBUTE_INFO])

    def _visit(self, address: int, path: str) -> dict[str, int]:
        """Note an array, or return the objects of a group."""
        if address in self.seen:
            self._refuse(path, "is linked from more than one place")
        self.seen.add(address)
        messages = self.image.messages(address)
        is_array = bool(messages[hdf5.LAYOUT])
        if not is_array and not messages[hdf5.LINK_INFO] + messages[hdf5.LINK]:
            self._refuse(path, "is neither a group nor a dataset")
        if messages[hdf5.ATTRIBUTE] or self._more_attributes(messages):
            self._refuse(path, "has attributes, which a checkpoint never has")
        if not format.has_place(path if is_array else f"{path}/array"):
            self._refuse(path, f"is no {'array' if is_array else 'group'} of a checkpoint")
        if is_array:
            entry = self._describe(messages, path)
            if path != "format":
                self.found[path] = entry
            return {}
        links = self._links(messages, path)
        if not links:
            self._refuse(path, "is an empty group")
        return links

    def _one(self, messages: hdf5.Messages, kind: int, path: str, what: str) -> hdf5.Fields:
        """The only message of a kind that an array has."""
        if len(messages[kind]) != 1:
            self._refuse(path, f"has {len(messages[kind])} {what}s, expected one")
        message = messages[kind][0]
        if message.shared:
            self._refuse(path, f"has a {what} that is kept elsewhere (a named type, or shared); expected its own")
        return message.body

    def _describe(self, messages: hdf5.Messages, path: str) -> Entry:
        """What an array is. What could lead to other files is refused first, then what is costly to look at."""
        if messages[hdf5.EXTERNAL]:
            self._refuse(path, "keeps its data in another file (external storage)")
        layout = self._one(messages, hdf5.LAYOUT, path, "layout")
        version, kind = layout.number(1), layout.number(1)
        if kind not in (COMPACT, CHUNKED):
            self._refuse(path, f"is {LAYOUTS.get(kind, f'laid out in way {kind}')}; expected chunks or compact data")
        if version not in (3, 4) or (kind == CHUNKED and version == 3):
            self._refuse(path, f"has a layout of version {version}, which a checkpoint never has")
        filters = [self._filters(message.body) for message in messages[hdf5.FILTERS]]
        if filters != ([["fletcher32"]] if kind == CHUNKED else []):
            found = ", ".join(name for names in filters for name in names) or "none"
            self._refuse(path, f"has the HDF5 filters {found}; expected the checksum (fletcher32) of chunks alone")
        dtype, shape = self._dtype(messages, path), self._shape(messages, path)
        size = math.prod(shape) * dtype.itemsize
        self.declared += size
        if self.declared > len(self.data) or math.prod(max(n, 1) for n in shape) >= 1 << 60:
            self._refuse(path, f"declares {shape} {dtype}, more than the file holds")
        if kind == CHUNKED:
            return self._chunked(layout, shape, dtype, path)
        if layout.number(2) != size:
            self._refuse(path, f"declares {shape} {dtype}, and holds {layout.left} bytes")
        return Entry(shape, dtype, (), (layout.bytes(size),))

    def _chunked(self, layout: hdf5.Fields, shape: tuple[int, ...], dtype: np.dtype, path: str) -> Entry:
        layout.bytes(1)
        rank, width = layout.number(1), layout.number(1)
        *chunk, itemsize = [layout.number(width) for _ in range(rank)] or [0]
        if len(chunk) != len(shape) or itemsize != dtype.itemsize or not shape:
            self._refuse(path, f"has chunks of {chunk} of {itemsize} bytes in a shape of {shape} {dtype}")
        if not all(0 < c <= n for c, n in zip(chunk, shape, strict=True)):
            self._refuse(path, f"has chunks of {chunk} in a shape of {shape}")
        count = math.prod(-(-n // c) for n, c in zip(shape, chunk, strict=True))
        if count > 1 + math.prod(shape) * itemsize // format.SMALL:
            self._refuse(path, f"is cut into chunks of {chunk}, far too small for {shape}")
        pieces = self.image.chunks(layout, count, math.prod(chunk) * itemsize)
        return Entry(shape, dtype, tuple(chunk), tuple(pieces))

    def _filters(self, body: hdf5.Fields) -> list[str]:
        """The names of a pipeline's filters, of which only the checksum is let through."""
        if bytes(body.data) == CHECKSUM:
            return ["fletcher32"]
        names, (_, count) = [], (body.number(1), body.number(1))
        for _ in range(min(count, 32)):
            code = body.number(2)
            name, _, values = body.bytes(body.number(2) if code >= 256 else 0), body.number(2), body.number(2)
            body.bytes(4 * values)
            names.append(FILTERS.get(code, f"number {code} {bytes(name[:40])!a}"))
        return names if names != ["fletcher32"] else ["an odd fletcher32"]

    def _dtype(self, messages: hdf5.Messages, path: str) -> np.dtype:
        body = bytes(self._one(messages, hdf5.DATATYPE, path, "type").data)
        if body not in TYPES:
            kind = body[0] & 15 if body else len(CLASSES)
            found = CLASSES[kind] if kind < len(CLASSES) else "unknown"
            self._refuse(path, f"is not of plain integers or floats: it has a type of the class {found}")
        return TYPES[body]

    def _shape(self, messages: hdf5.Messages, path: str) -> tuple[int, ...]:
        body = self._one(messages, hdf5.DATASPACE, path, "shape")
        version, rank, flags, kind = body.number(1), body.number(1), body.number(1), body.number(1)
        if version != 2 or kind > 1 or flags > 1 or rank > 32 or (kind == 0) != (rank == 0):
            self._refuse(path, "has no shape")
        shape = tuple(body.number(8) for _ in range(rank))
        if flags and tuple(body.number(8) for _ in range(rank)) != shape:
            self._refuse(path, "can grow, which an array of a checkpoint never does")
        return shape
