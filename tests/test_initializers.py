"""Initializers: moments, orthogonality, and the values that a user gives."""

import math

import numpy as np
import pytest
from battery import every, example

from gpbackprop.backend import random
from gpbackprop.errors import ConfigError, ShapeError
from gpbackprop.initializers import Constant, Given, Glorot, He, Initializer, LeCun, Normal, Orthogonal, Uniform, Zeros
from gpbackprop.layers.dense import Dense

every_initializer = pytest.mark.parametrize("cls", every(Initializer))


def draw(initializer, shape, seed=0):
    return initializer.draw(random.generator(seed, "W"), shape)


@every_initializer
def test_an_initializer_fills_the_shape_with_finite_float64_and_the_same_for_the_same_seed(cls):
    initializer = example(cls)
    w = draw(initializer, (2, 3))
    assert w.shape == (2, 3)
    assert w.dtype == np.float64
    assert np.isfinite(w).all()
    assert np.array_equal(w, draw(initializer, (2, 3)))


@pytest.mark.parametrize(
    ("initializer", "std"),
    [
        (Normal(std=0.3), 0.3),
        (Uniform(-0.2, 0.4), 0.6 / math.sqrt(12)),
        (Glorot(), math.sqrt(2 / (200 + 300))),
        (Glorot("normal"), math.sqrt(2 / (200 + 300))),
        (He(), math.sqrt(2 / 200)),
        (He("normal"), math.sqrt(2 / 200)),
        (LeCun(), math.sqrt(1 / 200)),
        (LeCun("normal", gain=3.0), 3 * math.sqrt(1 / 200)),
    ],
    ids=str,
)
def test_moments_are_those_of_the_formula(initializer, std):
    w = draw(initializer, (200, 300))
    mean = 0.1 if isinstance(initializer, Uniform) else 0
    n = w.size
    assert abs(w.mean() - mean) < 5 * std / math.sqrt(n)
    assert abs(w.std() / std - 1) < 5 / math.sqrt(n)
    uniform = getattr(initializer, "distribution", "uniform" if isinstance(initializer, Uniform) else "normal")
    largest = np.abs(w - mean).max() / std
    assert (largest <= math.sqrt(3)) == (uniform == "uniform")


def test_fans_count_the_receptive_field():
    kernel = draw(He("normal"), (3, 3, 20, 400))
    assert abs(kernel.std() / math.sqrt(2 / 180) - 1) < 0.02
    kernel = draw(Glorot("normal"), (3, 3, 20, 400))
    assert abs(kernel.std() / math.sqrt(2 / (180 + 3600)) - 1) < 0.02


@pytest.mark.parametrize("shape", [(5, 5), (7, 3), (3, 7), (3, 3, 2, 4), (1, 6)])
def test_orthogonal_keeps_lengths(shape):
    q = draw(Orthogonal(gain=2.0), shape).reshape(-1, shape[-1]) / 2
    product = q.T @ q if q.shape[0] >= q.shape[1] else q @ q.T
    np.testing.assert_allclose(product, np.eye(min(q.shape)), atol=1e-14)


def test_orthogonal_favours_no_direction():
    signs = [draw(Orthogonal(), (2, 2), seed=seed) for seed in range(400)]
    for q in np.stack(signs).reshape(400, 4).T:  # every entry is as often positive as negative
        assert 150 < (q > 0).sum() < 250
    assert 150 < sum(np.linalg.det(q) > 0 for q in signs) < 250


def test_constants_are_constant():
    assert not draw(Zeros(), (2, 2)).any()
    assert (draw(Constant(0.5), (2, 2)) == 0.5).all()


def test_given_values_of_a_wrong_shape_are_told():
    with pytest.raises(ShapeError, match=r"the given values have shape \(2,\), the parameter has \(3,\)"):
        draw(Given([1, 2]), (3,))


def test_a_field_takes_an_initializer_its_name_its_table_a_number_or_values():
    init = Dense(2, init={"W": "he", "b": 0}).init
    assert init == {"W": He(), "b": Constant(0.0)}
    init = Dense(2, init={"W": {"type": "normal", "std": 0.1}, "b": np.array([1, 2])}).init
    assert init == {"W": Normal(std=0.1), "b": Given([1.0, 2.0])}
    assert Dense(2, init={"b": Zeros()}).init == {"b": Zeros()}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("hee", "unknown type 'hee' .did you mean 'he'"),
        ([[1, 2], [3]], "rows of one length"),
        ([1, "x"], "array of numbers"),
        ([1, math.nan], "must be finite"),
        ({"std": 1}, "the key `type` is missing"),
        ({"type": "normal", "std": -1}, "greater than or equal to 0"),
    ],
)
def test_values_that_are_no_initializer_are_told(value, message):
    with pytest.raises(ConfigError, match=message):
        Dense(2, init={"W": value})
