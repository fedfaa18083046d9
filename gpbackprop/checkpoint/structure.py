"""What a checkpoint may hold, object by object: the allow-list.

A crafted HDF5 file can name other files, declare terabytes in a kilobyte, or hang whoever lists it. So every object is
opened one component at a time through a hard link and described before anything of it is read, and what the writer
would not have written is refused.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import h5py
import numpy as np
from h5py import h5a, h5d, h5g, h5l, h5o, h5s, h5t, h5z

from gpbackprop.checkpoint import format
from gpbackprop.errors import CheckpointError


class DamagedError(CheckpointError):
    """The bytes of the file are not those of a checkpoint, whoever asks."""


@dataclass(frozen=True)
class Entry:
    """An array as the file declares it."""

    shape: tuple[int, ...]
    dtype: np.dtype


class Walk:
    """One pass over the objects of a file of `size` bytes, which reads no array but /format."""

    def __init__(self, path: Path, size: int):
        self.path, self.size = path, size
        self.declared = 0
        self.seen: set[int] = set()
        self.found: dict[str, Entry] = {}

    def entries(self, file: h5py.File) -> dict[str, Entry]:
        """Every array by its path, in order. Raises DamagedError, or CheckpointError for a newer version."""
        root = h5g.open(file.id, b"/")
        links = self._links(root, "")
        self._version(root, links)
        for name in links:
            self._visit(root, name, name)
        if "config" not in self.found:
            self._refuse("config", "is missing")
        return dict(sorted(self.found.items()))

    def _refuse(self, name: str, why: str) -> NoReturn:
        raise DamagedError(f"{self.path}: /{name[:200]} {why}. The file was not written by gpbackprop; do not trust it")

    def _links(self, group: h5g.GroupID, path: str) -> list[str]:
        links: list[tuple[bytes, int]] = []

        def gather(name: bytes, info: Any) -> bool | None:  # an exception in here would not come out of h5py whole
            links.append((name, info.type))
            return len(self.seen) + len(links) > format.OBJECTS or None

        group.links.iterate(gather, info=True)
        if len(self.seen) + len(links) > format.OBJECTS:
            self._refuse(path, f"holds one of more than {format.OBJECTS} objects")
        for name, kind in links:
            at = f"{path}/{ascii(name)[2:-1]}".lstrip("/")
            if kind != h5l.TYPE_HARD:
                self._refuse(at, "is a soft or external link, which a checkpoint never has")
            if not format.is_name(name.decode("latin-1")):
                self._refuse(at, "has a name that a checkpoint never uses")
        return [name.decode() for name, _ in links]

    def _version(self, root: h5g.GroupID, links: list[str]) -> None:
        """Read /format before anything else, so that a newer file is called newer, not broken."""
        if "format" not in links:
            self._refuse("format", "is missing")
        dataset = self._open(root, "format", "format")
        if not isinstance(dataset, h5d.DatasetID):
            self._refuse("format", "is not a dataset")
        entry = self._describe(dataset, "format")
        if entry.dtype != np.uint8 or len(entry.shape) != 1 or entry.shape[0] > 4096:
            self._refuse("format", "is not a short text")
        text = h5py.Dataset(dataset)[()].tobytes()
        self.seen.clear()
        self.declared = 0
        try:
            head = json.loads(text)
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
        if h5a.get_num_attrs(root) != 1 or not h5a.exists(root, b"version"):
            self._refuse("", "has other attributes than `version`")
        attribute = h5a.open(root, b"version")
        if not attribute.get_type().equal(h5t.STD_I64LE) or attribute.shape != ():
            self._refuse("", "has a `version` that is not an integer")
        value = np.empty((), "<i8")
        attribute.read(value)
        if value != version:
            self._refuse("", f"has the attribute version {value}, and /format says {version}")

    def _open(self, parent: h5g.GroupID, name: str, path: str) -> Any:
        info = h5o.get_info(parent, name.encode())
        if info.type not in (h5o.TYPE_GROUP, h5o.TYPE_DATASET):
            self._refuse(path, "is neither a group nor a dataset")
        if info.addr in self.seen:
            self._refuse(path, "is linked from more than one place")
        self.seen.add(info.addr)
        opened = h5o.open(parent, name.encode())
        if h5a.get_num_attrs(opened):
            self._refuse(path, "has attributes, which a checkpoint never has")
        return opened

    def _visit(self, parent: h5g.GroupID, name: str, path: str) -> None:
        is_group = not isinstance(opened := self._open(parent, name, path), h5d.DatasetID)
        if not format.has_place(f"{path}/array" if is_group else path):
            self._refuse(path, f"is no {'group' if is_group else 'array'} of a checkpoint")
        if not is_group:
            entry = self._describe(opened, path)
            if path != "format":
                self.found[path] = entry
            return
        names = self._links(opened, path)
        if not names:
            self._refuse(path, "is an empty group")
        for child in names:
            self._visit(opened, child, f"{path}/{child}")

    def _describe(self, dataset: h5d.DatasetID, path: str) -> Entry:
        plist = dataset.get_create_plist()  # before the extent: asking a virtual dataset for it can open its sources
        layout = plist.get_layout()
        filters = [plist.get_filter(at)[0] for at in range(plist.get_nfilters())]
        if layout not in (h5d.CHUNKED, h5d.COMPACT):  # neither can be virtual or external
            self._refuse(path, "is virtual, or keeps its data in another file or without checksums")
        if filters != ([h5z.FILTER_FLETCHER32] if layout == h5d.CHUNKED else []):
            self._refuse(path, f"has the HDF5 filters {filters}, expected the checksum (fletcher32) alone")
        kind = dataset.get_type()
        plain = [dtype for dtype in format.DTYPES if kind.equal(h5t.py_create(dtype))]
        if not plain or kind.committed():
            self._refuse(path, "is not of plain integers or floats")
        dtype = plain[0]
        space = dataset.get_space()
        if space.get_simple_extent_type() not in (h5s.SCALAR, h5s.SIMPLE):
            self._refuse(path, "has no shape")
        shape = space.get_simple_extent_dims()
        if space.get_simple_extent_dims(True) != shape:
            self._refuse(path, "can grow, which an array of a checkpoint never does")
        size = math.prod(shape) * dtype.itemsize
        self.declared += size
        if self.declared > self.size or dataset.get_storage_size() < size:
            self._refuse(path, f"declares {shape} {dtype}, more than the file holds")
        if layout == h5d.CHUNKED:
            chunk = plist.get_chunk()
            if any(c > n for c, n in zip(chunk, shape, strict=True)):
                self._refuse(path, f"has chunks of {chunk} in a shape of {shape}")
            if math.prod(-(-n // c) for n, c in zip(shape, chunk, strict=True)) > 1 + size // format.SMALL:
                self._refuse(path, f"is cut into chunks of {chunk}, far too small for {shape}")
        return Entry(shape, dtype)
