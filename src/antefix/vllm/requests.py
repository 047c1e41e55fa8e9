"""What a client asks for with a prefix: what cannot be had is refused in one sentence, the rest goes on to vLLM."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from antefix.vllm.ticket import PARAMETER, Ticket

_TEXT_PARTS = {"text", "input_text", "output_text", "refusal", "thinking"}
_MAX_SPECIAL_TOKENS = 64  # far more than any tokenizer puts around a prompt

_OF_TOKENIZE = (
    "add_special_tokens",
    "add_generation_prompt",
    "continue_final_message",
    "chat_template",
    "chat_template_kwargs",
    "tools",
)
_OF_TEMPLATE = ("documents", "reasoning_effort")
"""What a chat's template is given beside its keywords, and `/tokenize` takes among them alone."""
_REFUSED = {
    "prompt_logprobs": "vLLM would compute the prefix's positions anew for them",
    "echo": "the prefix has no text to repeat; take the prompt you sent",
    "use_beam_search": "vLLM would drop the prefix between its steps; sample with n instead",
    "prompt_embeds": "embeddings cannot stand behind a prefix; send text or token ids",
    "kv_transfer_params": "the prefix is chosen by the model's name alone",
}
_SWITCHES = {"echo", "use_beam_search"}


def refusal(request: Mapping[str, Any]) -> str | None:
    """Return why a request cannot be answered with a prefix, None if it can."""
    for parameter, why in _REFUSED.items():
        asked = request.get(parameter)
        if asked is not None and not (asked is False and parameter in _SWITCHES):
            return f"`{parameter}` cannot be used with a prefix: {why}."
    if not all(_is_text(part) for part in _parts(request)):
        return "a message holds something other than text, and a prefix can stand before text only."
    return None


def writes_a_ticket(request: Mapping[str, Any]) -> bool:
    """Tell whether a client wrote by itself what only this server may write."""
    extra = request.get("vllm_xargs")
    within = [request, extra] if isinstance(extra, dict) else [request]
    parameters = [part.get("kv_transfer_params") for part in within]
    return any(PARAMETER in found for found in parameters if isinstance(found, dict))


def with_prefix(request: Mapping[str, Any], ticket: Ticket, base: str) -> dict[str, Any]:
    """Return the request that vLLM understands: the base model, and the ticket of the prefix."""
    return {**request, "model": base, "kv_transfer_params": ticket.signed()}


def prompts_to_count(request: Mapping[str, Any]) -> list[Any]:
    """Return what has a length: the token ids of a prompt, or what vLLM's `/tokenize` makes token ids of."""
    common = {name: request[name] for name in _OF_TOKENIZE if name in request}
    if "messages" in request:
        keywords = {name: request[name] for name in _OF_TEMPLATE if request.get(name) is not None}
        # vLLM switches thinking by the effort, unless the request does.
        thinks = {"enable_thinking": keywords["reasoning_effort"] != "none"} if "reasoning_effort" in keywords else {}
        given = request.get("chat_template_kwargs") or {}
        if keywords and isinstance(given, dict):
            common["chat_template_kwargs"] = thinks | given | keywords
        return [common | {"messages": request["messages"]}]
    prompts = request.get("prompt")
    is_one = not isinstance(prompts, list) or all(isinstance(token, int) for token in prompts)
    return [
        common | {"prompt": prompt} if isinstance(prompt, str) else prompt
        for prompt in ([prompts] if is_one else prompts or [])
    ]


def surely_fits(request: Mapping[str, Any], num_bytes: int, num_virtual_tokens: int, room: int) -> bool:
    """Tell whether a request fits however its text is cut into tokens; a token has at least one byte.

    Of a chat nobody knows before it is counted: its template may write any length of text.
    """
    needed = num_virtual_tokens + num_bytes + _MAX_SPECIAL_TOKENS + most_tokens(request)
    return "messages" not in request and needed <= room


def too_long(request: Mapping[str, Any], num_tokens: int, num_virtual_tokens: int, room: int) -> str | None:
    """Return why a prompt of `num_tokens`, of which vLLM may cut some off, does not fit behind a prefix, or None."""
    most, kept = most_tokens(request), _number(request.get("truncate_prompt_tokens"))
    if kept is not None and kept >= 0:
        num_tokens = min(num_tokens, kept)
    needed = num_virtual_tokens + num_tokens + most
    if needed <= room:
        return None
    return (
        f"the prefix has {num_virtual_tokens} virtual tokens and the prompt {num_tokens} tokens; with {most} to write "
        f"they need {needed} positions, and there are {room} with a prefix. Shorten the prompt or write less."
    )


def most_tokens(request: Mapping[str, Any]) -> int:
    """Return how many tokens a request wants written, its least or one where it leaves that open."""
    names = ("max_completion_tokens", "max_tokens") if "messages" in request else ("max_tokens",)
    asked = (_number(request.get(name)) for name in names)
    least = _number(request.get("min_tokens")) or 1
    return max(1, least, next((most for most in asked if most is not None), 1))


def _number(told: Any) -> int | None:
    """Return the number that vLLM takes something for, also a text or a fraction; None if it is none."""
    try:
        return told if isinstance(told, int) else int(float(told))
    except (TypeError, ValueError, OverflowError):
        return None


def _is_text(part: Mapping[str, Any]) -> bool:
    kind = part.get("type", "text" if "text" in part else None)
    return isinstance(kind, str) and kind in _TEXT_PARTS


def _parts(request: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    messages = request.get("messages")
    for message in messages if isinstance(messages, list) else []:
        content = message.get("content") if isinstance(message, dict) else None
        yield from (part for part in content if isinstance(part, dict)) if isinstance(content, list) else ()
