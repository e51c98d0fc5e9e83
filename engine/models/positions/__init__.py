"""How a model knows the order of tokens."""
