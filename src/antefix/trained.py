"""`TrainedModules`: what trains inside a base model, and the base's own parameters, which are frozen for it."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from transformers import PreTrainedModel

MODULE_NAME = "antefix_prefixes"
"""Where they stand in the model, so that optimisers, devices and dtypes reach them."""


class TrainedModules:
    """The modules of trainable prefixes and those beside them, in the model until they are taken out of it."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._modules = nn.ModuleList()
        self._frozen: list[nn.Parameter] = []
        model.add_module(MODULE_NAME, self._modules)

    def add(self, modules: Iterable[nn.Module]) -> None:
        """Put modules into the model."""
        self._modules.extend(modules)

    def remove(self, modules: Iterable[nn.Module]) -> None:
        """Take modules out of the model, those that are in it."""
        gone = set(map(id, modules))
        for index in reversed([index for index, module in enumerate(self._modules) if id(module) in gone]):
            del self._modules[index]

    def freeze_base(self) -> None:
        """Freeze what is trainable in the model besides these modules."""
        own = set(map(id, self._modules.parameters()))
        for parameter in self._model.parameters():
            if parameter.requires_grad and id(parameter) not in own:
                parameter.requires_grad_(False)
                self._frozen.append(parameter)

    def close(self) -> None:
        """Take all out of the model, and thaw what was frozen for them."""
        for parameter in self._frozen:
            parameter.requires_grad_(True)
        self._frozen = []
        self._model._modules.pop(MODULE_NAME, None)
