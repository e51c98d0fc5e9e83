"""Counter-based randomness: Philox-4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC11).

Every number is addressed by what it is for, never by when or where it is drawn: a 64-bit key from a seed and names,
and the index of an element. Element e uses lane e % 4 of the counter (e // 4 low word, e // 4 high word, 0, 0).
Normals come from one 32-bit uniform each through the inverse distribution function (AS241, Wichura 1988), computed
in float64 by correctly rounded operations only, so that torch and the compiled kernels agree to the last bit.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from engine.ops import backend

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10

_CENTRE = (
    (3.3871328727963666080e0, 1.3314166789178437745e2, 1.9715909503065514427e3, 1.3731693765509461125e4,
     4.5921953931549871457e4, 6.7265770927008700853e4, 3.3430575583588128105e4, 2.5090809287301226727e3),
    (1.0, 4.2313330701600911252e1, 6.8718700749205790830e2, 5.3941960214247511077e3,
     2.1213794301586595867e4, 3.9307895800092710610e4, 2.8729085735721942674e4, 5.2264952788528545610e3),
)  # fmt: skip
_TAIL = (
    (1.42343711074968357734e0, 4.63033784615654529590e0, 5.76949722146069140550e0, 3.64784832476320460504e0,
     1.27045825245236838258e0, 2.41780725177450611770e-1, 2.27238449892691845833e-2, 7.74545014278341407640e-4),
    (1.0, 2.05319162663775882187e0, 1.67638483018380384940e0, 6.89767334985100004550e-1,
     1.48103976427480074590e-1, 1.51986665636164571966e-2, 5.47593808499534494600e-4, 1.05075007164441684324e-9),
)  # fmt: skip
_LN2 = 0.6931471805599453


def make_key(seed: int, *what: int | str) -> int:
    """Return the 64-bit key of a stream named by `what` under `seed`."""
    text = "/".join(str(part) for part in (seed, *what))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def philox4x32(counter: Sequence[Tensor], key: int) -> list[Tensor]:
    """Return the four output words for counters of four int64 tensors in [0, 2^32) under a 64-bit key."""
    c0, c1, c2, c3 = counter
    k0, k1 = key & _MASK, key >> 32
    for _ in range(_ROUNDS):
        # int64 products wrap modulo 2^64, which leaves the low 64 bits, and so both words, right
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = ((p1 >> 32) & _MASK) ^ c1 ^ k0, p1 & _MASK, ((p0 >> 32) & _MASK) ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return [c0, c1, c2, c3]


def random_bits(key: int, index: Tensor) -> Tensor:
    """Return one 32-bit word per element index (int64 in, int64 in [0, 2^32) out, any shape)."""
    counter, lane = index >> 2, index & 3
    zero = torch.zeros_like(counter)
    words = torch.stack(philox4x32([counter & _MASK, counter >> 32, zero, zero], key))
    return words.gather(0, lane[None])[0]


def uniform(key: int, index: Tensor) -> Tensor:
    """Return float64 in (0, 1), one per element index."""
    return (random_bits(key, index).double() + 0.5) * 2.0**-32


def _polynomial(coefficients: Sequence[float], x: Tensor) -> Tensor:
    total = torch.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        total = total * x + coefficient
    return total


def _log(x: Tensor) -> Tensor:
    """Natural logarithm of positive float64 by correctly rounded operations: 2 artanh((m-1)/(m+1)) + e ln 2."""
    mantissa, exponent = torch.frexp(x)
    small = mantissa < math.sqrt(0.5)
    mantissa = torch.where(small, mantissa * 2.0, mantissa)
    power = exponent.double() - small.double()
    z = (mantissa - 1.0) / (mantissa + 1.0)
    series = _polynomial([1.0 / (2 * n + 1) for n in range(12)], z * z)
    return power * _LN2 + 2.0 * z * series


def _sqrt(x: Tensor) -> Tensor:
    """Square root of float64 in [0.5, 23] by Heron's rule: torch.sqrt is not correctly rounded on every machine."""
    root = 0.5 * (x + 1.0)
    for _ in range(6):
        root = 0.5 * (root + x / root)
    return root


def normal(key: int, index: Tensor) -> Tensor:
    """Return standard normal float64, one per element index (within 6.5 standard deviations)."""
    u = uniform(key, index)
    q = u - 0.5
    r = 0.180625 - q * q
    centre = q * _polynomial(_CENTRE[0], r) / _polynomial(_CENTRE[1], r)
    r = _sqrt(-_log(torch.where(q < 0, u, 1.0 - u))) - 1.6
    tail = _polynomial(_TAIL[0], r) / _polynomial(_TAIL[1], r)
    return torch.where(q.abs() <= 0.425, centre, torch.where(q < 0, -tail, tail))


def box_index(
    global_shape: Sequence[int], offsets: Sequence[int], shape: Sequence[int], device: torch.device
) -> Tensor:
    """Return the row-major index in the global tensor of each element of a box, int64 of the box's shape."""
    index = torch.zeros((), dtype=torch.int64, device=device)
    stride = math.prod(global_shape)
    for size, offset, length in zip(global_shape, offsets, shape, strict=True):
        stride //= max(1, size)
        index = index[..., None] + (torch.arange(length, device=device) + offset) * stride
    return index


def fill_normal_(
    out: Tensor, key: int, global_shape: Sequence[int], offsets: Sequence[int], std: float, mean: float = 0.0
) -> Tensor:
    """Fill `out`, the box at `offsets` of a tensor of `global_shape`, with its part of that tensor's normals."""
    if _is_fused("normal", out):
        torch.ops.trimaran.fill_normal_(out, signed(key), list(global_shape), list(offsets), std, mean)
        return out
    index = box_index(global_shape, offsets, out.shape, out.device)
    return out.copy_(normal(key, index) * std + mean)


def fill_uniform_(
    out: Tensor, key: int, global_shape: Sequence[int], offsets: Sequence[int], low: float = 0.0, high: float = 1.0
) -> Tensor:
    """Fill `out`, the box at `offsets` of a tensor of `global_shape`, with its part of low + (high - low) * uniform.

    That is computed in float64, where it lies within [low, high], and rounded once to out's dtype, to which both ends
    may be rounded too: in float32 they occur. Each number comes from 32 bits, in float64 too.
    """
    if not low <= high:
        raise ValueError(f"fill_uniform_ takes low <= high, not {low} and {high}.")
    if _is_fused("uniform", out):
        torch.ops.trimaran.fill_uniform_(out, signed(key), list(global_shape), list(offsets), low, high)
        return out
    index = box_index(global_shape, offsets, out.shape, out.device)
    return out.copy_(low + (high - low) * uniform(key, index))


def _is_fused(op: str, out: Tensor) -> bool:
    return backend.native(op, out) and out.is_contiguous() and out.dim() > 0


def signed(key: int) -> int:
    """Return a key as the signed 64-bit integer that operators take."""
    return key - (1 << 64) if key >= 1 << 63 else key
