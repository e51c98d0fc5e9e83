"""Checkpoints that any layout reads: boxes of global tensors, written aside and renamed, verified before use."""
