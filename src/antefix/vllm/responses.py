"""What vLLM responds, told in the client's terms: the name it asked for, and the virtual tokens beside its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeAlias

from antefix.vllm.asgi import Message, Send, of_length

Change: TypeAlias = Callable[[dict[str, Any]], None]
"""Changes the JSON of an answer in place."""


def in_terms_of(name: str, num_virtual_tokens: int) -> Change:
    """Return the change to an answer, or to one event of a stream: its model's name, and its usage."""

    def change(answer: dict[str, Any]) -> None:
        if "model" in answer:
            answer["model"] = name
        usage = answer.get("usage")
        if isinstance(usage, dict):
            usage["virtual_tokens"] = num_virtual_tokens
            details = usage.get("prompt_tokens_details")
            if isinstance(details, dict) and isinstance(details.get("cached_tokens"), int):
                details["cached_tokens"] = max(0, details["cached_tokens"] - num_virtual_tokens)

    return change


def naming_how_many(num_prefixes: int) -> Change:
    """Return the change to vLLM's error for a model it does not have: how many prefixes there are."""

    def change(answer: dict[str, Any]) -> None:
        error = answer.get("error")
        if isinstance(error, dict) and error.get("param", "model") == "model":
            known = f"This server has its base model and {num_prefixes} prefixes; GET /v1/models lists them."
            error["message"] = f"{error.get('message', '')} {known}".strip()

    return change


class ResponseRewriter:
    """An ASGI `send` that changes answers of one status, JSON whole and event streams event by event."""

    def __init__(self, send: Send, change: Change, status: int = 200) -> None:
        self._send = send
        self._change = change
        self._status = status
        self._start: Message | None = None
        self._body = b""
        self._content_type = b""

    async def __call__(self, message: Message) -> None:
        """Pass on one message of an answer."""
        if message["type"] == "http.response.start" and message["status"] == self._status:
            self._content_type = dict(message["headers"]).get(b"content-type", b"")
            if self._is(b"application/json"):
                self._start = message  # its length is known only when the body is
                return
        elif message["type"] == "http.response.body":
            if self._is(b"application/json"):
                await self._gather(message)
                return
            if self._is(b"text/event-stream"):
                message = {**message, "body": self._events(message)}
        await self._send(message)

    def _is(self, content_type: bytes) -> bool:
        return self._content_type.startswith(content_type)

    async def _gather(self, message: Message) -> None:
        self._body += message.get("body", b"")
        if message.get("more_body"):
            return
        assert self._start is not None
        body = self._changed(self._body)
        await self._send({**self._start, "headers": of_length(self._start["headers"], len(body))})
        await self._send({"type": "http.response.body", "body": body})

    def _events(self, message: Message) -> bytes:
        *whole, self._body = (self._body + message.get("body", b"")).split(b"\n\n")
        rest = b""
        if not message.get("more_body"):
            rest, self._body = self._body, b""
        return b"".join(self._event(event) + b"\n\n" for event in whole) + rest

    def _event(self, event: bytes) -> bytes:
        is_json = event.startswith(b"data: {")
        return b"data: " + self._changed(event.removeprefix(b"data: ")) if is_json else event

    def _changed(self, body: bytes) -> bytes:
        try:
            answer = json.loads(body)
        except ValueError:
            return body
        if not isinstance(answer, dict):
            return body
        self._change(answer)
        return json.dumps(answer, ensure_ascii=False, separators=(",", ":")).encode()
