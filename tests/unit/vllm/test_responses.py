"""Answers rewritten whole and event by event, however they are cut on the way."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from antefix.vllm.responses import ResponseRewriter, in_terms_of, naming_how_many


def pass_through(
    parts: list[bytes], content_type: bytes, change: Any, status: int = 200, of: int = 200
) -> tuple[Any, bytes]:
    """Return headers and body of an answer that came in parts."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def run() -> None:
        rewriting = ResponseRewriter(send, change, status=of)
        headers = [(b"content-type", content_type), (b"content-length", b"999")]
        await rewriting({"type": "http.response.start", "status": status, "headers": headers})
        for number, part in enumerate(parts, start=1):
            await rewriting({"type": "http.response.body", "body": part, "more_body": number < len(parts)})

    asyncio.run(run())
    start, *bodies = sent
    assert start["type"] == "http.response.start"
    return dict(start["headers"]), b"".join(body["body"] for body in bodies)


ANSWER = {"model": "base", "usage": {"prompt_tokens": 5, "prompt_tokens_details": {"cached_tokens": 70}}, "text": "é"}
CHANGE = in_terms_of("legal", 64)


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_a_whole_answer(size: int) -> None:
    body = json.dumps(ANSWER).encode()
    headers, changed = pass_through(
        [body[i : i + size] for i in range(0, len(body), size)], b"application/json", CHANGE
    )
    usage = {"prompt_tokens": 5, "prompt_tokens_details": {"cached_tokens": 6}, "virtual_tokens": 64}
    assert json.loads(changed) == ANSWER | {"model": "legal", "usage": usage}
    assert headers[b"content-length"] == str(len(changed)).encode()


@pytest.mark.parametrize("size", [1, 5, 1000])
def test_a_stream(size: int) -> None:
    events = [json.dumps({"model": "base", "n": n, "usage": None}) for n in range(3)]
    body = b": keep-alive\n\n" + "".join(f"data: {event}\n\n" for event in events).encode() + b"data: [DONE]\n\n"
    parts = [body[i : i + size] for i in range(0, len(body), size)]
    _, changed = pass_through([*parts, b""], b"text/event-stream; charset=utf-8", CHANGE)
    first, *data, done, rest = changed.split(b"\n\n")
    assert (first, done, rest) == (b": keep-alive", b"data: [DONE]", b"")
    assert [json.loads(event.removeprefix(b"data: "))["model"] for event in data] == ["legal"] * 3


def test_a_stream_that_ends_in_the_middle_is_passed_on() -> None:
    _, changed = pass_through([b'data: {"model": "ba', b""], b"text/event-stream", CHANGE)
    assert changed == b'data: {"model": "ba'


def test_other_answers_pass_untouched() -> None:
    for content_type, body in (
        (b"text/plain", b"{}"),
        (b"application/json", b'["model"]'),
        (b"application/json", b""),
        (b"application/json", b'{"model": "ba'),
    ):
        assert pass_through([body], content_type, CHANGE)[1] == body
    body = b'{"model": "base"}'
    assert pass_through([body], b"application/json", CHANGE, status=400)[1] == body


def test_an_unknown_name_is_told_how_many_there_are() -> None:
    change = naming_how_many(32)
    body = json.dumps({"error": {"message": "The model `x` does not exist."}}).encode()
    _, changed = pass_through([body], b"application/json", change, status=404, of=404)
    assert json.loads(changed)["error"]["message"].startswith("The model `x` does not exist. This server has")
    assert "32 prefixes" in changed.decode()
    assert pass_through([body], b"application/json", change, status=400, of=404)[1] == body
    other = {"error": {"message": "Response with id 'x' not found.", "param": "response_id"}}
    assert (
        json.loads(pass_through([json.dumps(other).encode()], b"application/json", change, status=404, of=404)[1])
        == other
    )
