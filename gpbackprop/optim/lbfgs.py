"""L-BFGS with a line search for the strong Wolfe conditions."""

import itertools
import math
from collections.abc import Generator

import numpy as np

from gpbackprop.optim.base import Binding
from gpbackprop.optim.search import Search, columns, dot
from gpbackprop.spec import Count, spec

FLAT, SHORT = 1e-7, 1e-9  # the gradient at which nothing is left to do, and the step; those of PyTorch
DECREASE, SLOPE = 1e-4, 0.9  # the constants of the Wolfe conditions


@spec
class LBFGS(Search):
    """w = w + a d,  d = -H g: H is the inverse Hessian that the last `memory` steps s and gradient differences y show.

    The length a fulfils f(a) <= f(0) + 1e-4 a f'(0) and |f'(a)| <= 0.9 |f'(0)|; it is searched from lr on, with at most
    `evaluations` passes over the rows (one or two are usual). This is the rule of PyTorch with its line search.
    (J. Nocedal and S. Wright, "Numerical Optimization", 2006, algorithms 7.4 and 3.5)
    """

    memory: Count = 10
    evaluations: Count = 25

    def bind(self, network, objective=None):
        at = Binding(self, network)
        xp, w, g, K = at.xp, at.w, at.g, network.K
        loss, host = self._loss(at, objective), network.backend.host
        pairs = [(at.array(f"s{i}"), at.array(f"y{i}")) for i in range(self.memory)]  # from the oldest to the newest
        scale, count = at.scalar("scale", 1.0), at.scalar("steps")

        def direction():
            """d = -H g by the two loops; a pair that is still empty changes nothing."""
            d, seen = -g, []
            for s, y in reversed(pairs):
                sy = dot(at, s, y)
                inverse = np.divide(1, sy, out=np.zeros(K), where=sy > 0)
                a = inverse * dot(at, s, d)
                d -= columns(at, a) * y
                seen.append((inverse, a))
            d *= columns(at, host(scale)[:, 0])
            for (s, y), (inverse, a) in zip(pairs, reversed(seen), strict=True):
                d += columns(at, a - inverse * dot(at, y, d)) * s
            return d

        def step():
            value = loss(evaluate=False)
            d, start, before = direction(), w.copy(), g.copy()
            slope, length = dot(at, g, d), host(at.rate)[:, 0].astype(np.float64)
            first = host(count)[:, 0] == 0
            size = np.maximum(host(xp.abs(g).sum(axis=1)), 1e-300).astype(np.float64)
            length = np.where(first, np.minimum(1, 1 / size) * length, length)
            going = (host(xp.abs(g).max(axis=1)) > FLAT) & (length > 0)
            count[...] += network.backend.array(going.astype(np.float64)[:, None])
            going &= slope <= -SHORT
            reach = host(xp.abs(d).max(axis=1))

            def look(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
                w[...] = start + columns(at, lengths) * d
                return loss(), dot(at, g, d)

            search = [
                wolfe(length[k], value[k], slope[k], float(reach[k]), self.evaluations) if going[k] else None
                for k in range(K)
            ]
            taken = together(search, look)
            s, y = columns(at, taken) * d, g - before
            sy, yy = dot(at, s, y), dot(at, y, y)
            for k in np.flatnonzero(going & (sy > 1e-10)):
                remember(pairs, k, s, y)
                scale[k] = sy[k] / yy[k]
            w[...] = start + s

        return at.update(step)

    @classmethod
    def example(cls):
        return cls(memory=4, weight_decay=0.001)


def remember(pairs, k, s, y) -> None:
    """Member k forgets its oldest pair for a new one."""
    for older, newer in itertools.pairwise(pairs):
        for one, other in zip(older, newer, strict=True):
            one[k] = other[k]
    pairs[-1][0][k], pairs[-1][1][k] = s[k], y[k]


def together(searches, look) -> np.ndarray:
    """Run the searches of all members in step, one evaluation of all at a time; the lengths that they end with.

    The last evaluation is at those lengths, so that the gradient is the one there. A member without a search stays.
    """
    trial, final = np.zeros(len(searches)), np.zeros(len(searches))
    waiting = {k: search for k, search in enumerate(searches) if search is not None}
    for k, search in waiting.items():
        trial[k] = next(search)
    while waiting:
        seen = look(trial)
        at = trial.copy()
        for k, search in list(waiting.items()):
            try:
                trial[k] = search.send((float(seen[0][k]), float(seen[1][k])))
            except StopIteration as done:
                trial[k] = final[k] = done.value
                del waiting[k]
        if not waiting and not np.array_equal(at, final):
            look(final)
    return final


Point = tuple[float, float, float]  # length, loss, slope


def wolfe(length: float, value: float, slope: float, reach: float, most: int) -> Generator[float, tuple, float]:
    """Yields lengths to try, is sent (loss, slope) there, and returns the best length.

    First the length grows until an interval is found that holds a good one, then the interval shrinks around it.
    `value` and `slope` are those at 0, `reach` is the largest change of a parameter at length 1.
    """
    origin: Point = (0.0, value, slope)
    before, count = origin, 0
    now = (length, *(yield length))
    while True:
        count += 1
        if not math.isfinite(now[1]) and count < most:  # too far: half the way back
            half = (before[0] + now[0]) / 2
            now = (half, *(yield half))
            continue
        if not math.isfinite(now[1]):
            return before[0]
        if now[1] > value + DECREASE * now[0] * slope or (count > 2 and now[1] >= before[1]):
            low, high = (before, now) if before[1] <= now[1] else (now, before)
            break
        if abs(now[2]) <= -SLOPE * slope:
            return now[0]
        if now[2] >= 0:
            low, high = (before, now) if before[1] <= now[1] else (now, before)
            break
        if count > most:
            return now[0]
        further = cubic(before, now, now[0] + 0.01 * (now[0] - before[0]), 10 * now[0])
        before, now = now, (further, *(yield further))
    close = False
    while count <= most and abs(high[0] - low[0]) * reach >= SHORT:
        left, right = min(low[0], high[0]), max(low[0], high[0])
        t = cubic(low, high, left, right)
        margin = 0.1 * (right - left)
        if min(right - t, t - left) < margin:  # at an end of the interval it would not shrink
            if close or t >= right or t <= left:
                t = right - margin if abs(t - right) < abs(t - left) else left + margin
                close = False
            else:
                close = True
        else:
            close = False
        now = (t, *(yield t))
        count += 1
        if not now[1] <= value + DECREASE * t * slope or now[1] >= low[1]:
            high = now
            low, high = (low, high) if low[1] <= high[1] else (high, low)
        else:
            if abs(now[2]) <= -SLOPE * slope:
                return t
            if now[2] * (high[0] - low[0]) >= 0:
                high = low
            low = now
    return low[0]


def cubic(a: Point, b: Point, least: float, most: float) -> float:
    """Where the cubic through two points with their slopes is least, within [least, most]."""
    (x1, f1, g1), (x2, f2, g2) = (a, b) if a[0] <= b[0] else (b, a)
    d1 = g1 + g2 - 3 * (f1 - f2) / (x1 - x2)
    square = d1 * d1 - g1 * g2
    if not (math.isfinite(square) and square >= 0):
        return (least + most) / 2
    d2 = math.sqrt(square)
    below = g2 - g1 + 2 * d2
    if not below:
        return (least + most) / 2
    return min(max(x2 - (x2 - x1) * ((g2 + d2 - d1) / below), least), most)
