"""Floor 3: why a loss is not finite: which values left their range first, of which rows, and what came before them."""

from collections.abc import Sequence

import numpy as np

from gpbackprop.passes import Pass
from gpbackprop.plan import Plan

MOST = 8
"""As many rows are named."""


def where(run: Pass, plan: Plan, step_in_epoch: int) -> str:
    """What the forward pass of a step has left in the plan, as the middle of a sentence.

    It names the first layer, in forward order, whose outputs are not finite, the rows of the data that they belong to,
    the largest activation before it, and a parameter that is not finite, or else the largest one that led there.
    """
    host, network = run.network.backend.host, run.network
    before, layer, bad = (0.0, ""), "the loss", None
    for path, slot in [("the input", plan.x), *plan.outputs]:
        values = host(slot.value)
        finite = np.isfinite(values)
        if not finite.all():
            layer, bad = path, ~finite
            break
        before = max((float(np.abs(values).max(initial=0)), path), before, key=lambda item: item[0])
    member = 0 if bad is None else int(np.argmax(bad.reshape(network.K, -1).any(axis=1)))
    rows = run.rows(step_in_epoch)[member]
    said = f"; the first values that are not finite leave {layer}"
    if network.K > 1 and bad is not None:
        said += f" in member {member} (seed {network.seeds[member]})"
    if bad is not None and bad.shape[1] == len(rows):
        said += f", for {_named(rows[bad[member].reshape(len(rows), -1).any(axis=1)])} of the data"
    said += f" (the batch is {_named(rows)}, counted from 0). "
    if before[1]:
        said += f"The largest activation before it is {before[0]:.3g}, of {before[1]}"
    return said + _parameter(run, layer, "; " if before[1] else "")


def _parameter(run: Pass, layer: str, joint: str) -> str:
    """The first parameter that is not finite, else the largest of the layer, or of all where it has none."""
    network = run.network
    views = {path: network.backend.host(view) for path, view in network.params.views(network.w).items()}
    spoiled = next((path for path, view in views.items() if not np.isfinite(view).all()), None)
    if spoiled:
        return f"{joint}the parameter {spoiled} is not finite"
    own = {path: view for path, view in views.items() if path.startswith(f"{layer}/")} or views
    if layer == "the input" or not own:
        return ""
    path, size = max(((path, float(np.abs(view).max(initial=0))) for path, view in own.items()), key=lambda p: p[1])
    return f"{joint}the largest parameter that led there is {path} with {size:.3g}"


def _named(rows: Sequence[int] | np.ndarray) -> str:
    """Rows 4 to 7, row 3, or rows 9, 2, 5, ... (64 in all)."""
    rows = [int(row) for row in rows]
    if len(rows) > 2 and rows == list(range(rows[0], rows[0] + len(rows))):
        return f"rows {rows[0]} to {rows[-1]}"
    some = ", ".join(map(str, rows[:MOST])) + (f", ... ({len(rows)} in all)" if len(rows) > MOST else "")
    return f"row{'s' if len(rows) > 1 else ''} {some}"
