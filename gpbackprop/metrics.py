"""Floor 2: what an evaluation counts, added up on the device and read once at the end.

Each metric registers a step that adds to its tallies (K, ...), and turns the finished tallies into numbers. A class
prediction is the largest output, or, where one output stands for two classes, whether it exceeds the loss's threshold.
Rows weigh what their `weight` says; confusion counts rows.
"""

from typing import Any, Literal

import numpy as np

from gpbackprop.backend import Array
from gpbackprop.errors import ConfigError
from gpbackprop.plan import Plan, Slot, Target
from gpbackprop.spec import Count, spec, type_name


class Metric:
    """A number, or a table of them, for each member of the population."""

    classes_only = True

    @property
    def name(self) -> str:
        return type_name(type(self))

    def trace(self, plan: Plan, y: Slot, target: Target, threshold: float) -> None:
        """Register the step that adds the batch to the tallies."""
        raise NotImplementedError

    def value(self, tallies: dict[str, np.ndarray]) -> np.ndarray:
        """The metric of each member, (K,) or (K, ...), from the tallies on the host."""
        raise NotImplementedError

    @classmethod
    def example(cls) -> "Metric":
        """A metric of this class for three classes: what the tests prove it with."""
        return cls()

    def check(self, classes: int, outputs: int) -> None:
        """Raise ConfigError unless it can be measured with so many classes, 0 for targets of numbers, and outputs."""
        if self.classes_only and not classes:
            raise ConfigError(f"train.metrics: {self.name} needs classes, the targets are numbers")
        if classes and not self.classes_only:
            raise ConfigError(f"train.metrics: {self.name} needs numbers for targets, the data has classes")


@spec
class Accuracy(Metric):
    """The share of rows whose predicted class is their class, in [0, 1]."""

    def trace(self, plan, y, target, threshold):
        xp, labels, predict = plan.xp, target.value, predictor(plan, y, threshold)
        predicted, hit = plan.scratch(labels.shape[1:], np.int64), plan.scratch(labels.shape[1:])

        def forward():
            predict(predicted)
            xp.equal(predicted, labels, out=hit)

        plan.step(forward, None)
        count(plan, self.name, hit, target.weight)

    def value(self, tallies):
        return ratio(tallies[self.name], tallies[f"{self.name}-mass"])


@spec
class TopK(Metric):
    """The share of rows whose class is among the k largest outputs; ties count against the row."""

    k: Count = 5

    @property
    def name(self):
        return f"top_{self.k}_accuracy"

    def check(self, classes, outputs):
        super().check(classes, outputs)
        if self.k > outputs:
            raise ConfigError(
                f"train.metrics: top_k has k = {self.k}, the model gives {outputs} outputs; expected k up to {outputs}"
            )

    def trace(self, plan, y, target, threshold):
        xp, outputs = plan.xp, y.shape[-1]
        table = plan.constant(np.eye(outputs))
        own, other = plan.scratch(y.shape), plan.scratch(y.shape)
        best, hit = plan.scratch((*y.shape[:-1], 1)), plan.scratch(y.shape[:-1])

        def forward():
            plan.backend.gather(table, target.value, own)
            xp.multiply(own, y.value, out=other)
            xp.sum(other, axis=-1, keepdims=True, out=best)  # the output of the row's own class
            xp.less(y.value, best, out=other)
            xp.sum(other, axis=-1, out=hit)  # how many are smaller: none, where it is no number
            xp.greater_equal(hit, outputs - self.k, out=hit)

        plan.step(forward, None)
        count(plan, self.name, hit, target.weight)

    value = Accuracy.value

    @classmethod
    def example(cls):
        return cls(k=2)


@spec
class Confusion(Metric):
    """n[t, p] = the number of rows of class t that were predicted as class p."""

    def trace(self, plan, y, target, threshold):
        xp, labels, classes, predict = plan.xp, target.value, target.classes, predictor(plan, y, threshold)
        counts = plan.tally(self.name, classes, classes).reshape(-1)
        first = plan.backend.array(np.arange(plan.K).reshape(-1, *(1,) * (labels.ndim - 1)) * classes * classes)
        predicted, cell = plan.scratch(labels.shape[1:], np.int64), plan.scratch(labels.shape[1:], np.int64)
        one = plan.backend.array(np.ones(labels.shape))

        def forward():
            predict(predicted)
            xp.multiply(labels, classes, out=cell)
            xp.add(cell, predicted, out=cell)
            xp.add(cell, first, out=cell)
            plan.backend.scatter_add(one, cell, counts)

        plan.step(forward, None)

    def value(self, tallies):
        return tallies[self.name].astype(np.int64)


@spec
class R2(Metric):
    """1 - sum_b w_b (t_b - y_b)^2 / sum_b w_b (t_b - mean t)^2, averaged over the outputs; nan for constant targets.

    With average = "variance" both sums run over the outputs too: the share of all variance that is explained. It is for
    many outputs of one kind, such as pixels, of which some hardly vary.
    """

    classes_only = False
    average: Literal["outputs", "variance"] = "outputs"

    def trace(self, plan, y, target, threshold):
        xp = plan.xp
        t = numbers(plan, y, target)
        wide = [plan.scratch(y.shape, np.float64) for _ in range(2)]
        a, b = wide

        def add(name, values):
            total = plan.tally(f"r2/{name}", y.shape[-1])
            part = plan.scratch((y.shape[-1],), np.float64)

            def forward():
                if target.weight is not None:
                    xp.multiply(values, target.weight[..., None], out=values)
                xp.sum(values.reshape(plan.K, -1, y.shape[-1]), axis=1, out=part)
                xp.add(total, part, out=total)

            return forward

        error, first, second, mass = add("error", b), add("t", b), add("t2", b), add("mass", b)

        def forward():
            xp.copyto(a, t)
            xp.subtract(a, y.value, out=b)
            xp.multiply(b, b, out=b)
            error()
            xp.copyto(b, a)
            first()
            xp.multiply(a, a, out=b)
            second()
            xp.copyto(b, 1)
            mass()

        plan.step(forward, None)

    def value(self, tallies):
        error, t, t2, mass = (tallies[f"r2/{name}"] for name in ("error", "t", "t2", "mass"))
        spread = t2 - ratio(t * t, mass)
        spread[spread < 1e-12 * t2] = 0  # the rounding of constant targets
        if self.average == "variance":
            return 1 - ratio(error.sum(axis=-1), spread.sum(axis=-1))
        return (1 - ratio(error, spread)).mean(axis=-1)


@spec
class MeanAbsoluteError(Metric):
    """The mean of |t - y| over rows and outputs, in the units of the raw targets."""

    classes_only = False

    def trace(self, plan, y, target, threshold):
        xp, t = plan.xp, numbers(plan, y, target)
        scale = plan.constant(1.0 if target.scale is None else target.scale)
        d, row = plan.scratch(y.shape), plan.scratch(y.shape[:-1])

        def forward():
            xp.subtract(t, y.value, out=d)
            xp.abs(d, out=d)
            xp.multiply(d, scale, out=d)
            xp.mean(d, axis=-1, out=row)

        plan.step(forward, None)
        count(plan, self.name, row, target.weight)

    value = Accuracy.value


def predictor(plan: Plan, y: Slot, threshold: float):
    """A call that writes the predicted classes (K, batch, ...) of the outputs `y` into its argument."""
    xp = plan.xp
    if y.shape[-1] == 1:
        return lambda out: xp.greater(y.value[..., 0], threshold, out=out)
    return lambda out: xp.argmax(y.value, axis=-1, out=out)


def numbers(plan: Plan, y: Slot, target: Target) -> Array:
    """The targets as numbers of the outputs' shape."""
    return target.value.reshape(y.value.shape)


def count(plan: Plan, name: str, each: Array, weight: Array | None) -> None:
    """Register the step that adds sum_b w_b each[b] to the tally `name`, and sum_b w_b to `name-mass`."""
    xp = plan.xp
    total, mass = plan.tally(name), plan.tally(f"{name}-mass")
    part, rows = plan.scratch((), np.float64), each[0].size
    axes = tuple(range(1, each.ndim))

    def forward():
        if weight is not None:
            xp.multiply(each, weight, out=each)
            xp.sum(weight, axis=axes, dtype=np.float64, out=part)
            xp.add(mass, part, out=mass)
        else:
            xp.add(mass, rows, out=mass)
        xp.sum(each, axis=axes, dtype=np.float64, out=part)
        xp.add(total, part, out=total)

    plan.step(forward, None)


def ratio(a: Any, b: Any) -> Any:
    """a / b, nan where b is 0."""
    return np.divide(a, b, out=np.full(np.broadcast(a, b).shape, np.nan), where=b != 0)
