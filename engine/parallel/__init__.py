"""Parallel building blocks: collectives, tensor-parallel layers, gradient buckets, the pipeline."""
