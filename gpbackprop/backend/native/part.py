"""What a program is made of."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Part:
    """A call of the function at an address with `arguments`; `work` is what it costs, in additions.

    Its `places` can be done in pieces, of a multiple of `grain` places, on several cores.
    """

    function: int
    arguments: np.ndarray
    work: int
    places: int = 1
    grain: int = 1


def steps(x: np.ndarray, members: int) -> tuple[int, ...]:
    """The strides of matrices, in elements; from member to member 0 where all have the same."""
    k, *rest = (stride // x.itemsize for stride in x.strides)
    return (k if len(x) == members > 1 else 0, *rest)
