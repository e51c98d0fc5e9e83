"""Philox against published vectors; normals, dropout and shards of both against each other, bit for bit."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from engine.ops import backend, philox
from engine.ops.philox import fill_normal_, fill_uniform_, make_key, normal, philox4x32, random_bits, uniform

# Random123's kat_vectors, philox 4x32, 10 rounds: counter, key (low word first), result
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0),
     (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
]  # fmt: skip


compiled = pytest.mark.skipif(backend.load_error() is not None, reason=f"engine._C: {backend.load_error()}")


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_known_answers(counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]) -> None:
    words = philox4x32([torch.tensor(word) for word in counter], key[0] | key[1] << 32)
    assert tuple(int(word) for word in words) == expected


def test_an_element_is_a_lane_of_its_counter() -> None:
    key, index = make_key(1, "x"), torch.tensor([0, 1, 2, 3, 4, 2**35 + 6])
    bits = random_bits(key, index)
    zero = torch.tensor(0)
    assert bits[:4].tolist() == [int(w) for w in philox4x32([zero] * 4, key)]
    high = philox4x32([torch.tensor(2**33 + 1 & 0xFFFFFFFF), torch.tensor(2), zero, zero], key)
    assert bits[5] == high[2]


def test_keys_tell_streams_apart() -> None:
    keys = {make_key(s, *what) for s in (0, 1) for what in (("a",), ("b",), ("a", 1), ("a", 1, 2), ("a", 12))}
    assert len(keys) == 10
    assert all(0 <= key < 2**64 for key in keys)


def test_normals_are_normal() -> None:
    index = torch.arange(1_000_000)
    z, u = normal(make_key(0, "z"), index), uniform(make_key(0, "z"), index)
    torch.testing.assert_close(z, torch.erfinv(2 * u - 1) * math.sqrt(2), rtol=1e-9, atol=1e-12)
    assert abs(z.mean()) < 0.004
    assert abs(z.std() - 1) < 0.003
    assert abs((z**4).mean() - 3) < 0.03


def test_the_most_extreme_words_give_finite_normals(monkeypatch: pytest.MonkeyPatch) -> None:
    words = torch.tensor([0, 2**32 - 1, 2**31 - 1, 2**31, int(0.075 * 2**32), int(0.075 * 2**32) + 1])
    monkeypatch.setattr(philox, "random_bits", lambda key, index: words)
    u = (words.double() + 0.5) / 2**32
    assert torch.equal(uniform(0, words), u)
    z = normal(0, words)
    torch.testing.assert_close(z, torch.special.ndtri(u), rtol=1e-9, atol=1e-12)
    assert z[0] == -z[1]
    assert 6.2 < z[1] < 6.5


FILLS = pytest.mark.parametrize("fill", [fill_normal_, fill_uniform_])


@FILLS
@given(shape=st.lists(st.integers(1, 9), min_size=1, max_size=3), data=st.data())
@settings(max_examples=40, deadline=None)
def test_any_box_is_a_slice_of_the_whole(fill: Callable[..., Tensor], shape: list[int], data: st.DataObject) -> None:
    key = make_key(3, "weight")
    offsets = [data.draw(st.integers(0, n - 1)) for n in shape]
    sizes = [data.draw(st.integers(1, n - o)) for n, o in zip(shape, offsets, strict=True)]
    whole = fill(torch.empty(shape), key, shape, [0] * len(shape), 0.02, 0.1)
    box = fill(torch.empty(sizes), key, shape, offsets, 0.02, 0.1)
    assert torch.equal(box, whole[tuple(slice(o, o + n) for o, n in zip(offsets, sizes, strict=True))])


@compiled
@FILLS
@given(
    n=st.sampled_from([1, 3, 255, 256, 257, 1000]), m=st.integers(1, 5),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)  # fmt: skip
@settings(max_examples=15, deadline=None)
def test_compiled_numbers_are_bitwise_the_reference(
    fill: Callable[..., Tensor], n: int, m: int, dtype: torch.dtype
) -> None:
    drawn = []
    for name in ("cpu", "reference"):
        backend.select(name)
        drawn.append(fill(torch.empty(m, n, dtype=dtype), 2**63 + 5, (m + 7, n + 2), (3, 1), 0.25, 0.7))
    backend.select("auto")
    assert torch.equal(*drawn)


@FILLS
def test_what_kernels_do_not_take_is_filled_by_the_reference(fill: Callable[..., Tensor]) -> None:
    key = make_key(3, "weight")
    whole = fill(torch.empty(6, 5), key, (6, 5), (0, 0), 0.25, 0.7)
    assert torch.equal(fill(torch.empty(5, 6).t(), key, (6, 5), (0, 0), 0.25, 0.7), whole)
    assert torch.equal(fill(torch.empty(()), key, (), (), 0.25, 0.7), whole[0, 0])


def test_uniform_numbers_fill_their_interval_evenly() -> None:
    x = fill_uniform_(torch.empty(1000, 1000, dtype=torch.float64), make_key(0, "u"), (1000, 1000), (0, 0), -3.0, 5.0)
    counts = torch.histc(x, 100, -3.0, 5.0)
    assert (counts.sum(), x.min() >= -3.0, x.max() <= 5.0) == (1_000_000, True, True)
    assert (counts / 10_000 - 1).abs().max() < 0.05
    assert abs(x.mean() - 1) < 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_uniform_numbers_stay_between_the_ends_as_their_dtype_has_them(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(philox, "random_bits", lambda key, index: torch.tensor([0, 2**32 - 1])[index])
    backend.select("reference")
    for low, high in ((0.0, 1.0), (-0.1, 0.1), (1e-3, 1e30), (-7.7, -7.6), (0.3, 0.3)):
        drawn = fill_uniform_(torch.empty(2, dtype=dtype), 0, (2,), (0,), low, high)
        ends = torch.tensor([low, high], dtype=dtype)
        assert ends[0] <= drawn[0] <= drawn[1] <= ends[1]
    backend.select("auto")


def test_an_interval_without_numbers_is_refused() -> None:
    with pytest.raises(ValueError, match=r"low <= high, not 1\.0 and 0\.0"):
        fill_uniform_(torch.empty(2), 0, (2,), (0,), 1.0, 0.0)
