"""Print how exact the core is: for each class the worst gradient error and the worst difference from PyTorch.

    python scripts/proof.py

Needs an environment with the package and pytest, and PyTorch for the last two columns. The gradient column holds the
largest difference from central differences in float64, relative to the largest gradient. The PyTorch columns hold the
largest relative difference in outputs, loss, gradients and parameters over ten steps with momentum, and of an optimizer
over 50 steps in float64. A bar stands where there is nothing to compare: tests/test_searches.py holds
Levenberg-Marquardt and the swarm, which PyTorch lacks, to formulas of their own.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "parity")]

import battery  # noqa: E402
import pytest  # noqa: E402

from gpbackprop.losses import Loss  # noqa: E402
from gpbackprop.optim.base import Optimizer  # noqa: E402
from gpbackprop.optim.lbfgs import LBFGS  # noqa: E402
from gpbackprop.optim.rule import GradientRule  # noqa: E402

if find_spec("torch"):
    import test_torch as parity


def report(room, name, gradient, difference):
    """One line; `gradient` and `difference` are functions, or None where there is nothing to measure."""
    torch = difference if find_spec("torch") else None
    cells = [measured(gradient), *(measured(torch and (lambda dtype=dtype: torch(dtype))) for dtype in ("f8", "f4"))]
    print(f"{room:<10} {name:<36} {cells[0]:>9} {cells[1]:>16} {cells[2]:>16}", flush=True)


def measured(number):
    """`number()` as text; "-" where there is none, "missing" where the class lacks an example or a counterpart."""
    try:
        value = number() if number else None
        return "-" if value is None else f"{value:.1e}"
    except pytest.fail.Exception as lack:
        print(lack, file=sys.stderr)
        return "missing"


def loss_gradient(loss):
    """The worst error over classes and numbers for targets."""
    cases = ((battery.outputs_and_targets(loss, classes), 3 if classes else 0) for classes in (True, False))
    return max(battery.Held(loss, y, t, classes).gradient_error() for (y, t), classes in cases)


print(f"{'':<10} {'class':<36} {'gradient':>9} {'PyTorch float64':>16} {'PyTorch float32':>16}")
for case in battery.layers():
    layer, row = case.values[0]()
    report(
        "layer", case.id,
        lambda layer=layer, row=row: battery.Bench(layer, row).gradient_error(),
        lambda dtype, layer=layer, row=row: parity.layer_difference(layer, row, dtype),
    )  # fmt: skip
for case in battery.every(Loss):
    loss = battery.example(case.values[0])
    report(
        "loss", case.id,
        lambda loss=loss: loss_gradient(loss),
        lambda dtype, loss=loss: parity.loss_difference(loss, dtype),
    )  # fmt: skip
for case in battery.every(GradientRule):
    for optimizer in (
        battery.example(case.values[0]),
        *(parity.OPTIONS.get(case.id, []) if find_spec("torch") else []),
    ):
        given = [f"{key}" for key in ("momentum", "nesterov", "weight_decay") if getattr(optimizer, key, None)]
        report(
            "optimizer", "+".join([case.id, *given]), None,
            lambda dtype, optimizer=optimizer: parity.optimizer_difference(optimizer, dtype),
        )  # fmt: skip
for case in battery.every(Optimizer):
    if not issubclass(case.values[0], GradientRule):
        report(
            "optimizer", case.id, None,
            (lambda dtype: max(parity.lbfgs_differences(LBFGS(), 50)) if dtype == "f8" else None)
            if case.values[0] is LBFGS else None,
        )  # fmt: skip
