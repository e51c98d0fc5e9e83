"""The order of samples: a keyed permutation of range(n), computed for each index alone.

A Feistel network of four rounds permutes the smallest power of four that holds n; indices that fall outside are sent
through again until they land inside (cycle walking), which takes fewer than four walks on average. No shuffle file,
no start-up work, and any index can be asked for at any time (Luby and Rackoff 1988; Black and Rogaway 2002).
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 4


class Permutation:
    """A bijection of range(n) named by `what`: equal names and n give equal orders."""

    def __init__(self, n: int, *what: int | str) -> None:
        self.n = n
        self._half_bits = max(1, ((max(1, n - 1)).bit_length() + 1) // 2)
        digest = hashlib.blake2b("/".join(map(str, what)).encode(), digest_size=8 * _ROUNDS).digest()
        self._keys = np.frombuffer(digest, dtype=np.uint64)

    def __call__(self, index: int) -> int:
        return int(self.take(np.asarray([index]))[0])

    def take(self, indices: NDArray[np.integer]) -> NDArray[np.int64]:
        """Return the images of `indices` (each in range(n))."""
        values = self._network(indices.astype(np.uint64))
        outside = values >= self.n
        while outside.any():
            values[outside] = self._network(values[outside])
            outside = values >= self.n
        return values.astype(np.int64)

    def _network(self, values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        bits = np.uint64(self._half_bits)
        mask = np.uint64((1 << self._half_bits) - 1)
        left, right = values >> bits, values & mask
        for key in self._keys:
            left, right = right, left ^ (_mix(right ^ key) & mask)
        return (left << bits) | right


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A 64-bit finaliser (splitmix64): every output bit depends on every input bit."""
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
