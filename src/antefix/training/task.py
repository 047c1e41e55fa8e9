"""What a base model is asked to do: to write an answer to a prompt, or to choose its label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from transformers import PreTrainedModel

from antefix.bank import PrefixBank
from antefix.config import PrefixConfig
from antefix.training.examples import Example
from antefix.training.metrics import Metric
from antefix.training.mixed import MixedBatches
from antefix.training.room import Room
from antefix.training.tokens import Preprocessor, TokenizedExamples


@dataclass(frozen=True)
class Measured:
    """What one system was found to do: its metrics by name, and its output for each group of examples."""

    metrics: Mapping[str, Metric]
    outputs: Sequence[str]


@runtime_checkable
class Task(Protocol):
    """A base model, what prepares its examples, and how well it does."""

    @property
    def model(self) -> PreTrainedModel:
        """The base model."""

    @property
    def preprocessor(self) -> Preprocessor:
        """What turns examples into token ids."""

    @property
    def metrics(self) -> Sequence[str]:
        """The names of the metrics there are for it."""

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What a prefix of this task keeps in its metadata."""

    def attach(self) -> PrefixBank:
        """Attach to the base model; raises `UnsupportedModelError` if it cannot do the task."""

    def configure(self, config: PrefixConfig) -> PrefixConfig:
        """Return the configuration of a prefix, with the modules that the task needs trained beside it."""

    def check_room(self, room: Room, part: TokenizedExamples, metrics: Sequence[str] = ()) -> None:
        """Raise `ContextLengthError` for an example that does not fit, as it is or scored by `metrics`."""

    def warning(self, part: TokenizedExamples) -> str | None:
        """Return a sentence about examples that can teach nothing good, or None."""

    def groups(self, examples: Sequence[Example]) -> list[list[int]]:
        """Return the places of examples that are scored together, such as several right answers to one prompt."""

    def reference(self, example: Example) -> str:
        """Return the right answer to an example as outputs are compared with it."""

    def measure(
        self, parts: Sequence[TokenizedExamples], mixed: MixedBatches, metrics: Sequence[str]
    ) -> list[Measured]:
        """Return what was measured of each system; each has its own of `parts` for its examples."""
