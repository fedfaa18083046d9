"""Floor 4: the gradients of a network, each held to a difference of the loss.

    analytic a = dL/dw from backward,   numeric n = (L(w + h) - L(w - h)) / 2h,   error = |a - n| / max(|a|, |n|, floor)

in float64, h = 1e-5 max(1, |w|), for every parameter, and for every layer's output and what its activation takes. The
rounding of L limits how well n is known, so the floor is where n has six digits: 0.00036 max(L, |outputs|).

At a kink (relu at 0, equal maxima of a pool) there is no derivative, and the two one-sided differences stay apart
however small h is. An entry that does not agree for that reason is counted and not judged. Of arrays with more than 200
entries, 40 are looked at, among them the steepest, and three random directions d through all of them, where
a = sum(dL/dw d).
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gpbackprop.backend import Backend
from gpbackprop.data import Dataset, folds
from gpbackprop.errors import ConfigError, NumericalError
from gpbackprop.layers.base import Layer
from gpbackprop.losses import Loss
from gpbackprop.optim.sgd import SGD
from gpbackprop.settings import Train
from gpbackprop.trainer import Trainer

STEP, DIGITS = 1e-5, 1e-6
ALL, SAMPLE, DIRECTIONS = 200, 40, 3


@dataclass(frozen=True)
class Entry:
    """One derivative both ways. `index` is None for a direction through all entries; at a `kink` the error is void."""

    index: tuple[int, ...] | None
    analytic: float
    numeric: float
    error: float
    kink: bool = False


@dataclass(frozen=True)
class Checked:
    """The gradient of one array: a parameter, or the output ("y") or pre-activation ("z") of a layer.

    `worst` is the entry with the largest error, None where all that were looked at lie at a kink.
    """

    layer: str
    name: str
    parameter: bool
    shape: tuple[int, ...]
    entries: int
    directions: int
    kinks: int
    worst: Entry | None

    @property
    def path(self) -> str:
        return f"{self.layer}/{self.name}" if self.layer else self.name


@dataclass(frozen=True)
class Report:
    """What was found, in forward order."""

    loss: float
    rows: int
    tolerance: float
    checks: tuple[Checked, ...]

    @property
    def wrong(self) -> list[Checked]:
        return [check for check in self.checks if check.worst and check.worst.error > self.tolerance]

    @property
    def suspect(self) -> str:
        """Where to look: backward runs from the loss, so the wrong gradient nearest to the loss is the first one."""
        wrong = self.wrong
        if not wrong:
            return ""
        first = wrong[-1]
        if first.parameter:
            return f"the backward of {first.layer or 'the model'}, where it fills the gradient of {first.name}"
        if first.name == "z":
            return f"the backward of the activation of {first.layer}"
        after = self.checks[self.checks.index(first) + 1 :]
        parent = first.layer.rpartition("/")[0]
        if not after:
            return "the backward of the loss"
        if after[0].layer.rpartition("/")[0] == parent or after[0].layer == parent:
            return f"the backward of {after[0].layer}, where it fills the gradient of its input"
        return f"the backward of what reads the output of {first.layer}"


def check(
    model: Layer,
    loss: Loss,
    data: Dataset,
    *,
    rows: int = 8,
    tolerance: float = 1e-6,
    seed: int = 0,
    random: bool = False,
    train: Train | None = None,
) -> Report:
    """Check every gradient of `model` under `loss`, at its initial parameters.

    The batch is the first `rows` rows of the training split, of the first one where there are folds; with `random` its
    inputs are drawn anew, from the standard normal distribution or, for an embedding, from its symbols. The step
    counter stands still, so that dropout has the same mask in every forward pass. Of `train` only what shapes a batch
    is used. Raises ConfigError where model, loss and data do not fit, NumericalError where the loss is not finite.
    """
    if not 0 < tolerance < 1:
        raise ConfigError(f"the tolerance is {tolerance}; expected a number between 0 and 1, such as 1e-6")
    settings = replace(
        train or Train(), batch_size="full", shuffle=False, dtype="float64", precision="float32", compile=False,
        metrics=(), early_stopping=None,
    )  # fmt: skip
    if data.preparation.folds:
        data = folds.alone(data, 0)
    few = replace(data, splits={"train": data.splits["train"].take(slice(rows))})
    trainer = Trainer(model, loss, SGD(0.0), few, seed=seed, device=Backend(), **vars(settings))
    return _Bench(trainer, tolerance, random).report()


class _Bench:
    """The first batch of a training, whose loss is evaluated again and again in the place of the update."""

    def __init__(self, trainer: Trainer, tolerance: float, random: bool):
        self.trainer, self.tolerance, self.random = trainer, tolerance, random
        self.net, self.rows = trainer.network, trainer.batch_size
        batch = trainer.training.batch(self.rows)
        self.plan, self.objective = batch.plan, batch.objective
        self.rng = np.random.default_rng(0)

    def _draw(self) -> np.ndarray:
        shape, symbols = self.plan.x.value.shape, self.net.symbols
        return self.rng.integers(0, symbols, shape) if symbols else self.rng.normal(size=shape)

    def report(self) -> Report:
        checks: list[Checked] = []

        def look() -> None:
            self.trainer.stop_requested = True
            if self.random:
                self.plan.x.value[...] = self._draw()
            checks.extend(self._checks())

        self.trainer.update = replace(self.trainer.update, step=look, fixed=False)
        try:
            self.trainer.fit(1)
        except NumericalError:
            inputs = "random inputs" if self.random else "the training split"
            raise NumericalError(
                f"the loss of {self.rows} rows of {inputs} is not finite at the initial parameters; normalize the data"
            ) from None
        return Report(self.here, self.rows, self.tolerance, tuple(checks))

    def loss(self, start: int = 0) -> float:
        """The loss of the forwards from `start` on."""
        for array in (self.plan.carried or {}).values():
            array.fill(0)  # the first window of a sequence; a forward pass leaves here what the next one reads
        for forward in self.plan.forwards[start:]:
            forward()
        return float(self.objective.value()[0])

    def _checks(self) -> list[Checked]:
        self.here = self.loss()
        if not math.isfinite(self.here):
            raise NumericalError("of random inputs")
        self.scale = max(abs(self.here), float(np.abs(self.plan.y.value).max()), 1e-30)
        self.plan.backward()
        arrays = [(*place, value, grad.copy(), start) for *place, value, grad, start in self._arrays()]
        return [self._check(*array) for array in arrays]

    def _arrays(self) -> Iterator[tuple]:
        """(layer, name, is a parameter, value, gradient, forwards before whatever reads it) in forward order."""
        values, grads = self.net.params.views(self.net.w), self.net.params.views(self.net.g)
        waiting, seen = dict.fromkeys(values), set()
        for note in self.plan.notes:
            for path in [path for path in waiting if path.startswith(f"{note.path}/")]:
                del waiting[path]
                yield note.path, path.removeprefix(f"{note.path}/"), True, values[path], grads[path], 0
            place = note.slot.value.ctypes.data  # a view of an earlier slot, or a fork of it, is that slot
            if note.slot.grad is not None and place not in seen:
                yield note.path, note.name, False, note.slot.value, note.slot.grad, note.done
            seen.add(place)
        for path in waiting:
            yield "", path, True, values[path], grads[path], 0

    def _check(self, layer: str, name: str, parameter: bool, value: Any, grad: np.ndarray, start: int) -> Checked:
        self.loss()  # what lies before `start` is as the batch makes it
        entries = [self._entry(value, grad, index, start) for index in self._chosen(grad)]
        few = value.size <= ALL
        directions = [] if few else [self._direction(value, grad, start) for _ in range(DIRECTIONS)]
        judged = [entry for entry in (*entries, *directions) if not entry.kink]
        return Checked(
            layer, name, parameter, value.shape[1:], len(entries), len(directions),
            len(entries) + len(directions) - len(judged), max(judged, key=lambda entry: entry.error, default=None),
        )  # fmt: skip

    def _chosen(self, grad: np.ndarray) -> list[tuple[int, ...]]:
        """All entries of a small array; of a large one the steepest and a sample."""
        chosen = np.arange(grad.size)
        if grad.size > ALL:
            sample = self.rng.choice(grad.size, SAMPLE - 1, replace=False)
            chosen = np.unique([np.abs(grad).argmax(), *sample])
        return [tuple(map(int, np.unravel_index(i, grad.shape))) for i in chosen]

    def _entry(self, value: Any, grad: np.ndarray, index: tuple[int, ...], start: int) -> Entry:
        kept = float(value[index])

        def at(t: float) -> tuple[float, float]:
            value[index] = kept + t
            moved = float(value[index]) - kept  # t, as far as it can be represented
            result = self.loss(start)
            value[index] = kept
            return result, moved

        return self._judge(index[1:], float(grad[index]), at, STEP * max(1.0, abs(kept)))

    def _direction(self, value: Any, grad: np.ndarray, start: int) -> Entry:
        d = self.rng.normal(size=value.shape)
        d /= np.linalg.norm(d)
        kept = value.copy()

        def at(t: float) -> tuple[float, float]:
            value[...] = kept + t * d
            result = self.loss(start)
            value[...] = kept
            return result, t

        return self._judge(None, float((grad * d).sum()), at, STEP)

    def _judge(
        self, index: tuple[int, ...] | None, a: float, at: Callable[[float], tuple[float, float]], h: float
    ) -> Entry:
        """Compare; where that fails, look with smaller steps whether a kink is the reason."""
        n, gap, error = self._difference(a, at, h)
        entry = Entry(index, a, n, error)
        if error <= self.tolerance:
            return entry
        smaller = [self._difference(a, at, h / by) for by in (10, 100)]
        if smaller[-1][1] > max(0.3 * gap, 2 * self._rounding(h / 100)):  # of a smooth function it would be gap / 100
            return Entry(index, a, n, error, kink=True)
        if abs(a - n) <= 0.75 * gap:  # a kink, or a curve, within h would explain the difference: then it goes with h
            for n, _, error in smaller:
                if error <= self.tolerance:
                    return Entry(index, a, n, error)
        return entry

    def _difference(self, a: float, at: Callable[[float], tuple[float, float]], h: float) -> tuple[float, float, float]:
        """The central difference, how far the one-sided ones are apart, and the error."""
        (above, right), (below, left) = at(h), at(-h)
        n = (above - below) / (right - left)
        gap = abs((above - self.here) / right - (below - self.here) / left)
        error = abs(a - n) / max(abs(a), abs(n), self._rounding(h) / DIGITS)
        return n, gap, error if math.isfinite(error) else math.inf

    def _rounding(self, h: float) -> float:
        """What the rounding of the loss can do to a difference with step h: some units in its last place."""
        return 16 * float(np.finfo(np.float64).eps) * self.scale / h
