"""A prefix is a model of the real `openai` client, and its answers are those of Transformers."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import torch
from openai import AsyncOpenAI

from tests.vllm.bases import solo_answer
from tests.vllm.server.served import CHAT, NUM_PREFIXES, PROMPTS, ROOM, Served
from tests.vllm.serving import KEY


def test_prefixes_are_listed_as_models(served: Served) -> None:
    listed = {model.id: model for model in served.client.models.list()}
    assert set(listed) == {"embedded", *(f"p{number}" for number in range(NUM_PREFIXES))}
    assert listed["p3"].max_model_len == ROOM - 10  # type: ignore[attr-defined]
    assert (listed["p3"].owned_by, listed["p3"].parent) == ("antefix", "embedded")  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["embedded", "p0", "p5", "p31"])
def test_a_completion(served: Served, name: str) -> None:
    answer = served.complete(name)
    assert answer.choices[0].text == served.solo(None if name == "embedded" else name, PROMPTS[0], 12)
    assert answer.model == name
    assert answer.usage.prompt_tokens == len(served.tokenizer(PROMPTS[0]).input_ids)
    assert answer.usage.completion_tokens == 12
    if name != "embedded":
        assert answer.usage.virtual_tokens == served.bank.prefix(name).num_virtual_tokens
        assert answer.usage.prompt_tokens_details.cached_tokens in (0, None)


def test_prompts_of_several_forms_in_one_request(served: Served) -> None:
    texts = [choice.text for choice in served.complete("p9", list(PROMPTS[:3])).choices]  # type: ignore[arg-type]
    ids = [served.tokenizer(prompt).input_ids for prompt in PROMPTS[:3]]
    assert texts == [served.solo("p9", prompt, 12) for prompt in PROMPTS[:3]]
    assert texts == [choice.text for choice in served.complete("p9", ids).choices]  # type: ignore[arg-type]


def test_a_stream(served: Served) -> None:
    chunks = list(served.complete("p7", stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == served.solo("p7", PROMPTS[0], 12)
    assert {chunk.model for chunk in chunks} == {"p7"}
    assert chunks[-1].usage.virtual_tokens == 22


def test_a_chat(served: Served) -> None:
    text = "user: What is the name of the ship?\nassistant:"
    expected = served.solo("p4", text, 12, add_special_tokens=False)
    create = served.client.chat.completions.create
    settings: Any = {"model": "p4", "messages": CHAT, "temperature": 0, "extra_body": {"ignore_eos": True}}
    whole = create(max_completion_tokens=12, **settings)
    assert (whole.choices[0].message.content, whole.model) == (expected, "p4")
    stream = create(max_completion_tokens=12, stream=True, **settings)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices) == expected


def test_an_answer_of_open_length_ends_where_the_positions_do(served: Served) -> None:
    answer = served.client.chat.completions.create(
        model="p31", messages=CHAT, temperature=0, extra_body={"ignore_eos": True}
    )
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.total_tokens + 94 == ROOM


def test_several_samples(served: Served) -> None:
    answer = served.complete("p6", n=3, temperature=1.0, seed=5)
    assert len({choice.text for choice in answer.choices}) == 3
    again = served.complete("p6", n=3, temperature=1.0, seed=5)
    assert [choice.text for choice in again.choices] == [choice.text for choice in answer.choices]


def test_stop_strings(served: Served) -> None:
    whole = served.solo("p8", PROMPTS[1], 30)
    stop = whole[10:13]
    answer = served.complete("p8", PROMPTS[1], 30, stop=[stop])
    assert answer.choices[0].text == whole[: whole.index(stop)]
    assert answer.choices[0].finish_reason == "stop"


def test_log_probabilities_of_the_answer(served: Served) -> None:
    answer = served.complete("p2", max_tokens=6, logprobs=1)
    ids = served.tokenizer(PROMPTS[0]).input_ids
    whole = torch.tensor([ids + solo_answer(served.bank, "p2", ids, 6)])
    with served.bank.use("p2"), torch.no_grad():
        logits = served.bank.model(input_ids=whole).logits[0]  # type: ignore[operator]
    expected = logits.log_softmax(-1)[len(ids) - 1 : -1].gather(1, whole[0, len(ids) :, None])[:, 0]
    # Both in fp32; sums are taken in another order.
    torch.testing.assert_close(torch.tensor(answer.choices[0].logprobs.token_logprobs), expected, atol=1e-4, rtol=0)


def test_guided_decoding(served: Served) -> None:
    answer = served.complete("p1", extra_body={"structured_outputs": {"regex": "(yes|no)"}})
    assert answer.choices[0].text in ("yes", "no")


def test_a_thousand_requests_at_once(served: Served) -> None:
    names = [None, *(f"p{number}" for number in range(NUM_PREFIXES))]
    pairs = [(name, prompt) for name in names for prompt in PROMPTS]
    expected = {pair: served.solo(*pair, 16) for pair in pairs}
    asked = [pairs[7 * i % len(pairs)] for i in range(1000)]

    async def ask_all() -> list[str]:
        settings: Any = {"max_tokens": 16, "temperature": 0, "extra_body": {"ignore_eos": True}}
        url = f"{served.server.url}/v1"
        async with AsyncOpenAI(base_url=url, api_key=KEY, max_retries=0, timeout=300) as client:
            create = client.completions.create
            answers = await asyncio.gather(
                *(create(model=name or "embedded", prompt=prompt, **settings) for name, prompt in asked)
            )
        return [answer.choices[0].text for answer in answers]

    answers = asyncio.run(ask_all())
    wrong = [pair for pair, answer in zip(asked, answers, strict=True) if answer != expected[pair]]
    assert not wrong, f"{len(wrong)} of 1000 differ, the first is {wrong[0]}"
