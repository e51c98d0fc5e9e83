"""No positions at all: a causal mask alone tells tokens apart (arXiv 2203.16634)."""

from engine.models.registry import POSITIONS
from engine.models.traits import Positions

POSITIONS.register("none")(Positions)
