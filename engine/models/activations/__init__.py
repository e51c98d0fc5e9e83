"""Feed-forward non-linearities."""
