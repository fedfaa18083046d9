"""One file -> a checked dict of arrays.

The kind of the file, its size and its digest are checked first; then `structure` refuses what the writer would not have
written. libhdf5, which crafted bytes can crash, is not asked: `hdf5` reads what little of its format there is.
"""

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpbackprop.checkpoint import disk, format, pages
from gpbackprop.checkpoint.structure import DamagedError, Entry, Walk
from gpbackprop.errors import CheckpointError

Shape = tuple[int | None, ...]


@dataclass(frozen=True)
class Checkpoint:
    """A file that is whole and holds nothing but arrays in known places. Arrays are read by `arrays` and `text`."""

    path: Path
    entries: Mapping[str, Entry]
    """What the file holds: paths such as "params/0-dense/W", in order."""

    @property
    def config(self) -> str:
        """The TOML text that the run was trained by."""
        return self.text("config")

    def text(self, path: str) -> str:
        """The UTF-8 text stored as bytes at `path`. Raises CheckpointError where there is none."""
        entry = self.entries.get(path)
        if entry is None or entry.dtype != np.uint8 or len(entry.shape) != 1:
            raise CheckpointError(f"{self.path}: holds no text {path}; it is of another version, or incomplete")
        try:
            return self._load([path])[path].tobytes().decode()
        except UnicodeDecodeError as error:
            raise DamagedError(f"{self.path}: {path} is not UTF-8 text: {error}") from error

    def arrays(
        self, section: str = "", expected: Mapping[str, tuple[Shape, Any]] | None = None
    ) -> dict[str, np.ndarray]:
        """The arrays below `section` ("params", "optimizer/sgd"; all of them by default), by their path below it.

        `expected` gives the shape and dtype that each must have, and names all of them; a length of None is any length:
        {"0-dense/W": ((1, 784, 128), "float32")}. It is compared before an array is read. Without it, what the file
        declares is taken, which is never more than the file holds.
        Raises CheckpointError with every array that is missing, unexpected or of another shape or dtype;
        DamagedError where a parameter is not finite.
        """
        found = self.section(section)
        if expected is not None:
            self.check(section, expected)
        paths = {f"{section}/{name}" if section else name: name for name in found}
        return {paths[path]: array for path, array in self._load(list(paths)).items()}

    def check(self, section: str, expected: Mapping[str, tuple[Shape, Any]]) -> None:
        """Raise CheckpointError where the section holds other arrays than `expected`; none of them is read."""
        found = self.section(section)
        if wrong := list(_differences(expected, found)):
            more = f"\n  and {len(wrong) - 20} more" if len(wrong) > 20 else ""
            raise CheckpointError(
                f"{self.path}: {section or 'the file'} is not what its config describes:\n  "
                + "\n  ".join(wrong[:20]) + more
                + "\nUse the checkpoint with the config and the version that it was made by"
            )  # fmt: skip

    def section(self, name: str = "") -> dict[str, Entry]:
        """The entries below `name`, by their path below it."""
        prefix = f"{name}/" if name else ""
        return {path.removeprefix(prefix): entry for path, entry in self.entries.items() if path.startswith(prefix)}

    def _load(self, paths: list[str]) -> dict[str, np.ndarray]:
        with _faults_told(self.path):
            arrays = {path: self.entries[path].array() for path in paths}
        for path, array in arrays.items():
            if path.startswith("params/") and not np.isfinite(array).all():
                raise DamagedError(f"{self.path}: {path} holds NaN or infinity; use an earlier checkpoint")
        return arrays


def _differences(expected: Mapping[str, tuple[Shape, Any]], found: Mapping[str, Entry]) -> Iterator[str]:
    for name, (shape, dtype) in expected.items():
        wanted = f"{tuple(shape)} {np.dtype(dtype)}"
        if name not in found:
            yield f"{name}: missing, expected {wanted}"
            continue
        entry = found[name]
        fits = len(shape) == len(entry.shape) and all(w in (None, n) for w, n in zip(shape, entry.shape, strict=True))
        if not fits or np.dtype(dtype) != entry.dtype:
            yield f"{name}: found {entry.shape} {entry.dtype}, expected {wanted}"
    for name in found:
        if name not in expected:
            yield f"{name}: found {found[name].shape} {found[name].dtype}, expected nothing of this name"


def read(path: Path, limit: int = format.LIMIT, whole: bool = True) -> Checkpoint:
    """Check the file at `path`, of at most `limit` bytes, and describe what it holds.

    Its bytes stay in memory, so that what was checked is what arrays are made of. Where it is not to be read as a
    `whole`, only the bytes of the arrays that are asked for are read, from the file as it is at that moment.
    Raises DamagedError where the bytes are not a checkpoint's, and CheckpointError where the file cannot be read or was
    written by a newer version.
    """
    path = Path(path)
    with _faults_told(path), _opened(path, limit) as (fd, size):
        image = _verified(path, fd, size, whole)
        return Checkpoint(path, Walk(path, image).entries())


SALVAGED = 1 << 30
"""The most bytes of a damaged file that are looked into."""


@dataclass(frozen=True)
class Remains:
    """What can be seen of a file that is perhaps damaged. Nothing of it is to be trusted."""

    size: int
    why: str
    """What is wrong with it, "" where it is whole."""
    checkpoint: Checkpoint
    """What was found until something was broken."""


def salvage(path: Path, limit: int = format.LIMIT) -> Remains:
    """What the file at `path` holds, as far as it makes sense. It is safe with any bytes, and no file is changed.

    Raises CheckpointError where there is no file to be read.
    """
    path = Path(path)
    with _faults_told(path), _opened(path, limit) as (fd, size):
        try:
            return Remains(size, "", Checkpoint(path, Walk(path, _verified(path, fd, size)).entries()))
        except CheckpointError as error:
            why = str(error).removeprefix(f"{path}: ")
        disk.calls.lseek(fd, 0, os.SEEK_SET)
        data = b"".join(disk.pieces(fd, min(size, SALVAGED)))
        trailer = format.TRAILER if data[-format.TRAILER :].startswith(format.MAGIC) else 0
        walk = Walk(path, memoryview(data)[: len(data) - trailer], damaged=True)
        with suppress(CheckpointError):
            walk.entries()
        return Remains(size, why, Checkpoint(path, dict(sorted(walk.found.items()))))


@contextmanager
def _faults_told(path: Path) -> Iterator[None]:
    """What the disk refuses comes out as an error that says what to do."""
    try:
        yield
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: there is no such file; give a checkpoint (.h5) or a run directory") from error
    except PermissionError as error:
        raise CheckpointError(f"{path}: may not be read by this user; change its permissions") from error
    except OSError as error:
        raise DamagedError(f"{path}: cannot be read: {error.strerror or error}; use another checkpoint") from error


@contextmanager
def _opened(path: Path, limit: int) -> Iterator[tuple[int, int]]:
    """A file of at most `limit` bytes, open, and its size."""
    _check_kind(path, disk.calls.stat(path))  # before it is opened: to open a device can be to use it
    fd = disk.calls.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0))
    try:
        facts = disk.calls.stat(fd)
        _check_kind(path, facts)  # again: it may be another one by now
        if facts.st_size > limit:
            raise CheckpointError(
                f"{path}: has {facts.st_size} bytes, more than the limit of {limit}; is it a checkpoint?"
            )
        yield fd, facts.st_size
    finally:
        disk.calls.close(fd)


def _verified(path: Path, fd: int, size: int, whole: bool = True) -> memoryview | pages.Bytes:
    """The HDF5 image in the open file, once its digest holds: in memory, or as parts of the file."""
    if size < format.TRAILER + len(format.SIGNATURE):
        raise DamagedError(f"{path}: has {size} bytes, too few for a checkpoint; {_ADVICE}")
    size -= format.TRAILER
    disk.calls.lseek(fd, size, os.SEEK_SET)  # the end first: a huge foreign file is refused at once
    trailer = b"".join(disk.pieces(fd, format.TRAILER))
    if not trailer.startswith(format.MAGIC):
        raise DamagedError(
            f"{path}: does not end as a checkpoint does; it was cut short, or is something else; {_ADVICE}"
        )
    disk.calls.lseek(fd, 0, os.SEEK_SET)
    digest, image, at = hashlib.sha256(), memoryview(bytearray(size if whole else 0)), 0
    for piece in disk.pieces(fd, size):
        digest.update(piece)
        if whole:
            image[at : at + len(piece)] = piece
            at += len(piece)
    if digest.digest() != trailer[len(format.MAGIC) :]:
        raise DamagedError(
            f"{path}: its bytes do not match its SHA-256; the file was damaged after it was written; {_ADVICE}"
        )
    found = image.toreadonly() if whole else pages.Bytes(pages.File(fd), 0, size)
    if bytes(found[: len(format.SIGNATURE)]) != format.SIGNATURE:
        raise DamagedError(f"{path}: is not an HDF5 file; {_ADVICE}")
    return found


_ADVICE = "use another checkpoint, or copy it again from where it came"

_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def _check_kind(path: Path, facts: os.stat_result) -> None:
    """Refuse what is no file: reading a pipe or a device may never end."""
    if not stat.S_ISREG(facts.st_mode):
        kind = _KINDS.get(stat.S_IFMT(facts.st_mode), "something else")
        raise DamagedError(f"{path}: is not a file but {kind}; give a checkpoint (.h5)")
