"""Text to samples: tokenise, index, split, blend, order, load."""
