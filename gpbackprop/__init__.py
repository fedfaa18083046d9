"""Train feed-forward, convolutional and recurrent networks by backpropagation, on NumPy or CuPy.

    import gpbackprop as gp
    model = gp.Chain(gp.Dense(128, activation="relu"), gp.Dense(10))
    data = gp.data.load("digits", validation=0.1, test=0.2)
    trainer = gp.Trainer(model, gp.SoftmaxCrossEntropy(), gp.SGD(lr=0.05, momentum=0.9), data, batch_size=64, seed=1)
    trainer.fit(epochs=10)
    trainer.evaluate("test")
    trainer.save("digits.h5")

Layers, losses and optimizers are names of this package; metrics, schedules, initializers and data are modules of it.
Nothing is imported until it is asked for.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_MODULES = {
    "backend": "backend", "checkpoint": "checkpoint", "config": "config", "data": "data", "errors": "errors",
    "initializers": "initializers", "losses": "losses", "metrics": "metrics", "plan": "plan", "run": "run",
    "gradcheck": "gradcheck", "schedules": "optim.schedules", "tracing": "tracing",
    "layers": "layers", "optim": "optim", "trainer": "trainer",
}  # fmt: skip
_NAMES = {
    "Config": "config", "Hook": "trainer", "Model": "model", "Run": "run", "Trainer": "trainer", "load": "model",
    "EarlyStopping": "settings", "Train": "settings", "Data": "data", "Network": "plan", "Plan": "plan",
}  # fmt: skip

if TYPE_CHECKING:
    from gpbackprop import (
        backend,
        checkpoint,
        config,
        data,
        errors,
        initializers,
        layers,
        losses,
        metrics,
        optim,
        plan,
        run,
        trainer,
    )  # fmt: skip
    from gpbackprop.config import Config
    from gpbackprop.data import Data
    from gpbackprop.layers.activation import *
    from gpbackprop.layers.attention import *
    from gpbackprop.layers.combine import *
    from gpbackprop.layers.conv import *
    from gpbackprop.layers.dense import *
    from gpbackprop.layers.dropout import *
    from gpbackprop.layers.embedding import *
    from gpbackprop.layers.gated import *
    from gpbackprop.layers.norm import *
    from gpbackprop.layers.pool import *
    from gpbackprop.layers.recurrent import *
    from gpbackprop.layers.shape import *
    from gpbackprop.losses import *
    from gpbackprop.model import Model, load
    from gpbackprop.optim import schedules
    from gpbackprop.optim.adam import *
    from gpbackprop.optim.adaptive import *
    from gpbackprop.optim.lbfgs import *
    from gpbackprop.optim.levenberg_marquardt import *
    from gpbackprop.optim.local import *
    from gpbackprop.optim.particle_swarm import *
    from gpbackprop.optim.sgd import *
    from gpbackprop.plan import Network, Plan
    from gpbackprop.run import Run
    from gpbackprop.settings import EarlyStopping, Train
    from gpbackprop.trainer import Hook, Trainer


def _classes() -> dict[str, Any]:
    """Every layer, loss and optimizer by its name."""
    from gpbackprop import layers, optim
    from gpbackprop.layers.base import Layer
    from gpbackprop.losses import Loss
    from gpbackprop.optim.base import Optimizer
    from gpbackprop.spec import family

    return {cls.__name__: cls for base in (Layer, Loss, Optimizer) for cls in family(base).values()}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        found: Any = importlib.import_module(f"gpbackprop.{_MODULES[name]}")
    elif name in _NAMES:
        found = getattr(importlib.import_module(f"gpbackprop.{_NAMES[name]}"), name)
    elif not name.startswith("_") and name in (classes := _classes()):
        found = classes[name]
    else:
        raise AttributeError(f"gpbackprop has no name {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    own = (name for name in globals() if name.startswith("__"))
    return sorted({*own, *_MODULES, *_NAMES, *_classes()})
