"""Where the gradient of a weight goes: summed into its main gradient, in that one's precision.

A weight held by gradient buckets has `main_grad` (fp32, or fp64 for fp64 runs) and `grad_ready()`. Ops add to it
themselves, because autograd would round every micro-batch's gradient to the weight's own dtype first.
"""

from __future__ import annotations

from torch import Tensor


def deliver(weight: Tensor, grad: Tensor) -> Tensor | None:
    """Add `grad` (the weight's shape, any dtype) to `weight.main_grad`; without one return it for autograd."""
    main_grad = getattr(weight, "main_grad", None)
    if main_grad is None:
        return grad.to(weight.dtype)
    main_grad.add_(grad)
    weight.grad_ready()  # type: ignore[attr-defined]
    return None
