"""flash-attn 2.6 or newer (github.com/Dao-AILab/flash-attention): attention, rotary embedding, cross-entropy.

Held to the reference by stand-ins with the library's signatures and demands; not yet run on a GPU.
"""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

import torch
from torch import Tensor

from engine.ops.libraries.offer import FLOAT, HALF, Offer, capability, import_error

OFFERS = {
    "attention": Offer("flash_attn", ("flash_attn_func", "flash_attn_varlen_func"), HALF),
    "cross_entropy": Offer("flash_attn.ops.triton.cross_entropy", ("cross_entropy_loss",), (*FLOAT, *HALF)),
    "rope": Offer("flash_attn.ops.triton.rotary", ("apply_rotary",), (*FLOAT, *HALF)),
}
LARGEST_HEAD = 256  # of attention and rotary embedding
_INT32 = 2**31  # the rotary kernel counts elements in 32 bits


def why_not(op: str) -> str | None:
    """Return why the installed flash-attn cannot serve `op` on the current GPU, or None when it can."""
    failed = import_error("flash_attn", OFFERS["attention"].functions)
    if failed is not None:
        return failed
    import flash_attn

    if "softcap" not in inspect.signature(flash_attn.flash_attn_func).parameters:
        return f"flash-attn {flash_attn.__version__} is too old; install flash-attn>=2.6"
    if op == "attention" and capability() < (8, 0):
        return "flash-attn's attention needs a GPU of the Ampere generation (sm_80) or newer"
    return import_error(OFFERS[op].module, OFFERS[op].functions)


def fits(op: str, x: Tensor) -> bool:
    """Return whether the library takes tensors of x's shape: q for attention, the rotated tensor, the logits."""
    if x.numel() == 0:
        return False  # an empty grid cannot be launched
    if op == "cross_entropy":
        return True
    return x.shape[-1] <= LARGEST_HEAD and (op == "attention" or x.numel() < _INT32)


class Documents(NamedTuple):
    """Where documents begin in the flattened tokens [b * s]: `bounds` [n + 1] int32, 0 first and b * s last.

    `longest` is at least the length of the longest document (the library cuts its grid by it).
    """

    bounds: Tensor
    longest: int

    @classmethod
    def of(cls, documents_bs: Tensor) -> Documents:
        """Cut where the number of the document changes and at each row. On a GPU this waits for the device."""
        starts_bs = torch.ones_like(documents_bs, dtype=torch.bool)
        starts_bs[:, 1:] = documents_bs[:, 1:] != documents_bs[:, :-1]
        starts_n = starts_bs.flatten().nonzero().flatten()
        bounds = torch.cat([starts_n, starts_n.new_tensor([documents_bs.numel()])])
        return cls(bounds.to(torch.int32), documents_bs.shape[1])


def attention(
    q_bshd: Tensor,
    k_bskd: Tensor,
    v_bskd: Tensor,
    *,
    causal: bool,
    scale: float | None = None,
    window: int | None = None,
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    documents: Documents | None = None,
) -> Tensor:
    """Return softmax(scale q k^T) v [b, s, heads, d] with gradients, for bf16 or fp16 (arXiv 2307.08691).

    `scale` is 1 / sqrt(d) when None; d is at most 256. kv heads divide q heads; q head h reads kv head h // group.
    `window` (with `causal`) is how many keys a query sees, its own included. Scores become softcap *
    tanh(score / softcap) when `softcap` > 0, and lose slope * (i - j) for `alibi_slopes` [heads] float32.
    With `documents` no query sees another document. The backward pass is the deterministic one, because a resumed
    run must repeat itself bit for bit. Dropout is not offered: the library draws from a generator of its own.
    """
    from flash_attn import flash_attn_func, flash_attn_varlen_func

    options: dict[str, Any] = {
        "softmax_scale": scale,
        "causal": causal,
        "window_size": (-1, -1) if window is None else (window - 1, 0),
        "softcap": softcap,
        "alibi_slopes": alibi_slopes,
        "deterministic": True,
    }
    if documents is None:
        return flash_attn_func(q_bshd, k_bskd, v_bskd, **options)
    q, k, v = (x.flatten(0, 1) for x in (q_bshd, k_bskd, v_bskd))
    bounds, longest = documents
    return flash_attn_varlen_func(q, k, v, bounds, bounds, longest, longest, **options).view(q_bshd.shape)


def rotate(
    x_bshd: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = False, back: bool = False, inplace: bool = False
) -> Tensor:
    """Turn pairs of the first 2r features of x [b, s, heads, d] by tables [s, r] or [b, s, r]; others stay.

    Feature i is paired with i + r, or 2i with 2i + 1 when `interleaved`. `back` turns the other way, which is the
    gradient. Computed in float32. No autograd: this is one direction of an op that has it.
    """
    from flash_attn.ops.triton.rotary import apply_rotary

    offsets: int | Tensor = 0
    if cos.dim() == 3:  # one long table, and each sequence begins at its own row of it
        b, s = x_bshd.shape[:2]
        offsets = torch.arange(0, b * s, s, device=x_bshd.device)
        cos, sin = cos.flatten(0, 1), sin.flatten(0, 1)
    return apply_rotary(
        x_bshd, cos, sin, seqlen_offsets=offsets, interleaved=interleaved, inplace=inplace, conjugate=back
    )


def cross_entropy(
    logits_nv: Tensor,
    targets_n: Tensor,
    *,
    vocab: int,
    group: Any = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> Tensor:
    """Return the loss of each row [n] in float32, for targets int64 over the whole vocabulary.

    With a process `group` its rank r holds the logits of r * v ... (r + 1) * v - 1, and all ranks hold equally
    many: raises ValueError on every one of them when `vocab` does not split so. Smoothing gives
    `label_smoothing` / vocab to each token; `z_loss` * log(sum(exp(logits)))^2 is added. The backward pass writes
    the gradient over the logits.
    """
    from flash_attn.ops.triton.cross_entropy import cross_entropy_loss

    ranks = 1 if group is None else torch.distributed.get_world_size(group)
    if logits_nv.shape[1] * ranks != vocab:
        raise ValueError(
            f"flash-attn's cross-entropy needs equal shares of the vocabulary: {ranks} rank(s) of "
            f"{logits_nv.shape[1]} are not {vocab}"
        )
    losses_n, _ = cross_entropy_loss(
        logits_nv, targets_n, label_smoothing=label_smoothing, lse_square_scale=z_loss, inplace_backward=True,
        process_group=group,
    )  # fmt: skip
    return losses_n
