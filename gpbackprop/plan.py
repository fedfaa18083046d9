"""A network traced into two lists of calls over fixed arrays.

`Network` owns what outlives a batch size: the parameters and gradients of K networks as two (K, P) arrays, layer state
and the step counter. `Plan` binds the model to one batch size: it traces the layers twice, first over phantoms to
measure one arena (which is also the shape inference), then over views of it, and keeps the closure pairs that the
layers registered. Training, evaluation and the short last batch are plans over the same network.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np

from gpbackprop.backend import Array, Backend, random
from gpbackprop.errors import OutOfMemoryError, ShapeError

Closure = Callable[[], None]


@dataclasses.dataclass(frozen=True)
class Slot:
    """An array of a plan and the gradient of the loss with respect to it.

    Both have a leading population axis K. `grad` is None where nobody upstream wants it. A slot has one consumer, whose
    backward overwrites `grad`.
    """

    value: Array
    grad: Array  # or None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape without the population axis: (batch, features...)."""
        return self.value.shape[1:]

    def reshape(self, *shape: int) -> "Slot":
        """The same memory as (K, *shape)."""
        k = self.value.shape[0]
        return Slot(self.value.reshape(k, *shape), None if self.grad is None else self.grad.reshape(k, *shape))

    @property
    def rows(self) -> "Slot":
        """The same memory as matrices (K, all leading axes, last axis)."""
        return self.reshape(math.prod(self.shape[:-1]), self.shape[-1])

    @property
    def transposed(self) -> Array:
        """The value with its last two axes exchanged."""
        return self.value.swapaxes(-1, -2)


@dataclasses.dataclass(frozen=True)
class Note:
    """A slot worth looking at: `name` is "y" for the output of the layer at `path`, "z" for what its activation takes.

    `done` is the number of the plan's forwards that come before whatever reads the slot.
    """

    path: str
    name: str
    slot: Slot
    done: int


@dataclasses.dataclass(frozen=True)
class Target:
    """What the outputs are held to: `value` (K, batch, ...) class indices or (K, batch, ..., outputs) numbers.

    `classes` is the number of classes, 0 for numbers. `weight` (K, batch, ...) holds the rows' weights or is None.
    `scale` (outputs,) turns a difference of prepared targets into one of raw targets, or is None.
    """

    value: Array
    classes: int = 0
    weight: Array | None = None
    scale: Any = None


class Draws(Protocol):
    """What a parameter starts from: see `initializers`."""

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray: ...


class Traces(Protocol):
    """What a model is to a plan: see `layers`."""

    def trace(self, plan: "Plan", x: Slot) -> Slot: ...


@dataclasses.dataclass(frozen=True)
class Declared:
    """Where a parameter or a piece of state lives in its flat array, and what it starts from."""

    offset: int
    shape: tuple[int, ...]
    init: Any = None  # Draws
    decay: bool = True
    frozen: bool = False

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def of(self, flat: Array) -> Array:
        """The view (K, *shape) of a flat array (K, P)."""
        return flat[:, self.offset : self.offset + self.size].reshape(flat.shape[0], *self.shape)


class Flat(dict[str, Declared]):
    """The layout of a flat array: paths to places, each aligned to 64 bytes of float32."""

    size = 0

    def declare(self, path: str, shape: tuple[int, ...], **facts: Any) -> Declared:
        if path in self:
            raise ShapeError(f"{path}: declared twice")
        self[path] = Declared(self.size, shape, **facts)
        self.size += -(-self[path].size // 16) * 16
        return self[path]

    def views(self, flat: Array) -> dict[str, Array]:
        """Each path's view (K, *shape) of the flat array."""
        return {path: place.of(flat) for path, place in self.items()}

    def mask(self, chosen: Callable[[Declared], bool]) -> np.ndarray | None:
        """A vector (P,) of ones where `chosen` holds and zeros elsewhere; None where it holds everywhere."""
        if all(map(chosen, self.values())):
            return None
        mask = np.zeros(self.size, np.float32)
        for place in filter(chosen, self.values()):
            mask[place.offset : place.offset + place.size] = 1
        return mask


class Arena:
    """One buffer, handed out front to back. Without a buffer it measures, and hands out phantoms of one element."""

    def __init__(self, backend: Backend, size: int | None = None):
        self.xp, self.used = backend.xp, 0
        self.buffer = None if size is None else backend.zeros((size,), np.uint8)

    def take(self, shape: tuple[int, ...], dtype: Any) -> Array:
        size = math.prod(shape) * np.dtype(dtype).itemsize
        at, self.used = self.used, self.used + -(-size // 64) * 64
        if self.buffer is None:
            return phantom(self.xp, shape, dtype)
        return self.buffer[at : at + size].view(dtype).reshape(shape)


def phantom(xp: Any, shape: tuple[int, ...], dtype: Any) -> Array:
    """An array of a shape in the memory of one element. Raises OutOfMemoryError for one that no memory could hold."""
    try:
        return xp.broadcast_to(xp.zeros((), dtype), shape)
    except ValueError as error:
        raise OutOfMemoryError(f"out of memory: no machine holds an array of {shape} numbers: {error}") from None


class Network:
    """K networks of one architecture: `w` and `g` are (K, P), `state` is (K, S), `clock` counts the updates.

    `seeds` has one entry a member; initial parameters are a function of (seed, parameter path), drawn on the host.
    `lengths` says that rows are sequences which may end early. `symbols` is None or, where the model looks its input up
    in a table, the number of rows of that table: its inputs are whole numbers below that. `measured` is a plan of one
    row that has shapes and no memory.
    Without `allocate` only the layouts are known, and w, g and state are None until `allocate()`.
    Raises ShapeError, naming the layer, when the layers do not fit each other.
    """

    w: Array
    g: Array
    state: Array

    def __init__(
        self,
        model: Traces,
        row_shape: Sequence[int],
        backend: Backend | None = None,
        seeds: Sequence[int] = (0,),
        dtype: Any = np.float32,
        lengths: bool = False,
        allocate: bool = True,
    ):
        self.model, self.row_shape, self.backend = model, tuple(row_shape), backend or Backend()
        self.lengths = lengths
        self.symbols: int | None = None
        self.seeds, self.dtype, self.K = tuple(seeds), np.dtype(dtype), len(seeds)
        self.params, self.states = Flat(), Flat()
        self.w = self.g = self.state = None
        self.measured = Plan(self, batch=1, measure=True)
        self.output_shape = self.measured.y.shape[1:]
        if allocate:
            self.allocate()
            self.reset()

    def allocate(self) -> None:
        """Make the arrays, of zeros."""
        zeros = self.backend.zeros
        self.w, self.g = (zeros((self.K, self.params.size), self.dtype) for _ in range(2))
        self.state = zeros((self.K, self.states.size), self.dtype)
        self.clock = zeros((1,), np.uint32)

    def reset(self) -> None:
        """Draw the initial parameters and layer state, and set the step counter to 0."""
        for layout, flat in ((self.params, self.w), (self.states, self.state)):
            host = np.zeros((self.K, layout.size), self.dtype)
            for path, place in layout.items():
                for k, seed in enumerate(self.seeds):
                    try:
                        place.of(host)[k] = place.init.draw(random.generator(seed, path), place.shape)
                    except ShapeError as error:
                        raise ShapeError(f"{path}: {error}") from None
            self.backend.stage(host, flat)
        self.clock.fill(0)

    def mask(self, chosen: Callable[[Declared], bool]) -> Array | None:
        """A vector (P,) of ones in the parameters where `chosen` holds; None where it holds for all."""
        mask = self.params.mask(chosen)
        return None if mask is None else self.backend.array(mask.astype(self.dtype))

    @property
    def parameter_count(self) -> int:
        """The number of parameters of one member."""
        return sum(place.size for place in self.params.values())


class Plan:
    """The closures of one batch size: `x` is the input slot, `y` the output slot; `forward()` and `backward()` run.

    `loss(plan)`, if given, is traced after the model; what it adds up over steps lives in `tallies`. With
    `training=False` there are no gradients, and layers that differ at inference (dropout) are traced as they are there.
    `lengths` (K, batch) is the number of valid steps of each row, or None where all are. `carried`, if given, holds
    what one window of a sequence hands to the next (see `carry`); the plans of one pass share it.
    """

    x: Slot
    y: Slot

    def __init__(
        self,
        network: Network,
        batch: int,
        *,
        training: bool = False,
        loss: Callable[["Plan"], None] | None = None,
        tallies: dict[str, Array] | None = None,
        carried: dict[str, Array] | None = None,
        measure: bool = False,
    ):
        self.network, self.batch, self.training = network, batch, training
        self.backend, self.xp, self.dtype, self.K = network.backend, network.backend.xp, network.dtype, network.K
        self.draws = False  # whether something in it is drawn at random in each step
        self.tallies, self.carried = {} if tallies is None else tallies, carried
        size = None
        for _ in range(1 if measure else 2):  # the first pass measures, the second binds
            self.arena = Arena(self.backend, size)
            self.forwards: list[Closure] = []
            self.backwards: list[Closure] = []
            self.notes: list[Note] = []
            self.path: list[str] = []
            self.sizes: dict[str, int] = {}  # bytes, by the path of the layer that asked for them
            self.x = Slot(self.scratch((batch, *network.row_shape)), None)
            self.lengths = self.scratch((batch,)) if network.lengths else None
            self.y = network.model.trace(self, self.x)
            if loss:
                loss(self)
            size = self.arena.used
        self.backwards.reverse()
        self.forward = self.backend.capture(self.forwards)
        self.backward = self.backend.capture(self.backwards)

    # What a layer asks for while it is traced.

    def param(
        self, name: str, shape: tuple[int, ...], init: Draws, *, decay: bool = True, frozen: bool = False
    ) -> Slot:
        """A parameter (K, *shape) at the current path. `decay` says whether weight decay acts on it."""
        path, net = self.at(name), self.network
        if net.w is None:
            net.params.declare(path, shape, init=init, decay=decay, frozen=frozen)
            return Slot(*2 * [phantom(self.xp, (self.K, *shape), self.dtype)])
        place = self._known(net.params, path, shape)
        return Slot(place.of(net.w), place.of(net.g) if self.training else None)

    def state(self, name: str, shape: tuple[int, ...], init: Draws) -> Array:
        """An array (K, *shape) that training changes without a gradient, kept in the checkpoint."""
        path, net = self.at(name), self.network
        if net.state is None:
            net.states.declare(path, shape, init=init)
            return phantom(self.xp, (self.K, *shape), self.dtype)
        return self._known(net.states, path, shape).of(net.state)

    def _known(self, flat: Flat, path: str, shape: tuple[int, ...]) -> Declared:
        if path not in flat or flat[path].shape != shape:
            raise ShapeError(f"{path}: has shape {shape} here and {flat[path].shape if path in flat else None} before")
        return flat[path]

    def slot(self, shape: tuple[int, ...]) -> Slot:
        """A new output (K, *shape), with a gradient when training."""
        return Slot(self.scratch(shape), self.scratch(shape) if self.training else None)

    def scratch(self, shape: tuple[int, ...], dtype: Any = None) -> Array:
        """Work memory (K, *shape), of the plan's dtype unless told."""
        return self._take((self.K, *shape), dtype or self.dtype)

    def _take(self, shape: tuple[int, ...], dtype: Any) -> Array:
        self._count(-self.arena.used)
        array = self.arena.take(shape, dtype)
        self._count(self.arena.used)
        return array

    def _count(self, size: int) -> None:
        path = "/".join(self.path)
        self.sizes[path] = self.sizes.get(path, 0) + size

    def constant(self, host: Any) -> Array:
        """A device array, of the plan's dtype, that no step changes."""
        values = np.asarray(host, self.dtype)
        self._count(values.nbytes)
        return self.backend.constant(values)

    def tally(self, name: str, *shape: int) -> Array:
        """A float64 array (K, *shape) that adds up over the steps of a pass; plans with the same `tallies` share it."""
        if name not in self.tallies:
            self.tallies[name] = self.xp.zeros((self.K, *shape), np.float64)
        return self.tallies[name]

    def carry(self, name: str, shape: tuple[int, ...]) -> Array | None:
        """An array (K, *shape) that one window of a sequence hands to the next, zero before the first one.

        None where each row is a whole sequence. A short last batch has arrays of its own.
        """
        if self.carried is None:
            return None
        path = self.at(f"{name}-{self.batch}")
        if path not in self.carried:
            self.carried[path] = self.xp.zeros((self.K, *shape), self.dtype)
        return self.carried[path]

    def look_up(self, x: Slot, symbols: int) -> None:
        """Say that x holds whole numbers from 0 to symbols - 1. Where it is the plan's input, data are held to that."""
        if self.xp.may_share_memory(x.value, self.x.value):
            self.network.symbols = min(symbols, self.network.symbols or symbols)

    def uniform(self, out: Array) -> Closure:
        """A call that fills `out` with numbers in [0, 1), a function of (seed, path, step, index)."""
        self.draws = True
        keys = np.stack([random.key(seed, self.at("uniform")) for seed in self.network.seeds])
        key = self.backend.array(keys)
        count = math.prod(out.shape[1:])
        self._count(4 * count)
        index = None  # while sizes are measured nothing as large is made
        if self.arena.buffer is not None:
            index = self.xp.arange(count, dtype=np.uint32).reshape(out.shape[1:])
        bits = self._take((2, *out.shape), np.uint32)
        step = self.network.clock if self.network.w is not None else None
        return lambda: random.uniform(self.xp, out, bits, index, key, step)

    def step(self, forward: Closure | None, backward: Closure | None) -> None:
        """Register a closure pair. Forwards run in this order, backwards in the reverse order."""
        guard = self.backend.tape.guard
        if forward:
            self.forwards.append(guard(forward))
        if backward and self.training:
            self.backwards.append(guard(backward))

    def note(self, name: str, slot: Slot) -> None:
        """Note a slot of the layer at the current path for those who look at or check the numbers inside."""
        self.notes.append(Note("/".join(self.path), name, slot, len(self.forwards)))

    @property
    def outputs(self) -> list[tuple[str, Slot]]:
        """The path and output of each layer of a row of layers, inner layers before the one that holds them."""
        return [(note.path, note.slot) for note in self.notes if note.name == "y"]

    @contextmanager
    def scope(self, name: str):
        """Paths inside begin with `name`."""
        self.path.append(name)
        yield
        self.path.pop()

    def at(self, name: str) -> str:
        """The path of `name` here: "2-residual/0-dense/W"."""
        return "/".join((*self.path, name))

    def expect(self, holds: bool, wanted: str, got: Any, advice: str = "") -> None:
        """Raise a ShapeError that names this layer unless `holds`."""
        if not holds:
            raise ShapeError(
                f"{'/'.join(self.path) or 'model'}: wants {wanted}, got {got}" + (f"; {advice}" if advice else "")
            )
