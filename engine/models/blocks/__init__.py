"""How a block arranges its norms, attention and feed-forward layer."""
