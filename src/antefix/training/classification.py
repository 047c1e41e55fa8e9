"""`Classification`: the task of a base model with a head, to choose the label of a text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from antefix.bank import PrefixBank, attach
from antefix.config import PrefixConfig
from antefix.errors import ConfigError, DataError
from antefix.sources import reporting_failure, source_of
from antefix.training.base import forget_added_padding, load_tokenizer, loading_dtype, named, on_device
from antefix.training.examples import Example
from antefix.training.metrics import LABEL_METRICS, accuracy, loss, macro_f1
from antefix.training.mixed import MixedBatches
from antefix.training.room import Room
from antefix.training.task import Measured
from antefix.training.tokens import TokenizedExamples, Tokens, cut_end, pad_inputs, padding_id

_MAX_NAMED = 20
"""How many labels an error names."""


@dataclass(frozen=True)
class LabelPreprocessor:
    """Tokenizes texts, and takes each answer for the number of its label."""

    tokenizer: PreTrainedTokenizerBase
    labels: Sequence[str]

    def tokenize(self, example: Example) -> Tokens:
        """Return the ids of the text, and that of its label; raises `DataError` for a label that is not known."""
        if example.answer not in self.labels:
            first = ", ".join([*map(repr, self.labels[:_MAX_NAMED]), *(["..."] if self.labels[_MAX_NAMED:] else [])])
            raise DataError(
                f"the label {example.answer!r} of {example.prompt[:60]!r} is none of the {len(self.labels)} trained, "
                f"{first}; leave such examples out, or train with some."
            )
        return Tokens(list(self.tokenizer(example.prompt)["input_ids"]), [self.labels.index(example.answer)])

    def length(self, tokens: Tokens) -> int:
        """Return the number of tokens of the text."""
        return len(tokens.prompt)

    def lengths(self, tokens: Tokens) -> dict[str, int]:
        """Return the length of the text."""
        return {"prompt": len(tokens.prompt)}

    def cut(self, tokens: Tokens, max_length: int) -> Tokens:
        """Return the beginning of the text, with the token that closes it."""
        return Tokens(cut_end(tokens.prompt, max_length, self.tokenizer), tokens.answer)

    def features(self, tokens: Tokens) -> dict[str, Any]:
        """Return `input_ids` and the label's number as `labels`."""
        return {"input_ids": tokens.prompt, "labels": tokens.answer[0]}

    def collate(self, features: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Return `input_ids` and `attention_mask` `(row, token)`, padded on the right, and `labels` `(row)`."""
        labels = torch.tensor([one["labels"] for one in features])
        return {**pad_inputs([one["input_ids"] for one in features], padding_id(self.tokenizer)), "labels": labels}


@dataclass(frozen=True)
class Classification:
    """A base model with a head for `preprocessor.labels`; `heads` are the modules that a prefix trains copies of.

    The heads are all modules outside the headless base, and whatever else the checkpoint had no weights for: that is
    drawn at random, so it belongs to the prefix.
    """

    model: PreTrainedModel
    preprocessor: LabelPreprocessor
    heads: tuple[str, ...]
    metrics: Sequence[str] = LABEL_METRICS

    @classmethod
    def load(cls, name: str, labels: Sequence[str], in_order: bool = False) -> Classification:
        """Load a base model with a head for these labels; raises `ConfigError` if it cannot be loaded.

        If the base knows all labels, they are numbered as it numbers them. `in_order` says that they are numbered
        already, by the head in a prefix; then a base that numbers the same labels otherwise is refused.
        """
        if len(labels) < 2:
            raise DataError(f"a classification needs two labels or more; all examples have {labels[0]!r}.")
        tokenizer = load_tokenizer(name, "model")
        with reporting_failure("model", name):
            config = AutoConfig.from_pretrained(source_of(name))
            forget_added_padding(tokenizer, config.get_text_config().vocab_size)
            known = config.id2label
            numbered = [known[number] for number in sorted(known)]
            if in_order:
                _check_numbers(name, labels, numbered)
            elif set(labels) <= set(numbered):  # the base's own head may know them already
                labels = numbered
            config.id2label = dict(enumerate(labels))
            config.label2id = {label: number for number, label in enumerate(labels)}
            config.problem_type = "single_label_classification"  # a base of another would train by another loss
            config.get_text_config().pad_token_id = padding_id(tokenizer)  # where a base with towers looks for it, too
            model, info = AutoModelForSequenceClassification.from_pretrained(
                source_of(name),
                config=config,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **loading_dtype(),
            )
        drawn = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}
        return cls(on_device(named(model, name)), LabelPreprocessor(tokenizer, tuple(labels)), _heads(model, drawn))

    @property
    def metadata(self) -> Mapping[str, Any]:
        """The names of the labels, in the order of their numbers."""
        return {"labels": list(self.preprocessor.labels)}

    def attach(self) -> PrefixBank:
        """Attach to the base model."""
        return attach(self.model)

    def configure(self, config: PrefixConfig) -> PrefixConfig:
        """Return the configuration with the heads among the modules that are trained."""
        others = [module for module in config.trainable_modules if not any(_is(head, module) for head in self.heads)]
        return replace(config, trainable_modules=(*self.heads, *others))

    def check_room(self, room: Room, part: TokenizedExamples, metrics: Sequence[str] = ()) -> None:
        """Raise `ContextLengthError` for a text longer than the model's positions, `DataError` for an empty one."""
        for example, tokens in zip(part.examples, part.tokens, strict=True):
            if not tokens.prompt:
                raise DataError(
                    f"a text of the label {example.answer!r} has no tokens, and this base's tokenizer adds none; leave "
                    "such examples out."
                )
            # An encoder-decoder reads the text in both of its stacks.
            again = len(tokens.prompt) if room.is_encoder_decoder else 0
            room.check(len(tokens.prompt), again, f"the example {example.prompt[:60]!r} or the prefix")

    def warning(self, part: TokenizedExamples) -> str | None:
        """Return None: any label can be chosen."""
        return None

    def groups(self, examples: Sequence[Example]) -> list[list[int]]:
        """Return a group for each example: a text has one label."""
        return [[number] for number in range(len(examples))]

    def reference(self, example: Example) -> str:
        """Return the label."""
        return example.answer

    def measure(
        self, parts: Sequence[TokenizedExamples], mixed: MixedBatches, metrics: Sequence[str]
    ) -> list[Measured]:
        """Return metrics of the chosen labels, and the labels."""
        features = [part.features(self.preprocessor) for part in parts]
        scores = mixed.run(features, length=lambda one: len(one["input_ids"]), compute=self.logits)
        right = [one["labels"] for one in features[0]]
        return [self._measured(torch.stack(logits), right, metrics) for logits in scores]

    def logits(self, features: Sequence[dict[str, Any]]) -> list[Tensor]:
        """Return the scores of the labels `(label)` for each tokenized text, computed as one batch."""
        batch = {name: tensor.to(self.model.device) for name, tensor in self.preprocessor.collate(features).items()}
        del batch["labels"]
        self.model.eval()
        with torch.no_grad():
            return list(self.model(**batch).logits.float().cpu())

    def _measured(self, logits: Tensor, right: Sequence[int], metrics: Sequence[str]) -> Measured:
        losses = cross_entropy(logits, torch.tensor(right), reduction="none").double().numpy()
        chosen = logits.argmax(1).tolist()
        found = {
            "loss": loss(np.stack([losses, np.ones_like(losses)], axis=1)),
            "accuracy": accuracy(chosen, right),
            "macro_f1": macro_f1(chosen, right, logits.shape[1]),
        }
        return Measured({name: found[name] for name in metrics}, [self.preprocessor.labels[label] for label in chosen])


def labels_of(examples: Sequence[Example]) -> list[str]:
    """Return the labels that occur, sorted: as numbers if all are, else as text."""
    found = sorted({example.answer for example in examples})  # 1 and 01 are one number, and a set has no order
    return sorted(found, key=int) if all(label.isdecimal() and len(label) < 20 for label in found) else found


def _check_numbers(name: str, told: Sequence[str], numbered: Sequence[str]) -> None:
    if set(told) == set(numbered) and list(told) != list(numbered):
        raise ConfigError(
            f"the base '{name}' numbers its labels {', '.join(map(repr, numbered[:_MAX_NAMED]))} and the prefix "
            f"{', '.join(map(repr, told[:_MAX_NAMED]))}, so one of them would be scored by the other's; take the base "
            "that the prefix was trained on."
        )


def _heads(model: PreTrainedModel, drawn: set[str]) -> tuple[str, ...]:
    outside = [
        name
        for name, module in model.named_children()
        if module is not model.base_model and any(True for _ in module.parameters())
    ]
    inside = {key.rpartition(".")[0] for key in drawn if not any(_is(head, key) for head in outside)}
    return (*outside, *sorted(inside))


def _is(head: str, name: str) -> bool:
    return name == head or name.startswith(f"{head}.")
