"""NPZ and HDF5 files: named arrays, `x` and `y` (or `inputs` and `targets`), with test rows beside them.

An array `lengths` says that the rows of x are sequences (T, features), padded at the end, and how long each one is.

Neither reader follows a file where it says: no pickles, no links to other files, no virtual or external data, and what
a header declares is held against the bytes that are there before memory is taken. The inputs of an HDF5 file that are
too large to be held stay in it, under the same rules.
"""

import math
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np

from gpbackprop.data.idx import DEFLATE_LIMIT
from gpbackprop.data.stored import Source, Stored
from gpbackprop.data.table import Raw, as_lengths, as_table, as_targets, as_weights
from gpbackprop.errors import DataError

NAMES = {"inputs": ("x", "inputs"), "targets": ("y", "targets")}
FILTERS = {1, 2, 3, 32000}  # gzip, shuffle, fletcher32, lzf: the ones that h5py brings

Find = Callable[[str], Any]  # the array of a name, or None


def _raw(path: Path, find: Find, part: str, name: Callable[[str], str], target: str | None, weight: str | None) -> Raw:
    """The rows that `find` finds under the usual names, or under the given names of target and weights."""

    def first(names: tuple[str, ...]) -> tuple[str, Any]:
        for candidate in map(name, names):
            if (array := find(candidate)) is not None:
                return candidate, array
        return "", None

    inputs_name, inputs = first(NAMES["inputs"])
    if inputs is None:
        raise DataError(f"{path}: no inputs {part}; expected an array called {' or '.join(map(name, NAMES['inputs']))}")
    table = as_table(inputs, str(path), inputs_name)
    del inputs
    lengths_name, lengths = first(("lengths",))
    if lengths is not None:
        lengths = as_lengths(lengths, table, str(path), lengths_name)
    target_name, y = first((target,) if target else NAMES["targets"])
    if target and y is None:
        raise DataError(f"{path}: no array {name(target)!r} with the targets {part}, which data.target names")
    steps = 0 if lengths is None else table.shape[1]
    targets = None if y is None else as_targets(y, len(table), str(path), target_name, steps)
    weights = None
    if weight is not None:
        weight_name, w = first((weight,))
        if w is None:
            raise DataError(f"{path}: no array {name(weight)!r}, which data.weight names")
        weights = as_weights(w, len(table), str(path), weight_name)
    kind = "rows" if lengths is None else "sequences"
    return Raw(str(path), table, targets, weights, (target_name or "y",), lengths=lengths, kind=kind)


def read_npz(path: Path, target: str | None = None, weight: str | None = None) -> dict[str, Raw]:
    """The parts "train" and, where the file has `x_test`, "test" of the NPZ file `path`.

    Raises DataError when it is no NPZ file, damaged, holds Python objects, or lacks the arrays.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():  # a name that was damaged in the directory is not one that is absent
                archive.open(info).close()
            _expect_all(path, len(archive.infolist()))
            find = lambda name: _member(path, archive, name)  # noqa: E731
            parts = {"train": _raw(path, find, "in it", str, target, weight)}
            test = lambda name: f"{name}_test"  # noqa: E731
            if any(f"{test(n)}.npy" in archive.namelist() for n in NAMES["inputs"]):
                parts["test"] = _raw(path, find, "for the test", test, target, weight)
            return parts
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise DataError(f"{path}: not an NPZ file, or damaged ({error})") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error


def _expect_all(path: Path, found: int) -> None:
    """Raise DataError where the end of the directory counts more arrays than were found: a wrong length hides one."""
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - (1 << 16)))
        tail = file.read()
    end = tail[tail.rfind(b"PK\5\6") :][:12]
    if len(end) == 12 and (said := int.from_bytes(end[10:], "little")) not in (found, 0xFFFF):
        raise DataError(f"{path}: its directory says {said} arrays and names {found}; it is damaged, get it again")


def _member(path: Path, archive: zipfile.ZipFile, name: str) -> np.ndarray | None:
    """The array `name` of an NPZ file, or None where there is none."""
    if f"{name}.npy" not in archive.namelist():
        return None
    info = archive.getinfo(f"{name}.npy")
    try:
        with archive.open(info) as file:
            version = np.lib.format.read_magic(file)
            header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = header(file)
            wanted = math.prod(shape) * dtype.itemsize
        if dtype.hasobject:
            raise DataError(f"{path}: {name!r} holds Python objects, which are not read; save numbers or text")
        if wanted > info.file_size or info.file_size > DEFLATE_LIMIT * (info.compress_size + 1):
            raise DataError(
                f"{path}: {name!r} says it has {wanted} bytes, which the file has no room for; it is damaged"
            )
        with archive.open(info) as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    except (ValueError, TypeError, SyntaxError, TokenError, RecursionError) as error:
        raise DataError(f"{path}: {name!r} is not an array of NumPy, or damaged ({error})") from error
    except MemoryError as error:  # also what Python says of a header with too many brackets
        raise DataError(f"{path}: {name!r} is damaged, or too large for the memory of this machine") from error


def read_hdf5(
    path: Path, target: str | None = None, weight: str | None = None, most: int | None = None
) -> dict[str, Raw]:
    """The parts "train" and, where there is a group `test`, "test" of the HDF5 file `path`: datasets at its root or in
    these groups. Inputs of more than `most` bytes stay in the file, as a `Stored`.

    Raises DataError for a damaged file, a link, and data that is not plainly in the file.
    """
    with _hdf5(path) as (file, closing):
        groups = {name: found for name in ("train", "test") if (found := _child(path, file, name)) is not None}
        groups.setdefault("train", file)
        parts = {}
        for part, group in sorted(groups.items(), reverse=True):
            if not hasattr(group, "keys"):
                raise DataError(f"{path}: {part!r} is a dataset; expected a group with the datasets x and y")
            limits = {name: most for name in NAMES["inputs"] if name not in (target, weight)}
            find = lambda name, group=group, limits=limits: _dataset(path, group, name, limits.get(name))  # noqa: E731
            parts[part] = _raw(path, find, f"in {group.name}", str, target, weight)
        if any(isinstance(raw.inputs, Stored) for raw in parts.values()):
            closing.pop_all()  # it closes with the last of them
        return parts


@contextmanager
def _hdf5(path: Path) -> Iterator:
    """The open file, and what closes it."""
    import h5py

    try:
        with ExitStack() as closing:
            yield closing.enter_context(h5py.File(path, "r", locking=False)), closing
    except (OSError, KeyError, RuntimeError, ValueError, TypeError) as error:  # of a type that h5py cannot name, too
        reason = str(error) if path.is_file() else "there is no such file"
        raise DataError(f"{path}: not an HDF5 file that can be read ({reason})") from error


def _child(path: Path, group, name: str):
    """What `group` holds under `name`, by a hard link; None where there is nothing."""
    import h5py

    if "/" in name or name in ("", "."):
        raise DataError(f"{path}: {name!r} is not the name of a dataset; expected a name without '/'")
    link = group.get(name, getlink=True)
    if link is None:
        return None
    if not isinstance(link, h5py.HardLink):
        raise DataError(
            f"{path}: {name!r} is a link to another place, which is not followed; store the data in the file"
        )
    return group[name]


def _dataset(path: Path, group, name: str, most: int | None = None) -> np.ndarray | Stored | None:
    """The values of a dataset whose bytes lie in this file; they stay there where they are more than `most` bytes."""
    import h5py

    data = _child(path, group, name)
    if data is None:
        return None
    if not isinstance(data, h5py.Dataset) or data.shape is None:
        raise DataError(f"{path}: {name!r} is not a dataset with values")
    plist = data.id.get_create_plist()
    filters = {plist.get_filter(i)[0] for i in range(plist.get_nfilters())}
    if data.is_virtual or plist.get_external_count() or not filters <= FILTERS:
        raise DataError(f"{path}: {name!r} is external, virtual or packed by a plug-in; store plain data in the file")
    if data.dtype.kind not in "biufS" or data.dtype.hasobject:
        raise DataError(f"{path}: {name!r} has the type {data.dtype}; expected numbers, or text of a fixed length")
    wanted, stored = math.prod(data.shape) * data.dtype.itemsize, data.id.get_storage_size()
    if wanted > stored * (DEFLATE_LIMIT if filters else 1):
        raise DataError(f"{path}: {name!r} says it has {wanted} bytes, but {stored} are stored; it is damaged")
    return data[()] if most is None or wanted <= most else Stored(Source(path, data))
