"""Training samples spoilt on purpose, by their global id: whoever asks for them, whenever, gets the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from engine.data.samples import Sample, Samples
from engine.faults.plan import Fault
from engine.ops.philox import make_key


class PoisonedSamples(Samples):
    """The samples of `healthy`, some of them spoilt by `faults` (all of them what=poison)."""

    def __init__(self, healthy: Samples, faults: Sequence[Fault]) -> None:
        vars(self).update(vars(healthy))
        self._faults = list(faults)

    def __getitem__(self, index: int) -> Sample:
        sample = super().__getitem__(index)
        for fault in self._faults:
            if fault.first <= index < fault.stop:
                sample = replace(sample, window=self._spoil(sample.window, index, fault.how))
        return sample

    def _spoil(self, window: np.ndarray, index: int, how: str) -> np.ndarray:
        random = np.random.Generator(np.random.Philox(key=make_key(self.seed, "poison", index)))
        if how == "repeat":
            return np.full_like(window, random.integers(self.vocab))
        if how == "shift":
            return (window + 1) % self.vocab
        return random.integers(self.vocab, size=len(window), dtype=window.dtype)
