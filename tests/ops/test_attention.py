"""Attention against explicit probabilities in float64: ranges of keys, grouped heads, distance bias, dropout."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from engine.ops import backend
from engine.ops.attention import Drop, Scores, attention
from engine.ops.key_ranges import KeyRanges
from engine.ops.philox import make_key, random_bits
from tests.ops.witness import check, check_bf16, draw

pytestmark = pytest.mark.usefixtures("each_backend")

CPU = torch.device("cpu")
DOCUMENTS = torch.arange(9)[None] // 4


def plain(
    qkv: Tensor, heads: int, kv_heads: int, mask: Tensor, factor: Tensor | float = 1.0, slopes: Tensor | None = None
) -> Tensor:
    """Softmax over keys, every probability times `factor` [b, heads, s, s]; no key seen gives 0."""
    q, k, v = qkv.split((heads, kv_heads, kv_heads), dim=2)
    k, v = (x.repeat_interleave(heads // kv_heads, dim=2) for x in (k, v))
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5
    if slopes is not None:
        places = torch.arange(q.shape[1])
        scores = scores + slopes.to(scores.dtype)[:, None, None] * (places[None, :] - places[:, None])
    probs = scores.masked_fill(~mask, -torch.inf).softmax(-1).nan_to_num(0.0) * factor
    return torch.einsum("bhqk,bkhd->bqhd", probs.to(v.dtype), v)


def packed(b: int, s: int, heads: int, kv_heads: int, d: int, scale: float = 1.0) -> Tensor:
    return draw(b + 7 * s + d, b, s, heads + 2 * kv_heads, d, scale=scale)


def judge(
    qkv: Tensor, heads: int, kv_heads: int, keys: KeyRanges, slopes: Tensor | None = None, slack: float = 8
) -> None:
    check(
        lambda x: attention(x, heads, kv_heads, keys, scores=Scores(slopes_h=slopes)),
        lambda x: plain(x, heads, kv_heads, keys.mask_b1ss, slopes=slopes),
        qkv, slack=slack,
    )  # fmt: skip


@given(
    b=st.integers(1, 2), s=st.sampled_from([1, 2, 5, 16, 17, 96, 97, 130, 300]), kv_heads=st.integers(1, 2),
    group=st.integers(1, 3), d=st.sampled_from([1, 3, 8, 16, 20]), window=st.none() | st.integers(1, 200),
    scale=st.sampled_from([0.01, 1.0, 5.0]),
)  # fmt: skip
@settings(max_examples=25, deadline=None)
def test_causal(b: int, s: int, kv_heads: int, group: int, d: int, window: int | None, scale: float) -> None:
    heads = kv_heads * group
    # gradients of scores are differences of numbers that grow with the scale
    qkv = packed(b, s, heads, kv_heads, d, scale)
    judge(qkv, heads, kv_heads, KeyRanges.causal(s, CPU, window), slack=32 * (1 + scale))


@given(data=st.data(), s=st.sampled_from([4, 100, 270]))
@settings(max_examples=15, deadline=None)
def test_any_ranges_even_empty_ones(data: st.DataObject, s: int) -> None:
    ends = torch.tensor(data.draw(st.lists(st.integers(0, s - 1), min_size=4 * s, max_size=4 * s)))
    first, last = ends.view(2, 2, s).int().unbind()
    judge(packed(2, s, 2, 1, 6), 2, 1, KeyRanges(first, last))


def test_documents_do_not_see_each_other() -> None:
    keys = KeyRanges.documents(DOCUMENTS)
    causal = torch.ones(9, 9, dtype=torch.bool).tril()
    assert torch.equal(keys.mask_b1ss[0, 0], causal & (DOCUMENTS[0][:, None] == DOCUMENTS[0][None]))
    judge(packed(1, 9, 4, 2, 6), 4, 2, keys)
    assert torch.equal(KeyRanges.causal(9, CPU).mask_b1ss[0, 0], causal)
    assert KeyRanges.full(9, CPU).mask_b1ss.all()
    judge(packed(1, 9, 4, 4, 6), 4, 4, KeyRanges.full(9, CPU))


@given(data=st.data(), s=st.sampled_from([1, 9, 70]))
@settings(max_examples=15, deadline=None)
def test_a_prefix_is_seen_by_its_whole_document(data: st.DataObject, s: int) -> None:
    """Documents of any length with prefixes of any length, none and all of it included; against the definition."""
    documents, prefix = [], []
    while len(documents) < s:
        length = data.draw(st.integers(1, s - len(documents)))
        shown = data.draw(st.integers(0, length))
        documents += [documents[-1] + 1 if documents else 0] * length
        prefix += [place < shown for place in range(length)]
    one, shown_s = torch.tensor(documents), torch.tensor(prefix)
    expected = (one[:, None] == one[None, :]) & (torch.ones(s, s, dtype=torch.bool).tril() | shown_s[None, :])
    keys = KeyRanges.documents(one[None], shown_s[None])
    assert torch.equal(keys.mask_b1ss[0, 0], expected)
    assert (keys.first_bs.dtype, keys.last_bs.dtype) == (torch.int32, torch.int32)
    judge(packed(1, s, 4, 2, 6), 4, 2, keys)


def test_distance_bias() -> None:
    slopes = torch.tensor([0.5, 0.25, 2.0, 1.0])
    judge(packed(2, 120, 4, 2, 8), 4, 2, KeyRanges.causal(120, CPU), slopes)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit(dtype: torch.dtype) -> None:
    keys = KeyRanges.causal(40, CPU)
    check_bf16(
        lambda x: attention(x, 4, 2, keys), lambda x: plain(x, 4, 2, keys.mask_b1ss), packed(2, 40, 4, 2, 8),
        ulps=2, dtype=dtype,
    )  # fmt: skip


def test_gradcheck() -> None:
    keys = KeyRanges.causal(5, CPU)
    qkv = packed(1, 5, 2, 1, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: attention(x, 2, 1, keys), (qkv,))


def test_views_and_empty_batches() -> None:
    keys = KeyRanges.causal(6, CPU)
    padded = draw(3, 2, 6, 5, 8)
    judge_view = attention(padded[:, :, :4], 2, 1, keys)
    torch.testing.assert_close(judge_view, attention(padded[:, :, :4].contiguous(), 2, 1, keys))
    assert attention(padded[:0, :, :4], 2, 1, keys).shape == (0, 6, 2, 8)


def test_scores_that_overflow_are_not_seen() -> None:
    """More of them than a block of keys holds, before one that is seen; and a query that sees no other."""
    s = 600
    qkv = torch.zeros(1, s, 3, 4)
    qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2] = 1e20, -1e20, draw(1, 1, s, 4).float()
    qkv[:, s - 2 :, 1] = 0.0
    qkv.requires_grad_()
    out = attention(qkv, 1, 1, KeyRanges.causal(s, CPU, s - 1))
    torch.testing.assert_close(out[0, -1, 0], qkv[0, s - 2 :, 2].mean(0))
    assert not out[0, : s - 2].any()
    (grad,) = torch.autograd.grad(out[0, s - 3 :].sum(), qkv)
    torch.testing.assert_close(grad[0, s - 2 :, 2, 0], torch.tensor([1.5, 0.5]))
    assert grad.isfinite().all()
    assert grad[0, : s - 2, 2].abs().max() < 1e-30


def test_results_do_not_depend_on_threads_and_pass_nan_on(each_backend: str) -> None:
    if each_backend == "reference":
        pytest.skip("torch's kernel promises nothing")
    keys, threads, results = KeyRanges.causal(500, CPU), torch.get_num_threads(), []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        qkv = packed(1, 500, 3, 1, 16).float().requires_grad_()  # three heads, which two threads must share
        out = attention(qkv, 3, 1, keys)
        out.square().sum().backward()
        assert qkv.grad is not None
        results.append((out.detach(), qkv.grad))
    torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for result in results[1:] for a, b in zip(result, results[0], strict=True))
    broken = packed(1, 5, 1, 1, 4)
    broken[0, 2, 0, 0] = float("nan")
    assert (
        attention(broken, 1, 1, KeyRanges.causal(5, CPU)).isnan().any(-1)[0, :, 0].tolist()
        == [False] * 2 + [True] + [False] * 2
    )


def test_wrong_ranges_are_refused(each_backend: str) -> None:
    if each_backend == "reference" or not backend.native("attention", torch.empty(0)):
        pytest.skip("checked by the kernel")
    qkv = packed(1, 5, 1, 1, 4)
    with pytest.raises(RuntimeError, match="beyond the 5 keys"):
        attention(qkv, 1, 1, KeyRanges.full(5, CPU).__class__(torch.zeros(1, 5).int(), torch.full((1, 5), 9).int()))
    with pytest.raises(RuntimeError, match="ranges of keys must be int32"):
        attention(qkv, 1, 1, KeyRanges.causal(4, CPU))


def backward_arguments(queries: int, keys: int) -> list[Any]:
    """Arguments of the operator that fills gradients of q, k and v, for two heads and one kv head of 4 features."""
    q, k, out = draw(1, 1, queries, 2, 4), draw(2, 1, keys, 1, 4), draw(3, 1, queries, 2, 4)
    lse = draw(4, 1, 2, queries)
    first, last = torch.zeros(1, queries).int(), torch.zeros(1, queries).int()
    gradients = [torch.full_like(x, torch.nan) for x in (q, k, k)]
    return [draw(5, 1, queries, 2, 4), q, k, k, out, lse, first, last, None, 0.5, 0, *gradients]


def test_keys_without_queries_have_gradients_of_zero(each_backend: str) -> None:
    if each_backend == "reference":
        pytest.skip("autograd's own")
    arguments = backward_arguments(0, 3)
    torch.ops.trimaran.attention_backward_(*arguments)
    assert all(torch.equal(x, torch.zeros_like(x)) for x in arguments[-2:])


@pytest.mark.parametrize(
    ("place", "wrong", "message"),
    [
        (5, torch.zeros(1, 2, 4, dtype=torch.float64), "row statistics do not fit the queries"),
        (4, torch.zeros(1, 5, 4, 2, dtype=torch.float64).mT, "adjacent d"),
        (11, torch.zeros(1, 5, 4, 2, dtype=torch.float64).mT, "adjacent d"),
        (12, torch.zeros(1, 3, 1, 8, dtype=torch.float64)[..., ::2], "adjacent d"),
        (13, torch.zeros(1, 3, 1, 4), "must have one dtype, not Double and Float"),
    ],
)
def test_gradients_that_do_not_fit_are_refused(each_backend: str, place: int, wrong: Tensor, message: str) -> None:
    """The kernel writes where their strides say."""
    if each_backend == "reference":
        pytest.skip("torch refuses them in its own words")
    arguments = backward_arguments(5, 3)
    arguments[place] = wrong
    with pytest.raises(RuntimeError, match=message):
        torch.ops.trimaran.attention_backward_(*arguments)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("offset", [0, 4])
def test_dropout_is_addressed_by_global_token_and_head(masked: bool, offset: int) -> None:
    b, s, heads, heads_total, p, key = 2, 9, 4, 8, 0.3, make_key(5, "attention")
    rows_bs = torch.arange(b)[:, None] * 100 + 17 + torch.arange(s)
    rows = rows_bs[:, None, :, None] * heads_total + offset + torch.arange(heads)[:, None, None]
    kept = random_bits(key, rows * s + torch.arange(s)) >= int(p * 2**32)
    keys = KeyRanges.documents(DOCUMENTS) if masked else KeyRanges.causal(s, CPU)
    check(
        lambda x: attention(x, heads, 2, keys, drop=Drop(p, key, rows_bs, offset, heads_total)),
        lambda x: plain(x, heads, 2, keys.mask_b1ss, kept.double() / (1 - p)),
        packed(b, s, heads, 2, 6),
    )
