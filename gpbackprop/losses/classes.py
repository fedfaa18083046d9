"""Losses of classes: by the probability of the right one, or by the side of a plane that a row lies on."""

import numpy as np

from gpbackprop.backend.functions import sigmoid, softplus
from gpbackprop.losses.base import Loss
from gpbackprop.spec import Fraction, spec


@spec
class SoftmaxCrossEntropy(Loss):
    """l = -sum_o t_o log p_o,  p = softmax(y),  sum_o t_o = 1;  dl/dy_o = p_o - t_o

    t is one-hot or a distribution over the classes; label smoothing e makes it (1 - e) t + e / O.
    """

    binary = False
    label_smoothing: Fraction = 0.0

    def table(self, classes, outputs):
        return (1 - self.label_smoothing) * np.eye(classes) + self.label_smoothing / classes

    def _targets(self, plan, y, target):
        given, look_up = super()._targets(plan, y, target)
        if target.classes or not self.label_smoothing:
            return given, look_up
        xp, t = plan.xp, plan.scratch(y.shape)

        def smooth():
            xp.multiply(given, 1 - self.label_smoothing, out=t)
            xp.add(t, self.label_smoothing / y.shape[1], out=t)

        return t, smooth

    def rows(self, plan, y, t, each):
        xp = plan.xp
        z, p, column = plan.scratch(y.shape), plan.scratch(y.shape), plan.scratch((y.shape[0], 1))

        def forward():  # l = log(sum_o exp(z_o)) - sum_o t_o z_o,  z = y - max(y)
            xp.max(y.value, axis=-1, keepdims=True, out=column)
            xp.subtract(y.value, column, out=z)
            xp.exp(z, out=p)
            xp.sum(p, axis=-1, keepdims=True, out=column)
            xp.divide(p, column, out=p)
            xp.log(column, out=column)
            xp.multiply(z, t, out=z)
            xp.sum(z, axis=-1, keepdims=True, out=each)
            xp.subtract(column, each, out=each)

        def backward():
            xp.subtract(p, t, out=y.grad)

        return forward, backward

    def probabilities(self, y):
        p = np.exp(y - y.max(axis=-1, keepdims=True))
        return p / p.sum(axis=-1, keepdims=True)


@spec
class BinaryCrossEntropy(Loss):
    """l = 1/O sum_o log(1 + exp(y_o)) - t_o y_o  for logits y;  dl/dy_o = (1/(1 + exp(-y_o)) - t_o) / O"""

    threshold = 0.0

    def rows(self, plan, y, t, each):
        xp, a, b = plan.xp, plan.scratch(y.shape), plan.scratch(y.shape)

        def forward():
            softplus(xp, y.value, a, b)
            xp.multiply(y.value, t, out=b)
            xp.subtract(a, b, out=a)
            xp.mean(a, axis=-1, keepdims=True, out=each)

        def backward():
            sigmoid(xp, y.value, y.grad)
            xp.subtract(y.grad, t, out=y.grad)
            xp.multiply(y.grad, 1 / y.shape[1], out=y.grad)

        return forward, backward

    def probabilities(self, y):
        return 0.5 + 0.5 * np.tanh(0.5 * y)


@spec
class Perceptron(Loss):
    """l = sum_o max(0, -t_o y_o),  t_o = +-1;  dl/dy_o = -t_o where t_o y_o <= 0, else 0

    With one row a step and a learning rate of 1 this is the perceptron rule w = w + t x for a row on the wrong side. An
    output of 0 is on neither side and counts as wrong, so that learning can start from zero. (F. Rosenblatt, 1958)
    """

    low = -1.0
    threshold = 0.0

    def rows(self, plan, y, t, each):
        xp, wrong = plan.xp, plan.scratch(y.shape)

        def forward():
            xp.multiply(y.value, t, out=wrong)
            xp.negative(wrong, out=wrong)
            xp.maximum(wrong, 0, out=wrong)
            xp.sum(wrong, axis=-1, keepdims=True, out=each)

        def backward():
            xp.multiply(y.value, t, out=wrong)
            xp.less_equal(wrong, 0, out=wrong)
            xp.multiply(wrong, t, out=y.grad)
            xp.negative(y.grad, out=y.grad)

        return forward, backward


@spec
class Hinge(Loss):
    """l = sum_o max(0, 1 - t_o y_o),  t_o = +-1;  dl/dy_o = -t_o where t_o y_o < 1, else 0"""

    low = -1.0
    threshold = 0.0

    def rows(self, plan, y, t, each):
        xp, margin = plan.xp, plan.scratch(y.shape)

        def forward():
            xp.multiply(y.value, t, out=margin)
            xp.subtract(1, margin, out=margin)
            xp.maximum(margin, 0, out=margin)
            xp.sum(margin, axis=-1, keepdims=True, out=each)

        def backward():
            xp.sign(margin, out=y.grad)
            xp.multiply(y.grad, t, out=y.grad)
            xp.negative(y.grad, out=y.grad)

        return forward, backward
