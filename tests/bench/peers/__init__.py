"""Plain torch, as its own users write it: the other side of every ratio."""
