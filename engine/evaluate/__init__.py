"""Scoring: validation sets while training, checkpoints on any layout, and tasks of lm-evaluation-harness."""
