"""What `data.stream` says: whether the inputs of a data set lie in memory, or come in portions."""

import re
from typing import Annotated, Any

from pydantic import PlainValidator

from gpbackprop.backend import Backend, memory
from gpbackprop.data.portions import Stream
from gpbackprop.data.stored import Stored
from gpbackprop.data.table import Raw
from gpbackprop.errors import ConfigError

USUAL = "64 MB"
_SIZE, _UNITS = re.compile(r"([1-9]\d*) ?(kB|MB|GB)"), {"kB": 10**3, "MB": 10**6, "GB": 10**9}


def _said(value: Any) -> bool | str:
    """A value of `stream`, if it makes sense; true is the usual size, written out."""
    if value is True:
        return USUAL
    size = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if value is not False and value != "auto" and not size:
        raise ValueError(f'found {value!r}, expected "auto", true, false, or the size of a portion like "64 MB"')
    return f"{size[1]} {size[2]}" if size else value


Said = Annotated[bool | str, PlainValidator(_said)]


def stream(said: bool | str, seed: int) -> Stream | None:
    """How a split is read where `stream` says so in the end: not at all in portions, or in those of a size."""
    if said is False or said == "auto":
        return None
    number, unit = str(said).split()
    return Stream(int(number) * _UNITS[unit], seed)


def check_stream(data) -> list[str]:
    """What in a `Data` does not go with its stream, each beginning with its key."""
    if data.stream in ("auto", False) or data.folds is None:
        return []
    return [
        f"stream: found {data.stream!r}, but the networks of the {data.folds} folds share one table, in memory; "
        "leave one of stream and folds out"
    ]


def limit(data, device: Backend | None) -> int | None:
    """The bytes of inputs above which they stay in their file; None for no limit.

    What cannot be read in portions is held, unless that was asked for.
    """
    if data.stream is False or data.folds:
        return None
    if data.stream != "auto":
        return 0
    return None if data.window or data.missing == "drop" else half_free(device)


def half_free(device: Backend | None) -> int | None:
    """Half of the bytes that are free, on this machine and on the device: reading and preparing take some, too."""
    rooms = (memory.available(), device.available() if device else None)
    return min((room // 2 for room in rooms if room is not None), default=None)


def settled(data, inputs: Any, splits: int, device: Backend | None) -> bool | str:
    """What `stream` says in the end: "auto" is the usual size for inputs in a file, and for those that a device has no
    room for, where every split has a table of its own.
    """
    if data.stream != "auto":
        return data.stream
    large = isinstance(inputs, Stored) or (not data.folds and too_large(inputs.nbytes * splits, device))
    return USUAL if large else False


def too_large(size: int, device: Backend | None) -> bool:
    """Whether so many bytes are more than half of what is free on a device that has memory of its own."""
    room = None if device is None or device.name == "cpu" else device.available()
    return room is not None and size > room // 2


def expect_streamable(data, raw: Raw) -> None:
    """Raise ConfigError where inputs lie in a file and cannot be read in portions."""
    table = raw.inputs
    if not isinstance(table, Stored):
        return
    said = f"data.stream = {data.stream!r}: reads the rows of {raw.where} in portions, but"
    if data.window:
        raise ConfigError(f"{said} data.window makes windows over a series in memory; set data.stream = false")
    if data.missing == "drop":
        raise ConfigError(
            f'{said} data.missing = "drop" looks in memory for rows to leave out; set data.stream = false, or leave '
            "them out of the file and data.missing out of the config"
        )
    if raw.kind == "sequences" and data.normalize != "none":
        raise ConfigError(
            f"{said} data.normalize = {data.normalize!r} of rows with lengths is computed in memory; set "
            'data.stream = false, or data.normalize = "none"'
        )
    size = (stream(data.stream, 0) or Stream()).size
    if (chunk := table.nbytes // len(table) * table.chunk) > size:
        raise ConfigError(
            f"{said} its chunks of {table.chunk} rows, which are read as a whole, have {chunk / 1e6:.0f} MB, more than "
            f'a portion; say data.stream = "{-(-chunk // 10**6)} MB" or more, or write the file with smaller chunks'
        )
