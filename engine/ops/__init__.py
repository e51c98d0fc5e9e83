"""Fused operations: a plain torch reference of each, and compiled kernels where they can serve."""
