"""GELU (arXiv 1606.08415), exact and in the tanh approximation that GPT-2 uses; GeGLU, gated by it (2002.05202)."""

from engine.models.registry import ACTIVATIONS
from engine.models.traits import Activation
from engine.ops.activation import geglu, geglu_tanh, gelu, gelu_tanh

ACTIVATIONS.register("gelu")(Activation(gelu, gated=False))
ACTIVATIONS.register("gelu_tanh")(Activation(gelu_tanh, gated=False))
ACTIVATIONS.register("geglu")(Activation(geglu, gated=True))
ACTIVATIONS.register("geglu_tanh")(Activation(geglu_tanh, gated=True))
