"""What every loss is."""

from typing import ClassVar, Literal

import numpy as np

from gpbackprop.backend import Array
from gpbackprop.errors import ConfigError, UsageError
from gpbackprop.plan import Plan, Slot, Target
from gpbackprop.spec import Positive, spec, type_name


@spec
class Loss:
    """A scalar for each member of the population, and the gradient of it with respect to the outputs."""

    __abstract__ = True
    low: ClassVar[float] = 0.0  # what a class that is not the row's own is trained towards
    binary: ClassVar[bool] = True  # one output can stand for two classes
    threshold: ClassVar[float] = 0.5  # a single output above it means the second class
    reduce: Literal["mean", "sum"] = "mean"
    class_weights: tuple[Positive, ...] | None = None

    def rows(self, plan: Plan, y: Slot, t: Array, each: Array):
        """The closures that write the loss of each row into `each` (K, R, 1), its derivative into y.grad (K, R, O)."""
        raise NotImplementedError

    def curvature(self, outputs: int) -> float | None:
        """d^2l/dy_o^2 where it is the same everywhere and d^2l/dy_o dy_p = 0 for o != p (least squares), else None."""
        return None

    def probabilities(self, y: np.ndarray) -> np.ndarray:
        """The probability of each class for the outputs y (..., outputs); of the second class where there is one.

        Here the outputs themselves, as a last layer of sigmoids or softmax gives them. Raises UsageError for others.
        """
        if self.low < 0 or y.min(initial=0) < 0 or y.max(initial=0) > 1:
            raise UsageError(
                f"{type_name(type(self))} was trained on scores, which are no probabilities; leave --probabilities "
                "out, or train with softmax_cross_entropy or binary_cross_entropy"
            )
        return y

    @classmethod
    def example(cls) -> "Loss":
        """A loss of this class: what the tests prove it with."""
        return cls()

    def trace(self, plan: Plan, y: Slot, target: Target) -> tuple[Array, Array]:
        """Register the loss of the outputs `y`; returns the arrays (K, 1, 1) of sum_b w_b l_b and of sum_b w_b."""
        xp, y = plan.xp, y.rows
        t, look_up = self._targets(plan, y, target)
        weight, weigh = self._weights(plan, y, target)
        each, total = plan.scratch((y.shape[0], 1)), plan.scratch((1, 1))
        mass: Array
        scale: Array
        forward_rows, backward_rows = map(plan.backend.tape.guard, self.rows(plan, y, t, each))
        if weight is None:
            mass = plan.constant(np.full((plan.K, 1, 1), y.shape[0]))
            scale = 1 / y.shape[0] if self.reduce == "mean" else 1
        else:
            mass, scale = plan.scratch((1, 1)), plan.scratch((y.shape[0], 1))

        def forward():
            look_up()
            forward_rows()
            if weight is not None:
                weigh()
                xp.multiply(each, weight, out=each)
                xp.sum(weight, axis=1, keepdims=True, out=mass)
            xp.sum(each, axis=1, keepdims=True, out=total)

        def backward():
            backward_rows()
            if weight is not None and self.reduce == "mean":
                xp.maximum(mass, tiny, out=scale)  # rows that all weigh nothing teach nothing
                xp.divide(weight, scale, out=scale)
            elif weight is not None:
                xp.copyto(scale, weight)
            xp.multiply(y.grad, scale, out=y.grad)

        tiny = float(np.finfo(plan.dtype).tiny)
        plan.step(forward, backward if y.grad is not None else None)
        return total, mass

    def table(self, classes: int, outputs: int) -> np.ndarray:
        """The target vector of each class, (classes, outputs)."""
        return np.where(np.eye(classes) if outputs == classes else np.arange(2)[:, None] == 1, 1.0, self.low)

    def _targets(self, plan: Plan, y: Slot, target: Target):
        """The targets as vectors (K, R, O), and the call that brings them up to date."""
        rows, outputs = y.shape
        if not target.classes:
            if target.value.size != y.value.size:
                given, wanted = (value.size // (plan.K * plan.batch) for value in (y.value, target.value))
                flat = rows == plan.batch
                raise ConfigError(
                    f"loss: the model gives {given} outputs a row, the data has {wanted} targets; "
                    + (f"give the last layer units = {wanted}" if flat else "put a flatten layer before the last one")
                )
            return target.value.reshape(y.value.shape), lambda: None
        if outputs != target.classes and not (outputs == 1 and target.classes == 2 and self.binary):
            raise ConfigError(
                f"loss: the model gives {outputs} outputs a row, the data has {target.classes} classes; "
                f"give the last layer units = {target.classes}"
                + ('; or, where whole numbers are amounts, data.task = "regression"' if outputs == 1 else "")
            )
        if target.value.size != plan.K * rows:
            raise ConfigError(
                f"loss: the model gives {rows // plan.batch} outputs of {outputs} for each row, the data has one class "
                "a row; put a flatten layer before the first dense layer"
            )
        table = plan.constant(self.table(target.classes, outputs))
        t, labels, gather = plan.scratch((rows, outputs)), target.value.reshape(plan.K, rows), plan.backend.gather
        return t, lambda: gather(table, labels, t)

    def _weights(self, plan: Plan, y: Slot, target: Target):
        """The rows' weights (K, R, 1) or None where all are 1, and the call that brings them up to date."""
        rows, row_weight = y.shape[0], target.weight
        if self.class_weights is None:
            if row_weight is None:
                return None, lambda: None
            if row_weight.size == plan.K * rows:
                return row_weight.reshape(plan.K, rows, 1), lambda: None
        elif len(self.class_weights) != target.classes:
            raise ConfigError(
                f"loss.class_weights: has {len(self.class_weights)} entries, "
                f"the data has {target.classes or 'no'} classes"
            )
        xp, gather, labels = plan.xp, plan.backend.gather, target.value.reshape(plan.K, -1)
        table = None if self.class_weights is None else plan.constant(np.array(self.class_weights)[:, None])
        weight = plan.scratch((rows, 1))
        if row_weight is not None:  # the weight of a row of the data holds for each of its vectors of outputs
            row_weight = row_weight.reshape(plan.K, -1, 1)
            by_row = weight.reshape(plan.K, row_weight.shape[1], -1)

        def weigh():
            if table is None:
                xp.copyto(by_row, row_weight)
                return
            gather(table, labels, weight)
            if row_weight is not None:
                xp.multiply(by_row, row_weight, out=by_row)

        return weight, weigh
