"""What a base model is asked to do: to write an answer to a prompt, or to choose its label."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from transformers import PreTrainedModel

from antefix.bank import PrefixBank
from antefix.config import PrefixConfig
from antefix.training.room import Room
from antefix.training.tokens import Encoder, Part


class Task(Protocol):
    """A base model, what encodes its examples, and how well it does with what its bank has in use."""

    @property
    def model(self) -> PreTrainedModel:
        """The base model."""

    @property
    def encoder(self) -> Encoder:
        """What turns examples into token ids."""

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What a prefix of this task keeps in its metadata."""

    def attach(self) -> PrefixBank:
        """Attach to the base model; raises `UnsupportedModelError` where it cannot do the task."""

    def configure(self, config: PrefixConfig) -> PrefixConfig:
        """Return the configuration of a prefix with what the task needs to be trained beside it."""

    def check_room(self, room: Room, part: Part) -> None:
        """Raise `ContextLengthError` for an example that passes the positions of the model."""

    def check_room_to_score(self, room: Room, part: Part) -> None:
        """Raise `ContextLengthError` for a held-out example that cannot be scored within those positions."""

    def warn(self, part: Part) -> str | None:
        """Return a sentence about examples that can teach nothing good."""

    def score(self, part: Part, batch_size: int) -> dict[str, float]:
        """Return scores on held-out examples, among them `loss`."""
