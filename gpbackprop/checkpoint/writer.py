"""A dict of arrays -> one HDF5 image in memory -> one file.

libhdf5 never sees the disk: on a full one it has been known to crash the process on close, before any `except` runs.
"""

import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np
from h5py import h5d, h5f, h5fd, h5g, h5p, h5s, h5t

from gpbackprop.checkpoint import disk, format
from gpbackprop.errors import CheckpointError

Content = Mapping[str, np.ndarray | bytes]


def write(path: Path, content: Content) -> str:
    """Write `content` to `path`, atomically, and return the SHA-256 of the file.

    `content` maps paths to arrays, and to bytes, which are stored as uint8: {"config": b"...", "params/0-dense/W": W}.
    Arrays are integers or floats of 1 to 8 bytes; `config` must be there. The same content gives the same bytes.
    Raises CheckpointError, with the earlier file untouched, when `content` has no place in a checkpoint, a parameter is
    not finite, or the disk refuses.
    """
    try:
        view = image(content)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: not written, what was there before is untouched: {error}") from error
    digest = hashlib.sha256(view)
    trailer = format.MAGIC + digest.digest()
    disk.replace(Path(path), view, trailer)
    digest.update(trailer)
    return digest.hexdigest()


def image(content: Content) -> memoryview:
    """The bytes of an HDF5 file that holds `content`, without the trailer."""
    if "config" not in content:
        raise CheckpointError("config: missing; a checkpoint is read by the config it holds")
    if "format" in content:
        raise CheckpointError("format: is written by the checkpoint itself; leave it out")
    head = json.dumps({"format": format.NAME, "version": format.VERSION}).encode()
    arrays = {path: _checked(path, value) for path, value in sorted({**content, "format": head}.items())}
    parents = {path[:at] for path in arrays for at, letter in enumerate(path) if letter == "/"}
    if clash := sorted(parents & set(arrays)):
        raise CheckpointError(f"{clash[0]}: is an array and also holds arrays; rename one of the layers")
    if len(parents) + len(arrays) > format.OBJECTS:
        raise CheckpointError(f"more than {format.OBJECTS} arrays and groups; a reader would refuse so many")
    buffer = io.BytesIO()
    with h5py.File(_created(buffer)) as file:
        file.attrs.create("version", format.VERSION, dtype="<i8")
        for path in sorted(parents):
            plist = h5p.create(h5p.GROUP_CREATE)
            plist.set_obj_track_times(False)
            h5g.create(file.id, path.encode(), gcpl=plist)
        for path, array in arrays.items():
            _store(file, path, array)
    if len(view := buffer.getbuffer()) > format.LIMIT - format.TRAILER:
        raise CheckpointError(
            f"{len(view)} bytes, and a reader would refuse more than {format.LIMIT}; train fewer members"
        )
    return view


def _created(buffer: io.BytesIO) -> h5f.FileID:
    """A new HDF5 file in `buffer`, whose bytes do not depend on the time, and whose metadata all have checksums."""
    creation, access = h5p.create(h5p.FILE_CREATE), h5p.create(h5p.FILE_ACCESS)
    creation.set_obj_track_times(False)
    access.set_libver_bounds(h5f.LIBVER_V110, h5f.LIBVER_V110)
    access.set_fileobj_driver(h5fd.fileobj_driver, buffer)
    return h5f.create(b"checkpoint", h5f.ACC_TRUNC, creation, access)


def _checked(path: str, value: np.ndarray | bytes) -> np.ndarray:
    array = np.frombuffer(value, np.uint8) if isinstance(value, bytes) else np.asarray(value)
    array = np.asarray(array, array.dtype.newbyteorder("<"), order="C")
    if not format.has_place(path):
        raise CheckpointError(f"{path!r}: not a place of a checkpoint; see gpbackprop.checkpoint for its layout")
    if array.dtype not in format.DTYPES:
        raise CheckpointError(f"{path}: dtype {array.dtype} cannot be stored; use integers or floats of 1 to 8 bytes")
    if path.startswith("params/") and not np.isfinite(array).all():
        raise CheckpointError(f"{path}: holds NaN or infinity; the last checkpoint before that is the one to keep")
    return array


def _store(file: h5py.File, path: str, array: np.ndarray) -> None:
    plist = h5p.create(h5p.DATASET_CREATE)
    plist.set_obj_track_times(False)
    if array.size and array.shape:
        plist.set_chunk(format.chunks(array.shape, array.itemsize))
        plist.set_fletcher32()
    else:
        plist.set_layout(h5d.COMPACT)  # lies in the object header, which has a checksum
    space = h5s.create_simple(array.shape) if array.shape else h5s.create(h5s.SCALAR)
    dataset = h5d.create(file.id, path.encode(), h5t.py_create(array.dtype), space, plist)
    dataset.write(h5s.ALL, h5s.ALL, array)
