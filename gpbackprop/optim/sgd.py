"""Stochastic gradient descent."""

from gpbackprop.optim.base import Optimizer, Update, column
from gpbackprop.plan import Network
from gpbackprop.spec import Flag, Fraction, NonNegative, spec


@spec
class SGD(Optimizer):
    """v = momentum v + g,  w = w - lr v;  with Nesterov's momentum w = w - lr (g + momentum v)

    g is the gradient plus weight_decay w (for matrices, not for biases). This is the rule of PyTorch; v starts from 0.
    lr, momentum and weight_decay may be lists with one entry for each member of the population.
    """

    momentum: Fraction | tuple[Fraction, ...] = 0.0
    nesterov: Flag = False
    weight_decay: NonNegative | tuple[NonNegative, ...] = 0.0

    def bind(self, network: Network) -> Update:
        xp, w, g = network.backend.xp, network.w, network.g
        lr = column(network, "lr", self.lr)
        momentum = column(network, "momentum", self.momentum)
        decay = column(network, "weight_decay", self.weight_decay)
        with_momentum, with_decay = any_of(self.momentum), any_of(self.weight_decay)
        rate, t = xp.empty_like(lr), xp.empty_like(w)
        v = xp.zeros_like(w) if with_momentum else None
        decayed = network.mask(lambda place: place.decay)
        trained = network.mask(lambda place: not place.frozen)
        if with_decay and decayed is not None:
            decay = xp.multiply(decay, decayed)

        def step():
            if with_decay:
                xp.multiply(w, decay, out=t)
                xp.add(g, t, out=g)
            if trained is not None:
                xp.multiply(g, trained, out=g)
            direction = g
            if v is not None:
                xp.multiply(v, momentum, out=v)
                xp.add(v, g, out=v)
                direction = v
                if self.nesterov:
                    xp.multiply(v, momentum, out=t)
                    xp.add(g, t, out=g)
                    direction = g
            xp.multiply(direction, rate, out=t)
            xp.subtract(w, t, out=w)

        return Update(step, lr, rate, {} if v is None else {"velocity": v})

    @classmethod
    def example(cls):
        return cls(lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01)


def any_of(value) -> bool:
    """Whether a hyper-parameter, or one member's, differs from 0."""
    return any(value) if isinstance(value, tuple) else bool(value)
