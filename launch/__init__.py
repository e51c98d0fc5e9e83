"""Entry points that a user types, and what they share."""
