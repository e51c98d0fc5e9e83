"""ReLU (OPT), squared ReLU (arXiv 2109.08668; Nemotron-4) and ReGLU, gated by it (arXiv 2002.05202)."""

from engine.models.registry import ACTIVATIONS
from engine.models.traits import Activation
from engine.ops.activation import reglu, relu, squared_relu

ACTIVATIONS.register("relu")(Activation(relu, gated=False))
ACTIVATIONS.register("squared_relu")(Activation(squared_relu, gated=False))
ACTIVATIONS.register("reglu")(Activation(reglu, gated=True))
