"""Which keys each query sees: causal, windowed, document and prefix masks are all one range a query."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor


class KeyRanges:
    """Query i of sample b sees keys [first_bs[b, i], last_bs[b, i]]: int32 [1 or b, s]; none where first > last."""

    def __init__(self, first_bs: Tensor, last_bs: Tensor, *, is_causal: bool = False) -> None:
        self.first_bs, self.last_bs = first_bs, last_bs
        self.is_causal = is_causal  # nothing but causal: kernels have a faster way to know

    @classmethod
    def causal(cls, s: int, device: torch.device, window: int | None = None) -> KeyRanges:
        """Every key up to the query's own, or the last `window` of them."""
        last_1s = torch.arange(s, dtype=torch.int32, device=device)[None]
        if window is None:
            return cls(torch.zeros_like(last_1s), last_1s, is_causal=True)
        return cls((last_1s - (window - 1)).clamp(min=0), last_1s)

    @classmethod
    def documents(cls, documents_bs: Tensor, prefix_bs: Tensor | None = None) -> KeyRanges:
        """Causal inside documents that lie end to end; `documents_bs` numbers them.

        `prefix_bs` bool marks tokens at the start of a document, or all of it, that the whole document sees.
        """
        places_s = torch.arange(documents_bs.shape[1], dtype=torch.int32, device=documents_bs.device)
        starts_bs = torch.zeros_like(documents_bs, dtype=torch.int32)
        starts_bs[:, 1:] = torch.where(documents_bs[:, 1:] != documents_bs[:, :-1], places_s[1:], 0)
        first_bs = starts_bs.cummax(dim=1).values
        last_bs = places_s.expand_as(first_bs).contiguous()
        if prefix_bs is None:
            return cls(first_bs, last_bs)
        ends_bs = torch.full_like(last_bs, documents_bs.shape[1] - 1)  # the next token that ends a prefix, or document
        goes_on_bs = prefix_bs[:, 1:] & (documents_bs[:, 1:] == documents_bs[:, :-1])
        ends_bs[:, :-1] = torch.where(goes_on_bs, ends_bs[:, :-1], last_bs[:, :-1])
        ends_bs = ends_bs.flip(1).cummin(dim=1).values.flip(1)
        return cls(first_bs, torch.where(prefix_bs, ends_bs, last_bs))

    @classmethod
    def full(cls, s: int, device: torch.device) -> KeyRanges:
        """Every key."""
        first_1s = torch.zeros(1, s, dtype=torch.int32, device=device)
        return cls(first_1s, torch.full_like(first_1s, s - 1))

    def within(self, window: int) -> KeyRanges:
        """Return those of the same keys that are the query's own, or among the `window` - 1 on either side of it."""
        places_s = torch.arange(self.first_bs.shape[1], dtype=torch.int32, device=self.first_bs.device)
        first_bs = torch.maximum(self.first_bs, places_s - (window - 1))
        return KeyRanges(first_bs, torch.minimum(self.last_bs, places_s + (window - 1)))

    @cached_property
    def mask_b1ss(self) -> Tensor:
        """The same as booleans (True: sees), for kernels that know nothing else."""
        keys_s = torch.arange(self.first_bs.shape[1], device=self.first_bs.device)
        return ((keys_s >= self.first_bs[..., None]) & (keys_s <= self.last_bs[..., None]))[:, None]
