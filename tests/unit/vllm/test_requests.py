"""What is refused before vLLM sees it, and what a request becomes."""

from __future__ import annotations

from typing import Any

import pytest

from antefix.vllm.requests import most_tokens, prompts_to_count, refusal, surely_fits, too_long, writes_a_ticket


@pytest.mark.parametrize(
    "request_",
    [
        {"prompt": "a", "echo": True},
        {"prompt": "a", "echo": "true"},
        {"prompt": "a", "echo": 1},
        {"prompt": "a", "prompt_logprobs": 0},
        {"prompt": "a", "prompt_logprobs": False},
        {"prompt": "a", "use_beam_search": "yes"},
        {"prompt": "a", "prompt_embeds": "AAAA"},
        {"prompt": "a", "kv_transfer_params": {}},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url"}]}]},
        {"messages": [{"role": "user", "content": [{"image_url": "a"}]}]},
        {"messages": [{"role": "user", "content": [{"type": ["text"]}]}]},
    ],
)
def test_what_no_prefix_can_have(request_: dict[str, Any]) -> None:
    reason = refusal(request_)
    assert reason is not None
    assert reason.endswith(".")


@pytest.mark.parametrize(
    "request_",
    [
        {"prompt": "a", "echo": False, "prompt_logprobs": None, "use_beam_search": False, "logprobs": 5, "n": 3},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}, {"role": "tool", "content": "b"}]},
        {"messages": "not a list, as vLLM will say"},
        {"messages": [{"role": "user", "content": [{"text": "a"}]}]},
        {"messages": [3, {"content": None}]},
    ],
)
def test_what_goes_on(request_: dict[str, Any]) -> None:
    assert refusal(request_) is None


@pytest.mark.parametrize("value", [{"antefix": 1}, {"antefix": None, "other": 1}])
def test_tickets_that_clients_write(value: Any) -> None:
    assert writes_a_ticket({"kv_transfer_params": value})
    assert writes_a_ticket({"vllm_xargs": {"kv_transfer_params": value}})
    assert not writes_a_ticket(
        {"kv_transfer_params": {"do_remote_prefill": True}, "vllm_xargs": [], "prompt": "antefix"}
    )


@pytest.mark.parametrize(
    ("request_", "most"),
    [
        ({}, 1),
        ({"max_tokens": 7}, 7),
        ({"max_completion_tokens": 5, "max_tokens": 7, "messages": []}, 5),
        ({"max_completion_tokens": 5, "max_tokens": 7}, 7),
        ({"max_tokens": None}, 1),
        ({"max_tokens": -3}, 1),
        ({"max_tokens": "7"}, 7),
        ({"max_tokens": 7.0}, 7),
        ({"max_tokens": "many"}, 1),
        ({"max_tokens": float("inf")}, 1),
        ({"max_tokens": [7]}, 1),
    ],
)
def test_how_much_is_to_be_written(request_: dict[str, Any], most: int) -> None:
    assert most_tokens(request_) == most


def test_room_is_counted_to_the_last_position() -> None:
    assert too_long({"max_tokens": 8}, 20, 100, room=128) is None
    assert "129 positions, and there are 128" in (too_long({"max_tokens": 8}, 21, 100, room=128) or "")
    cut = {"max_tokens": 8, "truncate_prompt_tokens": 20}
    assert too_long(cut, 2000, 100, room=128) is None
    assert "129 positions" in (too_long(cut | {"truncate_prompt_tokens": 21}, 2000, 100, room=128) or "")
    assert too_long(cut | {"truncate_prompt_tokens": -1}, 2000, 100, room=128) is not None
    assert "129 positions" in (too_long(cut | {"truncate_prompt_tokens": "21"}, 2000, 100, room=128) or "")
    # A prompt of bytes that all were tokens, between 64 special ones.
    assert surely_fits({"max_tokens": 8}, 20, 100, room=192)
    assert not surely_fits({"max_tokens": 8}, 21, 100, room=192)


def test_a_chat_is_always_counted() -> None:
    assert not surely_fits({"messages": [], "max_tokens": 8}, 20, 100, room=2**20)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a", [{"prompt": "a"}]),
        (["a", "b"], [{"prompt": "a"}, {"prompt": "b"}]),
        ([5, 6], [[5, 6]]),
        ([[5, 6], [7]], [[5, 6], [7]]),
        (None, [None]),
    ],
)
def test_every_form_of_a_prompt_is_counted(prompt: Any, expected: list[Any]) -> None:
    assert prompts_to_count({"prompt": prompt}) == expected


def test_a_conversation_is_counted_as_it_is_rendered() -> None:
    request = {"messages": [{"role": "user"}], "tools": [1], "stream": True, "add_generation_prompt": False}
    assert prompts_to_count(request) == [{"messages": [{"role": "user"}], "tools": [1], "add_generation_prompt": False}]
    request |= {"documents": [{"text": "a"}], "reasoning_effort": "high", "chat_template_kwargs": {"b": 1}}
    keywords = {"documents": [{"text": "a"}], "reasoning_effort": "high", "enable_thinking": True, "b": 1}
    assert prompts_to_count(request)[0]["chat_template_kwargs"] == keywords
    for effort, told, thinks in (("none", {}, False), ("high", {"enable_thinking": False}, False)):
        request |= {"reasoning_effort": effort, "chat_template_kwargs": told}
        assert prompts_to_count(request)[0]["chat_template_kwargs"]["enable_thinking"] is thinks
    request["chat_template_kwargs"] = "none, as vLLM will say"
    assert prompts_to_count(request)[0]["chat_template_kwargs"] == request["chat_template_kwargs"]
