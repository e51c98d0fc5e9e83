"""Weights and configurations to and from Hugging Face folders: one map per family, as data."""
