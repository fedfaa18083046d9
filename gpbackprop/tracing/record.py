"""What happens in the first steps of a training on one row, as plain lists and numbers."""

import dataclasses
import inspect
import re
from contextlib import suppress
from typing import Any

import numpy as np

from gpbackprop.config import Config
from gpbackprop.data import load
from gpbackprop.errors import UsageError
from gpbackprop.layers.activation import Activation, Softmax
from gpbackprop.layers.base import Layer
from gpbackprop.layers.dense import Dense
from gpbackprop.layers.dropout import Dropout
from gpbackprop.losses import HalfSquaredError
from gpbackprop.optim.base import matching
from gpbackprop.plan import Closure
from gpbackprop.spec import to_table, type_name
from gpbackprop.trainer import Trainer

MOST_PARAMETERS, MOST_VALUES = 400, 40  # what a person can look through, and a page can draw

Numbers = Any  # a number, or lists of them


def record(config: Config, row: int = 0, steps: int = 1) -> dict[str, Any]:
    """Train on row `row` of the training split alone, as with batch_size = 1, and write down `steps` steps.

        {"name", "row", "dtype", "inputs": names, "targets": names, "loss": {...}, "optimizer": {...},
         "layers": [{"path", "type", "link", "equations": {"forward": [...], "backward": [...]}, "parameters": [...]}],
         "steps": [{"step", "lr", "x", "t", "terms", "probabilities", "L",
                    "values": {layer: {"z" | "y": {"value", "grad"}}},
                    "parameters": {path: {"old", "gradient", "new", and the optimizer's own arrays}}}],
         "L", "y": after the last step}

    Of a population the first member is followed. Gradients are those of backward, before the optimizer clips, decays or
    freezes. Raises UsageError where there is no such row, or where the network is too large to look at.
    """
    trainer = _trainer(config, row)
    _expect_small(trainer)
    watch = _Watch(trainer, steps)
    watch.run()
    return {
        "name": config.name,
        "row": row,
        "dtype": str(trainer.network.dtype),
        "inputs": _inputs(trainer),
        "targets": _targets(trainer),
        "loss": {"type": type_name(type(config.loss)), "reduce": config.loss.reduce, "equations": _lines(config.loss)},
        "optimizer": {
            "type": type_name(type(config.optimizer)),
            "settings": _settings(config.optimizer),
            "equations": _lines(config.optimizer),
        },
        "layers": [_layer(trainer, path, layer) for path, layer in _named(trainer)],
        "steps": watch.steps,
        "L": watch.loss(),
        "y": watch.plan.y.value[0, 0].tolist(),
    }


def _trainer(config: Config, row: int) -> Trainer:
    """One network, and one row to train it on."""
    first = config.member(0)
    data = load(first.data, dtype=config.train.dtype)
    split = data.splits["train"]
    if not 0 <= row < len(split):
        raise UsageError(f"--row {row}: the training split has the rows 0 to {len(split) - 1}")
    if not config.optimizer.gradient:
        raise UsageError(f"{type_name(type(config.optimizer))} learns without gradients: there is nothing to trace")
    few = dataclasses.replace(data, splits={"train": split.take(slice(row, row + 1))})
    train = dataclasses.replace(
        config.train,
        batch_size=1,
        shuffle=False,
        precision="float32",
        compile=False,
        metrics=(),
        early_stopping=None,
    )
    alone = dataclasses.replace(first, train=train)
    return alone.trainer("cpu", few)


def _expect_small(trainer: Trainer) -> None:
    network, plan = trainer.network, trainer.training.batch(1).plan
    advice = "trace shows networks that can be looked through; take fewer units, as in --set model.0.units=4"
    if network.parameter_count > MOST_PARAMETERS:
        raise UsageError(
            f"{trainer.name}: has {network.parameter_count} parameters, more than {MOST_PARAMETERS}; {advice}"
        )
    sizes = {"the input": plan.x.value.size, **{note.path: note.slot.value.size for note in plan.notes}}
    for place, size in sizes.items():
        if size > MOST_VALUES:
            raise UsageError(f"{trainer.name}: {place} has {size} values a row, more than {MOST_VALUES}; {advice}")


class _Watch:
    """Stands in the place of the update, and writes down what is there before and after it."""

    def __init__(self, trainer: Trainer, steps: int):
        self.trainer, self.count = trainer, steps
        self.steps: list[dict[str, Any]] = []
        batch = trainer.training.batch(1)
        self.plan, self.objective = batch.plan, batch.objective

    def run(self) -> None:
        update = self.trainer.update
        self.trainer.update = dataclasses.replace(
            update, step=lambda: self._around(update.step), gather=lambda: self._around(update.gather), fixed=False
        )
        self.trainer.fit(max(self.count, self.trainer.train.epochs))

    def loss(self) -> float:
        """The loss of the row at the present parameters."""
        self.plan.forward()
        return float(self.objective.value()[0])

    def _around(self, step: Closure) -> None:
        trainer, facts = self.trainer, self._before()
        old, gradient = self._parameters(trainer.network.w), self._parameters(trainer.network.g)
        step()
        new = self._parameters(trainer.network.w)
        own = {name: self._parameters(array) for name, array in trainer.update.state.items()}
        arrays = {"old": old, "gradient": gradient, **own, "new": new}
        facts["parameters"] = {path: {name: of[path] for name, of in arrays.items()} for path in old}
        self.steps.append(facts)
        trainer.stop_requested = len(self.steps) == self.count

    def _before(self) -> dict[str, Any]:
        plan, loss = self.plan, self.trainer.loss
        y, t = plan.y.value[0, 0], self._target()
        facts: dict[str, Any] = {
            "step": len(self.steps) + 1,
            "lr": self.trainer.rate,
            "x": plan.x.value[0, 0].tolist(),
            "t": t.tolist(),
            "L": float(self.objective.value()[0]),
            "values": self._values(),
        }
        if isinstance(loss, HalfSquaredError) and y.shape == t.shape:
            facts["terms"] = ((loss.factor or 1 / y.shape[-1]) * (y - t) ** 2).tolist()
        with suppress(UsageError):  # scores are no probabilities
            if (p := loss.probabilities(y)) is not y:
                facts["probabilities"] = p.tolist()
        return facts

    def _target(self) -> np.ndarray:
        """The target of the row; a class as the vector that the loss makes of it."""
        target, y = self.objective.target, self.plan.y.value
        if not target.classes:
            return target.value[0, 0]
        return self.trainer.loss.table(target.classes, y.shape[-1])[target.value[0, 0]]

    def _values(self) -> dict[str, dict[str, dict[str, Numbers]]]:
        """Of each layer the output and what its activation takes, with the gradients where backward needs them."""
        found: dict[str, dict[str, dict[str, Numbers]]] = {}
        for note in self.plan.notes:
            grad = None if note.slot.grad is None else note.slot.grad[0, 0].tolist()
            found.setdefault(note.path, {})[note.name] = {"value": note.slot.value[0, 0].tolist(), "grad": grad}
        return found

    def _parameters(self, flat: Any) -> dict[str, Numbers]:
        return {path: view[0].tolist() for path, view in self.trainer.network.params.views(flat).items()}


# What the numbers mean.


def _named(trainer: Trainer) -> list[tuple[str, Layer]]:
    """Each layer that has an output of its own in the record, with its path, in forward order."""
    plan = trainer.training.batch(1).plan
    found: dict[str, Layer] = {}

    def visit(layer: Any, path: str) -> None:
        for inner in vars(layer).values():
            rows = [inner] if isinstance(inner, Layer) else inner if isinstance(inner, tuple) else ()
            for i, part in enumerate(part for part in rows if isinstance(part, Layer)):
                place = f"{path}/{i}-{type_name(type(part))}".removeprefix("/")
                found[place] = part
                visit(part, place)

    visit(trainer.model, "")
    return [(path, found[path]) for path in dict.fromkeys(note.path for note in plan.notes)]


def _layer(trainer: Trainer, path: str, layer: Layer) -> dict[str, Any]:
    plan, network = trainer.training.batch(1).plan, trainer.network
    inner = tuple(f"{note.path}/" for note in plan.notes if note.path.startswith(f"{path}/"))
    own = {
        name.removeprefix(f"{path}/"): place
        for name, place in network.params.items()
        if name.startswith(f"{path}/") and not name.startswith(inner)
    }
    frozen = {name for name, place in network.params.items() if place.frozen}
    frozen |= set(matching(network, "freeze", trainer.optimizer.freeze))
    link = "all"
    if isinstance(layer, Dense) and len(dict(plan.outputs)[path].shape) == 2:
        link = "dense"
    elif isinstance(layer, Activation | Dropout) and not isinstance(layer, Softmax):
        link = "each"
    return {
        "path": path,
        "type": type_name(type(layer)),
        "link": link,
        "equations": _equations(layer),
        "parameters": [
            {"name": name, "shape": place.shape, "frozen": f"{path}/{name}" in frozen} for name, place in own.items()
        ],
    }


def _equations(layer: Layer) -> dict[str, list[str]]:
    """The equations of a layer: of a dense layer with the names of the record, of others as their class gives them."""
    activation = getattr(layer, "activation", None)
    z = "z" if isinstance(activation, Activation) else "y"
    if isinstance(layer, Dense):
        forward = [f"{z}[o] = sum_i x[i] W[i,o] + b[o]"]
        backward = [f"dL/dW[i,o] = x[i] dL/d{z}[o]", f"dL/db[o] = dL/d{z}[o]", f"dL/dx[i] = sum_o W[i,o] dL/d{z}[o]"]
    else:
        lines = [re.sub(r"\b(d?)y\b", rf"\1{z}", line.partition(", then the activation")[0]) for line in _lines(layer)]
        backward = [line for line in lines if re.search(r"\bd[A-Za-z]+ = ", line) and not line.startswith(z)]
        forward = [line for line in lines if line not in backward]
    if isinstance(activation, Activation):
        of_z = [re.sub(r"(?<![a-zA-Z])x(?![a-zA-Z])", "z", line) for line in _lines(activation)]
        y, _, slope = " ".join(of_z).partition(";")
        forward.append(y)
        backward.insert(0, slope.strip() if "d" in slope else f"dL/dz = dL/dy y',  {slope.strip()}")
    return {"forward": forward, "backward": backward}


def _lines(item: Any) -> list[str]:
    """The equations in a class's docstring."""
    doc = inspect.getdoc(type(item)) or ""
    return [line.strip() for line in doc.splitlines() if re.search(r"\S = ", line)]


def _settings(optimizer: Any) -> dict[str, Any]:
    """What the optimizer was given."""
    default = {field.name: field.default for field in dataclasses.fields(optimizer)}
    given = {name: value for name, value in vars(optimizer).items() if name in default and value != default[name]}
    return to_table(given)


def _inputs(trainer: Trainer) -> list[str]:
    return [name for column in trainer.data.preparation.columns for name in column.names]


def _targets(trainer: Trainer) -> list[str]:
    return list(trainer.data.preparation.classes or trainer.data.preparation.target)
