"""JAX as a contestant of scripts/bench.py: an epoch is one compiled call, a scan over its steps.

Convolutions on the CPU are the exception: XLA runs them tens of times slower inside a loop (jax-ml/jax issue 12868), so
that each step is a call of its own there. Pooling is a maximum over axes, which is faster than `reduce_window`. The
parameters are donated, so that XLA updates them in place, and the rows stay on the device. Products are float32
throughout ("highest"): on a GPU the default would round to TF32, which ours does not.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from bench_work import CLASSES, Network, Rows
from jax import lax

import gpbackprop as gp

jax.config.update("jax_default_matmul_precision", "highest")
LIBRARY, VERSION = "JAX", jax.__version__
ACTIVATIONS = {"Sigmoid": jax.nn.sigmoid, "Relu": jax.nn.relu}


def apply(layers, w, x):
    """The outputs for inputs x (batch, ...) and the parameters w of the layers, in order."""
    given = iter(w)
    for layer in layers:
        match layer:
            case gp.Dense():
                x = x @ next(given) + next(given)
            case gp.Conv2d():
                form = ("NHWC", "HWIO", "NHWC")
                x = lax.conv_general_dilated(x, next(given), (1, 1), "VALID", dimension_numbers=form) + next(given)
            case gp.MaxPool2d():
                n = layer.kernel
                x = x.reshape(x.shape[0], x.shape[1] // n, n, x.shape[2] // n, n, x.shape[3]).max((2, 4))
            case gp.Flatten():
                x = x.reshape(len(x), -1)
            case gp.LSTM():
                x = lstm(x, next(given), next(given), next(given))
        if getattr(layer, "activation", None):
            x = ACTIVATIONS[type(layer.activation).__name__](x)
    return x


def lstm(x, W, U, b):
    """The last state for sequences x (batch, T, features); the products with W are one for all T."""

    def step(state, z):
        h, c = state
        i, f, o, g = jnp.split(z + h @ U, 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        return (jax.nn.sigmoid(o) * jnp.tanh(c), c), None

    zero = jnp.zeros((len(x), U.shape[0]), x.dtype)
    return lax.scan(step, (zero, zero), (x @ W + b).swapaxes(0, 1))[0][0]


class Scan:
    """jit of a scan; a population is a vmap of the gradient inside of it."""

    name = "JAX"

    @staticmethod
    def refuses(network: Network, epoch: bool, device: str) -> str:
        return ""

    def __init__(self, network: Network, rows: Rows, parameters: dict[str, np.ndarray], device: str):
        self.device = jax.devices("gpu" if device == "cuda" else "cpu")[0]
        self.network, self.scale = network, rows.scale
        members = network.population > 1
        self.x, self.labels, w = jax.device_put(
            (rows.x, rows.labels, [each if members else each[0] for each in parameters.values()]), self.device
        )
        zeros = jax.tree.map(jnp.zeros_like, w)
        self.state = (w, zeros, jax.tree.map(jnp.copy, zeros), jnp.zeros((), jnp.int32)) if network.adam else (w,)
        self.run = jax.jit(self.steps, donate_argnums=0)
        self.stride = 1 if device == "cpu" and any(isinstance(each, gp.Conv2d) for each in network.layers) else None

    def loss(self, w, x, labels):
        x = x * np.float32(self.scale) if x.dtype == jnp.uint8 else x
        y = apply(self.network.layers, w, x)
        target = jax.nn.one_hot(labels, CLASSES)
        if self.network.half_squared:
            return 0.5 * jnp.square(y - target).sum() / len(y)
        return -(target * jax.nn.log_softmax(y)).sum() / len(y)

    def steps(self, state, x, labels, order):
        """The state after the steps over `order`, and the sum of their losses."""
        gradient = jax.value_and_grad(self.loss)
        gradient = jax.vmap(gradient) if self.network.population > 1 else gradient

        def step(carry, rows):
            state, total = carry
            value, g = gradient(state[0], x[rows], labels[rows])
            return (self.updated(state, g), total + value), None

        start = state, jnp.zeros(order.shape[1:-1])
        return step(start, order[0])[0] if len(order) == self.stride else lax.scan(step, start, order)[0]

    def updated(self, state, g):
        rule = self.network.optimizer
        if not self.network.adam:
            return (jax.tree.map(lambda w, g: w - rule.lr * g, state[0], g),)
        w, m, v, t = state
        m = jax.tree.map(lambda m, g: rule.beta1 * m + (1 - rule.beta1) * g, m, g)
        v = jax.tree.map(lambda v, g: rule.beta2 * v + (1 - rule.beta2) * g * g, v, g)
        t = t + 1
        of_m, of_v = (-jnp.expm1(t * np.log(beta)) for beta in (rule.beta1, rule.beta2))  # 1 - beta^t, all its digits
        change = partial(jax.tree.map, lambda w, m, v: w - rule.lr * (m / of_m) / (jnp.sqrt(v / of_v) + rule.eps))
        return change(w, m, v), m, v, t

    def epoch(self, order: np.ndarray) -> np.ndarray:
        order = (order if self.network.population > 1 else order[:, 0]).astype(np.int32)
        stride, total = self.stride or len(order), 0.0
        with jax.default_device(self.device):
            for s in range(0, len(order), stride):
                self.state, loss = self.run(self.state, self.x, self.labels, order[s : s + stride])
                total += loss
        return np.atleast_1d(np.asarray(total)) / len(order)
