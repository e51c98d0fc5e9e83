"""Training objectives: from a window of tokens to inputs, targets and loss mask."""
