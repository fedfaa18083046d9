"""PyTorch's convolutions, poolings and norms as counterparts of ours: (the twin, the layer, its path) -> a module.

PyTorch has the channels first: each module moves the axes of its input, its weights and its output. The parameters keep
our layout, so that gradients and steps are compared as they are.
"""

import numpy as np
import torch  # imported by test_torch, which is skipped without it
from torch import nn

from gpbackprop.backend import random

F = nn.functional


def first(x):
    """(B, ..., C) as (B, C, ...)."""
    return x.movedim(-1, 1)


def last(x):
    return x.movedim(1, -1)


def both(value, axes):
    return tuple(value) if isinstance(value, tuple) else (value,) * axes


def pads(layer, sizes, kernel, stride, dilation):
    """Our padding of each axis: (before, after)."""
    found = []
    for size, k, s, d, p in zip(sizes, kernel, stride, dilation, both(layer.padding, len(sizes)), strict=True):
        total = max(0, (-(-size // s) - 1) * s + d * (k - 1) + 1 - size)
        found.append((0, 0) if p == "valid" else (total // 2, total - total // 2) if p == "same" else (p, p))
    return found


def padded(x, sides, value=0.0):
    """(B, C, ...) with padding; F.pad counts the axes from the last one."""
    return F.pad(x, [side for pair in reversed(sides) for side in pair], value=value)


class Module(nn.Module):
    """Holds parameters of ours by their names; `functions` has the function of one and of two axes."""

    functions = ()

    def __init__(self, twin, layer, path):
        super().__init__()
        self.layer = layer
        for name in layer.parameters if hasattr(layer, "parameters") else ():
            if path + name in twin.net.params:
                setattr(self, name, nn.Parameter(torch.zeros(twin.net.params[path + name].shape)))
                twin.pairs.append((path + name, getattr(self, name), False))
        if getattr(layer, "activation", None):
            self.activation = twin(layer.activation, path)

    def run(self, x):
        raise NotImplementedError

    def forward(self, x):
        y = last(self.run(first(x)))
        return self.activation(y) if hasattr(self, "activation") else y


class Conv(Module):
    def run(self, x):
        layer, axes = self.layer, x.ndim - 2
        kernel, stride, dilation = (both(v, axes) for v in (layer.kernel, layer.stride, layer.dilation))
        x = padded(x, pads(layer, x.shape[2:], kernel, stride, dilation))
        W = self.W.movedim((-1, -2), (0, 1))
        convolve = F.conv1d if axes == 1 else F.conv2d
        return convolve(x, W, getattr(self, "b", None), stride, 0, dilation, layer.groups)


class ConvTranspose(Module):
    def run(self, x):
        layer = self.layer
        kernel, stride, dilation = (both(v, 2) for v in (layer.kernel, layer.stride, layer.dilation))
        W = self.W.movedim((-1, -2), (0, 1))
        y = F.conv_transpose2d(x, W, getattr(self, "b", None), stride, 0, 0, layer.groups, dilation)
        same = layer.padding == "same"
        sizes = [n * s for n, s in zip(x.shape[2:], stride, strict=True)] if same else y.shape[2:]
        for axis, (before, after) in enumerate(pads(layer, sizes, kernel, stride, dilation)):
            y = y.narrow(2 + axis, before, y.shape[2 + axis] - before - after)
        return y


class MaxPool(Module):
    def run(self, x):
        layer, axes = self.layer, x.ndim - 2
        kernel, stride = both(layer.kernel, axes), both(layer.stride or layer.kernel, axes)
        x = padded(x, pads(layer, x.shape[2:], kernel, stride, (1,) * axes), -torch.inf)
        return (F.max_pool1d if axes == 1 else F.max_pool2d)(x, kernel, stride)


class AveragePool(Module):
    """The mean over what is not padding: PyTorch's means of the image and of ones, divided."""

    def run(self, x):
        layer, axes = self.layer, x.ndim - 2
        kernel, stride = both(layer.kernel, axes), both(layer.stride or layer.kernel, axes)
        sides = pads(layer, x.shape[2:], kernel, stride, (1,) * axes)
        mean = F.avg_pool1d if axes == 1 else F.avg_pool2d
        return mean(padded(x, sides), kernel, stride) / mean(padded(torch.ones_like(x), sides), kernel, stride)


class BatchNorm(Module):
    def __init__(self, twin, layer, path):
        super().__init__(twin, layer, path)
        self.mean, self.variance = (
            torch.tensor(twin.net.states[path + name].of(twin.net.state)[0, 0]) for name in MOMENTS
        )

    def run(self, x):
        return F.batch_norm(
            x, self.mean, self.variance, self.gamma, self.beta, self.training, self.layer.momentum, self.layer.eps
        )


MOMENTS = ("mean", "variance")


class GroupNorm(Module):
    def run(self, x):
        return F.group_norm(x, self.layer.groups, self.gamma, self.beta, self.layer.eps)


class LayerNorm(Module):
    def forward(self, x):
        return F.layer_norm(x, x.shape[-1:], self.gamma, self.beta, self.layer.eps)


class RMSNorm(Module):
    def forward(self, x):
        return F.rms_norm(x, x.shape[-1:], self.gamma, self.layer.eps)


class Dropout2d(Module):
    """PyTorch draws other masks: this one is given ours, from their definition."""

    def __init__(self, twin, layer, path):
        super().__init__(twin, layer, path)
        self.twin, self.key = twin, random.key(twin.net.seeds[0], f"{path}uniform")[None]

    def forward(self, x):
        shape = (1, x.shape[0], x.shape[-1])
        u, index = np.empty(shape), np.arange(shape[1] * shape[2], dtype=np.uint32).reshape(shape[1:])
        random.uniform(np, u, np.empty((2, *shape), np.uint32), index, self.key, np.array([self.twin.step], np.uint32))
        kept = torch.tensor(u[0] >= self.layer.rate)
        return x * kept.reshape(len(x), *(1,) * (x.ndim - 2), -1) / (1 - self.layer.rate)


class GlobalAveragePool(Module):
    def forward(self, x):
        return x.flatten(1, -2).mean(dim=1)


LAYERS = {
    "conv1d": Conv,
    "conv2d": Conv,
    "conv_transpose2d": ConvTranspose,
    "max_pool1d": MaxPool,
    "max_pool2d": MaxPool,
    "average_pool1d": AveragePool,
    "average_pool2d": AveragePool,
    "global_average_pool": GlobalAveragePool,
    "batch_norm": BatchNorm,
    "group_norm": GroupNorm,
    "layer_norm": LayerNorm,
    "rms_norm": RMSNorm,
    "dropout2d": Dropout2d,
}
