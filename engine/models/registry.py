"""Traits by name. A file in `norms/`, `positions/`, `activations/` or `blocks/` registers what it defines; that is
all it takes to add a trait: its name then works in `conf/model/`.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

from engine.errors import ConfigError, did_you_mean


class Registry:
    """The components of one trait, found in the modules of `package`."""

    def __init__(self, trait: str, package: str) -> None:
        self.trait, self.package = trait, package
        self._components: dict[str, Any] = {}

    def register(self, name: str) -> Any:
        """Decorate a component to make it available as `name`."""

        def add(component: Any) -> Any:
            self._components[name] = component
            return component

        return add

    def names(self) -> list[str]:
        """Return every known name, after importing all modules of the package."""
        package = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{self.package}.{module.name}")
        return sorted(self._components)

    def get(self, name: str) -> Any:
        """Return the component called `name`; raise ConfigError with the nearest name."""
        if name not in self._components and name not in self.names():
            raise ConfigError(f"model.{self.trait}={name} is unknown.{did_you_mean(name, self.names())}")
        return self._components[name]


NORMS = Registry("norm", "engine.models.norms")
POSITIONS = Registry("positions", "engine.models.positions")
ACTIVATIONS = Registry("activation", "engine.models.activations")
BLOCKS = Registry("block", "engine.models.blocks")
