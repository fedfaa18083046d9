"""The picture of scripts/bench.py: how many times as long as ours the others take, network by network."""

from pathlib import Path
from typing import Any

OURS = "gpbackprop"
PRODUCTS = "products alone"

# One colour for each library, darker and lighter for its ways of running (Okabe and Ito's palette for all eyes).
COLOURS = {
    "PyTorch eager": "#D55E00", "PyTorch DataLoader": "#F0A36B", "torch.compile": "#CC79A7",
    "PyTorch CUDA graph": "#8C3B6B", "torch.func vmap": "#E69F00", "JAX": "#0072B2", "scikit-learn": "#009E73",
    "gpbackprop, one by one": "#7F7F7F", "gpbackprop, NumPy alone": "#56B4E9", PRODUCTS: "#BBBBBB",
}  # fmt: skip
HATCHES = {PRODUCTS: "///"}  # no contestant: the limit of ours


def draw(found: dict[str, Any], path: Path) -> None:
    """One row of bars for each network, on a logarithmic scale; right of the line at 1 we are faster. A bar ends at the
    median of the ratios, its whisker spans their quartiles.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    kinds = [kind for kind in ("step", "epoch") if any(each["measure"] == kind for each in found["results"])]
    rows = {kind: [each for each in found["results"] if each["measure"] == kind] for kind in kinds}
    heights = [sum(len(each["contestants"]) + 0.6 for each in rows[kind]) for kind in kinds]
    figure, axes = plt.subplots(
        1, len(kinds), figsize=(8.2 * len(kinds), 1.9 + 0.27 * max(heights)), squeeze=False, layout="constrained"
    )
    for kind, panel in zip(kinds, axes[0], strict=True):
        _panel(panel, rows[kind], kind)
    names = dict.fromkeys(name for each in found["results"] for name in each["contestants"] if name != OURS)
    handles = [
        plt.Rectangle((0, 0), 1, 1, facecolor=COLOURS[name], edgecolor="white", hatch=HATCHES.get(name))
        for name in names
    ]
    columns = 3 * len(kinds)  # as wide as the panels
    figure.legend(handles, names, loc="outside lower center", ncols=columns, frameon=False, fontsize=10)
    facts = found["machine"]
    libraries = ", ".join(f"{name} {version}" for name, version in facts["versions"].items() if name != "Python")
    place = facts["cpu"] if "CPU" in facts["device"] else facts["device"]
    figure.suptitle(
        f"Time of others / time of gpbackprop    ({place}, {facts['threads']} of {facts['cores']} cores)\n{libraries}",
        fontsize=11, color="#333333",
    )  # fmt: skip
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _panel(panel: Any, rows: list[dict], kind: str) -> None:
    at, ticks, low, high = 0.0, [], 0.8, 1.25
    unit, word = ("ms", "an epoch") if kind == "epoch" else ("us", "a step")
    for row in rows:
        first = at
        for name, each in row["contestants"].items():
            if name == OURS:
                continue
            q1, ratio, q3 = each["ratio"]
            low, high = min(low, q1), max(high, q3)
            colour = COLOURS[name]
            panel.barh(at, ratio - 1, left=1, height=0.82, color=colour, hatch=HATCHES.get(name),
                       edgecolor="white", linewidth=0.5)  # fmt: skip
            panel.plot([q1, q3], [at, at], color="#222222", linewidth=1.1, solid_capstyle="butt")
            text = f"{ratio:.2f}" if ratio < 1 else f"{ratio:.1f}" if ratio < 10 else f"{ratio:.0f}"
            end, gap, side = (q3, 4, "left") if ratio >= 1 else (q1, -4, "right")
            panel.annotate(text, (end, at), (gap, 0), textcoords="offset points", va="center", ha=side, fontsize=8.5)
            at += 1
        ours = row["contestants"][OURS][unit][1]
        label = row["network"].replace(", batch", "\nbatch")
        ticks.append(((first + at - 1) / 2, f"{label}\nours {ours:,.0f} {unit.replace('us', 'µs')}"))
        at += 0.6
        if row is not rows[-1]:
            panel.axhline(at - 0.8, color="#DDDDDD", linewidth=0.8)
    panel.axvline(1, color="#222222", linewidth=1.2)
    panel.set_xscale("log")
    panel.set_xlim(low / 1.35, high * 1.35)
    marks = [m for m in (0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 7, 10, 20, 50, 100) if low / 1.35 < m < high * 1.35]
    panel.set_xticks(marks, [f"{mark:g}" for mark in marks])
    panel.minorticks_off()
    panel.set_ylim(at - 0.6, -1)
    panel.set_yticks([y for y, _ in ticks], [label for _, label in ticks], fontsize=9)
    panel.tick_params(axis="y", length=0)
    panel.grid(axis="x", color="#EEEEEE", zorder=0)
    panel.set_axisbelow(True)
    panel.spines[["top", "right", "left"]].set_visible(False)
    panel.set_title(word, loc="left", fontsize=12, fontweight="bold", pad=20)
    above = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "fontsize": 9.5}
    panel.annotate("← faster than gpbackprop", (1, 1), (-8, 5), ha="right", **above)
    panel.annotate("slower than gpbackprop →", (1, 1), (8, 5), ha="left", **above)
