"""One rank asks, all ranks compute: for callers that run in one process, such as an evaluation harness."""

from __future__ import annotations

import json
from collections.abc import Sequence
from types import TracebackType

import numpy as np
from torch import Tensor

from engine.data.samples import Sample
from engine.evaluate.forward import Forward, TokenScores
from engine.mesh import Mesh
from engine.parallel.collectives import broadcast_bytes

_SCORE, _NEXT, _END = "score", "next", "end"


class Lead:
    """`Forward` on the first rank alone, while all others `follow`; leaving the block lets them go."""

    def __init__(self, forward: Forward, mesh: Mesh) -> None:
        self._forward, self._mesh = forward, mesh

    def score(self, windows: Sequence[Sample]) -> list[TokenScores]:
        """See `Forward.score`; attention crosses document boundaries here, there being one document a window."""
        self._tell(_SCORE, [sample.window.tolist() for sample in windows])
        return self._forward.score(windows)

    def next_logits(self, prompts: Sequence[Sequence[int]]) -> list[Tensor]:
        """See `Forward.next_logits`."""
        self._tell(_NEXT, [list(prompt) for prompt in prompts])
        return self._forward.next_logits(prompts)

    def _tell(self, what: str, tokens: list[list[int]]) -> None:
        broadcast_bytes(json.dumps([what, tokens]).encode(), self._mesh.world, self._mesh.device.torch_device)

    def __enter__(self) -> Lead:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._tell(_END, [])


def follow(forward: Forward, mesh: Mesh) -> None:
    """Compute what the first rank asks for, until it has no more questions."""
    while True:
        what, tokens = json.loads(broadcast_bytes(b"", mesh.world, mesh.device.torch_device))
        if what == _END:
            return
        if what == _SCORE:
            forward.score([Sample(np.asarray(window, np.int64), np.zeros(0, np.int64)) for window in tokens])
        else:
            forward.next_logits(tokens)
