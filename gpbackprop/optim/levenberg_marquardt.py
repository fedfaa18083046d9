"""Levenberg-Marquardt: damped Gauss-Newton steps for small least-squares networks."""

import math

import numpy as np

from gpbackprop.backend import Array
from gpbackprop.errors import ConfigError
from gpbackprop.optim.base import Binding
from gpbackprop.optim.objective import Objective
from gpbackprop.optim.search import Search
from gpbackprop.plan import Network, Plan
from gpbackprop.spec import Count, Positive, spec, type_name

LARGEST = 4000  # parameters: the system then takes 128 MB and some seconds
ROWS = 64  # the rows whose Jacobian is made at once


@spec
class LevenbergMarquardt(Search):
    """w = w - lr d,  (J^T C J + damping 1) d = g:  J = dy/dw for every output of every row, C = d^2L/dy^2, diagonal

    C is constant for squared errors, so J^T C J is the Hessian but for the curvature of the network. A step that makes
    the loss smaller divides the damping by `factor`; one that does not is taken back, multiplies it, and is tried
    again, `tries` times in all. (K. Levenberg, 1944; D. Marquardt, 1963; M. Hagan and M. Menhaj, 1994)

    A step costs, for R rows with O outputs and P parameters, O backward passes over all rows, 2 R O P^2 operations for
    the product, and 2/3 P^3 and a forward pass for each try.

    Raises ConfigError for another loss, weights of classes, more than 4000 parameters, or layers that keep state.
    """

    damping: Positive | tuple[Positive, ...] = 0.001
    factor: Positive = 10.0
    tries: Count = 10

    def bind(self, network, objective=None):
        at = Binding(self, network)
        xp, w, g, K, P = at.xp, at.w, at.g, network.K, network.params.size
        loss, host = self._loss(at, objective), network.backend.host
        hessian = GaussNewton(at, objective)
        damping = at.scalar("damping")
        damping[...] = at.column("damping", dtype=np.float64)
        used = hessian.used
        decay = host(xp.broadcast_to(at.on_matrices(at.column("weight_decay")), (K, P)))[:, used].astype(np.float64)

        def step():
            value = loss(evaluate=False)
            H, slope = hessian(), host(g)[:, used].astype(np.float64)[:, :, None]
            one = np.eye(len(used))
            H += decay[:, :, None] * one
            start, mu = w.copy(), np.array(host(damping))[:, 0]
            open_, taken = host(at.rate)[:, 0] > 0, np.zeros((K, P))
            for _ in range(self.tries):
                change = np.linalg.solve(H + mu[:, None, None] * one, slope)[:, :, 0]
                taken[np.ix_(open_, used)] = change[open_]
                w[...] = start - network.backend.array(taken.astype(network.dtype)) * at.rate
                better = open_ & (loss(gradient=False) < value)
                mu = np.where(better, mu / self.factor, np.where(open_, mu * self.factor, mu))
                open_ &= ~better
                if not open_.any():
                    break
            taken[open_] = 0
            w[...] = start - network.backend.array(taken.astype(network.dtype)) * at.rate
            damping[...] = network.backend.array(np.clip(mu, 1e-20, 1e20)[:, None])

        return at.update(step)

    def size(self, network, batch):
        """Two networks for each of some rows, and a few systems of float64; what is too large for it is refused."""
        n, rows = min(network.parameter_count, LARGEST), min(ROWS, batch)
        return network.K * (2 * rows * network.params.size * network.dtype.itemsize + 8 * (4 * n * n + 2 * rows * n))

    @classmethod
    def example(cls):
        return cls(weight_decay=1e-4)


class GaussNewton:
    """J^T C J of each member, (K, n, n) in float64 on the host, for the n parameters `used` that are trained.

    The rows are the members of a second network with the same parameters and a batch of one: one backward pass gives
    the gradient of an output for each row apart.
    """

    def __init__(self, at: Binding, objective: Objective):
        network, plan, named = at.network, objective.plan, type_name(type(at.optimizer))
        curvature = objective.loss.curvature(plan.y.shape[-1])
        if curvature is None or objective.loss.class_weights:
            raise ConfigError(
                f"optimizer: {named} is for least squares; set loss.type to half_squared_error or mean_squared_error, "
                "without class_weights, or take lbfgs"
            )
        if network.parameter_count > LARGEST:
            raise ConfigError(
                f"optimizer: {named} solves a system as large as the network, which has {network.parameter_count} "
                f"parameters; it takes up to {LARGEST}. Take lbfgs for this one"
            )
        if network.states or network.lengths:
            what = f"{next(iter(network.states))} is shared by them" if network.states else "they are of many lengths"
            raise ConfigError(f"optimizer: {named} takes rows one by one, but {what}; take lbfgs for this network")
        self.at, self.objective, self.curvature = at, objective, curvature
        places = [place for place in network.params.values() if at.trained(place)]
        self.used = np.array([i for place in places for i in range(place.offset, place.offset + place.size)], int)
        self.rows = min(ROWS, plan.batch)
        seeds = [seed for seed in network.seeds for _ in range(self.rows)]
        self.network = Network(network.model, network.row_shape, network.backend, seeds, network.dtype)
        self.network.clock = network.clock
        self.plan = Plan(self.network, 1, training=True)
        if self.plan.draws:
            raise ConfigError(
                f"optimizer: {named} takes rows one by one, but dropout draws for a batch; leave dropout out, or take "
                "lbfgs"
            )

    def __call__(self) -> np.ndarray:
        at, K, P = self.at, self.at.network.K, self.at.network.params.size
        backend, x, y = at.network.backend, self.objective.plan.x.value, self.plan.y
        count, outputs = x.shape[1], math.prod(y.shape)
        weight = self._weights()
        self.network.w.reshape(K, self.rows, P)[...] = at.w[:, None]
        rows_x = self.plan.x.value.reshape(K, self.rows, *x.shape[2:])
        grad: Array = y.grad
        grad, H = grad.reshape(K * self.rows, outputs), np.zeros((K, len(self.used), len(self.used)))
        for first in range(0, count, self.rows):
            n = min(self.rows, count - first)
            rows_x[:, :n] = x[:, first : first + n]
            self.plan.forward()
            for o in range(outputs):
                grad.fill(0)
                grad[:, o] = 1
                self.plan.backward()
                J = backend.host(self.network.g.reshape(K, self.rows, P)[:, :n])[:, :, self.used].astype(np.float64)
                H += np.matmul(J.swapaxes(1, 2), J * weight[:, first : first + n])
        return H

    def _weights(self) -> np.ndarray:
        """C of the rows, (K, R, 1)."""
        objective, host = self.objective, self.at.network.backend.host
        weight: Array = np.ones((self.at.network.K, objective.plan.batch))
        if objective.target.weight is not None:
            weight = host(objective.target.weight).reshape(weight.shape).astype(np.float64)
        if objective.loss.reduce == "mean":
            weight = weight / np.maximum(host(objective.mass)[:, 0], 1e-300)
        return (self.curvature * weight)[:, :, None]
