"""Randomness as pure functions: the same bits on every backend, and nothing to save but two integers.

`key` turns a seed and a purpose (a parameter path, "order", ...) into 32-bit words. `permutation` is a bijection of
(seed, epoch), `uniform` a hash of (key, step, index), and `generator` the host's stream for one initial parameter.
"""

import hashlib
from collections.abc import Sequence

import numpy as np

ELEMENTS = 2**17  # of permutations that are made at once, which stay in the cache


def key(seed: int, purpose: str, words: int = 2) -> np.ndarray:
    """`words` independent uint32 words of `(seed, purpose)`."""
    digest = hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=4 * words).digest()
    return np.frombuffer(digest, "<u4").astype(np.uint32)


def generator(seed: int, purpose: str) -> np.random.Generator:
    """The host's random stream of `(seed, purpose)`, for initial parameters and generated data."""
    return np.random.Generator(np.random.Philox(key=key(seed, purpose, 4).view(np.uint64)))


def mix(xp, x, t) -> None:
    """Hash the uint32 array `x` in place; `t` is scratch of its shape.

    A bijection of 32 bits with an avalanche bias of 0.17 (C. Wellons, "Prospecting for Hash Functions", 2018).
    """
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        xp.right_shift(x, shift, out=t)
        xp.bitwise_xor(x, t, out=x)
        xp.multiply(x, factor, out=x)
    xp.right_shift(x, 16, out=t)
    xp.bitwise_xor(x, t, out=x)


def permutation(n: int, seed: int, epoch: int | str) -> np.ndarray:
    """The order of `n` rows in an epoch, or in a named part of one: an int64 permutation of 0..n-1, a function of
    `(seed, epoch)` alone.

    Six Feistel rounds over the next even power of two; indices that fall outside 0..n-1 walk on until they return
    (J. Black and P. Rogaway, "Ciphers with Arbitrary Finite Domains", 2002).
    """
    return permutations(n, [seed], epoch)[0]


def permutations(n: int, seeds: Sequence[int], epoch: int | str) -> np.ndarray:
    """Those of several seeds, (K, n)."""
    at_once = max(1, ELEMENTS // max(n, 1))
    parts = [_permutations(n, seeds[k : k + at_once], epoch) for k in range(0, len(seeds), at_once)]
    return np.concatenate(parts)


def _permutations(n: int, seeds: Sequence[int], epoch: int | str) -> np.ndarray:
    half = np.uint32(max(1, -(-(n - 1).bit_length() // 2)))
    mask = np.uint32((1 << int(half)) - 1)
    rounds = np.array([key(seed, f"order/{epoch}", 6) for seed in seeds])
    order = np.tile(np.arange(n, dtype=np.uint32), len(seeds))
    outside = np.arange(order.size)
    while len(outside):
        walk, own = order[outside], rounds[outside // n if len(seeds) > 1 else [0]]
        left, right = walk >> half, walk & mask
        for r in range(rounds.shape[1]):
            f, t = right ^ own[:, r], np.empty_like(right)
            mix(np, f, t)
            left, right = right, (left ^ f) & mask
        order[outside] = (left << half) | right
        outside = np.flatnonzero(order >= n)
    return order.reshape(len(seeds), n).astype(np.int64)


def uniform(xp, out, bits, index, key, step) -> None:
    """out[k,...] = a number in [0, 1), a hash of (key[k], step, index): 24 bits each.

    `bits` is uint32 scratch (2, *out.shape), `index` the uint32 element numbers 0.. of one member (broadcast over k),
    `key` (K, 2) uint32, `step` a uint32 array of one element.
    """
    h, t = bits[0], bits[1]
    wide = (len(key), *(1,) * (out.ndim - 1))
    k0, k1 = key[:, 0].reshape(wide), key[:, 1].reshape(wide)
    first = (slice(None), *(slice(0, 1),) * (out.ndim - 1))
    per_member, spare = h[first], t[first]
    xp.multiply(step, 0x9E3779B9, out=per_member)
    xp.add(per_member, k0, out=per_member)
    mix(xp, per_member, spare)
    xp.copyto(spare, per_member)
    xp.bitwise_xor(spare, index, out=h)
    mix(xp, h, t)
    xp.add(h, k1, out=h)
    mix(xp, h, t)
    xp.right_shift(h, 8, out=h)
    xp.copyto(out, h)
    xp.multiply(out, 2.0**-24, out=out)
