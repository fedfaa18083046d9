"""What all rules that follow the gradient of a batch have in common: the options around the rule."""

import math
from collections.abc import Mapping
from dataclasses import field
from typing import ClassVar

import numpy as np

from gpbackprop.backend import Array
from gpbackprop.optim.base import Binding, Optimizer, Update, matching
from gpbackprop.plan import Closure
from gpbackprop.spec import Count, Fraction, NonNegative, Positive, Text, spec


@spec
class GradientRule(Optimizer):
    """A rule that turns the gradient g into a change of w. In this order:

    accumulate    g is the mean of the gradients of so many batches; only then w changes
    clip_value    g = clip(g, -clip_value, clip_value)
    clip_norm     g = g min(1, clip_norm / |g|) over all parameters of a member
    l1            g = g + l1 sign(w), the slope of l1 sum |w|             (of matrices, not of biases)
    weight_decay  g = g + weight_decay w, that of weight_decay/2 sum w^2  (of matrices, not of biases)
    lr_factors    the change, by the factor of the last pattern that matches the parameter's path
    max_norm      W[:, o] = W[:, o] min(1, max_norm / |W[:, o]|) for each unit o of a matrix
    average       m = average m + (1 - average) w: evaluation, prediction and checkpoints take m for the parameters

    The loss that is reported is that without penalties. lr, l1, weight_decay, and the rule's own numbers may be lists
    with one entry for each member of the population.
    """

    __abstract__ = True
    decoupled: ClassVar[bool] = False  # the rule itself does the weight decay
    weight_decay: NonNegative | tuple[NonNegative, ...] = field(default=0.0, kw_only=True)
    l1: NonNegative | tuple[NonNegative, ...] = field(default=0.0, kw_only=True)
    clip_value: Positive | None = field(default=None, kw_only=True)
    clip_norm: Positive | None = field(default=None, kw_only=True)
    max_norm: Positive | None = field(default=None, kw_only=True)
    accumulate: Count = field(default=1, kw_only=True)
    average: Fraction | None = field(default=None, kw_only=True)
    lr_factors: Mapping[Text, NonNegative] | None = field(default=None, kw_only=True)

    def rule(self, at: Binding) -> Closure:
        """The call that fills `at.delta` from `at.g`; `at.rate` (K, 1) holds the learning rates."""
        raise NotImplementedError

    def bind(self, network, objective=None) -> Update:
        at = Binding(self, network)
        total = at.array("accumulated") if self.accumulate > 1 else None
        result = None if self.average is None else at.w.copy()
        rule = network.backend.tape.guard(self.rule(at))
        calls = [*self._gathered(at, total), *self._gradient(at), rule, *self._taken(at, result)]
        return at.update(
            network.backend.capture(calls), result=result, every=self.accumulate, fixed=True,
            gather=lambda: at.xp.add(total, at.g, out=total),
        )  # fmt: skip

    def _gathered(self, at: Binding, total: Array | None) -> list[Closure]:
        if total is None:
            return []
        xp, g = at.xp, at.g

        def mean():
            xp.add(g, total, out=g)
            xp.divide(g, self.accumulate, out=g)
            xp.copyto(total, 0)

        return [mean]

    def _gradient(self, at: Binding) -> list[Closure]:
        """The gradient that the rule sees."""
        xp, g, t, calls = at.xp, at.g, at.delta, []
        if (trained := at.network.mask(at.trained)) is not None:
            calls.append(lambda: xp.multiply(g, trained, out=g))
        if (most := self.clip_value) is not None:
            calls.append(lambda: xp.clip(g, -most, most, out=g))
        if self.clip_norm:
            norm = xp.empty_like(at.rate)

            def clip_norm():
                xp.multiply(g, g, out=t)
                xp.sum(t, axis=1, keepdims=True, out=norm)
                xp.sqrt(norm, out=norm)
                xp.add(norm, 1e-6, out=norm)
                xp.divide(self.clip_norm, norm, out=norm)
                xp.minimum(norm, 1, out=norm)
                xp.multiply(g, norm, out=g)

            calls.append(clip_norm)
        for name, slope in (("l1", xp.sign), ("weight_decay", None)):
            if at.uses(name) and not (slope is None and self.decoupled):
                calls.append(_penalty(at, at.on_matrices(at.column(name)), slope))
        return calls

    def _taken(self, at: Binding, result: Array | None) -> list[Closure]:
        """What happens to the change that the rule has found."""
        xp, w, delta, calls = at.xp, at.w, at.delta, []
        if self.lr_factors:
            host = np.ones(at.network.params.size, at.network.dtype)
            for path, pattern in matching(at.network, "lr_factors", self.lr_factors).items():
                place = at.network.params[path]
                host[place.offset : place.offset + place.size] = self.lr_factors[pattern]
            factors = at.network.backend.array(host)
            calls.append(lambda: xp.multiply(delta, factors, out=delta))
        calls.append(lambda: xp.subtract(w, delta, out=w))
        if self.max_norm:
            for place in at.network.params.values():
                if place.decay and at.trained(place) and len(place.shape) > 1:
                    calls.append(_bounded(at, place.of(w), place.of(delta), self.max_norm))
        if result is not None:
            share = 1 - (self.average or 0)

            def average():  # where w stands still, so does its average, bit for bit
                xp.subtract(w, result, out=delta)
                xp.multiply(delta, share, out=delta)
                xp.add(result, delta, out=result)

            calls.append(average)
        return calls


def _penalty(at: Binding, strength: Array, slope) -> Closure:
    xp, w, g, t = at.xp, at.w, at.g, at.delta

    def add():
        if slope is None:
            xp.multiply(w, strength, out=t)
        else:
            slope(w, out=t)
            xp.multiply(t, strength, out=t)
        xp.add(g, t, out=g)

    return add


def _bounded(at: Binding, W: Array, t: Array, bound: float) -> Closure:
    """Scales the columns of W (K, ..., units), one unit's incoming weights each, to a norm of at most `bound`."""
    xp, k, units = at.xp, W.shape[0], W.shape[-1]
    W, t = (array.reshape(k, math.prod(array.shape[1:-1]), units) for array in (W, t))
    norm = xp.empty((k, 1, units), W.dtype)

    def scale():
        xp.multiply(W, W, out=t)
        xp.sum(t, axis=1, keepdims=True, out=norm)
        xp.sqrt(norm, out=norm)
        xp.maximum(norm, bound, out=norm)
        xp.divide(bound, norm, out=norm)
        xp.multiply(W, norm, out=W)

    return scale
