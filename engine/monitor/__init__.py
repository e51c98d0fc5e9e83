"""One record per step, sent to every sink: console, metrics.jsonl, Weights & Biases; and a report made from them."""
