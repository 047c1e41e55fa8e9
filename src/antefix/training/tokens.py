"""Examples as token ids, the way a causal model or an encoder-decoder learns from them, and batches of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from antefix.errors import DataError
from antefix.training.examples import Example

IGNORED_LABEL = -100


@dataclass(frozen=True)
class Tokens:
    """The ids of a prompt and of its answer."""

    prompt: list[int]
    answer: list[int]


@runtime_checkable
class Preprocessor(Protocol):
    """Turns examples into what a model is trained on."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the base model."""

    def tokenize(self, example: Example) -> Tokens:
        """Return the ids of an example, whatever its length."""

    def length(self, tokens: Tokens) -> int:
        """Return the length in tokens of the longest sequence that the model reads or writes for an example."""

    def lengths(self, tokens: Tokens) -> dict[str, int]:
        """Return the length in tokens of each text that an example is made of, such as the prompt."""

    def cut(self, tokens: Tokens, max_length: int) -> Tokens:
        """Return an example cut to at most this length."""

    def features(self, tokens: Tokens) -> dict[str, Any]:
        """Return what the model is given for an example: `input_ids` and `labels`."""

    def collate(self, features: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Return the features of examples as one batch, `input_ids` and `attention_mask` of `(row, token)`."""


@dataclass(frozen=True)
class TokenizedExamples:
    """Examples that are used together, such as those held out, as text and as token ids."""

    examples: Sequence[Example]
    tokens: Sequence[Tokens]

    @classmethod
    def of(cls, examples: Sequence[Example], preprocessor: Preprocessor) -> TokenizedExamples:
        """Return examples with their token ids."""
        return cls(examples, [preprocessor.tokenize(example) for example in examples])

    def features(self, preprocessor: Preprocessor) -> list[dict[str, Any]]:
        """Return what the model is given for each example."""
        return [preprocessor.features(tokens) for tokens in self.tokens]


@dataclass(frozen=True)
class TextPreprocessor:
    """Tokenizes prompts and answers for a causal model or an encoder-decoder.

    Texts that a chat template wrote have their special tokens already: for those, `adds_special_tokens` is False, and
    `closing` is what the template writes after an answer.
    """

    tokenizer: PreTrainedTokenizerBase
    answer_tokenizer: PreTrainedTokenizerBase
    is_encoder_decoder: bool
    adds_special_tokens: bool = True
    closing: str = ""

    @property
    def ends(self) -> set[int]:
        """The ids that end an answer in the examples: the end-of-text token, and in chats what closes a turn."""
        added = self.answer_tokenizer.added_tokens_decoder
        special = {token for token, text in added.items() if not str(text).isspace()}  # answers have blank lines, too
        special.update(self.answer_tokenizer.all_special_ids)
        closing = self.answer_tokenizer(self.closing, add_special_tokens=False)["input_ids"]
        ends = [_end_of_text(self.answer_tokenizer), next((token for token in closing if token in special), None)]
        return {int(token) for token in ends if token is not None}

    def tokenize(self, example: Example) -> Tokens:
        """Return the ids of prompt and answer; raises `DataError` for an answer without tokens."""
        if example.completion is not None:
            answer = list(self.answer_tokenizer(example.completion, add_special_tokens=False)["input_ids"])
        elif self.is_encoder_decoder:
            answer = list(self.answer_tokenizer(text_target=example.answer)["input_ids"])
        else:
            answer = list(self.answer_tokenizer(example.answer, add_special_tokens=False)["input_ids"])
            if (end := _end_of_text(self.answer_tokenizer)) is not None:
                answer.append(end)
        if not answer:
            raise DataError(f"an example has an answer without tokens: {example.prompt[:60]!r}.")
        return Tokens(self.prompt_ids(example.prompt), answer)

    def length(self, tokens: Tokens) -> int:
        """Return the length of prompt and answer together, or, for an encoder-decoder, of the longer one."""
        prompt, answer = len(tokens.prompt), len(tokens.answer)
        return max(prompt, answer) if self.is_encoder_decoder else prompt + answer

    def lengths(self, tokens: Tokens) -> dict[str, int]:
        """Return the lengths of prompt and answer."""
        return {"prompt": len(tokens.prompt), "answer": len(tokens.answer)}

    def cut(self, tokens: Tokens, max_length: int) -> Tokens:
        """Return an example cut to a length.

        A causal model keeps the opening token and the end of its prompt, from which the answer goes on; only an answer
        that is too long by itself is cut, at its end. An encoder-decoder keeps the beginning of its prompt, and a
        closing token that the tokenizer put there.
        """
        if self.is_encoder_decoder:
            return Tokens(cut_end(tokens.prompt, max_length, self.tokenizer), tokens.answer[:max_length])
        opening = tokens.prompt[: int(tokens.prompt[:1] == [self.tokenizer.bos_token_id])]
        answer = tokens.answer[: max(max_length - bool(tokens.prompt), 1)]
        room = max_length - len(answer) - len(opening)
        rest = tokens.prompt[len(opening) :]
        return Tokens(opening + rest[max(len(rest) - room, 0) :], answer)

    def features(self, tokens: Tokens) -> dict[str, Any]:
        """Return `input_ids` and `labels`; in a causal model, neither the prompt nor the first token has a label."""
        if self.is_encoder_decoder:
            return {"input_ids": tokens.prompt, "labels": tokens.answer}
        ids, unlabelled = tokens.prompt + tokens.answer, max(len(tokens.prompt), 1)
        return {"input_ids": ids, "labels": [IGNORED_LABEL] * unlabelled + ids[unlabelled:]}

    def __call__(self, example: Example) -> dict[str, Any]:
        """Return `input_ids` and `labels` of an example."""
        return self.features(self.tokenize(example))

    def collate(self, features: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Return `input_ids`, `attention_mask` and `labels` `(row, token)`, padded on the right."""
        labels = pad_rows([one["labels"] for one in features], IGNORED_LABEL)
        return {**pad_inputs([one["input_ids"] for one in features], padding_id(self.tokenizer)), "labels": labels}

    def can_write(self, answer: Sequence[int]) -> bool:
        """Return whether the tokenizer knows every piece of an answer."""
        unknown, end = self.answer_tokenizer.unk_token_id, self.answer_tokenizer.eos_token_id
        return unknown is None or unknown == end or unknown not in answer

    def text(self, answer: Sequence[int]) -> str:
        """Return what ids of an answer say, without special tokens, spaced as it was written.

        A tokenizer may be set to mend spaces, 'it 's .' to 'it's.', and no reference is mended.
        """
        decode = self.answer_tokenizer.decode
        return str(decode(list(answer), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def prompt_ids(self, prompt: str) -> list[int]:
        """Return the ids of a prompt with the tokenizer's special tokens, but for a causal model none that end it."""
        ids = list(self.tokenizer(prompt, add_special_tokens=self.adds_special_tokens)["input_ids"])
        is_ended = ids[-1:] == [_end_of_text(self.tokenizer)]
        if self.adds_special_tokens and not self.is_encoder_decoder and is_ended and _closes_texts(self.tokenizer):
            ids.pop()
        return ids


def pad_inputs(rows: Sequence[Sequence[int]], pad_token_id: int, on_left: bool = False) -> dict[str, Tensor]:
    """Return `input_ids` and `attention_mask` `(row, token)` of rows of ids."""
    return {
        "input_ids": pad_rows(rows, pad_token_id, on_left),
        "attention_mask": pad_rows([[1] * len(row) for row in rows], 0, on_left),
    }


def pad_rows(rows: Sequence[Sequence[int]], value: int, on_left: bool = False) -> Tensor:
    """Return rows of ids as one tensor `(row, token)`, padded on the right or on the left."""
    tensors = [torch.tensor(row, dtype=torch.long) for row in rows]
    return pad_sequence(tensors, True, value, padding_side="left" if on_left else "right")


def padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return an id to pad with; any will do, as a mask hides it."""
    found = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return int(found) if found is not None else 0


def _end_of_text(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the id that ends a text; tokenizers such as BERT's only have the one that separates two texts."""
    found = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    return None if found is None else int(found)


def _closes_texts(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether a tokenizer ends a text with a special token, which may be the one that opens texts, too."""
    whole, bare = (tokenizer("a", add_special_tokens=added)["input_ids"] for added in (True, False))
    return bool(whole[len(whole) - len(bare) :] != bare)


def cut_end(ids: list[int], max_length: int, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the first ids; if the tokenizer closed a longer text with a special token, that one is the last."""
    if len(ids) <= max_length or ids[-1] not in (tokenizer.eos_token_id, tokenizer.sep_token_id):
        return ids[:max_length]
    return [*ids[: max_length - 1], ids[-1]]
