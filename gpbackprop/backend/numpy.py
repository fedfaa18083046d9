"""Arrays on the CPU: NumPy itself, and the few verbs that layers need beside it."""

import logging
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from gpbackprop.backend import memory, parallel, replay
from gpbackprop.backend.tape import Call, Namespace, Tape, verb
from gpbackprop.errors import ConfigError

Array = Any
CACHE = 2**18  # bytes that stay near a core while it works on some members of a population
log = logging.getLogger("gpbackprop")


class Backend:
    """One device: `xp` is the array namespace of the layers, the methods are what `xp` cannot be asked for.

    The verbs write into `out` and allocate nothing, so that a list of them can be replayed over fixed addresses.
    """

    name = "cpu"
    description = "NumPy on the CPU"
    block = 2**19  # elements of a work buffer, one for each member, that stays in the cache between two steps over it
    by_taps = 16  # channels of a convolution whose way back is a product for each place of the kernel, not one for all
    unroll = 1  # training steps that are started together: one Python call for each costs nothing that counts
    watches = False  # whether steps that are started together end where the loss is not finite
    rounds = False  # whether a tape rounds otherwise than the calls that were recorded
    probe_every = 1  # steps between two looks at the loss: reading host memory is free

    def __init__(self, module: Any = np) -> None:
        self.module, self.tape = module, Tape()
        self.xp: Any = Namespace(module, self.tape)

    def rounding(self, precision: str) -> "Backend":
        """This device, where products of float32 may round their operands to `precision`.

        Raises ConfigError where it cannot do so.
        """
        if precision != "float32":
            raise ConfigError(
                f"train.precision: found {precision!r}, which CUDA devices can do; the CPU multiplies all of float32: "
                'set precision = "float32", or choose a device with --device cuda'
            )
        return self

    def compiling(self, wanted: bool) -> "Backend":
        """This device, where steps are compiled to machine code if `wanted`.

        Raises ConfigError where the compiler is not installed.
        """
        return Compiled() if wanted else self

    @contextmanager
    def active(self) -> Iterator[None]:
        """Inside, this device is the one that computes, and its errors are told as ours."""
        yield

    def libraries(self) -> dict[str, str]:
        """The versions of what multiplies matrices here, as far as `description` does not tell them."""
        return {}

    def zeros(self, shape: Sequence[int], dtype: Any) -> Array:
        """An array of zeros that begins with a line of the cache.

        Threads of a product that write parts of the same row would otherwise share the lines between them: that costs 7
        percent of a step of 784-128-64-10 on two cores.
        """
        return memory.zeros(shape, dtype)

    def spare(self, array: Array) -> Array:
        """`array`, whose values nobody wants once the captured call that writes them is over."""
        return array

    def array(self, host: np.ndarray) -> Array:
        """A device array with the values of `host`, which nobody changes afterwards: here it may be `host` itself."""
        return np.asarray(host)

    def constant(self, host: np.ndarray) -> Array:
        """As `array`, for what nobody can write into."""
        made = self.array(host).view()
        made.flags.writeable = False
        return made

    def host(self, a: Array) -> np.ndarray:
        """The values of `a` in host memory; waits until they are computed."""
        return np.asarray(a)

    def stage(self, host: np.ndarray, out: Array) -> None:
        """out[...] = host."""
        out[...] = host

    def landing(self, out: Array) -> np.ndarray:
        """Host memory of the shape of `out`, to be filled for `land`; here it is `out` itself."""
        return out

    def land(self, landing: np.ndarray, out: Array) -> Callable[[], None]:
        """Queue out[...] = landing; the host may write there again when the call that is returned comes back."""
        return lambda: None

    def strided(self, a: Array, shape: Sequence[int], strides: Sequence[int]) -> Array:
        """A view of the memory of `a`, to read from; `strides` are in bytes, and views of windows overlap."""
        return self.module.lib.stride_tricks.as_strided(a, shape, strides)

    @verb
    def gemm(self, a: Array, b: Array, out: Array) -> None:
        """out[k,m,n] = sum_j a[k,m,j] b[k,j,n]; `a` and `b` may be transposed views."""
        np.matmul(a, b, out=out)

    @verb
    def gather(self, table: Array, index: Array, out: Array) -> None:
        """out[i...,:] = table[index[i...],:]; `out` has the dtype of `table`, the indices are in range."""
        np.take(table, index, axis=0, out=out, mode="clip")

    @verb
    def scatter_add(self, rows: Array, index: Array, table: Array) -> None:
        """table[index[i...],:] += rows[i...,:]; repeated indices add up."""
        np.add.at(table, index, rows)

    def capture(self, steps: Sequence[Callable[[], None]]) -> Callable[[], None]:
        """One call that runs `steps` in order.

        They run as they are the first time, and from the tape after that; from the tape always where it `rounds`.
        """
        return Recorded(self, steps)

    def repeat(self, parts: Sequence[Callable[[], None]], times: int, watched: Array) -> Callable[[], int] | None:
        """One call that makes two captured calls in turn, `times` times over, and gives how many times.

        Where the device `watches`, it stops between the two as soon as an element of `watched` is not finite. None
        where nothing is gained.
        """

        def run() -> int:
            for _ in range(times):
                for part in parts:
                    part()
            return times

        return run

    def replay(self, calls: Sequence[Call]) -> Callable[[], None]:
        """One call that makes all `calls` in order, with the same bits."""
        return parallel.shared(calls, replay.compile, parallel.together, parallel.threads()) or replay.compile(calls)

    def available(self) -> int | None:
        """Bytes of memory that can still be asked for; None where that is not known."""
        return memory.available()

    def sync(self) -> None:
        """Wait until all that was asked for is done."""


class Recorded:
    """One call that runs `steps` in order; `replayed` runs them from the tape, once they have been recorded."""

    def __init__(self, backend: Backend, steps: Sequence[Callable[[], None]]):
        self.backend, self.tape, self.steps = backend, backend.tape, tuple(steps)
        self.replayed: Callable[[], None] | None = None
        self.calls: list[Call] | None = None

    def __call__(self) -> None:
        if self.replayed is not None and self.tape.calls is None:
            self.replayed()
        elif self.tape.calls is not None:  # part of a step that records
            self._as_they_are()
        else:
            replayed = self.record()
            if self.backend.rounds:
                replayed()

    def record(self) -> Callable[[], None]:
        """Write the calls down; where a tape rounds, nothing is done meanwhile."""
        self.calls = calls = self.tape.record(self.steps, listens=self.backend.rounds)
        if calls is None:
            log.info("xp.%s is called without out=: this step runs as it is, not from a tape", self.tape.lost)
        self.replayed = self._as_they_are if calls is None else self.backend.replay(calls)
        return self.replayed

    def _as_they_are(self) -> None:
        for step in self.steps:
            step()


class Compiled(Backend):
    """The CPU, where the calls of a step that stand for loops are compiled by LLVM, several to a loop.

    Rounds sums, and functions such as exp, otherwise than NumPy does: a run is exact as long as it stays with one.
    """

    rounds = watches = True
    by_taps = 2**31  # never: loops over rows that lie apart are as fast
    unroll = 16  # that Python's part of a small step counts less

    def __init__(self) -> None:
        super().__init__()
        try:
            import llvmlite
        except ImportError as error:
            raise ConfigError(
                f"train.compile: wants the package llvmlite, which cannot be imported ({error}); install it by "
                'pip install "gpbackprop[compile]"; a new run can do without it, with compile = false'
            ) from error
        self.compiler = llvmlite.__version__
        self._spare: list[weakref.ref[Any]] = []

    def compiling(self, wanted: bool) -> Backend:
        return self if wanted else Backend()

    def libraries(self) -> dict[str, str]:
        return {"llvmlite": self.compiler}

    def spare(self, array: Array) -> Array:
        self._spare.append(weakref.ref(array))
        return array

    def replay(self, calls: Sequence[Call]) -> Callable[[], None]:
        from gpbackprop.backend import native

        # what is shared is compiled run by run, which do not know what the others read
        shared = parallel.shared(calls, native.compile, native.together, parallel.threads(), CACHE)
        return shared or self._compiler()(calls, workers=native.workers())

    def _compiler(self) -> Callable[..., Callable[[], None]]:
        from gpbackprop.backend import native

        return partial(native.compile, spare=[x for each in self._spare if (x := each()) is not None])

    def repeat(self, parts: Sequence[Any], times: int, watched: Array) -> Callable[[], int] | None:
        from gpbackprop.backend import native

        steps = [part.replayed or part.record() for part in parts]
        if len(watched) > 1 and all(part.calls for part in parts):
            tapes = [part.calls for part in parts]
            return native.repeated_by_members(tapes, self._compiler(), times, watched, CACHE)
        return native.repeated(steps, times, watched)
