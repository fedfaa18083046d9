"""Elementwise functions that layers and losses share, each safe from overflow."""


def sigmoid(xp, x, y) -> None:
    """y = 1 / (1 + exp(-x)) = (1 + tanh(x / 2)) / 2; `y` may be `x`."""
    xp.multiply(x, 0.5, out=y)
    xp.tanh(y, out=y)
    xp.multiply(y, 0.5, out=y)
    xp.add(y, 0.5, out=y)


def softplus(xp, x, y, t) -> None:
    """y = log(1 + exp(x)) = max(x, 0) + log(1 + exp(-|x|)); `t` is scratch."""
    xp.abs(x, out=t)
    xp.negative(t, out=t)
    xp.exp(t, out=t)
    xp.log1p(t, out=t)
    xp.maximum(x, 0, out=y)
    xp.add(y, t, out=y)
