"""The answers a model writes, with what the bank has in use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor
from transformers import PreTrainedModel

from antefix.training.tokens import ExampleTokenizer, pad_rows, padding_id


def answers(
    model: PreTrainedModel, encoder: ExampleTokenizer, prompts: Sequence[str], max_new_tokens: int, batch_size: int = 16
) -> list[str]:
    """Return the greedy answers to prompts."""
    rows = [encoder.prompt_ids(prompt) for prompt in prompts]
    starts = range(0, len(rows), batch_size)
    batches = (write(model, encoder, rows[start : start + batch_size], max_new_tokens) for start in starts)
    return [answer for batch in batches for answer in batch]


def write(
    model: PreTrainedModel, encoder: ExampleTokenizer, rows: Sequence[list[int]], max_new_tokens: int
) -> list[str]:
    """Return the greedy answers to prompts of ids, written as one batch."""
    pad = padding_id(encoder.tokenizer)
    # A causal model goes on from the right end, so its padding stands on the left.
    ids = pad_rows(rows, pad, on_left=not encoder.is_encoder_decoder)
    mask = pad_rows([[1] * len(row) for row in rows], 0, on_left=not encoder.is_encoder_decoder)
    model.eval()
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
    return list(encoder.answer_tokenizer.batch_decode(made, skip_special_tokens=True))


def generate_ids(model: PreTrainedModel, **arguments: Any) -> Tensor:
    """Call `model.generate`, which not every `PreTrainedModel` has by its type."""
    return cast(Tensor, cast(Any, model).generate(**arguments))
