"""One record per step, sent to every sink: console, metrics.jsonl, Weights & Biases."""
