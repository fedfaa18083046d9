"""Recorded steps: of every class of the battery, of data loading, whole training steps of some networks; and any."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
from battery import Held, Training, every, example, layers, outputs_and_targets
from emulation import make
from hypothesis import assume
from hypothesis import strategies as st

import gpbackprop as gp
from gpbackprop.backend import Backend
from gpbackprop.backend.cuda import CudaBackend
from gpbackprop.backend.tape import Call
from gpbackprop.data.augment import Augment
from gpbackprop.layers.activation import Linear
from gpbackprop.losses import Loss
from gpbackprop.metrics import Metric
from gpbackprop.optim.base import Optimizer
from gpbackprop.plan import Network, Plan, Target

Make = Callable[[], list[Call]]


def record(network: Network, *steps: Callable[[], None]) -> list[Call]:
    with np.errstate(all="ignore"):
        calls = network.backend.tape.record(steps)
    assert calls is not None, network.backend.tape.lost
    return calls


def of_layer(make: Callable, dtype: str) -> list[Call]:
    layer, row = make()
    run = Training(layer, row, seeds=(0, 1), dtype=dtype)
    run.load()
    return record(run.net, run.plan.forward, run.plan.backward, run.update.step)


def of_loss(cls: type, classes: bool) -> list[Call]:
    loss = example(cls)
    y, t = outputs_and_targets(loss, classes)
    weight = np.random.default_rng(0).uniform(0.5, 2, y.shape[:2])
    held = Held(loss, y, t, y.shape[-1] if classes else 0, weight, "f4")
    return record(held.net, held.plan.forward, held.plan.backward)


def of_optimizer(cls: type) -> list[Call]:
    run = Training(gp.Dense(3), (4,), seeds=(0, 1), optimizer=example(cls))
    run.load()
    run.step()
    run.plan.forward()
    run.plan.backward()
    return record(run.net, run.update.step)


def of_rule(**options: Any) -> list[Call]:
    run = Training(gp.Dense(3), (4,), seeds=(0, 1), optimizer=gp.SGD(0.1, momentum=0.9, **options))
    run.load()
    return record(run.net, run.plan.forward, run.plan.backward, run.update.step)


def of_metric(cls: type, weighted: bool) -> list[Call]:
    metric, rng = example(cls), np.random.default_rng(0)
    net = Network(Linear(), (3,), seeds=(0, 1))
    targets = []

    def finish(plan: Plan) -> None:
        value = plan.scratch((7,), np.int64) if metric.classes_only else plan.scratch((7, 3))
        targets.append(Target(value, 3 * metric.classes_only, plan.scratch((7,)) if weighted else None))
        metric.trace(plan, plan.y, targets[-1], 0.5)

    plan = Plan(net, 7, loss=finish)
    plan.x.value[...] = rng.normal(size=plan.x.value.shape)
    target = targets[-1]
    target.value[...] = rng.integers(0, 3, target.value.shape)
    if weighted:
        target.weight[...] = rng.uniform(0.5, 2, target.weight.shape)
    return record(net, plan.forward)


def trainer(
    *model: Any,
    shape=(6,),
    batch=4,
    rows=40,
    classes=3,
    loss=None,
    optimizer=None,
    augment=None,
    device=None,
    **options,
):
    """Rows of pixels, normalised by their moments; the backend takes blocks as large as CUDA does."""
    backend = device or Backend()
    backend.block = CudaBackend.block
    rng = np.random.default_rng(0)
    inputs = rng.integers(0, 256, (rows, *shape), np.uint8)
    crop = augment.crop if augment else None
    preparation = gp.data.Preparation(
        (), ("class",), None, False, tuple(map(str, range(classes))), shape, np.full(1, 33.0), np.full(1, 1 / 78),
        crop=crop or (),
    )  # fmt: skip
    split = gp.data.Split(inputs, rng.integers(0, classes, rows), None, np.arange(rows))
    data = gp.data.Dataset("pixels", {"train": split}, preparation, "", SimpleNamespace(augment=augment))
    loss, optimizer = loss or gp.SoftmaxCrossEntropy(), optimizer or gp.SGD(0.1, momentum=0.9)
    return gp.Trainer(gp.Chain(*model), loss, optimizer, data, batch_size=batch, device=backend, **options)


def whole_step(run: gp.Trainer) -> list[Call]:
    """Rows in, forward, backward, update, count."""
    training, clock = run.training, run.network.clock
    batch, xp = training.batch(run.batch_size), run.backend.xp
    training.begin(0, 0, True)
    run.update.rate[...] = run.update.lr

    def count():
        xp.add(clock, 1, out=clock)

    return record(run.network, batch.fetch, batch.plan.forward, batch.plan.backward, run.update.step, count)


def battery() -> dict[str, Make]:
    """A tape for every class."""
    found: dict[str, Make] = {}
    for case in layers():
        for dtype in ("f4", "f8"):
            found[f"layer {case.id} {dtype}"] = lambda make=case.values[0], dtype=dtype: of_layer(make, dtype)
    for case in every(Loss):
        for classes in (True, False):
            kind = "classes" if classes else "numbers"
            found[f"loss {case.id} {kind}"] = lambda cls=case.values[0], classes=classes: of_loss(cls, classes)
    for case in every(Optimizer):
        if case.id not in ("lbfgs", "levenberg_marquardt", "particle_swarm"):  # their steps are not recorded
            found[f"optimizer {case.id}"] = lambda cls=case.values[0]: of_optimizer(cls)
    rules = {
        "clip_value": 0.1, "clip_norm": 0.5, "l1": 0.1, "weight_decay": 0.1, "max_norm": 0.5, "average": 0.9,
        "lr_factors": {"*/b": 2.0}, "accumulate": 2, "freeze": ("*/b",),
    }  # fmt: skip
    for name, value in rules.items():
        found[f"rule {name}"] = lambda name=name, value=value: of_rule(**{name: value})
    for case in every(Metric):
        for weighted in (True, False):
            kind = "weighted" if weighted else "plain"
            found[f"metric {case.id} {kind}"] = lambda cls=case.values[0], w=weighted: of_metric(cls, w)
    found["rows of a table"] = lambda: whole_step(trainer(gp.Dense(5, activation="tanh"), gp.Dense(3)))
    found["rows of a population"] = lambda: whole_step(trainer(gp.Dense(3), seed=(0, 1, 2), metrics=["accuracy"]))
    images = {"shape": (6, 5), "augment": Augment(shift=1, flip=True, crop=(5, 4))}
    found["augmented images"] = lambda: whole_step(trainer(gp.Flatten(), gp.Dense(3), **images))
    return found


def networks() -> dict[str, Make]:
    """Whole steps of networks of the sizes that the benchmark takes."""
    relu = [gp.Dense(n, activation="relu") for n in (512, 512)]
    cnn = [gp.Conv2d(32, 5, activation="relu"), gp.MaxPool2d(), gp.Conv2d(64, 5, activation="relu"), gp.MaxPool2d(),
           gp.Flatten(), gp.Dense(128, activation="relu"), gp.Dense(10)]  # fmt: skip
    first = [gp.Dense(30, activation="sigmoid"), gp.Dense(10, activation="sigmoid")]
    half = {"batch": 10, "loss": gp.HalfSquaredError(), "optimizer": gp.SGD(0.1)}
    table: dict[str, tuple[list, dict]] = {
        "784-30-10, batch 10": (first, half),
        "784-128-64-10, batch 64": (
            [gp.Dense(128, activation="relu"), gp.Dense(64, activation="relu"), gp.Dense(10)],
            {"batch": 64},
        ),
        "784-512-512-10, batch 128": ([*relu, gp.Dense(10)], {"batch": 128}),
        "784-512-512-10, batch 128, Adam": ([*relu, gp.Dense(10)], {"batch": 128, "optimizer": gp.Adam()}),
        "dropout, norm, clip_norm": (
            [relu[0], gp.Dropout(0.5), gp.LayerNorm(), gp.Dense(10)],
            {"batch": 128, "optimizer": gp.AdamW(clip_norm=1.0)},
        ),
        "CNN 5x5x32-5x5x64-128, batch 128": (cnn, {"batch": 128, "shape": (28, 28, 1)}),
        "LSTM 128, 28 steps, batch 128": ([gp.LSTM(128), gp.Dense(10)], {"batch": 128, "shape": (28, 28)}),
        "64 x 784-30-10, batch 10": (first, half | {"seed": tuple(range(64))}),
    }

    def make(model: list, options: dict) -> list[Call]:
        return whole_step(trainer(*model, **{"shape": (784,), "rows": 256, "classes": 10} | options))

    return {name: lambda model=model, options=options: make(model, options) for name, (model, options) in table.items()}


# Any tape.

DTYPES = ["f4", "f8", "i8", "u4", "u1", "?"]
JOINS = ["sum", "max", "min", "argmax"]
BINARY = ["add", "subtract", "multiply", "maximum", "minimum", "less", "equal", "greater_equal"]


def take(table, index, out):
    np.take(table, index, axis=0, out=out, mode="clip")


class Drawn:
    """Some calls on parts of few arrays: broadcast, in place, backwards, strided, with numbers and casts."""

    def __init__(self, draw):
        self.draw = draw
        self.shape = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
        dtypes = draw(st.lists(st.sampled_from(DTYPES), min_size=2, max_size=4))
        self.rng = np.random.default_rng(draw(st.integers(0, 9)))
        self.bases = [self.rng.integers(0, 5, [2 * n for n in self.shape]).astype(dtype) for dtype in dtypes]

    def part(self, narrow):
        """A part of an array, of the space's shape; of one element along some axes where it may be `narrow`."""
        draw, cuts = self.draw, []
        for n in self.shape:
            start, step = draw(st.sampled_from([(0, 1), (n, 1), (0, 2), (1, 2)]))
            stop = start + step * (1 if narrow and draw(st.integers(0, 3)) == 0 else n)
            cuts.append(slice(start, stop, step))
        found = draw(st.sampled_from(self.bases))[tuple(cuts)]
        return np.flip(found, draw(st.integers(0, len(self.shape) - 1))) if draw(st.integers(0, 5)) == 0 else found

    def map(self):
        draw, out = self.draw, self.part(False)
        reads = [out if draw(st.booleans()) else self.part(True), self.part(True)]
        if draw(st.booleans()):
            reads[1] = draw(st.sampled_from([0, 1, 3, 0.5, True]))
        name = draw(st.sampled_from([*BINARY, "copyto"]))
        inputs = tuple(reads[:1] if name == "copyto" else reads)
        return Call(name, getattr(np, name), inputs, out, {"casting": "unsafe"})

    def join(self):
        axis, name = self.draw(st.integers(0, len(self.shape) - 1)), self.draw(st.sampled_from(JOINS))
        out = self.part(False)[(slice(None),) * axis + (slice(0, 1),)]
        return Call(name, getattr(np, name), (self.part(False),), out, {"axis": axis, "keepdims": True})

    def gather(self):
        index, table = self.rng.integers(0, 2 * self.shape[0], self.shape[0]), self.draw(st.sampled_from(self.bases))
        out = self.part(False)
        table = table[(slice(None), *(slice(0, n) for n in self.shape[1:]))]
        return Call("gather", take, (table, index), out, verb=True)

    def calls(self):
        found = []
        for _ in range(self.draw(st.integers(1, 6))):
            call = self.draw(st.sampled_from([self.map, self.map, self.map, self.join, self.gather]))()
            try:
                make(call)
            except (TypeError, ValueError):  # NumPy does not do that with these dtypes
                continue
            found.append(call)
        return found


@st.composite
def of_calls(draw):
    """Any tape."""
    found = Drawn(draw).calls()
    assume(found)
    return found
