"""How large weights start: the standard deviation of each matrix, from the model's width and depth.

`init` sets it for every matrix and table, `output_init` for those that write into the residual stream.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from engine.config import ModelConfig
from engine.parallel.sharding import Init

# of a matrix with so many inputs and outputs
INITS: dict[str, Callable[[ModelConfig, int, int], float]] = {
    "normal": lambda config, inputs, outputs: config.init_std,
    "small": lambda config, inputs, outputs: math.sqrt(2 / (5 * config.hidden)),  # arXiv 1910.05895, GPT-NeoX
    "third": lambda config, inputs, outputs: math.sqrt(1 / (3 * config.hidden)),  # MT-NLG, arXiv 2201.11990
    "fan_in": lambda config, inputs, outputs: math.sqrt(1 / inputs),  # PaLM, arXiv 2204.02311
    "xavier": lambda config, inputs, outputs: math.sqrt(2 / (inputs + outputs)),  # DeepNorm, arXiv 2203.00555
}

# of a matrix that writes into the residual stream, of which `std` is what the others of its size have
OUTPUT_INITS: dict[str, Callable[[ModelConfig, float], float]] = {
    "scaled": lambda config, std: std / math.sqrt(2 * config.layers),  # GPT-2
    "plain": lambda config, std: std,
    "wang": lambda config, std: 2 / (config.layers * math.sqrt(config.hidden)),  # GPT-NeoX, arXiv 2204.06745
}


def matrix(config: ModelConfig, inputs: int, outputs: int, gain: float = 1.0) -> Init:
    """Return how a matrix starts; `gain` multiplies its standard deviation (DeepNorm's beta)."""
    return Init(std=gain * INITS[config.init](config, inputs, outputs))


def output(config: ModelConfig, inputs: int, gain: float = 1.0) -> Init:
    """Return how a matrix from `inputs` features into the residual stream starts."""
    return Init(std=gain * OUTPUT_INITS[config.output_init](config, INITS[config.init](config, inputs, config.hidden)))


def table(config: ModelConfig) -> Init:
    """Return how a table of embeddings starts: by width alone; N(0, 1) with fan_in, where a look-up has one input."""
    return Init(std=config.init_std if config.init == "xavier" else INITS[config.init](config, 1, config.hidden))
