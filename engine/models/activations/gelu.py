"""GELU (arXiv 1606.08415), exact and in the tanh approximation that GPT-2 uses."""

from engine.models.registry import ACTIVATIONS
from engine.models.traits import Activation
from engine.ops.activation import gelu, gelu_tanh

ACTIVATIONS.register("gelu")(Activation(gelu, gated=False))
ACTIVATIONS.register("gelu_tanh")(Activation(gelu_tanh, gated=False))
