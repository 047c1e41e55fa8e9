"""The answers that a model writes, with whatever prefix its bank has in use."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, cast

from torch import Tensor
from transformers import PreTrainedModel

from antefix.training.tokens import TextPreprocessor, pad_inputs, padding_id

_NO_HABITS: dict[str, Any] = {
    "num_beams": 1,
    "num_return_sequences": 1,
    "min_length": 0,
    "min_new_tokens": None,
    "max_time": None,
    "stop_strings": None,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "bad_words_ids": None,
    "sequence_bias": None,
    "exponential_decay_length_penalty": None,
    "guidance_scale": None,
    "renormalize_logits": None,
    "min_p": None,
    "top_h": None,
    "return_dict_in_generate": False,
    "watermarking_config": None,
    "token_healing": False,
    "dola_layers": None,
    "is_assistant": False,
    "assistant_early_exit": None,
    "prompt_lookup_num_tokens": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "force_words_ids": None,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
}
"""What a base's generation configuration may set besides the ids of its special tokens, all turned off.

A penalty on repetition, for example, would count the words of a text in the prompt, but not those of a prefix.
"""


def answers(
    model: PreTrainedModel,
    preprocessor: TextPreprocessor,
    prompts: Sequence[str],
    max_new_tokens: int,
    batch_size: int = 16,
) -> list[str]:
    """Return the greedy answers to prompts."""
    rows = [preprocessor.prompt_ids(prompt) for prompt in prompts]
    starts = range(0, len(rows), batch_size)
    batches = (answer_batch(model, preprocessor, rows[start : start + batch_size], max_new_tokens) for start in starts)
    return [answer for batch in batches for answer in batch]


def answer_batch(
    model: PreTrainedModel, preprocessor: TextPreprocessor, prompts: Sequence[list[int]], max_new_tokens: int
) -> list[str]:
    """Return the greedy answers to prompts of token ids, generated as one batch, up to where the model ends them."""
    # A causal model goes on from the right end, so its padding stands on the left.
    inputs: dict[str, Any] = pad_inputs(
        prompts, padding_id(preprocessor.tokenizer), on_left=not preprocessor.is_encoder_decoder
    )
    model.eval()
    made = generate_ids(
        model,
        ends_of(model) | preprocessor.ends,
        **{name: tensor.to(model.device) for name, tensor in inputs.items()},
        max_new_tokens=max_new_tokens,
        pad_token_id=padding_id(preprocessor.answer_tokenizer),
    )
    # A decoder starts from a token that is no answer.
    read = 1 if preprocessor.is_encoder_decoder else inputs["input_ids"].shape[1]
    return decoded(model, preprocessor, made[:, read:].tolist())


def decoded(model: PreTrainedModel, preprocessor: TextPreprocessor, answers: Sequence[Sequence[int]]) -> list[str]:
    """Return answers, given as token ids, as text up to where the model ends them."""
    ends = ends_of(model) | preprocessor.ends
    written = [before_end(row, ends) for row in answers]
    return [preprocessor.text(row) for row in written]


def generate_ids(
    model: PreTrainedModel, ends: Collection[int], temperature: float = 0.0, top_p: float = 1.0, **arguments: Any
) -> Tensor:
    """Call `model.generate` to write the likeliest tokens, or to sample at a temperature, up to one of `ends`.

    Nothing counts of the base's generation configuration but the ids of special tokens.
    """
    sampling: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    if temperature > 0:
        sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
    # By its type, not every `PreTrainedModel` has it.
    generate = cast(Any, model).generate
    return cast(Tensor, generate(eos_token_id=sorted(ends) or None, **_NO_HABITS, **sampling, **arguments))


def ends_of(model: PreTrainedModel) -> set[int]:
    """Return the ids that end a text according to the base's generation configuration."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    listed = configured if isinstance(configured, list) else [configured]
    return {int(token) for token in listed if token is not None}


def before_end(row: Sequence[int], ends: Collection[int]) -> list[int]:
    """Return the ids before the first one that ends a text."""
    return list(row[: next((place for place, token in enumerate(row) if token in ends), len(row))])
