"""Floor 1: what a parameter starts from. Each draws in float64 on the host, so no backend changes the randomness.

`shape` is (receptive field..., inputs, outputs): fan_in = prod(shape[:-1]), fan_out = prod(shape[:-2]) shape[-1].
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import PlainValidator

from gpbackprop.errors import ShapeError
from gpbackprop.spec import NonNegative, Positive, Real, build, spec


class Initializer:
    """A distribution over arrays."""

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """A float64 array of `shape`, drawn from `rng` alone. Raises ShapeError for a shape that it cannot fill."""
        raise NotImplementedError

    @classmethod
    def example(cls) -> "Initializer":
        """An initializer of this class that can fill the shape (2, 3): what the tests prove it with."""
        return cls()


@spec
class Zeros(Initializer):
    """w = 0"""

    def draw(self, rng, shape):
        return np.zeros(shape)


@spec
class Constant(Initializer):
    """w = value"""

    value: Real

    def draw(self, rng, shape):
        return np.full(shape, self.value)

    @classmethod
    def example(cls):
        return cls(0.5)


@spec
class Uniform(Initializer):
    """w ~ U(low, high)"""

    low: Real = -0.05
    high: Real = 0.05

    def draw(self, rng, shape):
        return rng.uniform(self.low, self.high, shape)


@spec
class Normal(Initializer):
    """w ~ N(mean, std^2)"""

    mean: Real = 0.0
    std: NonNegative = 1.0

    def draw(self, rng, shape):
        return rng.normal(self.mean, self.std, shape)


@spec
class Scaled(Initializer):
    """w of variance gain^2 / fan, uniform in +-gain sqrt(3 / fan) or normal with deviation gain / sqrt(fan)."""

    __abstract__ = True
    distribution: Literal["uniform", "normal"] = "uniform"
    gain: Positive = 1.0

    def fan(self, inputs: int, outputs: int) -> float:
        """The fan that the variance is divided by, from fan_in and fan_out."""
        raise NotImplementedError

    def draw(self, rng, shape):
        receptive = math.prod(shape[:-2])
        outputs = shape[-1] if shape else 1
        inputs = math.prod(shape[-2:-1]) * receptive
        std = self.gain / math.sqrt(self.fan(inputs, outputs * receptive))
        if self.distribution == "normal":
            return rng.normal(0, std, shape)
        return rng.uniform(-1, 1, shape) * (std * math.sqrt(3))


@spec
class Glorot(Scaled):
    """Variance gain^2 2 / (fan_in + fan_out), for tanh and sigmoid (X. Glorot and Y. Bengio, 2010)."""

    def fan(self, inputs, outputs):
        return (inputs + outputs) / 2


@spec
class He(Scaled):
    """Variance gain^2 2 / fan_in, for relu (K. He et al., 2015)."""

    def fan(self, inputs, outputs):
        return inputs / 2


@spec
class LeCun(Scaled):
    """Variance gain^2 / fan_in (Y. LeCun et al., "Efficient BackProp", 1998)."""

    __type__ = "lecun"

    def fan(self, inputs, outputs):
        return inputs


@spec
class Orthogonal(Initializer):
    """gain Q with Q^T Q = 1, or Q Q^T = 1 where there are fewer rows; uniform over such matrices.

    (A. Saxe et al., 2014)
    """

    gain: Positive = 1.0

    def draw(self, rng, shape):
        rows, columns = math.prod(shape[:-1]), shape[-1] if shape else 1
        q, r = np.linalg.qr(rng.normal(size=(max(rows, columns), min(rows, columns))))
        q *= np.where(np.diag(r) < 0, -1, 1)
        return self.gain * (q if rows >= columns else q.T).reshape(shape)


@spec
class Given(Initializer):
    """w = values, an array written out in full, outermost axis first."""

    values: Any

    def draw(self, rng, shape):
        values = np.asarray(self.values, np.float64)
        if values.shape != tuple(shape):
            raise ShapeError(f"the given values have shape {values.shape}, the parameter has {tuple(shape)}")
        return values

    @classmethod
    def example(cls):
        return cls([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])


def _initial(value: Any) -> Initializer:
    if isinstance(value, Initializer | str | Mapping):
        return build(Initializer, value)
    try:
        values = np.asarray(value, np.float64)
    except (ValueError, TypeError) as error:
        raise ValueError("expected an initializer or an array of numbers with rows of one length") from error
    if not np.isfinite(values).all():
        raise ValueError("initial values must be finite")
    return Constant(float(values)) if values.ndim == 0 else Given(values.tolist())


Initial = Annotated[Initializer, PlainValidator(_initial)]
"""A field that takes an initializer, its name, its table, a number, or the values themselves."""
