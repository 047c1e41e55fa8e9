"""`Writing`: the task of a causal model or an encoder-decoder, to write an answer to a prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from transformers import PreTrainedModel

from antefix.bank import PrefixBank
from antefix.config import PrefixConfig
from antefix.training.base import attach_writer, load_base
from antefix.training.generation import longest_answer, write_all
from antefix.training.losses import loss_per_token
from antefix.training.metrics import exact_match
from antefix.training.room import Room
from antefix.training.tokens import ExampleTokenizer, Part


@dataclass(frozen=True)
class Writing:
    """A base model that writes; `exact_match` also writes the held-out answers to score them."""

    model: PreTrainedModel
    encoder: ExampleTokenizer
    exact_match: bool = False
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def load(
        cls, name: str, answer_tokenizer: str | None = None, chats: bool = False, exact_match: bool = False
    ) -> Writing:
        """Load the base model; `chats` says that a chat template writes prompts and answers."""
        model, encoder = load_base(name, answer_tokenizer)
        return cls(model, replace(encoder, adds_special_tokens=not chats), exact_match)

    def attach(self) -> PrefixBank:
        """Attach to the base model; raises `UnsupportedModelError` for one that reads in both directions."""
        return attach_writer(self.model)

    def configure(self, config: PrefixConfig) -> PrefixConfig:
        """Return the configuration as it is."""
        return config

    def check_room(self, room: Room, part: Part) -> None:
        """Raise `ContextLengthError` for an example that passes the positions of the model."""
        for example, tokens in zip(part.examples, part.tokens, strict=True):
            room.check(len(tokens.prompt), len(tokens.answer), f"the example {example.prompt[:60]!r} or the prefix")

    def check_room_to_score(self, room: Room, part: Part) -> None:
        """Refuse prompts that leave no room for the longest answer, which each of them may get."""
        if not self.exact_match:
            return
        longest = longest_answer(self.encoder, part.examples)
        for example, tokens in zip(part.examples, part.tokens, strict=True):
            room.check(len(tokens.prompt), longest, f"the example {example.prompt[:60]!r} or the prefix")

    def warn(self, part: Part) -> str | None:
        """Announce answers that the tokenizer cannot spell: they teach the prefix to write unknown tokens."""
        pairs = zip(part.examples, part.tokens, strict=True)
        lost = [example for example, tokens in pairs if not self.encoder.can_write(tokens.answer)]
        if not lost:
            return None
        return (
            f"{len(lost):,} of {len(part.examples):,} answers hold signs that the tokenizer does not know, such as "
            f"{lost[0].answer[:60]!r}; leave them out or spell them in its signs."
        )

    def score(self, part: Part, batch_size: int) -> dict[str, float]:
        """Return the loss a token, in nats, and the share of answers written exactly, where that was asked for."""
        scores = {"loss": loss_per_token(self.model, self.encoder, part.rows(self.encoder), batch_size)}
        if self.exact_match:
            most = longest_answer(self.encoder, part.examples)
            given = write_all(self.model, self.encoder, [tokens.prompt for tokens in part.tokens], most, batch_size)
            scores["exact_match"] = exact_match(given, [[example.answer] for example in part.examples]).value
        return scores
