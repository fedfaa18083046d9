"""Particle swarm: training without gradients, for comparison. The particles are the members of the population."""

import numpy as np

from gpbackprop.backend import random
from gpbackprop.errors import ConfigError
from gpbackprop.optim.base import Binding, Optimizer
from gpbackprop.spec import NonNegative, Positive, spec


@spec
class ParticleSwarm(Optimizer):
    """v = inertia v + own r1 (best - w) + social r2 (leader - w),  w = w + lr v

    `best` is where a particle had its smallest loss, the leader's the best of all; r1 and r2 are drawn uniformly from
    [0, 1) for each weight. Each particle starts as the network of its seed, with v uniform in [-start, start]; |v_i| is
    kept within `limit`. The result of the training, which evaluation, prediction and checkpoints take, is one network,
    the leader's best; a checkpoint holds it for every member. (J. Kennedy and R. Eberhart, 1995; the constants are
    those of M. Clerc and J. Kennedy, 2002)

    Raises ConfigError for a population of one.
    """

    whole = True
    gradient = False
    swarm = True
    lr: NonNegative | tuple[NonNegative, ...] = 1.0
    inertia: NonNegative | tuple[NonNegative, ...] = 0.7298
    own: NonNegative | tuple[NonNegative, ...] = 1.49618
    social: NonNegative | tuple[NonNegative, ...] = 1.49618
    start: NonNegative = 1.0
    limit: Positive | None = None

    def bind(self, network, objective=None):
        if network.K < 2:
            raise ConfigError("population: is 1, but the particles of a swarm are its members; set population = 30")
        at = Binding(self, network)
        xp, w, t = at.xp, at.w, at.delta
        trained = network.mask(at.trained)
        v, best, value = at.array("velocity"), at.array("best"), at.scalar("best_loss", np.finfo(np.float64).max)
        self._throw(at, v)
        best[...] = w
        result, keys, draw = w.copy(), _keys(network), at.scratch()
        index = xp.arange(w.shape[1], dtype=np.uint32)
        bits = xp.zeros((2, *w.shape), np.uint32)
        inertia, own, social = (at.column(name) for name in ("inertia", "own", "social"))
        now, better = xp.zeros_like(value), xp.zeros(value.shape, bool)

        def step():
            now[...] = objective.total[:, :, 0]
            if objective.loss.reduce == "mean":
                xp.divide(now, objective.mass[:, :, 0], out=now)
            xp.less(now, value, out=better)
            xp.copyto(best, w, where=better)
            xp.copyto(value, now, where=better)
            result[...] = xp.take(best, xp.argmin(value, axis=0), axis=0)
            xp.multiply(v, inertia, out=v)
            for place, pull, key in ((best, own, keys[0]), (result, social, keys[1])):
                random.uniform(xp, draw, bits, index, key, network.clock)
                xp.multiply(draw, pull, out=draw)
                xp.subtract(place, w, out=t)
                xp.multiply(t, draw, out=t)
                xp.add(v, t, out=v)
            if self.limit:
                xp.clip(v, -self.limit, self.limit, out=v)
            if trained is not None:
                xp.multiply(v, trained, out=v)
            xp.multiply(v, at.rate, out=t)
            xp.add(w, t, out=w)

        return at.update(step, result=result)

    def _throw(self, at: Binding, v) -> None:
        """The first velocities: a function of the seeds."""
        network = at.network
        host = np.zeros(network.w.shape, network.dtype)
        for path, place in network.params.items():
            for k, seed in enumerate(network.seeds):
                rng = random.generator(seed, f"particle_swarm/{path}")
                place.of(host)[k] = rng.uniform(-self.start, self.start, place.shape)
        network.backend.stage(host, v)

    @classmethod
    def example(cls):
        return cls(limit=2.0)


def _keys(network) -> list:
    """The keys of both draws, (K, 2) each."""
    return [
        network.backend.array(np.stack([random.key(seed, f"particle_swarm/{pull}") for seed in network.seeds]))
        for pull in ("own", "social")
    ]
