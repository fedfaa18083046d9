"""Floor 3: the `[train]` table, which the trainer reads and the config holds."""

import dataclasses
import re
from typing import Annotated, Any, Literal

from pydantic import PlainValidator

from gpbackprop.data.preparation import Preparation
from gpbackprop.errors import ConfigError
from gpbackprop.metrics import R2, Accuracy, MeanAbsoluteError, Metric
from gpbackprop.spec import Count, Flag, NonNegative, Text, one_of, spec, to_table

_INTERVAL = re.compile(r"(\d+) (epoch|step)s?|(\d+(?:\.\d+)?) (minute)s?")


def _interval(value: Any) -> int | str:
    """`value`, if `Train.saving` can make sense of it."""
    if type(value) is int and value > 0:
        return value
    found = _INTERVAL.fullmatch(value) if isinstance(value, str) else None
    if not found or not float(found[1] or found[3]):
        raise ValueError(f'found {value!r}, expected a number of epochs, or text like "500 steps" or "10 minutes"')
    return value


@spec
class EarlyStopping:
    """Stop when `monitor` has not improved by more than `min_delta` for `patience` epochs.

    `monitor` is a column of the history; without it the validation loss, or the training loss where there is no
    validation split. Losses and errors shall fall, other metrics rise. In a population the mean over members counts.
    """

    patience: Count
    min_delta: NonNegative = 0.0
    monitor: Text | None = None


@spec
class Train:
    """How long, in what batches, and what is counted.

    `batch_size` is a number of rows or "full"; the last batch of an epoch is short where the rows do not divide evenly.
    `checkpoint_every` counts epochs, or is a text like "500 steps" or "10 minutes"; `keep` is the number of checkpoints
    kept beside the best one. When a checkpoint, or a line of metrics.jsonl, cannot be written, `on_save_error = "stop"`
    stops, and "continue" trains on, warns, and tries again next time; what cannot be saved at the end is an error.
    `precision` is what matrix products on a CUDA device may round the numbers to that they multiply, for speed: tf32
    has 10 bits behind the point, bfloat16 has 7, float32 has all its 23. Sums and everything else stay float32.
    `compile` has steps on the CPU compiled to machine code, for speed (needs the extra `compile`); sums, and functions
    such as exp, are then rounded otherwise than by NumPy. On a CUDA device steps always are.
    With `bptt` = T rows that are sequences are cut into windows of T steps, which are visited in order, a step each:
    recurrent layers go on from the state where the window before ended, and gradients go back T steps at most
    (truncated backpropagation through time). Every step needs a target.
    Where a loss or a parameter is not finite, `on_nan = "stop"` stops, and "rollback" goes back to the last checkpoint
    and on from there with half the learning rate, `rollbacks` times at most (in a run, which has checkpoints).
    """

    epochs: Count = 10
    batch_size: Count | Literal["full"] = 64
    shuffle: Flag = True
    dtype: Literal["float32", "float64"] = "float32"
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    compile: Flag = False
    metrics: tuple[one_of(Metric), ...] | None = None
    early_stopping: EarlyStopping | None = None
    bptt: Count | None = None
    checkpoint_every: Annotated[int | str, PlainValidator(_interval)] = 1
    keep: Count = 3
    on_nan: Literal["stop", "rollback"] = "stop"
    rollbacks: Count = 3
    on_save_error: Literal["stop", "continue"] = "stop"

    def __post_init__(self):
        if self.dtype != "float32" and self.precision != "float32":
            raise ValueError(f"precision: found {self.precision!r}, which rounds float32; leave precision or dtype out")

    def of_batch(self, size: int | None) -> "Train":
        """The same with another `batch_size`, unless it is None."""
        return self if size is None else dataclasses.replace(self, batch_size=size)

    @property
    def saving(self) -> tuple[float, str]:
        """`checkpoint_every` as a number and its unit: epoch, step or minute."""
        if isinstance(self.checkpoint_every, int):
            return self.checkpoint_every, "epoch"
        number, unit = self.checkpoint_every.split()
        return float(number) if unit.startswith("minute") else int(number), unit.removesuffix("s")

    def row_shape(self, preparation: Preparation) -> tuple[int, ...]:
        """What a network sees of a row at once. Raises ConfigError where `bptt` does not fit the data."""
        shape = preparation.input_shape
        if self.bptt is None:
            return shape
        own = preparation.of_fold(0) if preparation.folds else preparation
        per_step = [a for a in (own.shift, own.scale) if a.ndim == len(shape) and a.shape[0] > 1]
        if len(shape) < 2 and preparation.kind != "text":
            raise ConfigError(f"train.bptt = {self.bptt}: needs rows of steps, these have the shape {shape}")
        if per_step:
            raise ConfigError(
                f"train.bptt = {self.bptt}: the rows are normalised step by step, which windows do not know; set "
                'normalize = "none", or give the data lengths'
            )
        if shape[0] % self.bptt:
            raise ConfigError(f"train.bptt = {self.bptt}: does not divide the {shape[0]} steps of a row")
        return (self.bptt, *shape[1:])

    def metrics_for(self, preparation: Preparation) -> tuple[Metric, ...]:
        """Those of an evaluation: those given, or accuracy for classes, R2 and mean absolute error for numbers."""
        if self.metrics is not None:
            return self.metrics
        if preparation.classes:
            return (Accuracy(),)
        return (R2("variance" if preparation.reconstructs else "outputs"), MeanAbsoluteError())

    def running(self, metrics: tuple[Metric, ...]) -> tuple[Metric, ...]:
        """Those that are cheap enough to be counted in every training step."""
        return tuple(metric for metric in metrics if isinstance(metric, Accuracy))


def render(**parts: Any) -> str:
    """The TOML text of a run's parts (name, seed, ..., data, model, loss, optimizer, train), defaults written out."""
    import tomli_w

    table = {key: value for key, value in to_table(parts).items() if value is not None}
    plain = {key: value for key, value in table.items() if key == "seed" or not isinstance(value, dict | list)}
    return tomli_w.dumps(plain | {key: value for key, value in table.items() if key not in plain})
