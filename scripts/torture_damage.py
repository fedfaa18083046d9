"""The valid data files that scripts/torture_data.py damages, and the ways in which it does."""

import gzip
import io
import random
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import h5py
import numpy as np

TABLE = "a,b,kind\n1,2,x\n3,4,y\n5,6,x\n7,8,y\n"
LABELS = np.uint8([7, 1, 7, 1])
PIXELS = np.arange(24, dtype=np.uint8).reshape(4, 2, 3)
NUMBERS = np.arange(24).reshape(4, 3, 2) / 7

Case = tuple[str, bytes, str | None]
"""What was done, the bytes, and what is said of them: a pattern, "" for the rows of the valid file, None for either."""


class Kind(NamedTuple):
    """A valid file, what lies beside it, the options that read it, and whether a check sum guards its values."""

    name: str
    content: bytes
    beside: Mapping[str, bytes] = MappingProxyType({})
    options: Mapping[str, Any] = MappingProxyType({})
    guarded: bool = False


def idx(x: np.ndarray) -> bytes:
    return struct.pack(f">2xBB{x.ndim}I", 8, x.ndim, *x.shape) + x.tobytes()


def npz(save: Callable = np.savez, **arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    save(file, **arrays)
    return file.getvalue()


def npy(header: str) -> bytes:
    """An NPZ file whose array of inputs begins with `header`."""
    file, text = io.BytesIO(), header.encode() + b"\n"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + bytes(96))
    return file.getvalue()


def hdf5(options: dict[str, Any], **arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    with h5py.File(file, "w") as root:
        for name, array in arrays.items():
            root.create_dataset(name, data=array, **options)
    return file.getvalue()


def kinds() -> list[Kind]:
    images, labels, packed = "t-images-idx3-ubyte", {"t-labels-idx1-ubyte": idx(LABELS)}, {"compression": "gzip"}
    sequences = {"x": NUMBERS, "y": LABELS, "lengths": np.array([3, 1, 2, 3])}
    return [
        Kind("rows.csv", TABLE.encode()),
        Kind("rows.csv.gz", gzip.compress(TABLE.encode()), guarded=True),
        Kind("rows.txt", TABLE.encode(), options={"window": 4}),
        Kind(images, idx(PIXELS), labels, {"shape": "stored"}),
        Kind(f"{images}.gz", gzip.compress(idx(PIXELS)), labels, {"shape": "stored"}, True),
        Kind("images.npz", npz(x=PIXELS, y=LABELS), options={"shape": "stored"}, guarded=True),
        Kind("sequences.npz", npz(np.savez_compressed, **sequences), guarded=True),
        Kind("images.h5", hdf5({}, x=PIXELS, y=LABELS), options={"shape": "stored"}),
        Kind("sequences.h5", hdf5(packed | {"chunks": True, "fletcher32": True}, **sequences)),
    ]


def known(kind: Kind) -> Iterator[Case]:
    """Faults that have a name, and what is said of them."""
    yield "untouched", kind.content, ""
    yield "empty", b"", "empty|not an|damaged|has 0 characters"
    match kind.name:
        case "rows.csv":
            yield from tables()
        case "rows.csv.gz":
            yield "a line of 600 MB", gzip.compress(b"0," * (1 << 20)) * 300, "line 1: has"
            yield "a cell of 600 MB", gzip.compress(b"0" * (1 << 21)) * 300, "line 1"
            yield "two parts", gzip.compress(TABLE[:9].encode()) + gzip.compress(TABLE[9:].encode()), ""
            yield "zeros after the end", kind.content + bytes(99), ""
        case "t-images-idx3-ubyte":
            for axes in ([10**9, 28, 28], [2**32 - 1] * 8, [0, 2, 3], [4, 0, 3], [5, 2, 3], [3, 2, 3]):
                header = struct.pack(f">2xBB{len(axes)}I", 8, len(axes), *axes)
                yield f"axes {axes}", header + kind.content[16:], "header says|damaged|the shape"
        case "t-images-idx3-ubyte.gz":
            yield (
                "bomb",
                gzip.compress(idx(PIXELS) + bytes(1 << 20)) + gzip.compress(bytes(1 << 20)) * 600,
                "holds more",
            )
            large = struct.pack(">2xBB3I", 8, 3, 10**9, 28, 28)
            yield "10^9 rows", gzip.compress(large), "header says"
        case "images.npz":
            yield from headers()
            wrong = np.frombuffer(struct.pack("<4I", 1 << 31, 65, 65, 65), "U1")
            yield "letters that are none", npz(x=PIXELS, y=wrong), "not UTF-8|not text"
            yield "objects", npz(x=np.array([{}, 1]), y=LABELS), "Python objects"
            yield "a label too few", npz(x=PIXELS, y=LABELS[:3]), r"shape \(3,\)"
        case "sequences.npz":
            for lengths in ([3, 0, 2, 3], [3, 4, 2, 3], [3, -1, 2, 3]):
                arrays = {"x": NUMBERS, "y": LABELS, "lengths": np.array(lengths)}
                yield f"lengths {lengths}", npz(**arrays), "row 1: the length"
            for value in (np.nan, np.inf, 1e300):
                x = NUMBERS.copy()
                x[2, 1, 0] = value
                yield f"a value {value}", npz(x=x, y=LABELS), "row 2"


def tables() -> Iterator[Case]:
    """CSV files: each fault in each row."""
    lines = TABLE.splitlines()
    yield "header alone", b"a,b,kind\n", "header and no rows"
    yield "BOM", b"\xef\xbb\xbf" + TABLE.encode(), ""
    yield "blank lines", TABLE.replace("\n", "\n\n").encode(), ""
    yield "no last line end", TABLE[:-1].encode(), ""
    yield "quoted", "\n".join(",".join(f'"{c}"' for c in line.split(",")) for line in lines).encode(), ""
    for end in ("\r\n", "\r"):
        yield f"line end {end!r}", TABLE.replace("\n", end).encode(), ""
    for delimiter in ";\t":
        yield f"delimiter {delimiter!r}", TABLE.replace(",", delimiter).encode(), ""
    for encoding in ("utf-16", "utf-32"):
        yield encoding, TABLE.encode(encoding), "UTF-8"
    yield "latin-1", TABLE.replace("x", "é").encode("latin-1"), "UTF-8"
    yield "a name twice", TABLE.replace("b", "a", 1).encode(), "line 1: two columns are called 'a'"
    for at in range(1, len(lines)):

        def row(text: str, at: int = at) -> bytes:
            return "\n".join([*lines[:at], text, *lines[at + 1 :], ""]).encode()

        cells, where = lines[at].split(","), f"line {at + 1}\\b"
        for column, name in enumerate("ab"):
            for word in (
                "",
                "?",
                "NA",
                "nan",
                "inf",
                "-inf",
                "1e999",
                "word",
                "1_000",
                "0x10",
                "1\0",
                "\0",
                "1" * 5000,
            ):
                changed = ",".join([*cells[:column], word, *cells[column + 1 :]])
                yield f"line {at + 1}, {name} = {word[:9]!r}", row(changed), f"{where}, column '{name}'"
            yield f"line {at + 1}, {name} is huge", row(",".join(["1" * 200_000, *cells[1:]])), where
        yield f"line {at + 1}, no label", row(",".join([*cells[:2], ""])), f"{where}, column 'kind'"
        yield f"line {at + 1} is short", row(",".join(cells[:2])), where
        yield f"line {at + 1} is long", row(",".join([*cells, "9"])), where
        yield f"line {at + 1}, a quote is not closed", row('"' + lines[at]), "line "
        yield f"line {at + 1}, letters after a quote", row('"1"1,2,x'), where


def headers() -> Iterator[Case]:
    """NPZ files with arrays whose headers cannot be true, or are no headers."""
    for shape in (
        "(1000000000, 3)",
        "(-1, 3)",
        "(2**70,)",
        f"({2**70},)",
        "(4L, 3)",
        "(4, 3",
        "4",
        "(True, 3)",
        "('4', 3)",
    ):
        header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}"
        yield f"shape {shape}", npy(header), "."
    for descr in (
        "'|S0'",
        "'|O'",
        "'<M8[s]'",
        "'<c16'",
        "[('a', '<f8')]",
        "'<f3'",
        "'<U999999999'",
        "'V9'",
        "1",
        "'\\'",
    ):
        yield f"type {descr}", npy(f"{{'descr': {descr}, 'fortran_order': False, 'shape': (4, 3), }}"), "."
    for header in (
        "",
        "{",
        "(" * 5000,
        "[" * 5000 + "]" * 4000,
        "x = 1",
        "{'a': 1}",
        "'''",
        "  1\n 2",
        "9" * 9000,
        "\0",
        "-" * 9000,
    ):
        yield f"header {header[:9]!r}", npy(header), "."


def each_byte(content: bytes) -> Iterator[Case]:
    """Every byte changed in four ways, and the file cut at each length."""
    for at, byte in enumerate(content):
        for value in {0, 255, byte ^ 1, byte ^ 128} - {byte}:
            yield f"byte {at} = {value}", content[:at] + bytes([value]) + content[at + 1 :], None
        yield f"cut to {at} bytes", content[:at], None
    yield "a byte more", content + b"\0", None


def at_random(content: bytes, count: int, seed: str) -> Iterator[Case]:
    """A few bytes, numbers or stretches of the file changed, moved, doubled or left out."""
    pieces = [b"\0", b"\xff\xfe", b'"', b",", b"\n", b"\r", b"\xef\xbb\xbf", b"1e999", b"nan", b"9" * 400, b"\xc3"]
    for number in range(count):
        rng, out = random.Random(f"{seed} {number}"), bytearray(content)
        for _ in range(rng.choice((1, 1, 2, 3, 6))):
            at, size = rng.randrange(len(out) + 1), rng.randrange(1, 32)
            match rng.randrange(6):
                case 0:
                    out[at : at + 1] = bytes([rng.randrange(256)])
                case 1:
                    value = rng.choice((0, 1, 255, (1 << 15) - 1, (1 << 31) - 1, (1 << 64) - 1, rng.randrange(999)))
                    width = rng.choice((1, 2, 4, 8))
                    out[at : at + width] = (value % (1 << 8 * width)).to_bytes(width, rng.choice(("little", "big")))
                case 2:
                    start = rng.randrange(len(out) + 1)
                    out[at : at + size] = out[start : start + size]
                case 3:
                    del out[at : at + size]
                case 4:
                    out[at:at] = rng.choice(pieces)
                case 5:
                    out[at:at] = out[max(0, at - size) : at]
        yield f"number {number}", bytes(out), None
