"""IDX files, the format of MNIST: two zero bytes, a type, the number of axes, the axes as big-endian uint32, values.

A file may be compressed (`.gz`). The header is held against the size of the file before memory is taken.
"""

import gzip
import math
import re
import struct
import zlib
from pathlib import Path

import numpy as np

from gpbackprop.errors import DataError

TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
CHUNK = 1 << 20  # bytes: gzip keeps a copy of what it is asked for at once
DEFLATE_LIMIT = 1100  # no deflate stream is longer than 1032 times its compressed size


def read(path: Path) -> np.ndarray:
    """The array in the IDX file `path`, its bytes read straight into it.

    Raises DataError when the file is no IDX file, damaged, or shorter or longer than its header says.
    """
    packed = path.suffix == ".gz"
    try:
        size = path.stat().st_size
        with gzip.open(path) if packed else open(path, "rb") as file:
            dtype, shape = _header(path, file)
            wanted = math.prod(shape) * dtype.itemsize
            room = size * DEFLATE_LIMIT if packed else size - 4 - 4 * len(shape)
            if wanted > room:
                raise DataError(
                    f"{path}: the header says {_times(shape)} values ({wanted} bytes), but the file has {size} bytes"
                    f"{' compressed' if packed else ''}; it is damaged or cut off, get it again"
                )
            if not wanted:
                raise DataError(f"{path}: the header says {_times(shape)} values, which are none; expected rows")
            x = np.empty(shape, dtype)
            left = memoryview(x.reshape(-1).view(np.uint8))
            while left and (count := file.readinto(left[:CHUNK])):
                left = left[count:]
            if left or file.read(1):
                raise DataError(
                    f"{path}: the header says {_times(shape)} values, and the file holds "
                    f"{'fewer' if left else 'more'}; it is damaged, get it again"
                )
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: the compressed file is damaged or cut off ({error}); get it again") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    return x if dtype.itemsize == 1 else x.astype(dtype.newbyteorder("="))


def _header(path: Path, file) -> tuple[np.dtype, tuple[int, ...]]:
    start = file.read(4)
    if len(start) < 4 or start[:2] != b"\0\0" or start[2] not in TYPES or not 1 <= start[3] <= 8:
        raise DataError(f"{path}: not an IDX file: it starts with {start!r}; expected two zero bytes, a type and axes")
    axes = file.read(4 * start[3])
    if len(axes) < 4 * start[3]:
        raise DataError(f"{path}: the file ends inside its header; it is cut off, get it again")
    return np.dtype(TYPES[start[2]]), struct.unpack(f">{start[3]}I", axes)


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def is_idx(path: Path) -> bool:
    """Whether a file name is that of an IDX file: `.idx`, or `idx3-ubyte` and the like, with or without `.gz`."""
    return re.search(r"(\.idx|idx\d-[a-z]+)(\.gz)?$", path.name) is not None


def labels_path(images: Path) -> Path | None:
    """The file of the labels beside a file of images: `*-images-idx3-ubyte` has `*-labels-idx1-ubyte`."""
    name = re.sub(r"idx\d", "idx1", images.name.replace("images", "labels"))
    plain = name.removesuffix(".gz")
    for candidate in (name, plain, f"{plain}.gz"):
        if candidate != images.name and (found := images.with_name(candidate)).is_file():
            return found
    return None
