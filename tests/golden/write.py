"""Write the golden checkpoints: python tests/golden/write.py DIRECTORY

A file of a released version is never written again: what this writes belongs beside the older ones, when the format has
a new version (`gpbackprop/checkpoint/format.py`) or something new that is worth keeping.
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np

import gpbackprop as gp
from gpbackprop import checkpoint
from gpbackprop.checkpoint import format


def table(path: Path) -> None:
    """A classifier of a table, with text among its classes, and an optimizer of two moments."""
    data = gp.data.load("iris", validation=0.1, test=0.2, normalize="standard")
    model = gp.Chain(gp.Dense(4, activation="tanh"), gp.Dropout(0.2), gp.Dense(3))
    trainer = gp.Trainer(model, gp.SoftmaxCrossEntropy(), gp.Adam(lr=0.01), data, batch_size=20, seed=3, population=2)
    trainer.fit(2)
    trainer.save(path)


def images(path: Path) -> None:
    """A network of convolutions with a state that is no parameter."""
    data = gp.data.load("digits", test=0.2, shape=(8, 8, 1))
    model = gp.Chain(gp.Conv2d(2, kernel=3), gp.BatchNorm(), gp.MaxPool2d(2), gp.Flatten(), gp.Dense(10))
    trainer = gp.Trainer(model, gp.SoftmaxCrossEntropy(), gp.SGD(lr=0.01, momentum=0.9), data, batch_size=200, seed=1)
    trainer.fit(1)
    trainer.save(path)


def arrays(path: Path) -> None:
    """Every type, shapes without elements and without axes, more than one chunk, a group of many arrays."""
    rng = np.random.default_rng(7)
    chunk, format.CHUNK = format.CHUNK, 64_000
    types = {f"state/type-{dtype}": rng.integers(0, 100, (2, 3)).astype(dtype) for dtype in format.DTYPES}
    shapes = {"state/scalar": np.float64(0.1), "state/empty": np.zeros((2, 0), "f4"), "state/nan": np.array([np.nan])}
    many = {f"optimizer/many/{n}": np.full(1, n, "i2") for n in range(20)}
    big = {"params/big": np.tile(rng.standard_normal(25).astype("f4"), (3, 25, 20))}  # which git packs to little
    checkpoint.write(path, {"config": "name = 'é'\n".encode(), **types, **shapes, **many, **big})
    format.CHUNK = chunk


def contents(path: Path) -> dict[str, list]:
    """Shape, type and SHA-256 of each array of a checkpoint."""
    found = checkpoint.read(path).arrays()
    return {
        name: [list(array.shape), array.dtype.str, hashlib.sha256(array.tobytes()).hexdigest()]
        for name, array in found.items()
    }


def main() -> None:
    directory = Path(sys.argv[1])
    for make in table, images, arrays:
        path = directory / f"version-{format.VERSION}-{make.__name__}.h5"
        make(path)
        path.with_suffix(".json").write_text(json.dumps(contents(path), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
