"""What is checked of a configuration before the first rank allocates memory."""

from engine.validate.rules import resolve_dp, validate

__all__ = ["resolve_dp", "validate"]
