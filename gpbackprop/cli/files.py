"""What commands write at a path that was given to them."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpbackprop.cli import screen
from gpbackprop.errors import UsageError


def write(path: Path, option: str, fill: Callable[[Any], object]) -> None:
    """The whole file or none of it: `fill(file)` writes the bytes. Raises UsageError, with the option that names it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            fill(file)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UsageError(f"{option} {path}: cannot be written: {error.strerror}") from None
    screen.note(f"wrote {path}")
