"""SwiGLU (arXiv 2002.05202): silu(gate) * up."""

from engine.models.registry import ACTIVATIONS
from engine.models.traits import Activation
from engine.ops.activation import swiglu

ACTIVATIONS.register("swiglu")(Activation(swiglu, gated=True))
