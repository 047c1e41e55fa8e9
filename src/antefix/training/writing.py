"""`Writing`: the task of a causal model or an encoder-decoder, to write an answer to a prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from antefix.bank import PrefixBank
from antefix.config import PrefixConfig
from antefix.errors import DataError
from antefix.training.base import attach_writer, load_base
from antefix.training.chats import in_chats
from antefix.training.examples import Example
from antefix.training.generation import answer_batch, decoded
from antefix.training.groups import group_equal
from antefix.training.losses import answer_losses
from antefix.training.metrics import ANSWER_METRICS, Metric, answer_metric, loss, perplexity
from antefix.training.mixed import MixedBatches
from antefix.training.room import Room
from antefix.training.task import Measured
from antefix.training.tokens import TextPreprocessor, TokenizedExamples


@dataclass(frozen=True)
class Writing:
    """A base model that writes greedily, at most `max_new_tokens` or as many as the longest expected answer has."""

    model: PreTrainedModel
    preprocessor: TextPreprocessor
    max_new_tokens: int | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    metrics: Sequence[str] = ("loss", "perplexity", *ANSWER_METRICS)

    @classmethod
    def load(
        cls, name: str, answer_tokenizer: str | None = None, chats: bool = False, max_new_tokens: int | None = None
    ) -> Writing:
        """Load the base model; `chats` says that a chat template writes prompts and answers."""
        model, preprocessor = load_base(name, answer_tokenizer)
        return cls(model, in_chats(preprocessor) if chats else preprocessor, max_new_tokens)

    def attach(self) -> PrefixBank:
        """Attach to the base model; raises `UnsupportedModelError` for one that reads in both directions."""
        return attach_writer(self.model)

    def configure(self, config: PrefixConfig) -> PrefixConfig:
        """Return the configuration as it is."""
        return config

    def check_room(self, room: Room, part: TokenizedExamples, metrics: Sequence[str] = ()) -> None:
        """Raise `ContextLengthError` for an example that does not fit, with its own answer or one that is generated.

        Raises `DataError` for a prompt without tokens to which an answer is to be generated.
        """
        most = self._most(part) if set(metrics) & set(ANSWER_METRICS) else 0
        for example, tokens in zip(part.examples, part.tokens, strict=True):
            if (most or room.is_encoder_decoder) and not tokens.prompt:
                raise DataError(
                    "a prompt has no tokens, and this base's tokenizer opens none, so it has no answer; leave the "
                    f"example of the answer {example.answer[:60]!r} out."
                )
            shorten = f"the example {example.prompt[:60]!r} or the prefix"
            room.check(len(tokens.prompt), max(len(tokens.answer), most), shorten)

    def warning(self, part: TokenizedExamples) -> str | None:
        """Return a sentence about answers that the tokenizer cannot spell, which teach unknown tokens, or None."""
        pairs = zip(part.examples, part.tokens, strict=True)
        lost = [example for example, tokens in pairs if not self.preprocessor.can_write(tokens.answer)]
        if not lost:
            return None
        way_out = "leave them out or spell them in its signs"
        if self.preprocessor.answer_tokenizer is self.preprocessor.tokenizer:
            way_out += ", or name their own tokenizer as answer_tokenizer"
        return (
            f"{len(lost):,} of {len(part.examples):,} answers hold signs that the tokenizer does not know, such as "
            f"{lost[0].answer[:60]!r}; {way_out}."
        )

    def groups(self, examples: Sequence[Example]) -> list[list[int]]:
        """Return the places of the examples with each distinct prompt: it is answered once, and they are references."""
        return group_equal([example.prompt for example in examples])

    def measure(
        self, parts: Sequence[TokenizedExamples], mixed: MixedBatches, metrics: Sequence[str]
    ) -> list[Measured]:
        """Return loss and perplexity of all examples, and metrics of the answers to each distinct prompt."""
        groups = self.groups(parts[0].examples)
        found: list[dict[str, Metric]] = [{} for _ in parts]
        if {"loss", "perplexity"} & set(metrics):
            losses = mixed.run(
                [part.features(self.preprocessor) for part in parts],
                length=lambda one: len(one["input_ids"]),
                compute=lambda features: answer_losses(self.model, self.preprocessor, features).tolist(),
            )
            for metric_of, by_example in zip(found, losses, strict=True):
                sums = np.array([np.sum([by_example[number] for number in group], axis=0) for group in groups])
                metric_of |= {"loss": loss(sums), "perplexity": perplexity(sums)}
        written: list[list[str]] = [[] for _ in parts]
        if asked := [name for name in metrics if name in ANSWER_METRICS]:
            most = max(self._most(part) for part in parts)
            references = [[self.reference(parts[0].examples[number]) for number in group] for group in groups]
            written = mixed.run(
                [[part.tokens[group[0]].prompt for group in groups] for part in parts],
                length=len,
                compute=lambda prompts: answer_batch(self.model, self.preprocessor, prompts, most),
            )
            for metric_of, answers in zip(found, written, strict=True):
                metric_of |= {name: answer_metric(name, answers, references) for name in asked}
        return [
            Measured({name: metric_of[name] for name in metrics}, outputs)
            for metric_of, outputs in zip(found, written, strict=True)
        ]

    def reference(self, example: Example) -> str:
        """Return an answer as a trained model would write it: a chat template may write something before it."""
        if example.completion is None:
            return example.answer
        return decoded(self.model, self.preprocessor, [self.preprocessor.tokenize(example).answer])[0]

    def _most(self, part: TokenizedExamples) -> int:
        return self.max_new_tokens or max(len(tokens.answer) for tokens in part.tokens)
