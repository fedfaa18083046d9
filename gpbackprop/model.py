"""Floor 5: a trained network from a checkpoint: predictions on raw data, and evaluation."""

import dataclasses
from pathlib import Path

import numpy as np

from gpbackprop import checkpoint
from gpbackprop.backend import Backend, select
from gpbackprop.config import Config, parse
from gpbackprop.data import Preparation, Split
from gpbackprop.data.portions import Stream
from gpbackprop.data.stored import Stored
from gpbackprop.data.streaming import too_large
from gpbackprop.errors import CheckpointError, ConfigError, UsageError
from gpbackprop.layers.combine import Chain
from gpbackprop.passes import Evaluation, Row
from gpbackprop.plan import Network
from gpbackprop.run import is_run, log


@dataclasses.dataclass(frozen=True)
class Model:
    """The network of a checkpoint with the preparation of its data: `load("runs/digits")`."""

    path: Path
    config: Config
    network: Network
    preparation: Preparation

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names, () for regression."""
        return self.preparation.classes

    def outputs(self, inputs: np.ndarray | Stored, lengths: np.ndarray | None = None) -> np.ndarray:
        """The outputs (K, N, outputs...) for N prepared rows `inputs` (N, *row_shape), not normalised yet.

        `lengths` (N,) are those of rows that are sequences with lengths; without them every step counts. Targets that
        were normalised for training come back in their own units. Rows in a file, and those that are too large for the
        device, come in portions.
        """
        n, shape = len(inputs), self.network.output_shape
        if self.network.row_shape != self.preparation.input_shape:  # a window of it
            shape = (*self.preparation.row_shape[:1], *shape[1:])
        targets = np.zeros((n, *shape[:-1]), np.int64) if self.classes else np.zeros((n, *shape))
        if self.network.lengths and lengths is None:
            lengths = np.full(n, self.preparation.row_shape[0])
        streamed = isinstance(inputs, Stored) or too_large(inputs.nbytes, self.network.backend)
        split = Split(inputs, targets, None, np.arange(n), lengths, stream=Stream() if streamed else None)
        y = Evaluation(self.network, self.config.loss, (), split, self.preparation).outputs()
        return self.preparation.in_raw_units(y)

    def predict(self, inputs: np.ndarray | Stored, lengths: np.ndarray | None = None) -> np.ndarray:
        """The predicted class indices (K, N), or for a regression the outputs (K, N, outputs)."""
        y = self.outputs(inputs, lengths)
        if not self.classes:
            return y
        return (y[..., 0] > self.config.loss.threshold).astype(np.int64) if y.shape[-1] == 1 else y.argmax(axis=-1)

    def probabilities(self, inputs: np.ndarray | Stored, lengths: np.ndarray | None = None) -> np.ndarray:
        """The probability (K, N, classes) of each class. Raises UsageError for a regression."""
        if not self.classes:
            raise UsageError(f"{self.path}: predicts numbers, which have no probabilities; leave --probabilities out")
        p = self.config.loss.probabilities(self.outputs(inputs, lengths))
        return np.concatenate([1 - p, p], axis=-1) if p.shape[-1] == 1 else p

    def evaluate(self, split: Split) -> Row:
        """The loss and metrics on labelled rows: a number each, or a list with one for each member."""
        metrics = self.config.train.metrics_for(self.preparation)
        with np.errstate(all="ignore"):
            return Evaluation(self.network, self.config.loss, metrics, split, self.preparation)()


def find(path: str | Path, best: bool = False, whole: bool = True) -> checkpoint.Checkpoint:
    """The checkpoint of a run directory (the newest whole one, or the best) or of a file. Raises CheckpointError.

    Unless it is read as a `whole`, only what is asked for comes into memory. Nothing is changed there: a damaged file
    is told and passed over, and set aside only when the run is resumed.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"{path}: there is no such run directory or checkpoint file")
    if not path.is_dir():
        return checkpoint.read(path, whole=whole)
    folder = path / "checkpoints" if is_run(path) else path
    if best and (chosen := checkpoint.best(folder)):
        return checkpoint.read(chosen, whole=whole)
    found = checkpoint.latest(folder, warn=log.warning, set_aside=False, whole=whole)
    if not found:
        raise CheckpointError(f"{path}: holds no checkpoint yet; train first, or name another run directory or file")
    return found


def load(path: str | Path, device: str | Backend = "cpu", best: bool = False) -> Model:
    """The model of a run directory or checkpoint file. Raises CheckpointError where it is damaged or does not fit."""
    return from_checkpoint(find(path, best), device)


def from_checkpoint(found: checkpoint.Checkpoint, device: str | Backend = "cpu") -> Model:
    """The model in a checkpoint. Raises CheckpointError where its parameters are not what its config describes."""
    model = outline(found, device)
    network = model.network
    network.allocate()
    for room, flat, array in (("params", network.params, network.w), ("state", network.states, network.state)):
        views = flat.views(array)
        for name, value in found.arrays(room).items():
            network.backend.stage(value[: network.K], views[name])
    return model


def outline(found: checkpoint.Checkpoint, device: str | Backend = "cpu") -> Model:
    """The model in a checkpoint without its numbers, which need no memory then: its network is not allocated.

    A small file may describe a network that no machine has room for. So what the config describes is held to what the
    file holds first; raises CheckpointError where they differ.
    """
    try:
        return _outline(found, select(device) if isinstance(device, str) else device)
    except ConfigError as error:
        raise CheckpointError(
            f"{found.path}: its config cannot be used by this version of gpbackprop: {error}"
        ) from error
    except (ValueError, OverflowError, RecursionError, MemoryError) as error:
        raise CheckpointError(f"{found.path}: its config describes a network that nobody can make: {error}") from error


def _outline(found: checkpoint.Checkpoint, backend: Backend) -> Model:
    config = parse(found.config, f"{found.path} /config")
    try:
        preparation = Preparation.from_arrays(found.arrays("preparation"))
    except ValueError as error:
        raise CheckpointError(f"{found.path}: {error}") from None
    members = found.section("progress").get("seeds")
    if members is None or members.shape != (config.population,):
        shape = None if members is None else members.shape
        raise CheckpointError(f"{found.path}: has progress/seeds {shape} and a population of {config.population}")
    seeds = (0,) * (1 if config.optimizer.swarm else config.population)  # the particles of a swarm are one network
    if preparation.folds not in (0, len(seeds)):
        raise CheckpointError(f"{found.path}: is prepared for {preparation.folds} folds and has {len(seeds)} members")
    shape, lengths = config.train.row_shape(preparation), preparation.kind == "sequences"
    network = Network(Chain(*config.model), shape, backend, seeds, config.train.dtype, lengths, allocate=False)
    for room, flat in (("params", network.params), ("state", network.states)):
        layout = {name: ((config.population, *place.shape), network.dtype) for name, place in flat.items()}
        found.check(room, layout)
    return Model(found.path, config, network, preparation)
