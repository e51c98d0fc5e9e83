"""Trimaran: a 3D-parallel pretraining engine whose runs are pure functions of their configuration."""

__version__ = "0.1.0"
