"""Arrays on the CPU: NumPy itself, and the few verbs that layers need beside it."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Array = Any


class Backend:
    """One device: `xp` is the array namespace of the layers, the methods are what `xp` cannot be asked for.

    The verbs write into `out` and allocate nothing, so that a list of them can be replayed over fixed addresses.
    """

    xp: Any = np
    name = "cpu"
    description = "NumPy on the CPU"
    block = 2**18  # elements of a work buffer, one for each member, that stays in the cache between two steps over it
    probe_every = 1  # steps between two looks at the loss: reading host memory is free

    def array(self, host: np.ndarray) -> Array:
        """A device array with the values of `host`, which nobody changes afterwards: here it may be `host` itself."""
        return np.asarray(host)

    def host(self, a: Array) -> np.ndarray:
        """The values of `a` in host memory; waits until they are computed."""
        return np.asarray(a)

    def stage(self, host: np.ndarray, out: Array) -> None:
        """out[...] = host."""
        out[...] = host

    def gemm(self, a: Array, b: Array, out: Array) -> None:
        """out[k,m,n] = sum_j a[k,m,j] b[k,j,n]; `a` and `b` may be transposed views."""
        np.matmul(a, b, out=out)

    def gather(self, table: Array, index: Array, out: Array) -> None:
        """out[i...,:] = table[index[i...],:]; `out` has the dtype of `table`, the indices are in range."""
        np.take(table, index, axis=0, out=out, mode="clip")

    def scatter_add(self, table: Array, index: Array, rows: Array) -> None:
        """table[index[i...],:] += rows[i...,:]; repeated indices add up."""
        np.add.at(table, index, rows)

    def capture(self, steps: Sequence[Callable[[], None]]) -> Callable[[], None]:
        """One call that runs `steps` in order."""
        steps = tuple(steps)

        def run() -> None:
            for step in steps:
                step()

        return run

    def sync(self) -> None:
        """Wait until all that was asked for is done."""
