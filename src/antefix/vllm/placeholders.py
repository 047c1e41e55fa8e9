"""The one place that changes a request of vLLM: positions for the prefix, in front of the user's own tokens."""

from __future__ import annotations

from vllm.v1.request import Request

PLACEHOLDER = 0
"""Any token will do: the positions are never computed, and the cache is salted by what stands there instead."""


def insert_placeholders(request: Request, num_virtual_tokens: int, salt: str) -> None:
    """Put `num_virtual_tokens` positions before a request's prompt, cached under a salt of their own."""
    prompt = request.prompt_token_ids or []
    # A repetition penalty counts every token of the prompt; repeating one that is there anyway changes nothing.
    penalised = request.sampling_params is not None and request.sampling_params.repetition_penalty != 1.0
    positions = [prompt[0] if penalised else PLACEHOLDER] * num_virtual_tokens
    request.prompt_token_ids = positions + prompt
    request._all_token_ids[:0] = positions
    request.num_prompt_tokens += num_virtual_tokens
    request.cache_salt = salt
    request.block_hashes.clear()
    request.update_block_hashes()


def limit_answer(request: Request, most: int) -> None:
    """Let a request write no more than `most` tokens."""
    request.max_tokens = min(request.max_tokens, most)
    if request.sampling_params is not None:
        request.sampling_params.max_tokens = request.max_tokens
        # A worker checks them anew as it unpickles them, and dies where the least is more than the most.
        request.sampling_params.min_tokens = min(request.sampling_params.min_tokens, request.max_tokens)
