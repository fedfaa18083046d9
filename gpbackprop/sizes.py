"""Floor 3: the memory that training takes, known before any of it is asked for.

A network without arrays is traced over phantoms, batch by batch, as a plan does itself before it binds.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from gpbackprop.backend import Backend
from gpbackprop.data import Dataset, Split
from gpbackprop.errors import ConfigError, OutOfMemoryError
from gpbackprop.losses import Loss
from gpbackprop.optim.base import Optimizer
from gpbackprop.passes import EVALUATION_BATCH, Pass
from gpbackprop.plan import Flat, Network, Traces
from gpbackprop.settings import Train

REST = "input, target and loss"


@dataclass(frozen=True)
class Sizes:
    """Bytes, all members of the population together. `layers` are those of a training batch of `batch` rows by the
    outermost layer: values, their gradients, work memory. `data` lie in memory already on the CPU, and go to a device;
    of those that are streamed there are only `portions`, of each split two.
    """

    network: Network
    batch: int
    parameters: int
    optimizer: int
    layers: dict[str, int]
    evaluation: int
    order: int
    data: int
    portions: int = 0

    @property
    def total(self) -> int:
        """What is to be asked for."""
        on_device = self.portions + (0 if self.network.backend.name == "cpu" else self.data)
        return self.parameters + self.optimizer + sum(self.layers.values()) + self.evaluation + self.order + on_device

    def rows(self) -> list[tuple[str, int]]:
        """Each part and its bytes, in the order of a table."""
        layers = [(f"  {name}", size) for name, size in self.layers.items()]
        return [
            ("parameters, gradients, state", self.parameters),
            ("optimizer", self.optimizer),
            (f"training, batch of {self.batch}", sum(self.layers.values())),
            *layers,
            ("evaluation", self.evaluation),
            ("order of the rows", self.order),
            *([("portions of the data", self.portions)] if self.portions else []),
            ("data" if self.network.backend.name != "cpu" else "data (there already)", self.data),
        ]


def measure(
    model: Traces, loss: Loss, optimizer: Optimizer, data: Dataset, train: Train, members: int, device: Backend
) -> Sizes:
    """What training as `train` says takes on the device. Raises ShapeError and ConfigError as the trainer does."""
    backend = _Measuring(device)
    split, preparation = data.splits["train"], data.preparation
    shape = train.row_shape(preparation)
    network = Network(model, shape, backend, (0,) * members, train.dtype, split.lengths is not None, allocate=False)
    params, states = network.params, network.states
    metrics = train.metrics_for(preparation)

    def passed(rows: Split, batch: int, training: bool) -> tuple[dict[str, int], int, int]:
        counted = train.running(metrics) if training else metrics
        augment = data.augment if training else None
        run = Pass(network, loss, counted, rows, preparation, batch, training, augment)
        sizes: dict[str, int] = {}
        for size in {batch if run.full else 0, run.rest} - {0}:
            network.params, network.states = Flat(), Flat()
            for path, taken in run.measured(size).sizes.items():
                name = path.partition("/")[0] or REST
                sizes[name] = sizes.get(name, 0) + taken
        return sizes, run.order.nbytes, run.feed.streamed.nbytes if run.feed.streamed else 0

    batch = len(split) if train.batch_size == "full" else min(train.batch_size, len(split))
    layers, order, portions = passed(split, batch, True)
    evaluated = [name for name in data.splits if name != "train" or optimizer.swarm]
    evaluations = [passed(data.splits[name], EVALUATION_BATCH, False) for name in evaluated]
    network.params, network.states = params, states
    try:
        taken = optimizer.size(network, batch)
    except ConfigError:  # the trainer, which binds it last, tells first what else does not fit
        taken = 0
    itemsize = np.dtype(train.dtype).itemsize
    return Sizes(
        network,
        batch,
        members * itemsize * (2 * params.size + states.size),
        taken,
        dict(sorted(layers.items(), key=lambda item: _place(item[0]))),
        sum(sum(sizes.values()) for sizes, _, _ in evaluations),
        order + sum(taken for _, taken, _ in evaluations),
        sum(_bytes(part) for part in ([split] if backend.name == "cpu" else data.splits.values()) if not part.stream),
        portions + sum(taken for _, _, taken in evaluations),
    )


def expect_room(measured: Callable[[int | None], Sizes], room: int | None) -> Sizes:
    """The sizes, `measured(None)`, where they fit into `room` bytes, if that is known.

    Raises OutOfMemoryError with the size of each part, and with the largest batch for which `measured(batch)` fits.
    """
    sizes = measured(None)
    if room is None or sizes.total <= room:
        return sizes
    raise OutOfMemoryError(
        f"out of memory: training takes {human(sizes.total)}, and {human(room)} are free on "
        f"{sizes.network.backend.name}\n" + table(sizes) + "\n" + _advice(measured, sizes.batch, room)
    )


def _advice(measured: Callable[[int | None], Sizes], batch: int, room: int) -> str:
    fits, above = 0, batch
    while above - fits > 1:
        middle = (fits + above) // 2
        if measured(middle).total <= room:
            fits = middle
        else:
            above = middle
    if fits:
        return f"the largest batch that fits has {fits} rows: --set train.batch_size={fits}"
    least = measured(1)
    if least.network.backend.name != "cpu" and least.total - least.data <= room:
        return "not even a batch of one row fits beside the data; with data.stream = true they come in portions"
    return "not even a batch of one row fits; make the model or the population smaller, or take a larger machine"


def table(sizes: Sizes) -> str:
    """The parts, one line each."""
    width = max(len(name) for name, _ in sizes.rows())
    return "\n".join(f"  {name:<{width}}  {human(size):>9}" for name, size in sizes.rows())


def human(size: float) -> str:
    """12.3 MiB"""
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB"):
        if size < 1000 or unit == "TiB":
            break
        size /= 1024
    return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.3g} {unit}"


class _Measuring(Backend):
    """NumPy in the place of a device, with the sizes of work memory that are chosen there."""

    def __init__(self, device: Backend):
        super().__init__()
        self.name, self.block = device.name, device.block


def _place(name: str) -> tuple[int, int]:
    """The order of the layers, and what is of none of them first."""
    number = name.partition("-")[0]
    return (1, int(number)) if number.isdigit() else (0, 0)


def _bytes(split: Split) -> int:
    arrays: Sequence[np.ndarray | None] = (split.inputs, split.targets, split.weights, split.lengths)
    return sum(array.nbytes for array in arrays if array is not None)
