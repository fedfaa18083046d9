"""What a checkpoint file looks like: the facts that the writer and the reader share."""

import math
import re

import numpy as np

NAME = "gpbackprop-checkpoint"
VERSION = 1

SIGNATURE = b"\x89HDF\r\n\x1a\n"
MAGIC = b"gpbackpropSHA256"
TRAILER = len(MAGIC) + 32
LIMIT = 16 << 30
"""The largest file, in bytes, that is written, or read unless the caller asks for more."""

LEAVES = ("format", "config", "history")
GROUPS = ("params", "state", "optimizer", "progress", "preparation")
DEPTH = 32
OBJECTS = 50_000
DTYPES = tuple(map(np.dtype, ("<f4", "<f8", "<f2", "<i8", "<i4", "<i2", "i1", "<u8", "<u4", "<u2", "u1")))

CHUNK = 4 << 20
"""The most bytes of one chunk: each chunk has its own checksum."""
SMALL = 64 << 10
"""Chunks of fewer bytes, on average, are refused: reading very many takes long."""

_PART = re.compile(r"[A-Za-z0-9_+\-][A-Za-z0-9_+.\-]{0,254}")


def is_name(part: str) -> bool:
    """Whether `part` can be one component of a path: letters, digits and `_ + - .`, at most 255, no leading dot."""
    return _PART.fullmatch(part) is not None


def has_place(path: str) -> bool:
    """Whether an array may be stored at `path`: a known top-level name, then good names, not too deep."""
    top, *rest = path.split("/")
    if not all(map(is_name, rest)) or len(rest) >= DEPTH:
        return False
    return top in GROUPS if rest else top in LEAVES


def chunks(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """The chunk shape of an array with elements: all of it up to `CHUNK` bytes, else whole rows of equal parts."""
    out = list(shape)
    for axis, length in enumerate(shape):
        rows = max(1, CHUNK // (math.prod(shape[axis + 1 :]) * itemsize))
        out[axis] = math.ceil(length / math.ceil(length / rows))
        if out[axis] > 1:
            break
    return tuple(out)
