"""`Provenance`: what the metadata of a prefix tells of how it was made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from antefix.prefix import Prefix
from antefix.training.recipe import Recipe


@dataclass(frozen=True)
class Provenance:
    """The base model of a prefix, and the settings it was trained or distilled with, as far as its metadata tells.

    None of the settings are checked; a file may hold anything.
    """

    base_model: str | None = None
    training: Mapping[str, Any] = field(default_factory=dict)
    distillation: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, prefix: Prefix) -> Provenance:
        """Read the metadata of a prefix."""
        told = (prefix.metadata.get(name) for name in ("training", "distillation"))
        training, distillation = (settings if isinstance(settings, Mapping) else {} for settings in told)
        names = (training.get("model"), distillation.get("model"), prefix.metadata.get("base_model"))
        base_model = next((name for name in names if name and isinstance(name, str)), None)
        return cls(base_model, training, distillation)

    @property
    def wording(self) -> Mapping[str, Any]:
        """The settings of a recipe by which to word what the prefix reads; empty if the metadata tells of none.

        If the base held a conversation with itself to study a document, the prefix learned behind a user's messages.
        """
        if self.distillation.get("chats") is True:
            return {"task": Recipe.task, "messages": self.distillation.get("messages") or "messages"}
        if self.training:
            return self.training
        return {"task": Recipe.task, **self.distillation} if self.distillation else {}
