"""How well a model does with what its bank has active: loss a token, exact match, and the answers themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from antefix.training.data import IGNORED_LABEL, Collator, Example, ExampleTokenizer, pad_rows


def loss_per_token(
    model: PreTrainedModel, rows: Sequence[dict[str, list[int]]], pad_token_id: int, batch_size: int
) -> float:
    """Return the mean negative log-likelihood, in nats, of the labelled tokens of encoded examples."""
    collate = Collator(pad_token_id)
    total, tokens = 0.0, 0
    model.eval()
    with torch.no_grad():
        for start in range(0, len(rows), batch_size):
            batch = {
                name: tensor.to(model.device) for name, tensor in collate(rows[start : start + batch_size]).items()
            }
            logits, labels = model(**batch, use_cache=False).logits.float(), batch["labels"]
            if not model.config.is_encoder_decoder:
                logits, labels = logits[:, :-1], labels[:, 1:]
            total += cross_entropy(
                logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED_LABEL, reduction="sum"
            ).item()
            tokens += int((labels != IGNORED_LABEL).sum())
    return total / max(tokens, 1)


def answers(
    model: PreTrainedModel, encoder: ExampleTokenizer, prompts: Sequence[str], max_new_tokens: int, batch_size: int = 16
) -> list[str]:
    """Return the greedy answers to prompts."""
    pad = padding_id(encoder)
    found: list[str] = []
    model.eval()
    for start in range(0, len(prompts), batch_size):
        rows = [encoder.prompt_ids(prompt) for prompt in prompts[start : start + batch_size]]
        # A causal model goes on from the right end, so its padding stands on the left.
        ids = pad_rows(rows, pad, on_left=not encoder.is_encoder_decoder)
        mask = pad_rows([[1] * len(row) for row in rows], 0, on_left=not encoder.is_encoder_decoder)
        made = generate_ids(
            model,
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            pad_token_id=pad,
        )
        if not encoder.is_encoder_decoder:
            made = made[:, ids.shape[1] :]
        found += encoder.answer_tokenizer.batch_decode(made, skip_special_tokens=True)
    return found


def generate_ids(model: PreTrainedModel, **arguments: Any) -> Tensor:
    """Call `model.generate`, which not every `PreTrainedModel` has by its type."""
    return cast(Tensor, cast(Any, model).generate(**arguments))


def exact_match(model: PreTrainedModel, encoder: ExampleTokenizer, examples: Sequence[Example]) -> float:
    """Return the share of examples whose greedy answer is the expected one, white space at the ends aside."""
    given = answers(model, encoder, [example.prompt for example in examples], longest_answer(encoder, examples))
    return sum(a.strip() == e.answer.strip() for a, e in zip(given, examples, strict=True)) / len(examples)


def longest_answer(encoder: ExampleTokenizer, examples: Sequence[Example]) -> int:
    """Return how many tokens it takes to write any of the expected answers and its end."""
    return max(len(encoder.answer_tokenizer(example.answer)["input_ids"]) for example in examples) + 2


def padding_id(encoder: ExampleTokenizer) -> int:
    """Return an id to pad with; any will do, because the mask hides it."""
    tokenizer = encoder.tokenizer
    found = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return int(found) if found is not None else 0
