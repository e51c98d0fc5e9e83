"""Random numbers of one sample: a stream of Philox, addressed by the sample's place in the sample order."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from engine.objectives.example import Ints
from engine.ops.philox import make_key


class Draws:
    """The numbers that sample `index` draws under `seed`, in the order it asks; any sample can be drawn alone.

    The bits are those of numpy's Philox-4x64-10, whose stream is fixed; what is made of them is ours, and so is fixed
    too.
    """

    def __init__(self, seed: int, index: int) -> None:
        self._bits = np.random.Philox(key=make_key(seed, "objective", index))

    def uniform(self, count: int) -> NDArray[np.float64]:
        """Return `count` numbers in [0, 1), multiples of 2^-53."""
        return (self._bits.random_raw(count) >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def chance(self, share: float) -> bool:
        """Return True for `share` of the calls."""
        return bool(self.uniform(1)[0] < share)

    def below(self, n: int) -> int:
        """Return one of 0..n-1."""
        return min(n - 1, int(self.uniform(1)[0] * n))

    def pick(self, weights: NDArray[np.float64]) -> int:
        """Return an index, as often as its weight says."""
        edges = np.cumsum(weights)
        return int(np.searchsorted(edges, self.uniform(1)[0] * edges[-1], side="right").clip(max=len(edges) - 1))

    def order(self, n: int) -> Ints:
        """Return a permutation of 0..n-1."""
        return np.argsort(self.uniform(n), kind="stable")

    def choose(self, n: int, count: int) -> Ints:
        """Return `count` of 0..n-1 without repetition, in ascending order."""
        return np.sort(self.order(n)[:count])

    def poisson(self, mean: float, count: int) -> Ints:
        """Return `count` numbers, Poisson with `mean` but for 0, which is not drawn."""
        steps = _poisson_steps(mean)
        return 1 + np.searchsorted(steps, steps[0] + self.uniform(count) * (1.0 - steps[0]), side="right") - 1


@lru_cache
def _poisson_steps(mean: float) -> NDArray[np.float64]:
    """Return the distribution function of Poisson at 0, 1, ... up to where float64 calls it 1."""
    most = int(mean + 12.0 * math.sqrt(mean) + 24.0)
    logs = [-mean + k * math.log(mean) - math.lgamma(k + 1) for k in range(most)]
    return np.cumsum(np.exp(logs))
