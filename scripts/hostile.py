"""Kinds of hostile file, by what they are: how each is made, and what the reader says of it.

Most are checkpoints into which h5py put something, sealed with the digest of the result: whoever writes a file can
write its digest. The others are bytes that no HDF5 library would write, and things that are no files.
"""

import gzip
import hashlib
import io
import json
import os
import pickle
import re
import socket
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from gpbackprop import checkpoint
from gpbackprop.checkpoint import format

Build = Callable[[Path], Path]
"""Makes a file in a directory and returns its path."""


def content(step: int = 1) -> dict[str, Any]:
    """A small checkpoint with groups of few and of many arrays."""
    rng = np.random.default_rng(step)
    return {
        "config": b'name = "caf\xc3\xa9"\n',
        "params/0-dense/W": rng.standard_normal((2, 3, 4)).astype("f4"),
        "params/1-residual/0-dense/W": rng.standard_normal((2, 4, 4)),
        **{f"state/{n}-norm/mean": np.full((2, 4), n, "f4") for n in range(10)},
        "optimizer/sgd/velocity": rng.standard_normal((2, 28)).astype("f4"),
        "optimizer/sgd/nothing": np.zeros((2, 0), "f4"),
        "progress/step": np.int64(step),
        "history": b'{"epoch": 1}\n',
        "preparation/classes": json.dumps(["a", "b"]).encode(),
    }


def image_of(arrays: dict[str, Any]) -> bytes:
    """The HDF5 image of a checkpoint, without its trailer."""
    return bytes(checkpoint.image(arrays))


def sealed(path: Path, data: bytes) -> Path:
    """Write an image with the trailer that it should have."""
    path.write_bytes(data + format.MAGIC + hashlib.sha256(data).digest())
    return path


def make(directory: Path, build: Build) -> Path:
    """The hostile file, in a directory with a secret that it may be after."""
    (directory / "secret").write_bytes(b"secret")
    with h5py.File(directory / "other.h5", "w") as other:
        other["secret"] = np.frombuffer(b"secret", np.uint8)
    return build(directory)


def edited(edit: Callable) -> Build:
    """A checkpoint that h5py has edited: `edit(file, directory)`."""

    def build(directory: Path) -> Path:
        buffer = io.BytesIO(bytes(checkpoint.image(content())))
        with h5py.File(buffer, "r+", libver=("v110", "v110")) as file:
            edit(file, directory)
        return sealed(directory / "a.h5", buffer.getvalue())

    return build


def crafted(change: Callable[[bytearray], bytes | None], seal: bool = True) -> Build:
    """A checkpoint whose bytes `change` has changed in place, or replaced by those that it returns."""

    def build(directory: Path) -> Path:
        image = bytearray(checkpoint.image(content()))
        data = bytes(change(image) or image)
        (directory / "a.h5").write_bytes(data)
        return sealed(directory / "a.h5", data) if seal else directory / "a.h5"

    return build


# What h5py can put in


def put(name, *args, **kwargs):
    def build(file, directory):
        kwargs.setdefault("chunks", True if kwargs.get("fletcher32") else None)
        file.create_dataset(name, *args, **kwargs)

    return build


def replaced(name, data):
    def build(file, directory):
        del file[name]
        if data is not None:
            put(name, data=np.frombuffer(data, np.uint8), fletcher32=True)(file, directory)

    return build


def external_storage(file, directory):
    file.create_dataset("params/x", (6,), "u1", external=[(str(directory / "secret"), 0, 6)])


def virtual(file, directory):
    layout = h5py.VirtualLayout((6,), "u1")
    layout[:] = h5py.VirtualSource(directory / "other.h5", "secret", (6,))
    file.create_virtual_dataset("params/x", layout)


def unlimited_virtual(file, directory):
    layout = h5py.VirtualLayout((6,), "u1", maxshape=(None,))
    layout[:] = h5py.VirtualSource(directory / "other.h5", "secret", (6,), maxshape=(None,))[:]
    file.create_virtual_dataset("params/x", layout)


def link(name, made):
    def build(file, directory):
        file[name] = made(directory)

    return build


def hard(name, target):
    def build(file, directory):
        file[name] = file[target]

    return build


def attribute(name, key, value):
    def build(file, directory):
        file[name].attrs[key] = value

    return build


def deep(file, directory):
    group = file["params"]
    for _ in range(3000):
        group = group.create_group("g")
    group["x"] = 1


def wide(file, directory):
    for at in range(format.OBJECTS + 10):
        file.id.links.create_hard(f"params/{at}".encode(), file.id, b"params/0-dense/W")


def twin_cycle(file, directory):
    file["params/a/x"] = np.zeros(1)
    file["params/a/b"] = file["params"]
    file["params/a/c"] = file["params"]


def named_type(file, directory):
    file["params/type"] = np.dtype("f4")


def by_named_type(file, directory):
    file["state/type"] = np.dtype("f4")
    file.create_dataset("params/x", (4,), file["state/type"], chunks=(4,), fletcher32=True)[:] = 1
    del file["state/type"]


def compact(name, dtype, space=h5py.h5s.SCALAR):
    def build(file, directory):
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_layout(h5py.h5d.COMPACT)
        kind = h5py.h5t.py_create(np.dtype(dtype))
        h5py.h5d.create(file.id, name.encode(), kind, h5py.h5s.create(space), plist)

    return build


def head(**fields):
    return replaced("format", json.dumps({"format": format.NAME, "version": 1, **fields}).encode())


def unallocated(file, directory):
    file.create_dataset("params/x", (100, 10), "f4", chunks=(100, 10), fletcher32=True)


def circle(file, directory):
    for a, b in zip("abc", "bca", strict=True):
        file[f"params/{a}"] = h5py.SoftLink(f"/params/{b}")


def plugin(file, directory):
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_chunk((4,))
    plist.set_filter(32004, h5py.h5z.FLAG_OPTIONAL)
    space = h5py.h5s.create_simple((4,))
    h5py.h5d.create(file.id, b"params/x", h5py.h5t.STD_I64LE, space, plist)


# Bytes that no library writes


def number(image: bytearray, at: int, value: int, size: int = 8) -> None:
    image[at : at + size] = value.to_bytes(size, "little")


def ended(image: bytearray) -> None:
    """Let the superblock know of all bytes."""
    number(image, 28, len(image))


def rooted(messages: bytes) -> Callable[[bytearray], None]:
    """The root group has these messages, in a header at the end."""

    def change(image: bytearray) -> None:
        number(image, 36, len(image))
        image += b"OHDR\2\2" + len(messages).to_bytes(4, "little") + messages + bytes(4)
        ended(image)

    return change


def message(kind: int, body: bytes, flags: int = 0) -> bytes:
    return bytes([kind]) + len(body).to_bytes(2, "little") + bytes([flags]) + body


def continued_by_itself(image: bytearray) -> None:
    at = len(image) + 200
    rooted(message(0x10, at.to_bytes(8, "little") + (64).to_bytes(8, "little")))(image)
    image += bytes(at - len(image)) + b"OCHK"
    for _ in range(2):
        image += message(0x10, at.to_bytes(8, "little") + (64).to_bytes(8, "little"))
    image += bytes(at + 64 - len(image))
    ended(image)


def tree_of_itself(image: bytearray) -> None:
    """A B-tree of links of which each node is all its children."""
    tree, node, leaf = len(image), len(image) + 100, image.index(b"BTLF")
    record = image[leaf + 6 : leaf + 17]
    head = b"BTHD\0\5" + (512).to_bytes(4, "little") + (11).to_bytes(2, "little") + (8).to_bytes(2, "little")
    image += head + b"\x64\x28" + node.to_bytes(8, "little") + (10).to_bytes(2, "little") + bytes(8)
    image += bytes(node - len(image)) + b"BTIN\0\5" + record * 10
    while len(image) < node + 512 - 16:
        image += node.to_bytes(8, "little") + b"\x0a" + bytes(5)
    image += bytes(node + 512 - len(image))
    heap = image.index(b"FRHP")
    rooted(message(2, b"\0\0" + heap.to_bytes(8, "little") + tree.to_bytes(8, "little")))(image)


def heap_of_itself(image: bytearray) -> None:
    """A heap of links of which an indirect block is all its children."""
    heap, block, tree = image.index(b"FRHP"), len(image), image.index(b"BTHD")
    image += b"FHIB\0" + heap.to_bytes(8, "little") + bytes(4) + block.to_bytes(8, "little") * 4 * 32 + bytes(4)
    number(image, heap + 132, block)
    number(image, heap + 140, 32, 2)
    rooted(message(2, b"\0\0" + heap.to_bytes(8, "little") + tree.to_bytes(8, "little")))(image)


def shared_chunk(image: bytearray) -> bytes:
    """Arrays that declare far more than the file has, all of it the same chunk, which is there once."""
    buffer = io.BytesIO(bytes(image))
    with h5py.File(buffer, "r+", libver=("v110", "v110")) as file:
        for at in range(40):
            file.create_dataset(f"params/{at}", (5000,), "u1", chunks=(5000,), fletcher32=True)
        file["params/0"][:] = 1
    out, layout = bytearray(buffer.getvalue()), bytes.fromhex("04020202028813010001")
    places = [found.end() for found in re.finditer(re.escape(layout), out)]
    stored = next(out[at : at + 20] for at in places if out[at])
    for at in places:
        out[at : at + 20] = stored
    return bytes(out)


class Executed:
    """What runs when it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch /tmp/gpbackprop-was-fooled",)


def pickled(image: bytearray) -> bytes:
    return pickle.dumps(Executed())


def gzipped(image: bytearray) -> bytes:
    out = io.BytesIO()
    with gzip.GzipFile(fileobj=out, mode="wb", compresslevel=9) as file:
        for _ in range(64):
            file.write(bytes(1 << 20))
    return out.getvalue()


def zipped(image: bytearray) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.npy", bytes(1 << 25))
    return out.getvalue()


def objects(image: bytearray) -> bytes:
    out = io.BytesIO()
    np.savez(out, a=np.array([Executed()], object))
    return out.getvalue()


# What is no file


def placed(put: Callable[[Path], Any]) -> Build:
    def build(directory: Path) -> Path:
        put(directory / "a.h5")
        return directory / "a.h5"

    return build


def bound(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # the path of a socket must be short
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


def sparse(size: int) -> Callable[[Path], None]:
    def put(path: Path) -> None:
        with path.open("wb") as file:
            file.truncate(size)

    return put


f4 = np.ones(4, "f4")
EDITED = {
    "external storage": (external_storage, "another file .external storage"),
    "virtual": (virtual, "virtual"),
    "unlimited virtual": (unlimited_virtual, "virtual"),
    "external link": (link("params/x", lambda at: h5py.ExternalLink(at / "other.h5", "secret")), "an external link"),
    "external link to a group": (
        link("params/x", lambda at: h5py.ExternalLink(at / "other.h5", "/")),
        "an external link",
    ),
    "external link at the top": (
        link("preparation/x", lambda at: h5py.ExternalLink(at / "other.h5", "/")),
        "an external link",
    ),
    "soft link": (link("params/x", lambda at: h5py.SoftLink("/config")), "a soft link"),
    "dangling soft link": (link("optimizer/x", lambda at: h5py.SoftLink("/nothing")), "a soft link"),
    "two hard links": (hard("params/x", "params/0-dense/W"), "more than one place"),
    "two groups": (hard("params/x", "params/0-dense"), "more than one place"),
    "cycle": (hard("params/0-dense/x", "params"), "more than one place"),
    "cycles that double": (twin_cycle, "more than one place"),
    "deep": (deep, "is no group"),
    "wide": (wide, f"more than {format.OBJECTS} objects"),
    "vlen string": (put("params/x", data="text"), "without checksums"),
    "vlen": (put("params/x", (4,), h5py.vlen_dtype("f4"), chunks=(4,)), "HDF5 filters|plain integers"),
    "compound": (put("params/x", (4,), "f4,f4", fletcher32=True), "class compound"),
    "enum": (put("params/x", (4,), h5py.enum_dtype({"a": 1}), fletcher32=True), "class enumeration"),
    "bool": (put("params/x", (4,), "?", fletcher32=True), "plain integers"),
    "reference": (put("params/x", (4,), h5py.ref_dtype, fletcher32=True), "class reference"),
    "opaque": (put("params/x", (4,), "V8", fletcher32=True), "class opaque"),
    "fixed string": (put("params/x", (4,), "S8", fletcher32=True), "class text"),
    "big-endian": (put("params/x", (4,), ">f4", fletcher32=True), "plain integers"),
    "array type": (put("params/x", (4,), "(2,)f4", fletcher32=True), "class array"),
    "named type": (named_type, "neither a group nor a dataset"),
    "dataset of a named type": (by_named_type, "named type"),
    "terabytes": (put("params/x", (1 << 40,), "f4", fletcher32=True), "more than the file holds"),
    "terabytes, contiguous": (put("params/x", (1 << 40,), "f4"), "without checksums"),
    "never written": (unallocated, "never written"),
    "null": (put("params/x", data=h5py.Empty("f4")), "checksums"),
    "null, compact": (compact("params/x", "f4", h5py.h5s.NULL), "has no shape"),
    "contiguous": (put("params/x", data=f4), "without checksums"),
    "no checksum": (put("params/x", data=f4, chunks=(4,)), "filters none"),
    "gzip": (put("params/x", data=np.zeros(1 << 20), chunks=(1 << 20,), compression="gzip"), "filters gzip"),
    "shuffle": (put("params/x", data=f4, shuffle=True, fletcher32=True), "filters shuffle, fletcher32"),
    "scale-offset": (put("params/x", data=f4, scaleoffset=2, fletcher32=False), "filters scale-offset"),
    "can grow": (put("params/x", data=f4, maxshape=(None,), fletcher32=True), "can grow"),
    "small chunks": (put("params/x", data=np.ones(2000), chunks=(1,), fletcher32=True), "far too small"),
    "attribute on the root": (attribute("/", "note", "x"), "other attributes than"),
    "attribute on a group": (attribute("params", "note", 1), "has attributes"),
    "attribute on an array": (attribute("params/0-dense/W", "note", 1), "has attributes"),
    "attribute on /format": (attribute("format", "note", 1), "has attributes"),
    "attribute of another name": (lambda file, at: h5py.h5a.rename(file.id, b"version", b"note"), "other attributes"),
    "version a text": (attribute("/", "version", "1"), "an integer `version`"),
    "version an array": (attribute("/", "version", [1, 1]), "an integer `version`"),
    "versions that differ": (attribute("/", "version", 2), "`version` of 1, as /format says"),
    "extra at the top": (put("extra", data=f4, fletcher32=True), "is no array"),
    "extra group at the top": (lambda file, at: file.create_group("extra"), "is no group"),
    "empty group": (lambda file, at: file.create_group("params/extra"), "empty group"),
    "array for a group": (
        lambda file, at: [file.pop("state"), put("state", data=f4, fletcher32=True)(file, at)],
        "is no array",
    ),
    "group for an array": (lambda file, at: [file.pop("history"), file.create_group("history/x")], "is no group"),
    "odd name": (put("params/a b", data=f4, fletcher32=True), "a name"),
    "name not ASCII": (put("params/é", data=f4, fletcher32=True), "a name"),
    "hidden name": (put("params/.x", data=f4, fletcher32=True), "a name"),
    "no config": (replaced("config", None), "config is missing"),
    "no format": (replaced("format", None), "format is missing"),
    "format a group": (lambda file, at: [file.pop("format"), file.create_group("format/x")], "not a dataset"),
    "format of numbers": (
        lambda file, at: [file.pop("format"), put("format", data=f4, fletcher32=True)(file, at)],
        "text",
    ),
    "format a single byte": (lambda file, at: [file.pop("format"), compact("format", "u1")(file, at)], "short text"),
    "format too long": (replaced("format", b" " * 5000), "short text"),
    "format not JSON": (replaced("format", b"{"), "is not that of"),
    "format not a table": (replaced("format", b"[1]"), "is not that of"),
    "format nested": (replaced("format", b"[" * 4000), "is not that of"),
    "another format": (head(format="other"), "is not that of"),
    "version true": (head(version=True), "is not that of"),
    "version 0": (head(version=0), "is not that of"),
    "attributes by the thousand": (
        lambda file, at: [file["params"].attrs.create(f"a{n}", n) for n in range(2000)],
        "has attributes",
    ),
    "giant attribute": (lambda file, at: file["params"].attrs.create("a", np.zeros(1 << 20)), "has attributes"),
    "giant attribute of the root": (lambda file, at: file.attrs.create("a", np.zeros(1 << 20)), "other attributes"),
    "region reference": (put("params/x", (4,), h5py.regionref_dtype, fletcher32=True), "class reference"),
    "a filter of a plugin": (plugin, "filters number 32004"),
    "gzip bomb": (
        put("params/x", (1 << 27,), "u1", chunks=(1 << 20,), compression="gzip", fillvalue=1),
        "filters gzip",
    ),
    "soft link to itself": (link("params/x", lambda at: h5py.SoftLink("/params/x")), "a soft link"),
    "soft links in a circle": (circle, "a soft link"),
}
CRAFTED = {
    "superblock of version 0": (lambda image: number(image, 8, 0, 1), "the superblock has"),
    "superblock of version 9": (lambda image: number(image, 8, 9, 1), "the superblock has"),
    "superblock with an extension": (lambda image: number(image, 20, 48), "the superblock has"),
    "addresses that do not begin at 0": (lambda image: number(image, 12, 8), "the superblock has"),
    "cut inside": (lambda image: image[:-100], "the superblock speaks of"),
    "longer than it says": (lambda image: image + bytes(100), "the superblock speaks of"),
    "root outside the file": (lambda image: number(image, 36, 1 << 63), "outside the file"),
    "root in the middle of something": (lambda image: number(image, 36, 50), "an object header has"),
    "header that continues itself": (continued_by_itself, "more than 64 messages"),
    "ten million empty messages": (rooted(bytes(10_000_000)), "more than 64 messages"),
    "message larger than its header": (rooted(b"\6\xff\xff\0"), "too early"),
    "B-tree of itself": (tree_of_itself, "is there twice"),
    "heap of itself": (heap_of_itself, "contain themselves"),
    "link of an unknown type": (rooted(message(6, b"\1\x08\x41\1x")), "a link of its own type"),
    "link to nowhere": (rooted(message(6, b"\1\0\6format" + b"\xff" * 8)), "outside the file"),
    "link to the root": (rooted(message(6, b"\1\0\6format" + bytes(8))), "an object header has"),
    "one chunk for many arrays": (shared_chunk, "more than the file holds"),
    "zeros": (lambda image: bytes(5000), "is not an HDF5 file"),
    "a pickle": (pickled, "is not an HDF5 file"),
    "a gzip bomb for a file": (gzipped, "is not an HDF5 file"),
    "a zip bomb": (zipped, "is not an HDF5 file"),
    "an npz of objects": (objects, "is not an HDF5 file"),
    "HDF5 after something else": (lambda image: bytes(512) + image, "is not an HDF5 file"),
}
UNSEALED = {
    "empty": (lambda image: b"\0", "too few"),
    "without a trailer": (lambda image: None, "does not end as"),
    "the digest of another": (lambda image: image + format.MAGIC + bytes(32), "do not match its SHA-256"),
    "a pickle without a trailer": (pickled, "does not end as"),
    "a gzip bomb without a trailer": (gzipped, "does not end as"),
}
PLACED = {
    "directory": (lambda path: path.mkdir(), "is not a file but a directory"),
    "pipe": (lambda path: os.mkfifo(path), "is not a file but a pipe"),
    "socket": (bound, "is not a file but a socket"),
    "link to a device": (lambda path: path.symlink_to("/dev/zero"), "is not a file but a device"),
    "link to a terminal": (lambda path: path.symlink_to("/dev/tty"), "is not a file but a device"),
    "link to a pipe": (lambda path: [os.mkfifo(path.with_name("p")), path.symlink_to("p")], "is not a file but a pipe"),
    "link to itself": (lambda path: path.symlink_to(path.name), "cannot be read: Too many levels"),
    "link to nothing": (lambda path: path.symlink_to("nothing"), "there is no such file"),
    "sparse, of 15 GiB": (sparse(15 << 30), "does not end as"),
    "sparse, of 8 TiB": (sparse(8 << 40), "more than the limit"),
}

KINDS: dict[str, tuple[Build, str]] = {
    **{name: (edited(edit), why) for name, (edit, why) in EDITED.items()},
    **{name: (crafted(change), why) for name, (change, why) in CRAFTED.items()},
    **{name: (crafted(change, seal=False), why) for name, (change, why) in UNSEALED.items()},
    **{name: (placed(put_there), why) for name, (put_there, why) in PLACED.items()},
}
