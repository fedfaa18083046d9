"""--device, for all commands that compute."""

from collections.abc import Callable

from gpbackprop.backend import Backend, select
from gpbackprop.errors import DeviceError
from gpbackprop.run import log


def choose(device: str, say: Callable[..., None] = log.info) -> Backend:
    """The backend of --device. `auto` says what it took, and why where that is not CUDA."""
    if device != "auto":
        return select(device)
    try:
        backend = select("cuda")
        say("device %s: %s", backend.name, backend.description)
    except DeviceError as error:
        backend = select("cpu")
        say("device cpu: auto found no CUDA (%s)", str(error).removeprefix("cuda: ").partition("; ")[0])
    return backend
