"""Data sets that are made when they are loaded: functions of the seed, with small noise."""

import numpy as np

from gpbackprop.backend import random
from gpbackprop.data.table import Raw, Words


def _labelled(name: str, x: np.ndarray, codes: np.ndarray) -> Raw:
    return Raw(name, _columns(x), Words(codes, ("0", "1")), target_names=("class",), lines=np.arange(len(x)))


def _columns(x: np.ndarray) -> dict[str, np.ndarray | Words]:
    return {f"x{i}": x[:, i] for i in range(x.shape[1])}


def xor(rng: np.random.Generator, rows: int, noise: float) -> Raw:
    """The corners of the unit square in turn, of class x0 xor x1; `noise` is the deviation of the inputs."""
    corner = np.arange(rows) % 4
    x = np.stack([corner // 2, corner % 2], axis=1).astype(np.float64)
    return _labelled("xor", x + noise * rng.standard_normal(x.shape), corner // 2 ^ corner % 2)


def spirals(rng: np.random.Generator, rows: int, noise: float) -> Raw:
    """Two spirals of one and a half turns: x = r (cos a, sin a), a = 3 pi r + pi class, 0.05 <= r <= 1."""
    c = np.arange(rows) % 2
    r = 0.05 + 0.95 * np.sqrt(rng.random(rows))
    a = 3 * np.pi * r + np.pi * c
    x = np.stack([r * np.cos(a), r * np.sin(a)], axis=1)
    return _labelled("spirals", x + noise * rng.standard_normal(x.shape), c)


def moons(rng: np.random.Generator, rows: int, noise: float) -> Raw:
    """Two half circles of radius 1 that reach into each other; the second is turned and moved by (1, 0.5)."""
    c = np.arange(rows) % 2
    a = np.pi * rng.random(rows)
    x = np.stack([np.where(c, 1 - np.cos(a), np.cos(a)), np.where(c, 0.5 - np.sin(a), np.sin(a))], axis=1)
    return _labelled("moons", x + noise * rng.standard_normal(x.shape), c)


def sine(rng: np.random.Generator, rows: int, noise: float) -> Raw:
    """y = sin(x) + noise, x uniform in [-pi, pi]: a regression."""
    x = np.pi * (2 * rng.random((rows, 1)) - 1)
    y = np.sin(x) + noise * rng.standard_normal((rows, 1))
    return Raw("sine", _columns(x), y, target_names=("y",), lines=np.arange(rows))


def wave(rng: np.random.Generator, rows: int, noise: float) -> Raw:
    """A series: y_t = sin(2 pi t / 25) + noise."""
    y = np.sin(2 * np.pi * np.arange(rows) / 25) + noise * rng.standard_normal(rows)
    return Raw("wave", {"y": y}, y[:, None], target_names=("y",), lines=np.arange(rows))


# name: (function, rows, noise)
GENERATED = {
    "xor": (xor, 4, 0.0),
    "spirals": (spirals, 400, 0.02),
    "moons": (moons, 400, 0.1),
    "sine": (sine, 256, 0.1),
    "wave": (wave, 400, 0.05),
}


def generate(name: str, seed: int, rows: int | None = None, noise: float | None = None) -> Raw:
    """The generated data set `name`: a function of (seed, rows, noise) alone."""
    make, usual_rows, usual_noise = GENERATED[name]
    rng = random.generator(seed, f"data/{name}")
    return make(rng, rows or usual_rows, usual_noise if noise is None else noise)
