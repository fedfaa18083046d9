"""What the proof of every layer, loss, optimizer and metric is made of.

The classes are found by `family`, each with the `example` that it carries: a new class is proven without a line here.
"""

import tracemalloc
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest

import gpbackprop.layers
import gpbackprop.optim  # noqa: F401  (both: so that their classes are found)
from gpbackprop.backend import Backend
from gpbackprop.layers.activation import Linear
from gpbackprop.layers.base import Layer
from gpbackprop.layers.combine import Chain
from gpbackprop.layers.dense import Dense
from gpbackprop.losses import HalfSquaredError, Loss
from gpbackprop.optim.base import Optimizer
from gpbackprop.optim.objective import Objective
from gpbackprop.optim.sgd import SGD
from gpbackprop.plan import Network, Plan, Slot, Target
from gpbackprop.spec import build, family

SMOOTH = 1e-7  # how far a float64 gradient may be from central differences


def every(base: type) -> list:
    """The classes of a family that the package has (not those of a test), for `pytest.mark.parametrize`."""
    found = sorted(family(base).items())
    return [pytest.param(cls, id=name) for name, cls in found if cls.__module__.startswith("gpbackprop.")]


def example(cls: type):
    """The example that a class carries; fails with what to do where it carries none."""
    try:
        return cls.example()
    except Exception as error:
        missing = f"{cls.__name__} has no example: cls() does not build one. Give it a classmethod `example`, as in"
        pytest.fail(f"{missing} {cls.__mro__[1].__name__}.example. ({error})")


COMPOSITIONS: dict[str, tuple[dict, tuple[int, ...]]] = {
    "dense over time": ({"type": "dense", "units": 3}, (4, 5)),
    "softmax over time": ({"type": "softmax"}, (4, 3)),
    "wide dense": ({"type": "dense", "units": 40, "activation": "sigmoid"}, (30,)),
    "frozen and given": (
        {"type": "dense", "units": 2, "init": {"W": [[1, 2], [3, 4], [5, 6]], "b": 0.5}, "freeze": ["b"]},
        (3,),
    ),
    "elu of alpha 2": ({"type": "elu", "alpha": 2.0}, (5,)),
    "residual of a view": ({"type": "residual", "layers": ["linear"]}, (5,)),
    "residual in residual": (
        {"type": "residual", "layers": [{"type": "residual", "layers": [{"type": "dense", "units": 5}]}, "silu"]},
        (5,),
    ),
    "residual in parallel": (
        {
            "type": "parallel",
            "branches": [
                [
                    {"type": "residual", "layers": [{"type": "dense", "units": 5}, "tanh"]},
                    {"type": "dense", "units": 3},
                ],
                {"type": "dense", "units": 2},
                "linear",
            ],
        },
        (5,),
    ),
    "parallel sum": (
        {
            "type": "parallel",
            "combine": "sum",
            "branches": [{"type": "dense", "units": 5}, "linear", [{"type": "dense", "units": 5}, "gelu"]],
        },
        (5,),
    ),
    "parallel product": (
        {
            "type": "parallel",
            "combine": "product",
            "branches": [{"type": "dense", "units": 5}, "linear", [{"type": "dense", "units": 5}, "tanh"], "sigmoid"],
        },
        (5,),
    ),
    "product with a branch that is zero": (
        {
            "type": "parallel",
            "combine": "product",
            "branches": [{"type": "dense", "units": 5}, {"type": "dense", "units": 5, "init": {"W": 0.0}}, "linear"],
        },
        (5,),
    ),
    "product of one": ({"type": "parallel", "combine": "product", "branches": [{"type": "dense", "units": 2}]}, (3,)),
    "gated unit": (
        {
            "type": "parallel",
            "combine": "product",
            "branches": [{"type": "dense", "units": 2}, {"type": "dense", "units": 2, "activation": "sigmoid"}],
        },
        (4, 3),
    ),
    "parallel over time": ({"type": "parallel", "branches": ["tanh", {"type": "dense", "units": 2}]}, (3, 4)),
    "dropout in residual": (
        {"type": "residual", "layers": [{"type": "dropout", "rate": 0.3}, {"type": "dense", "units": 5}]},
        (5,),
    ),
    "stacked rnn of relu": (
        {"type": "simple_rnn", "units": 3, "layers": 2, "activation": "relu", "returns": "sequence"},
        (4, 2),
    ),
    "bidirectional lstm": ({"type": "lstm", "units": 2, "bidirectional": True}, (4, 2)),
    "stacked bidirectional lstm": (
        {"type": "lstm", "units": 2, "layers": 2, "bidirectional": True, "returns": "sequence"},
        (3, 2),
    ),
    "stacked bidirectional gru": ({"type": "gru", "units": 2, "layers": 2, "bidirectional": True}, (3, 2)),
    "gru sequence": ({"type": "gru", "units": 3, "returns": "sequence"}, (4, 2)),
    "lstm of one step": ({"type": "lstm", "units": 3}, (1, 2)),
    "attention block": (
        {"type": "residual", "layers": ["positional_encoding", {"type": "self_attention", "heads": 3}]},
        (4, 6),
    ),
    "embedded lstm": (
        {"type": "chain", "layers": [{"type": "embedding", "vocabulary": 5, "units": 3}, {"type": "lstm", "units": 2}]},
        (4,),
    ),
}


def layers() -> list:
    """Every layer, and some compositions, as functions that give (layer, row shape)."""
    alone = [pytest.param(lambda cls=case.values[0]: example(cls), id=case.id) for case in every(Layer)]
    together = [
        pytest.param(lambda table=table, row=row: (build(Layer, table), row), id=name)
        for name, (table, row) in COMPOSITIONS.items()
    ]
    return alone + together


def parts(layer: Layer) -> Iterator[Layer]:
    """A layer and the layers inside it."""
    yield layer
    for value in vars(layer).values():
        for inner in value if isinstance(value, tuple) else (value,):
            if isinstance(inner, Layer):
                yield from parts(inner)


def is_rowwise(layer: Layer) -> bool:
    return all(part.rowwise for part in parts(layer))


class Exposed(Layer):
    """`layer` behind a slot `plan.leaf`, a copy of x that has a gradient."""

    __abstract__ = True

    def __init__(self, layer: Layer):
        self.layer = layer

    def trace(self, plan: Plan, x: Slot) -> Slot:
        leaf = plan.leaf = plan.slot(x.shape)

        def forward():
            leaf.value[...] = x.value

        plan.step(forward, None)
        return self.layer.trace(plan, leaf)


class Bench:
    """A layer between an input with a gradient and L = sum_i c_i y_i, in float64, so that dL/dy = c."""

    def __init__(self, layer: Layer, row: tuple[int, ...], batch: int = 3, K: int = 2, network: Network | None = None):
        self.net = network or Network(Exposed(layer), row, seeds=range(K), dtype="f8")
        self.plan = Plan(self.net, batch, training=True, loss=self._weigh)
        rng = np.random.default_rng(len(row))
        self.x, self.c = (rng.normal(size=slot.value.shape) for slot in (self.plan.x, self.plan.y))
        self.x *= rng.choice([0.1, 1, 3], self.x.shape)  # near the kink at 0, and far from it
        self.state = self.net.state.copy()
        self.fill()

    @staticmethod
    def _weigh(plan: Plan) -> None:
        plan.c = plan.scratch(plan.y.shape)

        def backward():
            plan.y.grad[...] = plan.c

        plan.step(None, backward)

    def fill(self) -> None:
        self.plan.x.value[...] = self.x
        self.plan.c[...] = self.c

    def poison(self) -> None:
        """NaN in all of the arena and in every gradient."""
        self.plan.arena.buffer.fill(0xFF)
        for grad in self.net.params.views(self.net.g).values():
            grad.fill(np.nan)
        self.fill()

    def loss(self) -> np.ndarray:
        """L of each member, (K,)."""
        self.net.state[...] = self.state
        self.plan.forward()
        return (self.plan.c * self.plan.y.value).reshape(self.net.K, -1).sum(axis=1)

    def gradients(self) -> dict[str, np.ndarray]:
        """dL/d(x and each parameter)."""
        self.loss()
        self.plan.backward()
        return {
            "x": self.plan.leaf.grad.copy(),
            **{path: grad.copy() for path, grad in self.net.params.views(self.net.g).items()},
        }

    def gradient_error(self) -> float:
        """The largest difference between these gradients and central differences."""
        arrays = {"x": self.plan.x.value, **self.net.params.views(self.net.w)}
        return max(difference(self.loss, arrays[path], grad) for path, grad in self.gradients().items())


def difference(f: Callable[[], np.ndarray], array: np.ndarray, grad: np.ndarray, eps: float = 1e-6) -> float:
    """max |g - (f(a + eps d) - f(a - eps d)) / 2 eps| / max(1, |g|), f() and each member's a (K, ...) float64.

    d runs over all elements where they are few, else over random directions.
    """
    k = len(array)
    flat, grad = array.reshape(k, -1), grad.reshape(k, -1)
    assert np.shares_memory(flat, array)
    n = flat.shape[1]
    directions = np.eye(n) if n <= 200 else np.random.default_rng(0).normal(size=(40, n)) / np.sqrt(n)
    kept, worst = flat.copy(), 0.0
    for d in directions:
        flat[...] = kept + eps * d
        above = f()
        flat[...] = kept - eps * d
        numeric = (above - f()) / (2 * eps)
        flat[...] = kept
        worst = max(worst, float(np.abs(grad @ d - numeric).max()))
    return worst / max(1.0, float(np.abs(grad).max()))


class Training:
    """K networks behind one layer of tanh units, trained on rows that are a function of (member's seed, step)."""

    def __init__(
        self,
        layer: Layer,
        row: tuple[int, ...],
        *,
        seeds: Sequence[int] = (0,),
        batch: int = 4,
        dtype: str = "f4",
        backend: Backend | None = None,
        loss: Loss | None = None,
        optimizer: Optimizer | None = None,
        classes: int = 0,
    ):
        self.classes = classes
        # tanh: before a norm the gradient of a bias would be nothing but rounding
        self.net = Network(Chain(Dense(row[-1], activation="tanh"), layer), row, backend, seeds, dtype)
        self.loss = loss or HalfSquaredError()
        self.plan = Plan(self.net, batch, training=True, loss=self._finish)
        objective = Objective(self.plan, self.loss, self.target, self.total, self.mass)
        self.update = (optimizer or SGD(0.1, momentum=0.9)).bind(self.net, objective)
        self.update.rate[...] = self.update.lr
        self.host = self.net.backend.host

    def _finish(self, plan: Plan) -> None:
        value = plan.scratch((plan.batch,), np.int64) if self.classes else plan.scratch(plan.y.shape)
        self.target = Target(value, self.classes, plan.scratch((plan.batch,)))
        self.total, self.mass = self.loss.trace(plan, plan.y, self.target)

    def load(self, step: int = 0) -> None:
        """Bring the rows, targets and weights of a step to the device."""
        for slot, draw in (
            (self.plan.x.value, lambda rng, size: rng.normal(size=size)),
            (self.target.value, lambda rng, size: rng.uniform(0.1, 0.9, size) * (self.classes or 1)),
            (self.target.weight, lambda rng, size: rng.uniform(0.5, 2, size)),
        ):
            rngs = [np.random.default_rng((seed, step, slot.ndim)) for seed in self.net.seeds]
            self.net.backend.stage(np.stack([draw(rng, slot.shape[1:]) for rng in rngs]).astype(slot.dtype), slot)

    def step(self) -> None:
        self.plan.forward()
        self.plan.backward()
        self.update.step()
        self.net.clock += 1

    def run(self, steps: int) -> list[np.ndarray]:
        """After `steps` steps, what a member consists of: arrays with a leading axis K."""
        for step in range(steps):
            self.load(step)
            self.step()
        live = (self.net.w, self.net.g, self.net.state, self.total, self.plan.y.value, *self.update.state.values())
        return [np.array(self.host(array)) for array in live]


def allocated(step: Callable[[], None]) -> int:
    """The most bytes that one call holds beyond those before it."""
    step()  # what is made once is made here
    tracemalloc.start()
    try:
        step()
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        step()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def assert_no_growth(step_of: Callable[[int], Callable[[], None]], batch: int = 10_000) -> None:
    """A step allocates nothing that grows with the batch.

    Both batches are larger than NumPy's casting buffers (8192 elements), which do not grow beyond that.
    """
    small, large = allocated(step_of(batch)), allocated(step_of(2 * batch))
    assert large - small < batch, f"a step of {batch} rows allocates {small} bytes, one of {2 * batch} rows {large}"
    assert small < 400_000, f"a step of {batch} rows allocates {small} bytes"


def assert_same_bits(a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> None:
    for one, other in zip(a, b, strict=True):
        assert one.dtype == other.dtype
        assert one.tobytes() == other.tobytes(), f"differ by up to {np.abs(one - other).max():g}"


class Held:
    """A loss of given outputs `y` (K, B, ..., O) held to targets; `forward()` and `backward()` as in a step."""

    def __init__(self, loss: Loss, y, t, classes=0, weight=None, dtype="f8", backend: Backend | None = None):
        self.loss, self.net = loss, Network(Exposed(Linear()), y.shape[2:], backend, range(len(y)), dtype)
        self.host = self.net.backend.host

        def finish(plan: Plan) -> None:
            value = plan.scratch(t.shape[1:], np.int64 if classes else None)
            self.target = Target(value, classes, None if weight is None else plan.scratch(weight.shape[1:]))
            self.total, self.mass = loss.trace(plan, plan.y, self.target)

        self.plan = Plan(self.net, y.shape[1], training=True, loss=finish)
        self.filling = [(self.plan.x.value, y), (self.target.value, t), (self.target.weight, weight)]
        self.fill()

    def fill(self) -> None:
        for array, values in self.filling:
            if array is not None:
                self.net.backend.stage(np.asarray(values).astype(array.dtype), array)

    def run(self) -> tuple[np.ndarray, np.ndarray]:
        """The loss of each member (K,), and its gradient with respect to the outputs."""
        self.plan.forward()
        self.plan.backward()
        return self.value(), np.array(self.host(self.plan.leaf.grad))

    def value(self) -> np.ndarray:
        total, mass = (self.host(array)[:, 0, 0] for array in (self.total, self.mass))
        return total / mass if self.loss.reduce == "mean" else np.array(total)

    def gradient_error(self) -> float:
        _, grad = self.run()

        def loss():
            self.plan.forward()
            return self.value()

        return difference(loss, self.plan.x.value, grad)


def outputs_and_targets(loss: Loss, classes: bool, *, K: int = 2, B: int = 5, O: int = 3):  # noqa: E741
    """Random outputs, and class indices or numbers that any loss takes: mixtures of the classes' target vectors."""
    rng = np.random.default_rng(K * B + O)
    y = rng.normal(size=(K, B, O)) * 2
    t = rng.integers(0, O, (K, B))
    return y, t if classes else rng.dirichlet(np.ones(O), (K, B)) @ loss.table(O, O)
